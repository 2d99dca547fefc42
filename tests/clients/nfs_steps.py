"""What an NFS client does, step by step: one line for each step with what came of it.

    nfs_steps.py EXPORT VERSION

Nothing that is printed depends on which directory is exported. Between some steps it prints "@ word" and waits for a
line on its standard input: the test then does something to the server.
"""

import errno
import fcntl
import hashlib
import os
import random
import stat
import sys
import threading

from libnfs import Client

EXPORT, VERSION = sys.argv[1], int(sys.argv[2])
RANDOM = random.Random(5)
BIG = RANDOM.randbytes(3 << 20) * 4 if VERSION == 3 else RANDOM.randbytes(1 << 20)

SIDE = Client(EXPORT, VERSION)
ROOT = Client(EXPORT, VERSION)
USER = Client(EXPORT, VERSION, uid=1234, gid=1234)


def step(name, action, *args):
    """Prints what `action` gives, or the error it ends with; None for an error."""
    try:
        result = action(*args)
        print(f"{name}: {'ok' if result is None else result}", flush=True)
        return result
    except OSError as error:
        print(f"{name}: {errno.errorcode.get(error.errno, error.errno)} {error.strerror}", flush=True)
        return None


def ask(word):
    print(f"@ {word}", flush=True)
    sys.stdin.readline()


def digest(data):
    return f"{len(data)} bytes {hashlib.sha256(data).hexdigest()[:16]}"


def facts(client, path):
    found = client.stat(path)
    size = 0 if stat.S_ISDIR(found.mode) else found.size
    links = 0 if stat.S_ISDIR(found.mode) else found.nlink
    return f"{found.mode:o} {found.uid}:{found.gid} links {links} size {size} mtime {found.mtime % 1000 if found.mtime < 10**9 else 'now'}"


def put(client, path, data, mode=0o644):
    file = client.open(path, os.O_CREAT | os.O_TRUNC, mode)
    file.write(0, data)
    file.sync()
    file.close()


def get(client, path, length=1 << 30):
    file = client.open(path, os.O_RDONLY)
    data = file.read(0, length)
    file.close()
    return data


def files():
    step("mkdir", ROOT.call, "mkdir2", b"/share", 0o777)
    step("chmod directory", ROOT.call, "chmod", b"/share", 0o2777)
    step("create", put, ROOT, b"/share/small", b"hello nfs\n")
    step("create exclusively", ROOT.open, b"/share/small", os.O_CREAT | os.O_EXCL)
    step("read", lambda: get(ROOT, b"/share/small"))
    step("big file", put, ROOT, b"/share/big", BIG)
    step("read it back", lambda: digest(get(ROOT, b"/share/big")))
    hole = step("file with a hole", holes)
    step("what it reads", lambda: digest(get(ROOT, b"/share/hole")))
    step("append", append)
    step("after append", lambda: get(SIDE, b"/share/small"))
    for size in (3, 100_000, 0, 70_000):
        step(f"truncate {size}", ROOT.call, "truncate", b"/share/hole", size)
        step(f"after truncate {size}", lambda: digest(get(ROOT, b"/share/hole")))
    step("overwrite in the middle", patch)
    step("after overwriting", lambda: digest(get(ROOT, b"/share/big")))
    return hole


def holes():
    file = ROOT.open(b"/share/hole", os.O_CREAT)
    file.write(5 << 20, b"far away")
    file.write(100, b"near")
    file.close()


def append():
    file = ROOT.open(b"/share/small", os.O_RDWR | os.O_APPEND)
    file.append(b"one more\n")
    file.append(b"and one more\n")
    file.close()


def patch():
    file = ROOT.open(b"/share/big")
    for _ in range(50):
        file.write(RANDOM.randrange(len(BIG) - 9000), RANDOM.randbytes(RANDOM.randrange(1, 9000)))
    file.close()


def attributes():
    step("chmod suid", ROOT.call, "chmod", b"/share/small", 0o6755)
    step("a write by a stranger", lambda: patch_as(USER))
    step("chmod for all", ROOT.call, "chmod", b"/share/small", 0o6777)
    step("a write by another", lambda: patch_as(USER))
    step("what is left of suid", facts, ROOT, b"/share/small")
    step("chown", ROOT.call, "chown", b"/share/small", 1234, 4321)
    step("chown by a user", USER.call, "chown", b"/share/small", 0, 0)
    step("chmod by its owner", USER.call, "chmod", b"/share/small", 0o600)
    step("after chown", facts, ROOT, b"/share/small")
    step("utimes", ROOT.utimes, b"/share/small", (12345, 0), (54321, 250_000))
    step("after utimes", facts, ROOT, b"/share/small")
    step("a file in a setgid directory", put, USER, b"/share/by-user", b"mine", 0o640)
    step("its owner", facts, ROOT, b"/share/by-user")
    step("a directory in it", USER.call, "mkdir2", b"/share/dir-by-user", 0o750)
    step("its mode", facts, ROOT, b"/share/dir-by-user")
    step("access by a stranger", Client(EXPORT, VERSION, 77, 77).call, "opendir", b"/share/dir-by-user", b"\0" * 8)


