//! `peers.toml`: the hosts that this one knows, each by the fingerprint of its key. One line each: `HOST = "FINGERPRINT"`.

use std::collections::BTreeMap;

use toml_edit::{DocumentMut, value};

use super::{ConfigError, EditLock, Paths, atomic};
use crate::base::Fingerprint;

/// The hosts by name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Peers(BTreeMap<String, Fingerprint>);

impl Peers {
    /// Reads the file; a missing one knows nobody.
    ///
    /// # Errors
    /// When it cannot be read, trusted or understood.
    pub fn load(paths: &Paths) -> Result<Peers, ConfigError> {
        let file = paths.peers_file();
        let Some(bytes) = atomic::read_trusted(&file)? else { return Ok(Peers::default()) };
        let problem = |problem: String| ConfigError::Conflict {
            file: file.clone(),
            problem,
            remedy: "correct the file, or remove the line and use dtfs peer add".to_owned(),
        };
        let text = String::from_utf8(bytes).map_err(|_| problem("it is not UTF-8".to_owned()))?;
        let lines: BTreeMap<String, String> =
            toml::from_str(&text).map_err(|error| problem(error.message().to_owned()))?;
        let peers = lines.into_iter().map(|(name, text)| {
            let fingerprint = text.parse().map_err(|error| problem(format!("{}: {error}", name.escape_debug())))?;
            Ok((name, fingerprint))
        });
        peers.collect::<Result<_, ConfigError>>().map(Peers)
    }

    /// The fingerprint of `host`.
    pub fn get(&self, host: &str) -> Option<Fingerprint> {
        self.0.get(host).copied()
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Fingerprint)> {
        self.0.iter().map(|(name, fingerprint)| (name.as_str(), *fingerprint))
    }
}

/// Adds a host, or replaces its fingerprint; `None` takes it out. False when there was nothing to take out.
///
/// # Errors
/// When the file cannot be understood or written.
pub fn set_peer(
    lock: &EditLock,
    paths: &Paths,
    host: &str,
    fingerprint: Option<Fingerprint>,
) -> Result<bool, ConfigError> {
    Peers::load(paths)?;
    let file = paths.peers_file();
    let bytes = atomic::read_trusted(&file)?.unwrap_or_default();
    let mut document: DocumentMut =
        String::from_utf8_lossy(&bytes).parse().map_err(|error: toml_edit::TomlError| ConfigError::Conflict {
            file: file.clone(),
            problem: error.message().to_owned(),
            remedy: "correct the file".to_owned(),
        })?;
    match fingerprint {
        Some(fingerprint) => document[host] = value(fingerprint.to_string()),
        None if document.remove(host).is_none() => return Ok(false),
        None => {}
    }
    lock.replace(&file, document.to_string().as_bytes()).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_stay_and_a_broken_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(Some(dir.path().to_owned()));
        let lock = EditLock::take(&paths).unwrap();
        let (one, two) = (Fingerprint::of(b"1"), Fingerprint::of(b"2"));
        set_peer(&lock, &paths, "beta.example", Some(one)).unwrap();
        let text = std::fs::read_to_string(paths.peers_file()).unwrap();
        std::fs::write(paths.peers_file(), format!("# ours\n{text}")).unwrap();
        set_peer(&lock, &paths, "10.0.0.1", Some(two)).unwrap();
        let peers = Peers::load(&paths).unwrap();
        assert_eq!((peers.get("beta.example"), peers.get("10.0.0.1"), peers.get("x")), (Some(one), Some(two), None));
        assert!(set_peer(&lock, &paths, "10.0.0.1", None).unwrap());
        assert!(!set_peer(&lock, &paths, "10.0.0.1", None).unwrap());
        assert_eq!(std::fs::read_to_string(paths.peers_file()).unwrap(), format!("# ours\n{text}"));
        std::fs::write(paths.peers_file(), "beta = \"short\"\n").unwrap();
        assert!(set_peer(&lock, &paths, "c", Some(one)).is_err());
    }
}
