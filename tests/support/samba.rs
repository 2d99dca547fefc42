//! An SMB server: Samba's smbd, with all of its files in a temporary directory.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::loopback::Loopback;
use super::process::{Process, descendants, wait_until};
use super::scratch::utf8;

pub(crate) const PASSWORD: &str = "secret";
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// One server with root as its only user.
pub(crate) struct Samba {
    smbd: Process,
    state: TempDir,
}

impl Samba {
    pub(crate) fn start(loopback: &Loopback, shares: &[(&str, &Path)]) -> Samba {
        let state = tempfile::Builder::new().prefix("dtfs-smb-").tempdir().expect("a temporary directory");
        let conf = state.path().join("smb.conf");
        fs::write(&conf, configuration(state.path(), shares)).expect("a configuration file");
        add_root(&conf);
        let output = File::create(state.path().join("output")).expect("an output file");
        let mut smbd = loopback.command("smbd");
        // At its end it sends a signal to its whole process group, so it must have one of its own, as it has by default.
        smbd.args(["-F", "--debug-stdout", "-s", utf8(&conf)]);
        let smbd = Process::spawn(smbd.stdout(output.try_clone().expect("a second handle")).stderr(output));
        let mut samba = Samba { smbd, state };
        wait_until("smbd to answer", START_LIMIT, || samba.answers(loopback, shares[0].0));
        samba
    }

    fn answers(&mut self, loopback: &Loopback, share: &str) -> Option<()> {
        if let Some(status) = self.smbd.ended() {
            panic!("smbd ended at its start: {status}");
        }
        let mut client = loopback.command("smbclient");
        client.args(["-s", utf8(&self.conf()), "-U", &format!("root%{PASSWORD}")]);
        let output = client.args([&format!("//127.0.0.1/{share}"), "-c", "ls"]).output();
        output.expect("smbclient runs (scripts/setup.sh installs it)").status.success().then_some(())
    }

    pub(crate) fn conf(&self) -> PathBuf {
        self.state.path().join("smb.conf")
    }

    /// Stops it, as an administrator would.
    pub(crate) fn stop(mut self) {
        self.smbd.signal(Signal::SIGTERM);
        self.smbd.wait("smbd to stop", STOP_LIMIT);
    }
}

impl Drop for Samba {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = fs::read_to_string(self.state.path().join("output")).unwrap_or_default();
            eprintln!("--- log of smbd ---\n{text}--- end of the log ---");
        }
        for (pid, _) in descendants(self.smbd.pid()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// smbd wants every user of the share in a list of its own, beside the system's.
fn add_root(conf: &Path) {
    let mut command = Command::new("smbpasswd");
    command.args(["-c", utf8(conf), "-s", "-a", "root"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().expect("smbpasswd runs (scripts/setup.sh installs it)");
    let mut input = child.stdin.take().expect("a pipe");
    write!(input, "{PASSWORD}\n{PASSWORD}\n").expect("smbpasswd reads the password twice");
    drop(input);
    assert!(child.wait().expect("smbpasswd ends").success(), "smbpasswd cannot add root");
}

/// Streams, access lists and DOS attributes are kept in xattrs, as a server for Windows keeps them. The oldest dialect is
/// allowed because only there smbclient can do what is not known to Windows.
fn configuration(state: &Path, shares: &[(&str, &Path)]) -> String {
    let mut text = "[global]\nserver role = standalone server\ninterfaces = lo\nbind interfaces only = yes\n\
         server min protocol = NT1\nclient min protocol = NT1\nunix extensions = yes\nmap to guest = never\n\
         disable netbios = yes\ndisable spoolss = yes\nload printers = no\n\
         vfs objects = acl_xattr streams_xattr\nstore dos attributes = yes\nea support = yes\nread only = no\n"
        .to_owned();
    for what in ["private dir", "lock directory", "state directory", "cache directory", "pid directory", "ncalrpc dir"]
    {
        let dir = state.join(what.replace(' ', "-"));
        fs::create_dir(&dir).expect("a new directory");
        text += &format!("{what} = {}\n", dir.display());
    }
    text += &format!("passdb backend = tdbsam:{0}/passdb.tdb\nlog file = {0}/log\n", state.display());
    for (name, path) in shares {
        text += &format!("[{name}]\npath = {}\n", path.display());
    }
    text
}