def patch_as(client):
    file = client.open(b"/share/small")
    file.write(0, b"HELLO")
    file.close()


def names():
    step("symlink", ROOT.call, "symlink", b"small", b"/share/symlink")
    step("readlink", ROOT.readlink, b"/share/symlink")
    step("long symlink", ROOT.call, "symlink", b"x/" * 500, b"/share/long-symlink")
    step("link", ROOT.call, "link", b"/share/small", b"/share/second-name")
    step("links", facts, ROOT, b"/share/second-name")
    step("link over a name", ROOT.call, "link", b"/share/big", b"/share/second-name")
    step("link of a directory", ROOT.call, "link", b"/share/dir-by-user", b"/share/dir-link")
    for kind, mode in (("fifo", stat.S_IFIFO), ("socket", stat.S_IFSOCK), ("device", stat.S_IFCHR)):
        step(f"mknod {kind}", ROOT.call, "mknod", f"/share/{kind}".encode(), mode | 0o600, 0x103)
        step(f"facts of {kind}", facts, ROOT, f"/share/{kind}".encode())
    for length in (255, 256):
        step(f"name of {length} bytes", put, ROOT, b"/share/" + b"n" * length, b"long name")
    for name in (b"ae\xcc\x88-u\xc3\xa4", b"\xff\xfe odd", b"new\nline", b" blank ", b"-dash", b"back\\slash", b"t\x01\x7f",
                 "ελληνικά 日本語 😀".encode(), b"..."):
        step(f"name {name!r}", put, ROOT, b"/share/" + name, name)
        step(f"content of {name!r}", lambda: get(SIDE, b"/share/" + name))
    step("listing", lambda: ROOT.list(b"/share"))


def renames():
    step("rename", ROOT.call, "rename", b"/share/big", b"/share/renamed")
    step("rename over", ROOT.call, "rename", b"/share/hole", b"/share/second-name")
    step("rename over a directory", ROOT.call, "rename", b"/share/renamed", b"/share/dir-by-user")
    step("rename what is not there", ROOT.call, "rename", b"/share/big", b"/share/x")
    step("directory", ROOT.call, "mkdir", b"/share/a")
    step("directory below", ROOT.call, "mkdir", b"/share/a/b")
    step("rename into itself", ROOT.call, "rename", b"/share/a", b"/share/a/b/c")
    step("rename over a full directory", ROOT.call, "rename", b"/share/dir-by-user", b"/share/a")
    step("rename of a directory", ROOT.call, "rename", b"/share/a/b", b"/share/b")
    step("rename to itself by a second name", ROOT.call, "rename", b"/share/second-name", b"/share/second-name")
    step("rmdir of a full directory", ROOT.call, "rmdir", b"/share")
    step("rmdir", ROOT.call, "rmdir", b"/share/b")
    step("rmdir of a file", ROOT.call, "rmdir", b"/share/small")
    step("unlink of a directory", ROOT.call, "unlink", b"/share/a")
    step("unlink", ROOT.call, "unlink", b"/share/symlink")
    step("unlink again", ROOT.call, "unlink", b"/share/symlink")
    step("listing after renames", lambda: ROOT.list(b"/share"))


def open_files():
    """A file in use by one client is renamed, replaced and removed by another."""
    step("a file", put, ROOT, b"/share/used", b"0123456789")
    file = step_open("open", ROOT, b"/share/used")
    step("renamed by another", SIDE.call, "rename", b"/share/used", b"/share/used-2")
    step("write after rename", file.write, 2, b"ab")
    step("read after rename", file.read, 0, 100)
    step("replaced by another", put, SIDE, b"/share/used-3", b"replacement")
    step("renamed over by another", SIDE.call, "rename", b"/share/used-3", b"/share/used-2")
    step("read after replacement", file.read, 0, 100)
    step("write after replacement", file.write, 0, b"zz")
    step("close", file.close)
    step("what is there", lambda: get(ROOT, b"/share/used-2"))
    file = step_open("open again", ROOT, b"/share/used-2")
    step("removed by another", SIDE.call, "unlink", b"/share/used-2")
    step("read after removal", file.read, 0, 100)
    step("close after removal", file.close)


