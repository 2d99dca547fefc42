#!/usr/bin/env python3
"""Paired measurements of dtfs on one machine: native directory against mount, rsync -a against the initial mirror.

Each round runs every workload natively and on the mount on a newly made ext4, in alternating order, so that drift of the
machine hits both. Printed are medians over the rounds; a ratio above 1 means that dtfs takes longer. `apps` measures
applications, with and without a target, and beside bindfs and mergerfs; `mirror` measures the initial mirror alone, and
what it costs in processor time, on the wire and in memory; `replication` what a target takes, and how late it is; `recovery`
how long a restart takes after kill -9."""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
MIB = 1 << 20
WORDS = re.compile(r"[^a-z0-9]+")


class Host:
    """One dtfs host below a root directory of its own; a context, so that nothing of it is left."""

    def __init__(self, binary, root):
        self.binary, self.root = binary, root
        self.daemon, self.volumes = None, []

    def run(self, *args, check=True):
        command = [self.binary, "--root", self.root, *args]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if check and done.returncode != 0:
            raise RuntimeError(f"dtfs {' '.join(args)}: exit {done.returncode}\n{done.stderr}{self.log()}")
        return done

    def define(self, volume, directory):
        self.volumes.append(directory)
        self.run("define", "volume", volume, directory)

    def start(self):
        with open(self.root / "daemon.log", "ab") as log:
            command = [self.binary, "--root", self.root, "daemon"]
            self.daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while self.run("status", "--json", check=False).returncode != 0:
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the daemon does not answer\n{self.log()}")
            time.sleep(0.02)
        if self.volumes:
            self.run("mounts", "mount", "--all")
        for directory in self.volumes:
            if not os.path.ismount(directory):
                raise RuntimeError(f"{directory} is not mounted\n{self.log()}")

    def attach(self, volume, directory):
        self.attach_to(volume, f"local:{directory}")

    def attach_to(self, volume, url):
        self.run("define", "target", volume, url)
        self.wait(volume)

    def wait(self, volume):
        self.run("wait", volume, "--timeout", "3600")

    def requests(self):
        """Requests of the kernel that the daemon answered, all volumes together."""
        volumes = json.loads(self.run("status", "--json").stdout)["volumes"]
        return sum(volume["requests"] for volume in volumes)

    def usage(self):
        """Seconds of processor time and context switches of the daemon's threads."""
        seconds = switches = 0
        for task in pathlib.Path(f"/proc/{self.daemon.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                seconds += int((task / "schedstat").read_text().split()[0]) / 1e9
                switches += sum(map(int, re.findall(r"voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text())))
        return seconds, switches

    def peak_mib(self):
        """Peak resident memory of the daemon and of the target process of its only session."""
        pids = [self.daemon.pid]
        for task in pathlib.Path(f"/proc/{self.daemon.pid}/task").iterdir():
            pids += [int(pid) for pid in (task / "children").read_text().split()]
        status = [pathlib.Path(f"/proc/{pid}/status").read_text() for pid in pids]
        return [int(text.split("VmHWM:")[1].split()[0]) / 1024 for text in status]

    def log(self):
        path = self.root / "daemon.log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGTERM)
            try:
                self.daemon.wait(60)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait()
        for directory in self.volumes:
            if os.path.ismount(directory):
                subprocess.run(["umount", "--lazy", directory], check=False)
        # What of it lies in memory, for its root is on no filesystem in memory.
        with contextlib.suppress(OSError):
            shutil.rmtree(os.readlink(self.root / "run/dtfs/memory"))


class Ext4:
    """A newly made ext4 in an image file, mounted: on one where files were deleted a moment ago, ext4 looks long for a free
    inode number, and every later figure is off. A context, so that no mount and no loop device is left."""

    def __init__(self, scratch, gib=12):
        self.image, self.path, self.gib = scratch / "image", scratch / "ext4", gib

    def __enter__(self):
        self.path.mkdir()
        with open(self.image, "wb") as image:
            image.truncate(self.gib << 30)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1", self.image], check=True)
        # umount(8) gives the loop device back by itself.
        subprocess.run(["mount", "-o", "loop", self.image, self.path], check=True)
        return self.path

    def __exit__(self, *_):
        subprocess.run(["umount", "--recursive", self.path], check=False)
        if os.path.ismount(self.path):
            subprocess.run(["umount", "--lazy", self.path], check=False)
        self.image.unlink()
        self.path.rmdir()


# What surrounds an action that is timed: a profiler, where one is asked for.
around = contextlib.nullcontext


def timed(action):
    with around():
        start = time.perf_counter()
        action()
        return time.perf_counter() - start


def drop_caches():
    """Reads must come from the filesystem; where the kernel does not let us, warm figures are printed all the same."""
    os.sync()
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


# Each workload gets an empty directory of its own and the options, and returns seconds.


def write_big(directory, options):
    block = os.urandom(MIB)

    def work():
        with open(directory / "big", "wb", buffering=0) as file:
            for _ in range(options.mib):
                file.write(block)
            os.fsync(file.fileno())

    return timed(work)


def read_big(directory, options):
    write_big(directory, options)
    drop_caches()

    def work():
        with open(directory / "big", "rb", buffering=0) as file:
            while file.read(MIB):
                pass

    return timed(work)


def write_blocks(path, count, after_each):
    block = os.urandom(4096)

    def work():
        with open(path, "wb", buffering=0) as file:
            for _ in range(count):
                file.write(block)
                after_each(file.fileno())

    return timed(work)


def write_4k(directory, options):
    return write_blocks(directory / "small", options.small, lambda _: None)


def write_4k_fsync(directory, options):
    return write_blocks(directory / "synced", options.synced, os.fsync)


def make_files(directory, options):
    def work():
        for i in range(options.files):
            with open(directory / f"f{i}", "wb", buffering=0) as file:
                file.write(b"x" * 100)

    return timed(work)


def stat_files(directory, options):
    make_files(directory, options)
    drop_caches()
    return timed(lambda: [os.stat(directory / f"f{i}") for i in range(options.files)])


def read_directory(directory, options):
    make_files(directory, options)
    drop_caches()
    return timed(lambda: [sum(1 for _ in os.scandir(directory)) for _ in range(10)])


def untar(directory, options):
    command = ["tar", "-x", "-f", options.archive, "-C", directory]
    return timed(lambda: subprocess.run(command, check=True))


WORKLOADS = [
    ("sequential write, 1 MiB blocks, fsync at the end", write_big),
    ("sequential read, 1 MiB blocks, cold", read_big),
    ("4 KiB writes", write_4k),
    ("4 KiB writes, each with fsync", write_4k_fsync),
    ("create + write + close of many files", make_files),
    ("stat of many files, cold", stat_files),
    ("readdir of many files, 10 times", read_directory),
    ("untar of a source tree", untar),
]


def real_tree(options):
    """A tree that people really have: the sources that cargo downloaded, else the C headers."""
    registry = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo")) / "registry/src"
    candidates = [options.tree, registry, pathlib.Path("/usr/include")]
    for path in candidates:
        if path is not None and path.is_dir() and any(path.iterdir()):
            return path
    raise SystemExit("bench: no source tree found; name one with --tree")


def measure_place(name, place, title, workload, options, settle=lambda: None):
    """One run in an empty directory on a quiet disk. Nothing is deleted afterwards: see Ext4."""
    directory = place / f"{WORDS.sub('-', title)}"
    directory.mkdir()
    os.sync()
    seconds = workload(directory, options)
    settle()
    return seconds


def mount_round(binary, scratch, options, flip):
    """All workloads, each on both places one after the other. Returns seconds by title and place."""
    with Ext4(scratch) as disk:
        places = {"native": disk / "native", "mount": disk / "volume"}
        for directory in (*places.values(), disk / "host"):
            directory.mkdir()
        with Host(binary, disk / "host") as host:
            host.define("bench", places["mount"])
            host.start()
            return {
                title: {
                    name: measure_place(name, places[name], title, workload, options)
                    for name in sorted(places, reverse=flip)
                }
                for title, workload in WORKLOADS
            }


def measure_mount(binary, scratch, options):
    rounds = [mount_round(binary, scratch, options, n % 2 == 1) for n in range(options.rounds)]
    for title, _ in WORKLOADS:
        show(title, [(r[title]["native"], r[title]["mount"]) for r in rounds])


def rsync_once(tree, directory, shell=None):
    """Here, or by a remote shell to this machine."""
    directory.mkdir()
    over, to = (["-e", shell], f"root@127.0.0.1:{directory}/") if shell else ([], f"{directory}/")

    def work():
        subprocess.run(["rsync", "-a", *over, f"{tree}/", to], check=True)
        os.sync()

    return timed(work)


def mirror_once(binary, source, disk):
    target, root = disk / "mirror-target", disk / "mirror-host"
    target.mkdir()
    root.mkdir()
    with Host(binary, root) as host:
        host.define("bench", source)
        host.start()
        os.sync()
        return timed(lambda: host.attach("bench", target))


def mirror_round(binary, scratch, tree, flip):
    with Ext4(scratch) as disk:
        source = disk / "source"
        subprocess.run(["cp", "-a", f"{tree}/", source], check=True)
        os.sync()
        steps = {
            "rsync": lambda: rsync_once(source, disk / "rsync-target"),
            "mirror": lambda: mirror_once(binary, source, disk),
        }
        return {name: steps[name]() for name in sorted(steps, reverse=flip)}


def measure_mirror(binary, scratch, tree, options):
    rounds = [mirror_round(binary, scratch, tree, n % 2 == 1) for n in range(options.rounds)]
    show("rsync -a against initial mirror, durable", [(r["rsync"], r["mirror"]) for r in rounds])


def small_files(directory, count):
    """Many small files, 300 in a directory, of 0.5 to 8 KiB."""
    directory.mkdir()
    for i in range(count):
        folder = directory / f"d{i // 300}"
        folder.mkdir(exist_ok=True)
        (folder / f"file{i}").write_bytes(os.urandom(64) * (8 + i * 37 % 120))


def measure_memory(binary, scratch, options):
    """The peak of both ends while many small files are mirrored."""
    source, target, root = (scratch / name for name in ("memory-source", "memory-target", "memory-host"))
    for directory in (target, root):
        directory.mkdir()
    small_files(source, options.memory_files)
    with Host(binary, root) as host:
        host.define("bench", source)
        host.start()
        host.attach("bench", target)
        daemon, *others = host.peak_mib()
    named = "".join(f", target process {mib:.0f} MiB" for mib in others)
    print(f"peak memory, mirror of {options.memory_files} files: daemon {daemon:.0f} MiB{named}")
    if max(daemon, *others) > 256:
        raise SystemExit("bench: more than 256 MiB")


def stat_again(directory, options):
    make_files(directory, options)
    for i in range(options.files):
        os.stat(directory / f"f{i}")
        os.chmod(directory / f"f{i}", 0o600)


def remove_tree(directory, options):
    untar(directory, options)
    subprocess.run(["rm", "-rf", directory / "tree"], check=True)


COSTS = [("untar", untar), ("untar + rm -rf", remove_tree), ("create + stat + chmod of many files", stat_again)]


def measure_cost(binary, scratch, options):
    """What a request costs the daemon, its journal included: counters of the kernel, which other work on the machine
    disturbs less than it does a clock."""
    print(f"{'per request of the kernel':<50} {'requests':>10} {'CPU us':>10} {'switches':>8}")
    with Ext4(scratch) as disk:
        for directory in (disk / "volume", disk / "host"):
            directory.mkdir()
        with Host(binary, disk / "host") as host:
            host.define("bench", disk / "volume")
            host.start()
            for title, workload in COSTS:
                before, (seconds, switches) = host.requests(), host.usage()
                measure_place("mount", disk / "volume", "cost of " + title, workload, options)
                count, (seconds_after, switches_after) = host.requests() - before, host.usage()
                microseconds = (seconds_after - seconds) / count * 1e6
                per_request = (switches_after - switches) / count
                print(f"{title:<50} {count:>10} {microseconds:>10.1f} {per_request:>8.2f}", flush=True)


def show(title, pairs):
    """Medians of both sides, and the median of the rounds' ratios with the span of them."""
    before, ours = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    ratios = sorted(pair[1] / pair[0] for pair in pairs)
    span = f"{ratios[0]:.2f}-{ratios[-1]:.2f}"
    print(f"{title:<50} {before:>10.3f} {ours:>10.3f} {statistics.median(ratios):>8.2f}  {span}", flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["basic", "apps", "mirror", "replication", "recovery"], default="basic", help="which rows (basic)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each pair; the median counts (3)")
    parser.add_argument("--mib", type=int, default=512, help="size of the sequential file (512)")
    parser.add_argument("--small", type=int, default=20_000, help="4 KiB writes without fsync (20000)")
    parser.add_argument("--synced", type=int, default=500, help="4 KiB writes with fsync (500)")
    parser.add_argument("--files", type=int, default=10_000, help="small files (10000)")
    parser.add_argument("--mirror-files", type=int, default=30_000, help="small files of the mirror run (30000)")
    parser.add_argument("--large-mib", type=int, default=1024, help="size of the file that changes while its target is away (1024)")
    parser.add_argument("--memory-files", type=int, default=100_000, help="files of the memory run (100000)")
    parser.add_argument("--backlog-mib", type=int, default=1024, help="data that waits for the target (1024)")
    parser.add_argument("--records", type=int, default=1_000_000, help="records in the journal at a restart (1000000)")
    parser.add_argument("--changes", type=int, default=200, help="single changes whose latency is measured (200)")
    parser.add_argument("--load-seconds", type=int, default=20, help="how long each load runs (20)")
    parser.add_argument("--tree", type=pathlib.Path, help="the source tree to untar and to mirror")
    parser.add_argument("--tree-mib", type=int, default=80, help="most of the tree that is used (80)")
    parser.add_argument("--dir", type=pathlib.Path, help="measure on this filesystem (the temporary directory)")
    parser.add_argument("--row", help="of the applications, only the rows with this in their name")
    parser.add_argument("--profile", type=pathlib.Path, help="where the processor's time goes on the mount, by perf(1), a file a row")
    parser.add_argument("--binary", type=pathlib.Path, default=REPOSITORY / "target/release/dtfs")
    return parser.parse_args()


def main():
    options = arguments()
    of_tree = options.what in ("basic", "apps")
    tree = real_tree(options) if of_tree else None
    # Ctrl-C and SIGTERM leave through the same clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="dtfs-bench-", dir=options.dir) as name:
        scratch = pathlib.Path(name)
        if options.what == "mirror":
            import bench_mirror

            return bench_mirror.measure(options, scratch)
        if options.what == "recovery":
            import bench_recovery

            return bench_recovery.measure(options, scratch)
        if options.what == "replication":
            import bench_replication

            return bench_replication.measure(options, scratch)
        options.archive = scratch / "tree.tar"
        count = pack(tree, options)
        size = options.archive.stat().st_size / MIB
        print(f"tree: {tree}, {count} files, {size:.0f} MiB; {options.rounds} rounds, medians")
        if options.what == "apps":
            import bench_apps

            return bench_apps.measure(options, scratch)
        measure_basic(scratch, options)


def measure_basic(scratch, options):
    print(f"{'seconds':<50} {'native':>10} {'dtfs':>10} {'ratio':>8}  span")
    measure_mount(options.binary, scratch, options)
    measure_cost(options.binary, scratch, options)
    unpacked = scratch / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "-x", "-f", options.archive, "-C", unpacked], check=True)
    measure_mirror(options.binary, scratch, unpacked, options)
    small_files(scratch / "small", options.mirror_files)
    print(f"the same for {options.mirror_files} small files:")
    measure_mirror(options.binary, scratch, scratch / "small", options)
    measure_memory(options.binary, scratch, options)


def pack(tree, options):
    """The tree as an archive, up to the size that was asked for. Returns the number of files."""
    count = size = 0
    with tarfile.open(options.archive, "w") as archive:
        for path in sorted(tree.rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            size += path.stat().st_size
            if size > options.tree_mib * MIB:
                break
            archive.add(path, arcname=pathlib.Path("tree") / path.relative_to(tree))
            count += 1
    return count


if __name__ == "__main__":
    main()
