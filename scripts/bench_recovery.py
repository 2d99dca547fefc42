"""How long a restart takes after kill -9, with many records in the journal that a target has not received: from the start of
the process until the mount answers. Beside it the same after a clean stop."""

import os
import signal
import statistics

import bench
from bench import timed
from bench_replication import row


def change(source, count):
    """`count` records: each change of a mode is one."""
    path = source / "file"
    path.touch()
    for number in range(count):
        os.chmod(path, 0o600 if number % 2 else 0o640)


def restart(host, source, how):
    host.daemon.send_signal(how)
    host.daemon.wait(120)
    return timed(lambda: (host.start(), os.stat(source / "file")))


def one_round(options, scratch):
    with bench.Ext4(scratch, 24) as disk:
        source, target = disk / "source", disk / "replica"
        for path in (source, target, disk / "host"):
            path.mkdir()
        with bench.Host(options.binary, disk / "host") as host:
            host.define("bench", source)
            host.start()
            host.attach("bench", target)
            host.run("replication", "pause", "bench", "replica")
            change(source, options.records)
            return {"killed": restart(host, source, signal.SIGKILL), "clean": restart(host, source, signal.SIGTERM)}


def measure(options, scratch):
    rounds = [one_round(options, scratch) for _ in range(options.rounds)]
    print(f"{options.records} records in the journal; {options.rounds} rounds, medians")
    for key, title, goal in (("killed", "after kill -9", "goal 1"), ("clean", "after a clean stop", "")):
        row(f"the mount answers again {title}, s", f"{statistics.median(found[key] for found in rounds):.2f}", goal)
