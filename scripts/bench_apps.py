"""Applications and access patterns: native, on the mount without and with a local target, and through two other stacking
filesystems with their default options. Called by bench.py."""

import contextlib
import os
import random
import re
import sqlite3
import statistics
import subprocess
import time

import bench
from bench import MIB, timed

PLACES = ["native", "mount", "target", "bindfs", "mergerfs"]
RANDOM_MIB = 128
# Nothing is deleted between rows, and mergerfs creates nothing where less than 4 GiB are free (its default minfreespace).
DISK_GIB = 40


def run(*command, **options):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)


def copy(directory, options):
    bench.untar(directory, options)
    return timed(lambda: run("cp", "-a", directory / "tree", directory / "copy"))


def clone(directory, options):
    return timed(lambda: run("git", "clone", "--no-local", options.repository, directory / "clone"))


def remove(directory, options):
    bench.untar(directory, options)
    return timed(lambda: run("rm", "-rf", directory / "tree"))


def compile_c(directory, _options):
    for i in range(20):
        body = "".join(f"int f{i}_{n}(int x) {{ return printf(\"%d\", x + {n}); }}\n" for n in range(200))
        (directory / f"m{i}.c").write_text("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n" + body)
    return timed(lambda: [run("cc", "-O1", "-c", f"m{i}.c", cwd=directory) for i in range(20)])


def sqlite(directory, options, mode):
    database = sqlite3.connect(directory / "db", isolation_level=None)
    database.execute(f"PRAGMA journal_mode={mode}")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)")

    def work():
        for i in range(options.synced):
            database.execute("INSERT INTO t VALUES (?, ?)", (i, "x" * 200))

    with contextlib.closing(database):
        return timed(work)


def random_writes(directory, options, synced):
    count = options.synced if synced else options.small
    block, chosen = os.urandom(4096), random.Random(1)
    path = directory / "random"
    with open(path, "wb", buffering=0) as file:
        for _ in range(RANDOM_MIB):
            file.write(bytes(MIB))
        os.fsync(file.fileno())
    fd = os.open(path, os.O_WRONLY)

    def work():
        for _ in range(count):
            os.pwrite(fd, block, chosen.randrange(RANDOM_MIB * 256) * 4096)
            if synced:
                os.fsync(fd)

    try:
        return timed(work)
    finally:
        os.close(fd)


def read_cached(directory, options):
    bench.read_big(directory, options)
    read = lambda: run("dd", f"if={directory / 'big'}", "of=/dev/null", "bs=1M")
    read()
    return timed(read)


def write_big(directory, options):
    """Without the final fsync: the disk's own speed would hide the rest."""
    return timed(lambda: run("dd", "if=/dev/zero", f"of={directory / 'big'}", "bs=1M", f"count={options.mib}"))


def dbench(directory, _options):
    """Seconds for one GiB at the throughput that dbench found, so that larger is slower here too."""
    command = ["dbench", "-D", directory, "-t", "10", "2"]
    done = []
    timed(lambda: done.append(subprocess.run(command, check=True, capture_output=True, text=True)))
    return 1024 / float(re.search(r"Throughput ([0-9.]+) MB/sec", done[0].stdout).group(1))


ROWS = [
    ("untar", bench.untar),
    ("cp -a", copy),
    ("git clone", clone),
    ("rm -rf", remove),
    ("compile", compile_c),
    ("sqlite, rollback journal", lambda d, o: sqlite(d, o, "DELETE")),
    ("sqlite, wal", lambda d, o: sqlite(d, o, "WAL")),
    ("4 KiB random writes", lambda d, o: random_writes(d, o, False)),
    ("4 KiB write + fsync", lambda d, o: random_writes(d, o, True)),
    ("1 MiB reads, cold", bench.read_big),
    ("1 MiB reads, cached", read_cached),
    ("1 MiB writes", write_big),
    ("dbench, 2 clients", dbench),
]


