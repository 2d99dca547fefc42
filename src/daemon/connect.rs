//! The way to a target, by its URL.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use crate::config::{Adoption, Paths, Peers, TargetEntry, TargetUrl};
use crate::wire::{Connection, SshWay, connect_local, connect_ssh, connect_tls};

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
        TargetUrl::Tls(place) => {
            let host = place.host.as_str();
            let expected = Peers::load(paths).map_err(io::Error::other)?.get(host).ok_or_else(|| {
                let text = format!("the key of {host} is not known: dtfs peer add {host} KEY (there: dtfs peer show)");
                io::Error::new(io::ErrorKind::NotFound, text)
            })?;
            connect_tls(super::identity::identity(paths)?, (host, place.port), expected, place.volume.as_str())
        }
    }
}

/// What a process of ours must be told to find the same files.
pub(super) fn global(paths: &Paths) -> Vec<&OsStr> {
    match paths.root() {
        Some(root) => vec!["--root".as_ref(), root.as_os_str()],
        None => Vec::new(),
    }
}
