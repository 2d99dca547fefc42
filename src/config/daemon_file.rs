//! `dtfs.toml`: the daemon's own settings.

use std::net::SocketAddr;

use serde::Deserialize;

use super::{ConfigError, Paths, atomic};

/// The whole file; a missing one is the default.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DaemonFile {
    /// Where sources may call, as `0.0.0.0:6320`; without it nobody can.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
}

impl DaemonFile {
    /// Reads it.
    ///
    /// # Errors
    /// When it cannot be read, trusted or understood.
    pub fn load(paths: &Paths) -> Result<DaemonFile, ConfigError> {
        let file = paths.daemon_file();
        let Some(bytes) = atomic::read_trusted(&file)? else { return Ok(DaemonFile::default()) };
        let text = String::from_utf8_lossy(&bytes);
        toml::from_str(&text).map_err(|error| ConfigError::Conflict {
            file,
            problem: error.message().to_owned(),
            remedy: "correct the file; the daemon does not start until then".to_owned(),
        })
    }
}
