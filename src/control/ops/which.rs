//! What an operator means by a name or a path.

use std::path::{Path, PathBuf};

use crate::config::{MountEntry, MountsFile, Paths, VolumeName, nearest};
use crate::control::{ExitCode, Failure, Selection};

/// Some entries or all of them, as an operator names them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Which {
    /// `--all`.
    All,
    /// Paths as typed: relative, with symlinks, or as in the file.
    Paths(Vec<PathBuf>),
}

impl Which {
    /// The same with every path spelled as in `mounts`; what is no entry stays, made absolute.
    pub(super) fn select(&self, mounts: &MountsFile) -> Selection {
        match self {
            Which::All => Selection::All,
            Which::Paths(typed) => Selection::Paths(
                typed
                    .iter()
                    .map(|path| find_entry(mounts, path).map_or_else(|| real(path), |e| e.path.clone()))
                    .collect(),
            ),
        }
    }
}

/// The entry that `path` means, by spelling or by the directory it leads to.
pub fn find_entry<'a>(mounts: &'a MountsFile, path: &Path) -> Option<&'a MountEntry> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let real_path = real(path);
    mounts.entries().find(|entry| entry.path == absolute || entry.path == real_path || real(&entry.path) == real_path)
}

/// The path without symlinks; by its spelling when it cannot be followed (a dead mount, a missing directory).
pub(super) fn real(path: &Path) -> PathBuf {
    path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

/// The volume that `text` means: its name, or a path inside it.
///
/// # Errors
/// Code 2 when there is none; the remedy names the nearest, or all.
pub fn resolve_volume(paths: &Paths, text: &str) -> Result<VolumeName, Failure> {
    let mounts = MountsFile::load(paths)?;
    let by_name = VolumeName::new(text).ok();
    if let Some(name) = by_name.filter(|name| mounts.find_volume(name).is_some() || paths.volume_file(name).exists()) {
        return Ok(name);
    }
    if text.contains('/') || text.starts_with('.') {
        let path = real(Path::new(text));
        let inside = mounts.entries().filter(|e| path.starts_with(&e.path) || path.starts_with(real(&e.path)));
        return match inside.max_by_key(|e| e.path.components().count()) {
            Some(entry) => Ok(entry.volume.clone()),
            None => Err(unknown(format!("{} lies in no volume", path.display()), text, &mounts)),
        };
    }
    Err(unknown(format!("there is no volume \"{}\"", text.escape_debug()), text, &mounts))
}

fn unknown(message: String, text: &str, mounts: &MountsFile) -> Failure {
    let known: Vec<&str> = mounts.entries().map(|e| e.volume.as_str()).collect();
    let remedy = match nearest(text, known.iter().copied()) {
        Some(name) => format!("did you mean \"{name}\"?"),
        None if known.is_empty() => "make one with: dtfs define volume VOL DIR".to_owned(),
        None => format!("volumes of this host: {}", known.join(", ")),
    };
    Failure::new(ExitCode::Usage, message).with_remedy(remedy)
}
