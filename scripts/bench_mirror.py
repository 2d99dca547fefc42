"""The initial mirror against `rsync -a`, in paired rounds: a tree of small files, and one large sparse file. Beside the
time: processor time of both ends a byte, bytes on the wire a file, what it costs to find that nothing has changed, and the
peak of memory of both ends."""

import json
import os
import pathlib
import random
import resource
import signal
import statistics

import bench

GOALS = {"wall": 0.9, "wire": 250, "repeat": 10, "memory": 256}


def processor(pids):
    """Seconds of processor time that these processes have had."""
    ticks = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def children_processor():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def ends(host):
    """The daemon and the target process of its only session."""
    pids = [host.daemon.pid]
    for task in pathlib.Path(f"/proc/{host.daemon.pid}/task").iterdir():
        pids += [int(pid) for pid in (task / "children").read_text().split()]
    return pids


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


def rsync(source, disk):
    before = children_processor()
    seconds = bench.rsync_once(source, disk / "rsync-target")
    return {"seconds": seconds, "processor": children_processor() - before}


def mirror(binary, source, disk):
    target, root = disk / "mirror-target", disk / "mirror-host"
    target.mkdir()
    root.mkdir()
    with bench.Host(binary, root) as host:
        host.define("bench", source)
        host.start()
        os.sync()
        before = processor([host.daemon.pid])
        seconds = bench.timed(lambda: host.attach("bench", target))
        found = {"seconds": seconds, "processor": processor(ends(host)) - before, "wire": bytes_sent(host)}
        found["memory"] = max(host.peak_mib())
        host.daemon.send_signal(signal.SIGTERM)
        host.daemon.wait(120)
        host.start()
        before = processor([host.daemon.pid])
        host.wait("bench")
        found["repeat"] = processor(ends(host)) - before
    return found


def one_round(fill, scratch, options, flip):
    with bench.Ext4(scratch) as disk:
        source = disk / "source"
        fill(source, options)
        os.sync()
        files = [path for path in source.rglob("*") if path.is_file()]
        steps = {
            "rsync": lambda: rsync(source, disk),
            "mirror": lambda: mirror(options.binary, source, disk),
        }
        found = {name: steps[name]() for name in sorted(steps, reverse=flip)}
        payload = sum(path.stat().st_blocks * 512 for path in files)
        size = sum(path.stat().st_size for path in files)
        return {**found, "files": len(files), "payload": min(payload, size)}


def row(title, value, goal=""):
    print(f"  {title:<52} {value:>10}  {goal}", flush=True)


def report(title, rounds):
    def median(pick):
        return statistics.median(pick(found) for found in rounds)

    ratios = sorted(found["mirror"]["seconds"] / found["rsync"]["seconds"] for found in rounds)
    print(f"{title}: {rounds[0]['files']} files, {rounds[0]['payload'] / bench.MIB:.0f} MiB of data")
    row("rsync -a, durable, seconds", f"{median(lambda f: f['rsync']['seconds']):.2f}")
    row("initial mirror, durable, seconds", f"{median(lambda f: f['mirror']['seconds']):.2f}")
    span = f"{ratios[0]:.2f}-{ratios[-1]:.2f}"
    row("ratio", f"{statistics.median(ratios):.2f}", f"{span}; goal {GOALS['wall']}")
    row("processor, rsync, ns a byte", f"{median(lambda f: f['rsync']['processor'] / f['payload']) * 1e9:.2f}")
    row("processor, both ends, ns a byte", f"{median(lambda f: f['mirror']['processor'] / f['payload']) * 1e9:.2f}")
    over = median(lambda f: (f["mirror"]["wire"] - f["payload"] * 1.005) / f["files"])
    row("wire beyond the data and 0.5 %, bytes a file", f"{over:.0f}", f"goal {GOALS['wire']}")
    repeat = median(lambda f: f["mirror"]["repeat"] / f["files"]) * 1e6
    row("processor of a repeat, nothing changed, us a file", f"{repeat:.1f}", f"goal {GOALS['repeat']}")
    row("peak memory of either end, MiB", f"{median(lambda f: f['mirror']['memory']):.0f}", f"goal {GOALS['memory']}")


def measure(options, scratch):
    for title, fill in (("small files", fill_tree), ("one sparse file", fill_sparse)):
        rounds = [one_round(fill, scratch, options, n % 2 == 1) for n in range(options.rounds)]
        report(title, rounds)
