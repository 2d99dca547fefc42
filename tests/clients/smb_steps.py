"""What Samba clients do, step by step: one line for each step with what came of it.

    smb_steps.py SHARE SMB.CONF PASSWORD

Nothing that is printed depends on which directory is shared. Locks between clients are in smbtorture's suites: smbclient's
own wait, and give up after a time.
"""

import hashlib
import os
import random
import re
import subprocess
import sys
import tempfile

SHARE, CONFIG, PASSWORD = sys.argv[1:]
CLIENT = ["smbclient", "-s", CONFIG, "-U", f"root%{PASSWORD}", f"//127.0.0.1/{SHARE}"]
# smbclient speaks the extensions for Unix (symlinks, modes) in the oldest dialect only.
UNIX = CLIENT + ["-m", "NT1"]
RANDOM = random.Random(7)
HERE = tempfile.TemporaryDirectory()

# What differs from one run to the next: rates, times, numbers of inodes and of open files.
VARYING = [
    (re.compile(r" \([0-9.,]+ .i?[bB]ytes/sec\)| \([0-9.]+ kb/s\)| \(average [^)]*\)| of size [0-9]+ as \S+ \(.*"), ""),
    (re.compile(r"^(create|access|write|change)_time:.*|^(Access|Modify|Change): \d{4}-.*|.*blocks of size.*"), ""),
    (re.compile(r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d \d{4}( UTC)?"), "TIME"),
    (re.compile(r"Inode: \d+"), "Inode"),
    (re.compile(r"Blocks: \d+"), "Blocks"),
    (re.compile(r"fnum \d+"), "fnum"),
    (re.compile(re.escape(HERE.name)), "HERE"),
    (re.compile(r"^Server supports.*|^smb: \\> *|^\s*\.\.? .*"), ""),
]


def said(text):
    lines = []
    for line in text.splitlines():
        for pattern, word in VARYING:
            line = pattern.sub(word, line)
        lines.append(" ".join(line.split()))
    return " | ".join(sorted(line for line in lines if line)) or "-"


def step(name, commands, client=CLIENT):
    done = subprocess.run(client + ["-c", commands], capture_output=True, text=True, errors="surrogateescape", timeout=120)
    print(f"{name}: {done.returncode} {said(done.stdout + done.stderr)!r}", flush=True)


def local(name, data=b""):
    path = os.path.join(HERE.name, name)
    with open(path, "wb") as file:
        file.write(data)
    return path


def fetched(name, remote):
    """Gets a file and prints what is in it."""
    path = os.path.join(HERE.name, "fetched")
    step(f"get {name}", f'get "{remote}" {path}')
    if os.path.exists(path):
        with open(path, "rb") as file:
            data = file.read()
        os.unlink(path)
        print(f"content of {name}: {len(data)} bytes {hashlib.sha256(data).hexdigest()[:16]}", flush=True)


def files():
    big = RANDOM.randbytes(6 << 20) * 4
    step("put", f"put {local('small', b'hello samba')} small; allinfo small")
    fetched("small", "small")
    step("put big", f"put {local('big', big)} big")
    fetched("big", "big")
    step("put shorter over it", f"put {local('shorter', big[:1_000_000])} big; ls big")
    fetched("shorter", "big")
    step("put the rest", f"reput {local('big', big[:3_000_000])} big; ls big")
    fetched("the rest", "big")
    step("copy on the server", "scopy big copied; ls copied")
    fetched("copied", "copied")
    step("hard link", "hardlink small linked; allinfo linked")
    step("rename", "rename small renamed; ls small; ls renamed")
    step("rename over another", "rename copied renamed")
    step("rename over another by force", "rename copied renamed -f; ls")
    step("read-only", "setmode renamed +r; allinfo renamed; del renamed")
    step("no longer", "setmode renamed -r +h +s; allinfo renamed; ls")
    step("times", "utimes renamed 2001:02:03-04:05:06 1970:01:02-00:00:01 2037:06:07-08:09:10 -1; ls renamed")
    step("set an extended attribute", "setea renamed flavour sweet; setea renamed empty x; geteas renamed")
    step("access list", "showacls; ls renamed")
    step("stream", f"put {local('stream', b'in a stream' * 90)} renamed:other; allinfo renamed")
    fetched("the stream", "renamed:other")
    step("remove", "del renamed; allinfo renamed; del linked; del linked")


def directories():
    step("make", "mkdir a; mkdir a/b; mkdir a; ls; cd a; ls")
    step("remove a full one", "rmdir a")
    step("rename", "rename a c; ls c; rename c c/b/d; rename c/b b; ls; ls c")
    step("case", "ls C; mkdir C; cd c; cd ..; rmdir c")
    names = ["blank in it", "ümläut", "日本語 😀", "ελλ", "-dash", "x" * 255, "y" * 256, "semi,colon", "Ünï Cödé" * 10, "a'b"]
    for name in names:
        step(f"name {name[:20]} {len(name)}", f'put {local("odd", name.encode())} "{name}"; ls "{name}"')
        fetched(f"{name[:20]}", name)
    step("listing", "ls")
    many = os.path.join(HERE.name, "many")
    for number in range(150):
        os.makedirs(f"{many}/dir-{number % 7}/deep", exist_ok=True)
        with open(f"{many}/dir-{number % 7}/deep/file-{number}", "wb") as file:
            file.write(RANDOM.randbytes(number * 37))
    step("many", f"lcd {HERE.name}; prompt off; recurse on; mput many")
    step("all of them", "recurse on; ls many")
    step("remove many", "deltree many/dir-1; recurse on; cd many; del file-1*; ls")


def unix():
    step("posix make", f"put {local('p', b'posix')} p; posix; posix_mkdir pd 0750; symlink p s; link p l; stat l; stat s; "
                       "readlink s; symlink missing dangling; stat dangling", UNIX)
    step("posix modes", "posix; chmod 4711 p; stat p; chown 1234 4321 p; stat p; chmod 02775 pd; stat pd; getfacl p", UNIX)
    step("posix remove", "posix; posix_rmdir p; posix_unlink pd; posix_unlink s; posix_rmdir pd; posix_unlink missing", UNIX)


def together():
    """Four clients at once: three write files of their own, one reads what is there."""
    writers = []
    for number in range(3):
        path = local(f"own-{number}", RANDOM.randbytes(2 << 20))
        commands = "; ".join(f"put {path} together-{number}; rename together-{number} t-{number}-{turn} -f" for turn in range(8))
        writers.append(subprocess.Popen(CLIENT + ["-c", commands], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    for _ in range(5):
        fetched("big while others write", "big")
    print("writers:", [writer.wait(timeout=120) for writer in writers])
    step("what they left", "ls t-*")
    for number in range(3):
        fetched(f"what {number} wrote", f"t-{number}-7")


files()
directories()
unix()
together()
print("done")
