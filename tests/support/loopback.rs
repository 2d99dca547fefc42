//! Servers with their clients on a network of their own: only a loopback device, every port free, nobody else there.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::process::{Process, wait_until};
use super::scratch::utf8;

const LIMIT: Duration = Duration::from_secs(20);

/// A network namespace, kept by a process that does nothing else.
pub(crate) struct Loopback {
    keeper: Process,
}

impl Loopback {
    pub(crate) fn new() -> Loopback {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && exec sleep infinity"]);
        let loopback = Loopback { keeper: Process::spawn(command.stdin(Stdio::null())) };
        let network_of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
        wait_until("the loopback device to be up", LIMIT, || {
            // Until it has a network of its own it has ours, whose device is up.
            network_of(&loopback.keeper().to_string())
                .filter(|network| Some(network) != network_of("self").as_ref())?;
            let mut look = loopback.command("ip");
            let output = look.args(["-brief", "address", "show", "up", "dev", "lo"]).output().expect("ip runs");
            String::from_utf8_lossy(&output.stdout).contains("127.0.0.1").then_some(())
        });
        loopback
    }

    /// The process that keeps the network.
    pub(crate) fn keeper(&self) -> i32 {
        self.keeper.pid()
    }

    /// `program` on this network; its process id is that of the child.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.keeper.pid())).args(["--", program]).stdin(Stdio::null());
        command
    }

    /// A script of `tests/clients` on this network.
    pub(crate) fn script(&self, name: &str) -> Command {
        let mut command = self.command("python3");
        command.arg(client_script(name));
        command
    }

    /// `program` on this network and in the mount namespace of `holder`.
    pub(crate) fn command_beside(&self, holder: &Process, program: &str) -> Command {
        let mut command = self.command("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", holder.pid())).args(["--", program]);
        command
    }
}

/// Where a script of `tests/clients` lies.
pub(crate) fn client_script(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name);
    utf8(&path).to_owned()
}
