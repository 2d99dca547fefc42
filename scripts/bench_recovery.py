"""How long a restart takes after kill -9, with many records in the journal that a target has not received: from the start of
the process until the mount answers. Beside it the same after a clean stop."""

import os
import signal
import statistics

from bench import timed
from bench_replication import replicated, row


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
    with replicated(options, scratch) as (host, disk):
        source = disk / "source"
        host.run("replication", "pause", "bench", "replica")
        change(source, options.records)
        return {"killed": restart(host, source, signal.SIGKILL), "clean": restart(host, source, signal.SIGTERM)}


def measure(options, scratch):
    rounds = [one_round(options, scratch) for _ in range(options.rounds)]
    print(f"{options.records} records in the journal; {options.rounds} rounds, medians")
    for key, title, goal in (("killed", "after kill -9", "goal 1"), ("clean", "after a clean stop", "")):
        row(f"the mount answers again {title}, s", f"{statistics.median(found[key] for found in rounds):.2f}", goal)
