#!/usr/bin/env python3
"""Paired measurements of dtfs on one machine: native directory against mount, rsync -a against the initial mirror.

Each round runs every workload natively and on the mount, in alternating order, so that drift of the machine hits both.
Printed are medians over the rounds and ratios; a ratio above 1 means that dtfs takes longer."""

import argparse
import contextlib
import os
import pathlib
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
        self.run("mounts", "mount", "--all")
        for directory in self.volumes:
            if not os.path.ismount(directory):
                raise RuntimeError(f"{directory} is not mounted\n{self.log()}")

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


def timed(action):
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


def write_4k(directory, options):
    block = os.urandom(4096)

    def work():
        with open(directory / "small", "wb", buffering=0) as file:
            for _ in range(options.small):
                file.write(block)

    return timed(work)


def write_4k_fsync(directory, options):
    block = os.urandom(4096)

    def work():
        with open(directory / "synced", "wb", buffering=0) as file:
            for _ in range(options.synced):
                file.write(block)
                os.fsync(file.fileno())

    return timed(work)


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


def measure_pair(workload, places, options, flip):
    """Runs one workload on each place; every run starts from an empty directory and a quiet disk."""
    seconds = {}
    for name in sorted(places, reverse=flip):
        directory = places[name] / "work"
        directory.mkdir()
        os.sync()
        seconds[name] = workload(directory, options)
        shutil.rmtree(directory)
    return seconds


def measure_mount(binary, scratch, options):
    native, volume = scratch / "native", scratch / "volume"
    for directory in (native, volume, scratch / "host"):
        directory.mkdir()
    with Host(binary, scratch / "host") as host:
        host.define("bench", volume)
        host.start()
        places = {"native": native, "mount": volume}
        for title, workload in WORKLOADS:
            rounds = [measure_pair(workload, places, options, n % 2 == 1) for n in range(options.rounds)]
            show((title, *(statistics.median(r[name] for r in rounds) for name in ("native", "mount"))))


def rsync_once(tree, directory):
    directory.mkdir()
    drop_caches()

    def work():
        subprocess.run(["rsync", "-a", f"{tree}/", f"{directory}/"], check=True)
        os.sync()

    seconds = timed(work)
    shutil.rmtree(directory)
    return seconds


def mirror_once(binary, tree, scratch):
    source, target, root = (scratch / name for name in ("mirror-source", "mirror-target", "mirror-host"))
    for directory in (target, root):
        directory.mkdir()
    subprocess.run(["cp", "-a", f"{tree}/", source], check=True)
    with Host(binary, root) as host:
        host.define("bench", source)
        host.start()
        drop_caches()

        def work():
            host.run("define", "target", "bench", f"local:{target}")
            host.run("wait", "bench", "--timeout", "3600")

        seconds = timed(work)
    for directory in (source, target, root):
        shutil.rmtree(directory)
    return seconds


def measure_mirror(binary, scratch, tree, options):
    rsync, mirror = [], []
    for _ in range(options.rounds):
        rsync.append(rsync_once(tree, scratch / "rsync-target"))
        mirror.append(mirror_once(binary, tree, scratch))
    show(("rsync -a against initial mirror, durable", statistics.median(rsync), statistics.median(mirror)))


def measure_memory(binary, scratch, options):
    """The peak while many small files are mirrored, beside the figures of time."""
    source, target, root = (scratch / name for name in ("memory-source", "memory-target", "memory-host"))
    for directory in (source, target, root):
        directory.mkdir()
    for i in range(options.memory_files):
        directory = source / str(i // 1000)
        directory.mkdir(exist_ok=True)
        (directory / str(i)).write_bytes(b"x" * 100)
    with Host(binary, root) as host:
        host.define("bench", source)
        host.start()
        host.run("define", "target", "bench", f"local:{target}")
        host.run("wait", "bench", "--timeout", "3600")
        daemon, *others = host.peak_mib()
    named = "".join(f", target process {mib:.0f} MiB" for mib in others)
    print(f"peak memory, mirror of {options.memory_files} files: daemon {daemon:.0f} MiB{named}")


def show(row):
    title, before, ours = row
    print(f"{title:<50} {before:>10.3f} {ours:>10.3f} {ours / before:>8.2f}", flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each pair; the median counts (3)")
    parser.add_argument("--mib", type=int, default=512, help="size of the sequential file (512)")
    parser.add_argument("--small", type=int, default=20_000, help="4 KiB writes without fsync (20000)")
    parser.add_argument("--synced", type=int, default=500, help="4 KiB writes with fsync (500)")
    parser.add_argument("--files", type=int, default=10_000, help="small files (10000)")
    parser.add_argument("--memory-files", type=int, default=100_000, help="files of the memory run (100000)")
    parser.add_argument("--tree", type=pathlib.Path, help="the source tree to untar and to mirror")
    parser.add_argument("--dir", type=pathlib.Path, help="measure on this filesystem (the temporary directory)")
    parser.add_argument("--binary", type=pathlib.Path, default=REPOSITORY / "target/release/dtfs")
    return parser.parse_args()


def main():
    options = arguments()
    tree = real_tree(options)
    # Ctrl-C and SIGTERM leave through the same clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="dtfs-bench-", dir=options.dir) as name:
        scratch = pathlib.Path(name)
        options.archive = scratch / "tree.tar"
        with tarfile.open(options.archive, "w") as archive:
            archive.add(tree, arcname="tree")
        print(f"tree: {tree}, {options.archive.stat().st_size / MIB:.0f} MiB; {options.rounds} rounds, medians")
        print(f"{'seconds':<50} {'native':>10} {'dtfs':>10} {'ratio':>8}")
        measure_mount(options.binary, scratch, options)
        measure_mirror(options.binary, scratch, tree, options)
        measure_memory(options.binary, scratch, options)


if __name__ == "__main__":
    main()
