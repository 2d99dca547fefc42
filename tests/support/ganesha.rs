//! An NFS server in user space: nfs-ganesha, with the rpcbind that its version 3 asks for.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::loopback::Loopback;
use super::process::{Process, wait_until};
use super::scratch::utf8;

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// One server; the fields are dropped in this order. It exports what `exports` named, as `/NAME`.
pub(crate) struct Ganesha {
    server: Option<Process>,
    rpcbind: Option<Process>,
    exports: Vec<(&'static str, PathBuf)>,
    state: TempDir,
}

impl Ganesha {
    pub(crate) fn start(loopback: &Loopback, exports: &[(&'static str, &Path)]) -> Ganesha {
        let exports = exports.iter().map(|(name, path)| (*name, path.to_path_buf())).collect();
        let state = tempfile::Builder::new().prefix("dtfs-nfs-").tempdir().expect("a temporary directory");
        let mut ganesha = Ganesha { server: None, rpcbind: None, exports, state };
        fs::write(ganesha.path("conf"), ganesha.configuration()).expect("a configuration file");
        ganesha.run(loopback);
        ganesha
    }

    /// Starts it, in a mount namespace with a /run of its own. The namespace has copies of all mounts: it must end
    /// before a filesystem can be unmounted for good.
    pub(crate) fn run(&mut self, loopback: &Loopback) {
        let output = File::options().create(true).append(true).open(self.path("output")).expect("an output file");
        let mut rpcbind = loopback.command("unshare");
        rpcbind.args(["--mount", "--propagation", "private", "sh", "-c"]);
        rpcbind.arg("mount -t tmpfs none /run && mkdir /run/rpcbind /run/ganesha && exec rpcbind -f -w");
        rpcbind
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output.try_clone().expect("a second handle"));
        let rpcbind = self.rpcbind.insert(Process::spawn(&mut rpcbind));
        let socket = format!("/proc/{}/root/run/rpcbind.sock", rpcbind.pid());
        wait_until("rpcbind", START_LIMIT, || Path::new(&socket).exists().then_some(()));
        let mut server = loopback.command_beside(rpcbind, "ganesha.nfsd");
        let path = |name: &str| utf8(&self.state.path().join(name)).to_owned();
        server.args(["-F", "-f", &path("conf"), "-L", &path("log"), "-p", &path("pid")]);
        self.server = Some(Process::spawn(server.stdout(output.try_clone().expect("a second handle")).stderr(output)));
        for (name, _) in self.exports.clone() {
            wait_until(&format!("ganesha to export {name}"), START_LIMIT, || self.answers(loopback, name));
        }
    }

    /// Stops it, as an administrator would.
    pub(crate) fn stop(&mut self) {
        let mut server = self.server.take().expect("ganesha runs");
        server.signal(Signal::SIGTERM);
        server.wait("ganesha to stop", STOP_LIMIT);
        drop(self.rpcbind.take());
    }

    fn answers(&mut self, loopback: &Loopback, name: &str) -> Option<()> {
        if let Some(status) = self.server.as_mut().and_then(Process::ended) {
            panic!("ganesha ended at its start: {status}");
        }
        let answered = |version: u32| {
            let mut list = loopback.command("nfs-ls");
            let output = list.arg(format!("nfs://127.0.0.1/{name}/?version={version}")).output();
            output.expect("nfs-ls runs (scripts/setup.sh installs it)").status.success()
        };
        (answered(4) && answered(3)).then_some(())
    }

    /// The number of a FUSE filesystem's device may change with every mount, and ganesha puts it into the handles that
    /// clients keep; with Major64 it takes the filesystem's id instead, which FUSE has none of: always 0.
    fn configuration(&self) -> String {
        let mut text = format!(
            "NFS_CORE_PARAM {{ Protocols = 3,4; Enable_NLM = false; Enable_RQUOTA = false; mount_path_pseudo = true; }}\n\
             NFSV4 {{ RecoveryBackend = fs; RecoveryRoot = {}; Graceless = true; Only_Numeric_Owners = true; }}\n",
            self.state.path().display()
        );
        for (number, (name, path)) in self.exports.iter().enumerate() {
            let identity = if super::host::is_dtfs(path) { "fsid_type = Major64;" } else { "" };
            text += &format!(
                "EXPORT {{ Export_Id = {}; Path = {}; Pseudo = /{name}; Access_Type = RW; Squash = No_Root_Squash; \
                 SecType = sys; Transports = TCP; FSAL {{ Name = VFS; {identity} }} }}\n",
                number + 1,
                path.display()
            );
        }
        text
    }

    fn path(&self, name: &str) -> PathBuf {
        self.state.path().join(name)
    }
}

impl Drop for Ganesha {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = fs::read_to_string(self.path("log")).unwrap_or_default();
            let end: Vec<_> = text.lines().rev().take(30).collect();
            eprintln!("--- log of ganesha, the last line first ---\n{}\n--- end of the log ---", end.join("\n"));
        }
    }
}
