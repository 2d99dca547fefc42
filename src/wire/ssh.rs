//! The transport to a directory of another host: the ssh program, which starts `dtfs serve --stdio DIR` there. Whom to trust,
//! which key to use and how to get there is ssh's matter and its user's configuration.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use super::local::{Connection, Peer, connection};

/// Where ssh leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SshWay<'a> {
    /// Who to be there.
    pub user: Option<&'a str>,
    /// The host; it does not begin with `-`.
    pub host: &'a str,
    /// Its port.
    pub port: Option<u16>,
    /// A configuration file to use instead of the user's.
    pub config: Option<&'a Path>,
}

/// What we insist on, whatever the user's configuration says. Nobody is there to answer a question; a connection on which
/// nothing is heard ends within 15 seconds; nothing else travels through it; frames are compressed already.
const OPTIONS: [&str; 13] = [
    "BatchMode=yes",
    "ConnectTimeout=15",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "Compression=no",
    // Killing our ssh must end the connection, so it is not shared with others.
    "ControlMaster=no",
    "ControlPath=none",
    "EscapeChar=none",
];

/// Starts ssh and speaks through it to `dtfs serve --stdio DIR`.
///
/// # Errors
/// When there is no ssh program. What ssh itself says is in [`Peer::last_words`].
pub fn connect_ssh(way: &SshWay<'_>, dir: &Path, extra: &[&str]) -> io::Result<Connection> {
    let mut command = Command::new("ssh");
    if let Some(config) = way.config {
        command.arg("-F").arg(config);
    }
    command.args(["-T", "-a", "-x"]);
    for option in OPTIONS {
        command.args(["-o", option]);
    }
    if let Some(user) = way.user {
        command.args(["-l", user]);
    }
    if let Some(port) = way.port {
        command.args(["-p", &port.to_string()]);
    }
    command.args(["--", way.host, &remote_command(dir, extra)]);
    let child = command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    connection(child, Peer::process_that_speaks)
}

/// What is asked of the other host's shell.
pub fn remote_command(dir: &Path, extra: &[&str]) -> String {
    let dir = dir.to_string_lossy().replace('\'', r"'\''");
    let extra: String = extra.iter().map(|word| format!(" {word}")).collect();
    format!("dtfs serve --stdio '{dir}'{extra}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_directory_as_it_is() {
        for dir in ["/srv/copy", "/srv/it's $(id) `id` \"\\ *", "/-rf"] {
            let command = remote_command(Path::new(dir), &["--adopt"]).replace("dtfs serve --stdio", "printf %s");
            let output = Command::new("sh").args(["-c", command.strip_suffix(" --adopt").unwrap()]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), dir);
        }
    }
}