def step_open(name, client, path):
    print(f"{name}: ", end="")
    file = client.open(path)
    print("ok", flush=True)
    return file


def many():
    step("directory for many", ROOT.call, "mkdir", b"/many")
    for number in range(200):
        put(ROOT, f"/many/file-{number:04}".encode(), f"content {number}\n".encode() * (number % 7))
    for number in range(0, 200, 3):
        ROOT.call("unlink", f"/many/file-{number:04}".encode())
    for number in range(1, 200, 3):
        ROOT.call("rename", f"/many/file-{number:04}".encode(), f"/many/renamed-{number:04}".encode())
    listing = ROOT.list(b"/many")
    step("listing of many", lambda: f"{len(listing)} {hashlib.sha256(b'/'.join(listing)).hexdigest()}")
    step("all of them", lambda: digest(b"".join(get(SIDE, b"/many/" + name) for name in listing)))


def reading_while_writing():
    """One client appends numbered blocks, another reads: what it sees is always a beginning of what is written."""
    blocks, size = 60, 20_000 if VERSION == 3 else 2_000
    put(ROOT, b"/share/growing", b"")
    writer = ROOT.open(b"/share/growing")
    reader = SIDE.open(b"/share/growing", os.O_RDONLY)
    wrong = []
    lasting = threading.Event()

    def read():
        while True:
            last = lasting.is_set()
            data = reader.read(0, blocks * size)
            if any(data[at] != at // size % 251 for at in range(0, len(data), 999)):
                wrong.append(len(data))
            if last:
                return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for number in range(blocks):
            writer.write(number * size, bytes([number % 251]) * size)
    finally:
        lasting.set()
        thread.join()
    print(f"reading while writing: {wrong or 'ok'}")
    step("size for the reader", lambda: reader.stat().size)
    writer.close()
    reader.close()


def locks():
    """Ranges of one file that clients lock: some conflict, and what was granted stays with its client."""
    read, write, free = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
    put(ROOT, b"/share/locked", b"x" * 1000)
    one = ROOT.open(b"/share/locked")
    step("lock: one writes 0-99", one.lock, write, 0, 100)
    step("lock: one reads 200-299", one.lock, read, 200, 100)
    for name, kind, start, length in (("writes 50-149", write, 50, 100), ("reads 99", read, 99, 1),
                                      ("writes 100-199", write, 100, 100), ("reads 250", read, 250, 1),
                                      ("writes 299", write, 299, 1), ("writes 150", write, 150, 1),
                                      ("writes all", write, 0, 2**64 - 1)):
        step(f"lock: another {name}", lock_once, kind, start, length)
    step("lock: one gives back 50-99", one.lock, free, 50, 50)
    step("lock: another writes 50-99", lock_once, write, 50, 50)
    step("lock: another writes 49", lock_once, write, 49, 1)
    step("lock: one writes 250", one.lock, write, 250, 1)
    step("write under a lock", one.write, 0, b"locked")
    step("close of the holder", one.close)


def lock_once(kind, start, length):
    """By a client of its own that does nothing afterwards: after a lock libnfs 4.0 counts on wrongly."""
    Client(EXPORT, VERSION).open(b"/share/locked").lock(kind, start, length)


def handles():
    """Files that stay open while the server forgets, and in version 3 while everything is started again."""
    put(ROOT, b"/share/kept", b"before" * 1000)
    file = ROOT.open(b"/share/kept")
    step("read before", lambda: digest(file.read(0, 10_000)))
    ask("drop caches")
    step("read after drop_caches", lambda: digest(file.read(0, 10_000)))
    step("write after drop_caches", file.write, 6000, b"dropped")
    step("rename while open", SIDE.call, "rename", b"/share/kept", b"/share/kept-2")
    if VERSION == 3:
        ask("restart")
        step("read after restart", lambda: digest(file.read(0, 10_000)))
        step("write after restart", file.write, 3, b"restarted")
        step("size after restart", lambda: file.stat().size)
        step("rename after restart", ROOT.call, "rename", b"/share/kept-2", b"/share/kept-3")
        step("removed after restart", SIDE.call, "unlink", b"/share/renamed")
        ask("restart")
        step("read after the second restart", lambda: digest(file.read(0, 10_000)))
        step("removed", SIDE.call, "unlink", b"/share/kept-3")
        ask("drop caches")
        step("read after removal and drop_caches", lambda: digest(file.read(0, 10_000)))
    step("close at the end", file.close)


files()
attributes()
names()
renames()
open_files()
many()
reading_while_writing()
if VERSION == 4:
    locks()
handles()
print("done")
