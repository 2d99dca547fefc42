//! A real ssh server with keys that exist for one test only.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::loopback::Loopback;
use super::process::{Process, descendants, tool, wait_until};
use super::scratch::utf8;

const LIMIT: Duration = Duration::from_secs(60);

/// Where sshd wants an empty directory; the package's service makes it when it starts, and it stays there.
const PRIVILEGE_SEPARATION: &str = "/run/sshd";

/// Which commands the key may run.
pub(crate) enum Key<'a> {
    /// Any.
    Free,
    /// Only this, whatever is asked for.
    Forced(&'a str),
}

/// The server on port 2222 of an address of a network of its own. Its users find `dtfs` in their PATH, with the files of `root`.
pub(crate) struct Sshd {
    server: Process,
    dir: tempfile::TempDir,
    address: String,
}

impl Sshd {
    pub(crate) fn start(network: &Loopback, address: &str, root: &Path, key: &Key<'_>) -> Sshd {
        fs::create_dir_all(PRIVILEGE_SEPARATION).expect("sshd's own directory");
        let dir = tempfile::Builder::new().prefix("dtfs-sshd-").tempdir().expect("a temporary directory");
        for name in ["host_key", "user_key"] {
            tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", utf8(&dir.path().join(name))]);
        }
        let programs = Path::new(env!("CARGO_BIN_EXE_dtfs")).parent().expect("a directory");
        let file = |name: &str| dir.path().join(name);
        let config = format!(
            "ListenAddress {address}:2222\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nStrictModes no\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             SetEnv DTFS_ROOT={} PATH={}:/usr/bin:/bin\n",
            file("host_key").display(),
            file("authorized_keys").display(),
            root.display(),
            programs.display(),
        );
        fs::write(file("sshd_config"), config).unwrap();
        let public = fs::read_to_string(file("user_key.pub")).unwrap();
        let line = match key {
            Key::Free => public,
            Key::Forced(command) => format!("command=\"{command}\",restrict {public}"),
        };
        fs::write(file("authorized_keys"), line).unwrap();
        let log = fs::File::create(file("log")).unwrap();
        let mut command = network.command("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f", utf8(&file("sshd_config"))]).stderr(log);
        let mut sshd = Sshd { server: Process::spawn(&mut command), dir, address: address.to_owned() };
        wait_until("the ssh server to listen", LIMIT, || {
            if let Some(status) = sshd.server.ended() {
                panic!("sshd ended with {status}: {}", sshd.log());
            }
            sshd.log().contains("Server listening").then_some(())
        });
        sshd
    }

    /// What a client must be told to come in with this key, and to know this server.
    pub(crate) fn write_client_config(&self, to: &Path) {
        let file = |name: &str| self.dir.path().join(name);
        let public = fs::read_to_string(file("host_key.pub")).unwrap();
        fs::write(file("known_hosts"), format!("[{}]:2222 {public}", self.address)).unwrap();
        let text = format!(
            "Host *\n  IdentityFile {}\n  IdentitiesOnly yes\n  UserKnownHostsFile {}\n  GlobalKnownHostsFile none\n  \
             StrictHostKeyChecking yes\n",
            file("user_key").display(),
            file("known_hosts").display(),
        );
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, text).unwrap();
    }

    /// The server does not know the key any more.
    pub(crate) fn forget_key(&self) {
        fs::write(self.dir.path().join("authorized_keys"), "").unwrap();
    }

    /// The `dtfs serve` processes of its sessions.
    pub(crate) fn servers(&self) -> Vec<i32> {
        let below = descendants(self.server.pid()).into_iter();
        let is_server = |line: &str| line.split(' ').next().is_some_and(|word| word.ends_with("dtfs"));
        below.filter(|(_, line)| is_server(line)).map(|(pid, _)| pid).collect()
    }

    /// The processes of its open connections.
    pub(crate) fn connections(&self) -> Vec<i32> {
        descendants(self.server.pid())
            .into_iter()
            .filter(|(_, line)| line.contains("sshd"))
            .map(|(pid, _)| pid)
            .collect()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        for (pid, _) in descendants(self.server.pid()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        if std::thread::panicking() {
            eprintln!("--- log of sshd ---\n{}--- end of the log ---", self.log());
        }
    }
}
