//! The way to a target, by its URL.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use crate::config::{Adoption, Paths, TargetEntry, TargetUrl};
use crate::wire::{Connection, SshWay, connect_local, connect_ssh};

/// Connects to the target.
pub(super) fn connect(paths: &Paths, target: &TargetEntry) -> io::Result<Connection> {
    let extra: &[&str] = if target.adoption == Adoption::Allow { &["--adopt"] } else { &[] };
    match &target.url {
        TargetUrl::Local(dir) => {
            // Not the name it leads to: an upgrade may have removed that file.
            let program = Path::new("/proc/self/exe");
            connect_local(program, &global(paths), dir, extra)
        }
        TargetUrl::Ssh(place) => {
            let config = paths.ssh_config();
            let config = config.exists().then_some(config.as_path());
            let way = SshWay { user: place.user.as_deref(), host: &place.host, port: place.port, config };
            connect_ssh(&way, &place.dir, extra)
        }
        other => Err(io::Error::new(io::ErrorKind::Unsupported, format!("{other}: no way there is known"))),
    }
}

/// What a process of ours must be told to find the same files.
fn global(paths: &Paths) -> Vec<&OsStr> {
    match paths.root() {
        Some(root) => vec!["--root".as_ref(), root.as_os_str()],
        None => Vec::new(),
    }
}