@contextlib.contextmanager
def peer(command, path):
    """Another stacking filesystem in the foreground, until its mount is taken down."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not os.path.ismount(path):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not mount")
            time.sleep(0.02)
        yield
    finally:
        subprocess.run(["umount", path], check=False, stderr=subprocess.DEVNULL)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            subprocess.run(["umount", "--lazy", path], check=False, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def profiled(report):
    """Counts where the processors are while something runs. Native frames are not followed: who calls whom is not shown."""
    data = report.with_suffix(".data")
    (order, orders), (answers, answer) = os.pipe(), os.pipe()
    command = ["perf", "record", "-q", "-a", "-F", "997", "-e", "cpu-clock", "-o", data, "-D", "-1"]
    recorder = subprocess.Popen([*command, "--control", f"fd:{order},{answer}"], pass_fds=(order, answer))

    def ask(what):
        os.write(orders, f"{what}\n".encode())
        if not os.read(answers, 5).startswith(b"ack"):
            raise RuntimeError(f"perf does not {what}")

    try:
        ask("enable")
        yield
        ask("disable")
    finally:
        recorder.terminate()
        recorder.wait()
        for fd in (order, orders, answers, answer):
            os.close(fd)
    with open(report, "w") as text:
        for sort in ("comm", "comm,dso,symbol"):
            subprocess.run(["perf", "report", "--stdio", "-i", data, "--sort", sort, "--percent-limit", "0.4"], stdout=text, check=True)
    data.unlink()


def one_round(options, scratch, number):
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(bench.Ext4(scratch, DISK_GIB))
        places = {name: disk / name for name in PLACES}
        for path in (*places.values(), disk / "replica", disk / "host", disk / "bindfs-behind", disk / "mergerfs-behind"):
            path.mkdir()
        host = stack.enter_context(bench.Host(options.binary, disk / "host"))
        for name in ("mount", "target"):
            host.define(name, places[name])
        host.start()
        host.attach("target", disk / "replica")
        stack.enter_context(peer(["bindfs", "-f", disk / "bindfs-behind", places["bindfs"]], places["bindfs"]))
        stack.enter_context(peer(["mergerfs", "-f", disk / "mergerfs-behind", places["mergerfs"]], places["mergerfs"]))
        return {title: one_row(title, workload, places, host, options, number) for title, workload in rows(options)}


def rows(options):
    return [(title, workload) for title, workload in ROWS if not options.row or options.row in title]


def one_row(title, workload, places, host, options, number):
    """The order of the places moves on with each round."""
    order = PLACES[number % len(PLACES) :] + PLACES[: number % len(PLACES)]
    settled = {"target": lambda: host.wait("target")}
    seconds = {}
    for name in order:
        if options.profile and name == "mount":
            options.profile.mkdir(parents=True, exist_ok=True)
            report = options.profile / f"{bench.WORDS.sub('-', title)}-{number}.txt"
            bench.around = lambda report=report: profiled(report)
        seconds[name] = bench.measure_place(name, places[name], title, workload, options, settled.get(name, lambda: None))
        bench.around = contextlib.nullcontext
    return seconds


def repository(scratch, options):
    """A local repository with the tree as its only commit."""
    path = scratch / "repository"
    path.mkdir()
    run("tar", "-x", "-f", options.archive, "-C", path)
    run("git", "init", "-q", path)
    run("git", "-C", path, "add", "-A", "-f")
    run("git", "-C", path, "-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-q", "-m", "tree")
    return path


def measure(options, scratch):
    options.repository = repository(scratch, options)
    print(f"{'ratio to native (larger is slower)':<34} {'native s':>9}" + "".join(f"{n:>10}" for n in PLACES[1:]))
    rounds = [one_round(options, scratch, number) for number in range(options.rounds)]
    for title, _ in rows(options):
        native = statistics.median(r[title]["native"] for r in rounds)
        ratios = [statistics.median(r[title][n] / r[title]["native"] for r in rounds) for n in PLACES[1:]]
        print(f"{title:<34} {native:>9.3f}" + "".join(f"{ratio:>10.2f}" for ratio in ratios), flush=True)
