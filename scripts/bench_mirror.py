"""The initial mirror against `rsync -a`, in paired rounds: a tree of small files, locally and to another host, and one large
sparse file. Beside the time: processor time of both ends a byte, bytes on the wire a file, what it costs to find that nothing
has changed, the peak of memory of both ends, how late changes are beside a mirror, and what a change costs that was made
while the target was away."""

import contextlib
import json
import os
import pathlib
import random
import signal
import statistics
import threading
import time

import bench
import bench_links
from bench_links import family

GOALS = {"wall": 0.9, "far": 0.7, "plain": 3.6, "encrypted": 5, "wire": 250, "repeat": 10, "memory": 256, "lag": 1}


def processor(pids):
    """Seconds of processor time that these processes and those they have waited for have had. What one had that has ended
    since it was listed stands with its parent."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def bytes_sent(host):
    volumes = json.loads(host.run("status", "--json").stdout)["volumes"]
    return volumes[0]["targets"][0]["bytes_sent"]


def fill_tree(directory, options):
    """Files of 1 to 70 KiB that do not compress, 100 in a directory."""
    generator, pool = random.Random(7), os.urandom(1 << 20)
    for number in range(options.mirror_files):
        folder = directory / f"d{number // 100}"
        folder.mkdir(parents=True, exist_ok=True)
        length, start = generator.randrange(1 << 10, 70 << 10), generator.randrange(1 << 19)
        (folder / f"f{number}").write_bytes(number.to_bytes(8, "little") + pool[start : start + length])


def fill_sparse(directory, options):
    """One file of 10 GiB with 1 MiB of data in every 64."""
    directory.mkdir()
    with open(directory / "sparse", "wb") as file:
        for start in range(0, 10 << 30, 64 << 20):
            file.seek(start)
            file.write(os.urandom(1 << 20))
        file.truncate(10 << 30)


def rsync(source, disk, sshd=None):
    """Here, or to the server."""
    before = processor(sshd.processes() if sshd else []), os.times()
    if sshd:
        seconds = bench.rsync_once(source, disk / "rsync-far", f"ssh -F {sshd.client_config} -p {sshd.port}")
    else:
        seconds = bench.rsync_once(source, disk / "rsync-target")
    after = os.times()
    ours = after.children_user + after.children_system - before[1].children_user - before[1].children_system
    return {"seconds": seconds, "processor": ours + processor(sshd.processes() if sshd else []) - before[0]}


def mirror(binary, source, disk, name, far=None):
    """To a directory here, or over `far`."""
    target, root = disk / f"mirror-{name}", disk / f"host-{name}"
    if far is None:
        target.mkdir()
    root.mkdir()
    servers = far.processes() if far else []
    with bench.Host(binary, root) as host:
        if far:
            far.prepare(host)
        host.define("bench", source)
        host.start()
        os.sync()
        before = processor([host.daemon.pid, *servers])
        url = far.url(target) if far else f"local:{target}"
        seconds = bench.timed(lambda: host.attach_to("bench", url))
        both = [*family(host.daemon.pid), *(far.processes() if far else [])]
        found = {"seconds": seconds, "processor": processor(both) - before, "wire": bytes_sent(host)}
        if far is None:
            found["memory"] = max(host.peak_mib())
            found["repeat"] = repeat(host)
    return found


def repeat(host):
    """Processor time of a daemon that finds that nothing has changed."""
    host.daemon.send_signal(signal.SIGTERM)
    host.daemon.wait(120)
    host.start()
    before = processor([host.daemon.pid])
    host.wait("bench")
    return processor(family(host.daemon.pid)) - before


def one_round(fill, scratch, options, flip, to_others):
    with bench.Ext4(scratch, 16) as disk:
        source = disk / "source"
        fill(source, options)
        os.sync()
        files = [path for path in source.rglob("*") if path.is_file()]
        steps = {
            "rsync": lambda: rsync(source, disk),
            "mirror": lambda: mirror(options.binary, source, disk, "local"),
        }
        found = {name: steps[name]() for name in sorted(steps, reverse=flip)}
        if to_others:
            found.update(to_another_host(source, disk, options, flip))
        payload = sum(path.stat().st_blocks * 512 for path in files)
        size = sum(path.stat().st_size for path in files)
        return {**found, "files": len(files), "payload": min(payload, size)}


def to_another_host(source, disk, options, flip):
    with (
        bench_links.Sshd(options.binary, disk / "sshd", disk / "far-ssh") as sshd,
        bench_links.Listener(options.binary, disk / "far-tls", disk / "copy-tls") as listener,
    ):
        steps = {
            "rsync-ssh": lambda: rsync(source, disk, sshd),
            "ssh": lambda: mirror(options.binary, source, disk, "ssh", sshd),
            "tls": lambda: mirror(options.binary, source, disk, "tls", listener),
        }
        return {name: steps[name]() for name in sorted(steps, reverse=flip)}


def lag_beside_mirror(scratch, options):
    """How late changes are seen at the target while a mirror of small files runs: seconds, in order."""
    with bench.Ext4(scratch) as disk:
        source, target, root = disk / "source", disk / "target", disk / "host"
        fill_tree(source, options)
        target.mkdir()
        root.mkdir()
        # The probes look into a tree that is closed until its first mirror is done.
        settings = root / "etc/dtfs/dtfs.toml"
        settings.parent.mkdir(parents=True)
        settings.write_text('guard = "off"\n')
        late, over = [], threading.Event()
        with bench.Host(options.binary, root) as host:
            host.define("bench", source)
            host.start()
            os.sync()

            def probe():
                number = 0
                while not over.is_set():
                    begun, path = time.perf_counter(), source / f"probe-{number}"
                    path.write_bytes(b"x")
                    while not (target / path.name).exists() and time.perf_counter() < begun + 60:
                        time.sleep(0.001)
                    late.append(time.perf_counter() - begun)
                    number += 1
                    time.sleep(0.02)

            host.run("define", "target", "bench", f"local:{target}")
            deadline = time.monotonic() + 60
            while not (target / "d0").exists() and time.monotonic() < deadline:
                time.sleep(0.001)
            prober = threading.Thread(target=probe)
            prober.start()
            host.wait("bench")
            over.set()
            prober.join()
        return sorted(late)


def change_while_away(scratch, options):
    """Bytes on the wire for 1 MiB that was changed in a file of 1 GiB while the target was away."""
    with bench.Ext4(scratch) as disk:
        source, target, root = disk / "source", disk / "target", disk / "host"
        for directory in (source, target, root):
            directory.mkdir()
        block = os.urandom(1 << 20)
        with open(source / "large", "wb") as file:
            for number in range(options.large_mib):
                file.write(number.to_bytes(8, "little") + block[8:])
        with bench.Host(options.binary, root) as host:
            host.define("bench", source)
            host.start()
            host.attach("bench", target)
            host.run("replication", "pause", "bench", "target")
            before = bytes_sent(host)
            fd = os.open(source / "large", os.O_WRONLY)
            os.pwrite(fd, os.urandom(1 << 20), (options.large_mib // 2) << 20)
            os.close(fd)
            host.run("replication", "resume", "bench", "target")
            host.wait("bench")
            return bytes_sent(host) - before


def row(title, value, goal=""):
    print(f"  {title:<60} {value:>10}  {goal}", flush=True)


def report(title, rounds):
    def median(pick):
        return statistics.median(pick(found) for found in rounds)

    def compare(ours, theirs, goal):
        ratios = sorted(found[ours]["seconds"] / found[theirs]["seconds"] for found in rounds)
        span = f"{ratios[0]:.2f}-{ratios[-1]:.2f}"
        row(f"{ours}: seconds", f"{median(lambda f: f[ours]['seconds']):.2f}")
        row(f"{ours}: ratio to {theirs}", f"{statistics.median(ratios):.2f}", f"{span}; goal {goal}")

    def cost(name, goal=""):
        nanoseconds = median(lambda f: f[name]["processor"] / f["payload"]) * 1e9
        row(f"{name}: processor of both ends, ns a byte", f"{nanoseconds:.2f}", goal)

    print(f"{title}: {rounds[0]['files']} files, {rounds[0]['payload'] / bench.MIB:.0f} MiB of data; all durable at the end")
    row("rsync: seconds", f"{median(lambda f: f['rsync']['seconds']):.2f}")
    cost("rsync")
    compare("mirror", "rsync", GOALS["wall"])
    cost("mirror", f"goal {GOALS['plain']}")
    over = median(lambda f: (f["mirror"]["wire"] - f["payload"] * 1.005) / f["files"])
    row("wire beyond the data and 0.5 %, bytes a file", f"{over:.0f}", f"goal {GOALS['wire']}")
    again = median(lambda f: f["mirror"]["repeat"] / f["files"]) * 1e6
    if rounds[0]["files"] >= 1000:
        row("processor of a repeat, nothing changed, us a file", f"{again:.1f}", f"goal {GOALS['repeat']}")
    row("peak memory of either end, MiB", f"{median(lambda f: f['mirror']['memory']):.0f}", f"goal {GOALS['memory']}")
    if "ssh" in rounds[0]:
        row("rsync-ssh: seconds", f"{median(lambda f: f['rsync-ssh']['seconds']):.2f}")
        cost("rsync-ssh")
        for name in ("ssh", "tls"):
            compare(name, "rsync-ssh", GOALS["far"])
            cost(name, f"goal {GOALS['encrypted']}")


def measure(options, scratch):
    for title, fill, to_others in (("small files", fill_tree, True), ("one sparse file", fill_sparse, False)):
        rounds = [one_round(fill, scratch, options, n % 2 == 1, to_others) for n in range(options.rounds)]
        report(title, rounds)
    late = lag_beside_mirror(scratch, options)
    print(f"changes beside a mirror of {options.mirror_files} small files: {len(late)}")
    row("seen after, seconds, half of them", f"{late[len(late) // 2]:.3f}")
    row("seen after, seconds, the latest", f"{late[-1]:.3f}", f"goal {GOALS['lag']}")
    sent = change_while_away(scratch, options) / bench.MIB
    row(f"1 MiB changed in {options.large_mib} MiB while away, MiB sent", f"{sent:.3f}", "goal 1.01")
