"""libnfs by ctypes: the calls that the NFS scenarios need, with OSError for what a server refuses."""

import ctypes
import errno
import os
import re
from ctypes import POINTER, byref, c_char_p, c_int, c_uint32, c_uint64, c_void_p

LIB = ctypes.CDLL("libnfs.so.13")
for function in ("nfs_init_context", "nfs_readdir"):
    getattr(LIB, function).restype = c_void_p
LIB.nfs_get_error.restype = c_char_p

# Bytes in one request, by version: libnfs 4.0 encodes a longer write of version 4 into too small a buffer.
CHUNK = {3: 64 << 10, 4: 2 << 10}
# nfs_fcntl (NFS version 4 only)
SETLK = 0


class Stat(ctypes.Structure):
    _fields_ = [(name, c_uint64) for name in (
        "dev ino mode nlink uid gid rdev size blksize blocks atime mtime ctime "
        "atime_nsec mtime_nsec ctime_nsec used").split()]


class Flock(ctypes.Structure):
    _fields_ = [("type", c_int), ("whence", c_int), ("pid", c_uint32), ("start", c_uint64), ("len", c_uint64)]


class Entry(ctypes.Structure):
    # The beginning of struct nfsdirent; the rest is not looked at.
    _fields_ = [("next", c_void_p), ("name", c_char_p), ("inode", c_uint64)]


class Timeval(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_long), ("usec", ctypes.c_long)]


class Client:
    """One NFS client: a connection and an identity of its own."""

    count = 0

    def __init__(self, export, version, uid=0, gid=0):
        self.export, self.version, self.identity = export, version, (uid, gid)
        self.files = 0
        self.connect()

    def connect(self):
        Client.count += 1
        self.context = c_void_p(LIB.nfs_init_context())
        # By default all that one process makes within a second are one client to a server of version 4.
        LIB.nfs4_set_client_name(self.context, f"dtfs-test-{os.getpid()}-{Client.count}".encode())
        LIB.nfs_set_version(self.context, self.version)
        LIB.nfs_set_uid(self.context, self.identity[0])
        LIB.nfs_set_gid(self.context, self.identity[1])
        # The server is started again while clients hold files.
        LIB.nfs_set_autoreconnect(self.context, -1)
        self.call("mount", b"127.0.0.1", self.export.encode())

    def call(self, name, *args):
        """nfs_NAME(context, args...): its result, or OSError with the errno that libnfs makes of the server's answer."""
        result = getattr(LIB, "nfs_" + name)(self.context, *args)
        if result >= 0:
            return result or None
        said = re.search(r"NFS\dERR_\w+", (LIB.nfs_get_error(self.context) or b"").decode(errors="replace"))
        if self.version == 4 and self.files == 0 and name != "mount":
            # After an open that the server refused, libnfs 4.0 counts on wrongly and nothing can be opened any more.
            LIB.nfs_destroy_context(self.context)
            self.connect()
        raise OSError(-result, said[0] if said else "")

    def open(self, path, flags=os.O_RDWR, mode=0o644):
        if flags & os.O_CREAT:
            self.create(path, flags & os.O_EXCL, mode)
            flags |= os.O_RDWR
        handle = c_void_p()
        self.call("open", path, flags & (os.O_ACCMODE | os.O_APPEND | os.O_SYNC | os.O_TRUNC), byref(handle))
        return File(self, handle)

    def create(self, path, exclusive, mode):
        """In version 4 libnfs 4.0 knows only the exclusive kind, which leaves no place for a mode."""
        handle = c_void_p()
        try:
            self.call("create", path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode, byref(handle))
            self.call("close", handle)
            self.call("chmod", path, mode)
        except OSError as error:
            if exclusive or error.errno != errno.EEXIST:
                raise

    def stat(self, path):
        found = Stat()
        self.call("lstat64", path, byref(found))
        return found

    def readlink(self, path):
        text = ctypes.create_string_buffer(8192)
        self.call("readlink", path, text, len(text))
        return text.value

    def utimes(self, path, access, modified):
        times = (Timeval * 2)(Timeval(*access), Timeval(*modified))
        self.call("utimes", path, times)

    def list(self, path):
        """The names in a directory, sorted, without "." and ".."."""
        directory = c_void_p()
        self.call("opendir", path, byref(directory))
        names = []
        while entry := LIB.nfs_readdir(self.context, directory):
            names.append(ctypes.cast(entry, POINTER(Entry)).contents.name)
        LIB.nfs_closedir(self.context, directory)
        return sorted(name for name in names if name not in (b".", b".."))


class File:
    """An open file of one client."""

    def __init__(self, client, handle):
        self.client, self.handle = client, handle
        client.files += 1

    def write(self, offset, data):
        done = 0
        while done < len(data):
            chunk = data[done:done + CHUNK[self.client.version]]
            wrote = self.client.call("pwrite", self.handle, c_uint64(offset + done), c_uint64(len(chunk)), chunk)
            done += wrote
        return done

    def append(self, data):
        return self.client.call("write", self.handle, c_uint64(len(data)), data)

    def read(self, offset, length):
        data = b""
        while len(data) < length:
            want = min(length - len(data), CHUNK[self.client.version])
            buffer = ctypes.create_string_buffer(want)
            got = self.client.call("pread", self.handle, c_uint64(offset + len(data)), c_uint64(want), buffer)
            if not got:
                break
            data += buffer.raw[:got]
        return data

    def stat(self):
        found = Stat()
        self.client.call("fstat64", self.handle, byref(found))
        return found

    def truncate(self, size):
        self.client.call("ftruncate", self.handle, c_uint64(size))

    def sync(self):
        self.client.call("fsync", self.handle)

    def lock(self, kind, start, length):
        """Takes (fcntl.F_RDLCK, F_WRLCK) or gives back (F_UNLCK) a range of bytes, without waiting."""
        self.client.call("fcntl", self.handle, SETLK, byref(Flock(kind, os.SEEK_SET, 0, start, length)))

    def close(self):
        self.client.files -= 1
        self.client.call("close", self.handle)
