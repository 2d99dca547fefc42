"""What a target on the same host takes: a backlog of data and one of small changes, one change on an idle target, the
renaming of a large directory, and whether it keeps up with a mount that is written to as fast as it goes; and what a backlog
costs that goes over TLS to a daemon that listens, beside rsync over ssh. Every figure that is a time stands beside what the
same bytes or changes cost without replication on the same disk."""

import contextlib
import os
import random
import statistics
import time

import bench
import bench_links
from bench import MIB, timed
from bench_links import family
from bench_mirror import processor, rsync

BLOCK = 4096
# Beside what a goal asks for, if there is one for it.
GOALS = {
    "data": "goal 400 MB/s, or the next row",
    "tls": "goal 300 MB/s, or the next row",
    "share": "goal 0.80",
    "metadata": "goal 20000",
    "p50": "goal 25",
    "p99": "goal 100",
    "rename": "goal 50",
}


def row(title, value, goal=""):
    print(f"  {title:<66} {value:>10}  {goal}", flush=True)


def until(met, seconds=600):
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            raise RuntimeError("the target does not get there")
        time.sleep(0.0005)


def paused(host, act, target="replica"):
    """Seconds that the target needs for what `act` changed while it was paused."""
    host.run("replication", "pause", "bench", target)
    act()
    os.sync()
    host.run("replication", "resume", "bench", target)
    return timed(lambda: host.wait("bench"))


def write_data(path, size):
    block = os.urandom(MIB)
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // MIB):
            file.write(block)
        os.fsync(file.fileno())


def two_copies(disk, size):
    """MB/s at which the disk takes each byte twice, as a target does: once received, once in its tree."""
    block, paths = os.urandom(MIB), [disk / "first", disk / "second"]

    def work():
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(path, "wb", buffering=0)) for path in paths]
            for _ in range(size // MIB):
                for file in files:
                    file.write(block)
            for file in files:
                os.fsync(file.fileno())

    seconds = timed(work)
    for path in paths:
        path.unlink()
    os.sync()
    return size / seconds / 1e6


def data_backlog(host, source, disk, options):
    size = options.backlog_mib * MIB
    native = timed(lambda: write_data(disk / "native", size))
    twice = two_copies(disk, size)
    seconds = paused(host, lambda: write_data(source / "backlog", size))
    return {"rate": size / seconds / 1e6, "native": size / native / 1e6, "twice": twice}


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


@contextlib.contextmanager
def replicated(options, scratch):
    """A host whose volume `bench` has a local target, and the disk on which all of it lies."""
    with bench.Ext4(scratch, 24) as disk:
        source, target = disk / "source", disk / "replica"
        for path in (source, target, disk / "host"):
            path.mkdir()
        with bench.Host(options.binary, disk / "host") as host:
            host.define("bench", source)
            host.start()
            host.attach("bench", target)
            yield host, disk


def one_round(options, scratch):
    with replicated(options, scratch) as (host, disk):
        source, target = disk / "source", disk / "replica"
        found = {"data": data_backlog(host, source, disk, options)}
        found["metadata"] = metadata_backlog(host, source, disk, options)
        found["latency"] = latencies(source, target, options)
        found["rename"] = rename_large(host, source, target, options)
        found["random"] = keeps_up(host, lambda: random_writes(source, options))
        found["creates"] = keeps_up(host, lambda: creates(source, options))
        return found


def over_tls(options, scratch, flip):
    """A backlog to a daemon that listens, and the same file to an ssh server by rsync: rate, and seconds of processor time of
    both ends a GiB. What writes the file does so while the target is paused, and is not counted."""
    size = options.backlog_mib * MIB
    with (
        bench.Ext4(scratch, 24) as disk,
        bench_links.Sshd(options.binary, disk / "sshd", disk / "far-ssh") as sshd,
        bench_links.Listener(options.binary, disk / "far-tls", disk / "copy-tls") as listener,
    ):
        for name in ("source", "plain", "host"):
            (disk / name).mkdir()

        def ours():
            with bench.Host(options.binary, disk / "host") as host:
                listener.prepare(host)
                host.define("bench", disk / "source")
                host.start()
                host.attach_to("bench", listener.url(None))
                before = []

                def act():
                    write_data(disk / "source" / "backlog", size)
                    before.append(processor([host.daemon.pid, listener.host.daemon.pid]))

                seconds = paused(host, act, "127.0.0.1")
                after = processor([*family(host.daemon.pid), *listener.processes()])
                return {"rate": size / seconds / 1e6, "processor": (after - before[0]) / size * (1 << 30)}

        def theirs():
            write_data(disk / "plain" / "backlog", size)
            done = rsync(disk / "plain", disk, sshd)
            return {"rate": size / done["seconds"] / 1e6, "processor": done["processor"] / size * (1 << 30)}

        steps = {"tls": ours, "rsync": theirs, "twice": lambda: two_copies(disk, size)}
        return {name: steps[name]() for name in sorted(steps, reverse=flip)}


def measure(options, scratch):
    rounds = [one_round(options, scratch) for _ in range(options.rounds)]
    for number, found in enumerate(rounds):
        found["far"] = over_tls(options, scratch, number % 2 == 1)

    def median(pick):
        return statistics.median(pick(found) for found in rounds)

    def share(found, part):
        return found["latency"][min(int(len(found["latency"]) * part), len(found["latency"]) - 1)]

    print(f"one local target on the same disk and processors; {options.rounds} rounds, medians")
    row("a backlog of data, received and applied, MB/s", f"{median(lambda f: f['data']['rate']):.0f}", GOALS["data"])
    row("as a share of what the disk takes of two copies", f"{median(lambda f: f['data']['rate'] / f['data']['twice']):.2f}", GOALS["share"])
    row("writing the same natively with fsync, MB/s", f"{median(lambda f: f['data']['native']):.0f}")
    row("a backlog of data over tls, received and applied, MB/s", f"{median(lambda f: f['far']['tls']['rate']):.0f}", GOALS["tls"])
    row("as a share of what the disk takes of two copies", f"{median(lambda f: f['far']['tls']['rate'] / f['far']['twice']):.2f}", GOALS["share"])
    row("the same file by rsync over ssh, durable, MB/s", f"{median(lambda f: f['far']['rsync']['rate']):.0f}")
    processors = {name: median(lambda f: f["far"][name]["processor"]) for name in ("tls", "rsync")}
    row("processor of both ends over tls, seconds a GiB", f"{processors['tls']:.2f}", f"goal {processors['rsync']:.2f}")
    row("processor of both ends of rsync over ssh, seconds a GiB", f"{processors['rsync']:.2f}")
    row("a backlog of small changes, changes/s", f"{median(lambda f: f['metadata']):.0f}", GOALS["metadata"])
    row("one change is seen after, ms, half of them", f"{median(lambda f: share(f, 0.5)):.1f}", GOALS["p50"])
    row("one change is seen after, ms, 99 of 100", f"{median(lambda f: share(f, 0.99)):.1f}", GOALS["p99"])
    row(f"a directory of {options.files} files renamed is seen after, ms", f"{median(lambda f: f['rename']):.1f}", GOALS["rename"])
    row("behind after 4 KiB random writes, seconds a second of load", f"{median(lambda f: f['random']):.2f}")
    row("behind after small files, seconds a second of load", f"{median(lambda f: f['creates']):.2f}")
