"""What a target on the same host takes: a backlog of data and one of small changes, one change on an idle target, the
renaming of a large directory, and whether it keeps up with a mount that is written to as fast as it goes. Every figure that is
a time stands beside what the same bytes or changes cost without replication on the same disk."""

import os
import random
import statistics
import time

import bench
from bench import MIB, timed

BLOCK = 4096
# Beside what a goal asks for, if there is one for it.
GOALS = {"data": "goal 400 MB/s", "metadata": "goal 20000", "p50": "goal 25", "p99": "goal 100", "rename": "goal 50"}


def row(title, value, goal=""):
    print(f"  {title:<66} {value:>10}  {goal}", flush=True)


def until(met, seconds=600):
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            raise RuntimeError("the target does not get there")
        time.sleep(0.0005)


def paused(host, act):
    """Seconds that the target needs for what `act` changed while it was paused."""
    host.run("replication", "pause", "bench", "replica")
    act()
    os.sync()
    host.run("replication", "resume", "bench", "replica")
    return timed(lambda: host.wait("bench"))


def write_data(path, size):
    block = os.urandom(MIB)
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // MIB):
            file.write(block)
        os.fsync(file.fileno())


def data_backlog(host, source, disk, options):
    size = options.backlog_mib * MIB
    native = timed(lambda: write_data(disk / "native", size))
    seconds = paused(host, lambda: write_data(source / "backlog", size))
    return {"rate": size / seconds / 1e6, "native": size / native / 1e6}


def metadata_backlog(host, source, _disk, options):
    """Empty files that are made, renamed, changed in mode and removed: four changes each."""
    count = options.files

    def work():
        directory = source / "metadata"
        directory.mkdir()
        for number in range(count):
            os.close(os.open(directory / f"{number}", os.O_CREAT | os.O_WRONLY))
        for number in range(count):
            os.rename(directory / f"{number}", directory / f"r{number}")
        for number in range(count):
            os.chmod(directory / f"r{number}", 0o600)
        for number in range(count):
            os.unlink(directory / f"r{number}")

    return 4 * count / paused(host, work)


def latencies(source, target, options):
    """Milliseconds until one small change of a quiet source is seen in the target's tree."""
    found = []
    for number in range(options.changes):
        path = source / f"change-{number}"
        begun = time.perf_counter()
        path.write_bytes(b"x" * 100)
        seen = target / path.name
        until(lambda: seen.exists() and seen.stat().st_size == 100)
        found.append((time.perf_counter() - begun) * 1e3)
        time.sleep(0.05)
    return sorted(found)


def rename_large(host, source, target, options):
    directory = source / "large"
    directory.mkdir()
    for number in range(options.files):
        (directory / f"{number}").touch()
    host.wait("bench")
    begun = time.perf_counter()
    os.rename(directory, source / "renamed")
    until(lambda: (target / "renamed").exists())
    return (time.perf_counter() - begun) * 1e3


def keeps_up(host, act):
    """Seconds that the target is behind after `seconds` of work as fast as it goes, as a share of these."""
    seconds = timed(act)
    return timed(lambda: host.wait("bench")) / seconds


def random_writes(source, options):
    block, chosen = os.urandom(BLOCK), random.Random(3)
    path = source / "random"
    path.write_bytes(bytes(64 * MIB))
    fd = os.open(path, os.O_WRONLY)
    end = time.monotonic() + options.load_seconds
    while time.monotonic() < end:
        os.pwrite(fd, block, chosen.randrange(64 * MIB // BLOCK) * BLOCK)
    os.close(fd)


def creates(source, options):
    directory, number = source / "created", 0
    directory.mkdir()
    end = time.monotonic() + options.load_seconds
    while time.monotonic() < end:
        (directory / f"{number}").write_bytes(b"y" * 1000)
        number += 1


def one_round(options, scratch):
    with bench.Ext4(scratch, 24) as disk:
        source, target = disk / "source", disk / "replica"
        for path in (source, target, disk / "host"):
            path.mkdir()
        with bench.Host(options.binary, disk / "host") as host:
            host.define("bench", source)
            host.start()
            host.attach("bench", target)
            found = {"data": data_backlog(host, source, disk, options)}
            found["metadata"] = metadata_backlog(host, source, disk, options)
            found["latency"] = latencies(source, target, options)
            found["rename"] = rename_large(host, source, target, options)
            found["random"] = keeps_up(host, lambda: random_writes(source, options))
            found["creates"] = keeps_up(host, lambda: creates(source, options))
            return found


def measure(options, scratch):
    rounds = [one_round(options, scratch) for _ in range(options.rounds)]

    def median(pick):
        return statistics.median(pick(found) for found in rounds)

    def share(found, part):
        return found["latency"][min(int(len(found["latency"]) * part), len(found["latency"]) - 1)]

    print(f"one local target on the same disk and processors; {options.rounds} rounds, medians")
    row("a backlog of data, received and applied, MB/s", f"{median(lambda f: f['data']['rate']):.0f}", GOALS["data"])
    row("writing the same natively with fsync, MB/s", f"{median(lambda f: f['data']['native']):.0f}")
    row("a backlog of small changes, changes/s", f"{median(lambda f: f['metadata']):.0f}", GOALS["metadata"])
    row("one change is seen after, ms, half of them", f"{median(lambda f: share(f, 0.5)):.1f}", GOALS["p50"])
    row("one change is seen after, ms, 99 of 100", f"{median(lambda f: share(f, 0.99)):.1f}", GOALS["p99"])
    row(f"a directory of {options.files} files renamed is seen after, ms", f"{median(lambda f: f['rename']):.1f}", GOALS["rename"])
    row("behind after 4 KiB random writes, seconds a second of load", f"{median(lambda f: f['random']):.2f}")
    row("behind after small files, seconds a second of load", f"{median(lambda f: f['creates']):.2f}")
