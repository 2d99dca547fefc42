"""Ways to a target on another host, on this machine: a real ssh server with throwaway keys, and a listening daemon."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import time

import bench


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until_listening(port, server):
    deadline = time.monotonic() + 30
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"nobody listens on port {port}")
        time.sleep(0.02)


class Sshd:
    """An ssh server for one key. Its users find this `dtfs` in their PATH, with the files of `far`. A context."""

    def __init__(self, binary, directory, far):
        self.binary, self.directory, self.far = pathlib.Path(binary).resolve(), directory, far
        self.port, self.server = free_port(), None
        self.client_config = directory / "ssh_config"

    def __enter__(self):
        self.directory.mkdir()
        self.far.mkdir(exist_ok=True)
        pathlib.Path("/run/sshd").mkdir(exist_ok=True)
        for name in ("host_key", "user_key"):
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", self.directory / name]
            subprocess.run(key, check=True)
        file = self.directory.joinpath
        file("authorized_keys").write_text(file("user_key.pub").read_text())
        file("known_hosts").write_text(f"[127.0.0.1]:{self.port} {file('host_key.pub').read_text()}")
        file("sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {file('host_key')}\n"
            f"AuthorizedKeysFile {file('authorized_keys')}\nPidFile none\nUsePAM no\nStrictModes no\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"SetEnv DTFS_ROOT={self.far} PATH={self.binary.parent}:/usr/bin:/bin\n"
        )
        self.client_config.write_text(
            f"Host *\n  IdentityFile {file('user_key')}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {file('known_hosts')}\n  GlobalKnownHostsFile none\n  StrictHostKeyChecking yes\n"
        )
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", file("sshd_config")]
        with open(file("log"), "wb") as log:
            self.server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until_listening(self.port, self.server)
        return self

    def prepare(self, host):
        """`host` can call."""
        config = host.root / "etc/dtfs/ssh_config"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_bytes(self.client_config.read_bytes())

    def url(self, directory):
        return f"ssh://root@127.0.0.1:{self.port}{directory}"

    def processes(self):
        return family(self.server.pid)

    def __exit__(self, *_):
        for pid in reversed(family(self.server.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.server.wait()


class Listener:
    """A daemon that takes a copy of the volume over TLS. A context."""

    def __init__(self, binary, root, directory):
        self.host, self.directory, self.port = bench.Host(binary, root), directory, free_port()

    def __enter__(self):
        settings = self.host.root / "etc/dtfs/dtfs.toml"
        settings.parent.mkdir(parents=True)
        settings.write_text(f'listen = "127.0.0.1:{self.port}"\n')
        self.host.start()
        until_listening(self.port, self.host.daemon)
        return self

    def prepare(self, host):
        self.host.run("peer", "add", "near", host.run("peer", "show").stdout.strip())
        host.run("peer", "add", "127.0.0.1", self.host.run("peer", "show").stdout.strip())
        self.host.run("define", "source", "copy", "near", self.directory)

    def url(self, _directory):
        return f"tls://127.0.0.1:{self.port}/copy"

    def processes(self):
        return family(self.host.daemon.pid)

    def __exit__(self, *outcome):
        self.host.__exit__(*outcome)


def family(pid):
    """A process and everything below it."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found
