//! `dtfs_mounts`: one `PATH [options]` a line.

use std::path::{Component, Path, PathBuf};

use super::escape::{escape, unescape};
use super::{ConfigError, EditLock, MountOptions, Paths, VolumeName, atomic};

/// One entry: a directory that is mounted, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountEntry {
    /// Its line in the file, counted from 1.
    pub line: usize,
    /// The directory, absolute, as written.
    pub path: PathBuf,
    /// The options as written.
    pub options: MountOptions,
    /// The volume: `volume=` or the last component of the path.
    pub volume: VolumeName,
}

enum Meaning {
    Entry(MountEntry),
    /// A comment, an empty line or a line that is reported in `errors`.
    Nothing,
}

struct Line {
    /// Every byte, with the newline when there is one.
    raw: Vec<u8>,
    meaning: Meaning,
}

/// The file in memory. Lines that are not edited keep every byte.
pub struct MountsFile {
    file: PathBuf,
    lines: Vec<Line>,
    errors: Vec<ConfigError>,
}

impl MountsFile {
    /// Reads the file; a missing one is empty. Bad lines are in [`MountsFile::errors`] and stop nobody.
    ///
    /// # Errors
    /// When it cannot be read, or somebody else could have written it.
    pub fn load(paths: &Paths) -> Result<MountsFile, ConfigError> {
        let file = paths.mounts_file();
        let bytes = atomic::read_trusted(&file)?.unwrap_or_default();
        Ok(MountsFile::parse(&file, &bytes))
    }

    /// Reads `bytes` as the content of `file`, which is only used in messages.
    pub fn parse(file: &Path, bytes: &[u8]) -> MountsFile {
        let mut parsed = MountsFile { file: file.to_owned(), lines: Vec::new(), errors: Vec::new() };
        for raw in bytes.split_inclusive(|b| *b == b'\n') {
            parsed.push(raw);
        }
        parsed
    }

    /// The entries in the order of the file, without the bad lines.
    pub fn entries(&self) -> impl Iterator<Item = &MountEntry> {
        self.lines.iter().filter_map(|line| match &line.meaning {
            Meaning::Entry(entry) => Some(entry),
            Meaning::Nothing => None,
        })
    }

    /// One error per bad line.
    pub fn errors(&self) -> &[ConfigError] {
        &self.errors
    }

    /// Where it was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The entry of `volume`.
    pub fn find_volume(&self, volume: &VolumeName) -> Option<&MountEntry> {
        self.entries().find(|entry| entry.volume == *volume)
    }

    /// The entry whose directory is `path`, or the deepest one above it.
    pub fn find_containing(&self, path: &Path) -> Option<&MountEntry> {
        self.entries().filter(|entry| path.starts_with(&entry.path)).max_by_key(|e| e.path.components().count())
    }

    /// Appends an entry. Only the text is checked here; [`super::check_volume_dir`] checks the directory.
    ///
    /// # Errors
    /// What reading the new line back would report.
    pub fn add(&mut self, path: &Path, options: &MountOptions) -> Result<&MountEntry, ConfigError> {
        if let Some(last) = self.lines.last_mut()
            && !last.raw.ends_with(b"\n")
        {
            last.raw.push(b'\n');
        }
        let raw = format!("{}  {options}\n", escape(&path.to_string_lossy()));
        let errors_before = self.errors.len();
        self.push(raw.as_bytes());
        if self.errors.len() > errors_before {
            self.lines.pop();
        }
        match (self.errors.len() > errors_before).then(|| self.errors.pop()).flatten() {
            Some(error) => Err(error),
            None => self.entries().last().ok_or_else(|| self.error(0, "nothing was added", "report this")),
        }
    }

    /// Takes the entry of exactly `path` out, with its line; comments stay. The others keep the line numbers that they
    /// were read with.
    pub fn remove(&mut self, path: &Path) -> Option<MountEntry> {
        let is_it = |line: &Line| matches!(&line.meaning, Meaning::Entry(entry) if entry.path == path);
        let at = self.lines.iter().position(is_it)?;
        match self.lines.remove(at).meaning {
            Meaning::Entry(entry) => Some(entry),
            Meaning::Nothing => None,
        }
    }

    /// The whole content.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.lines.iter().flat_map(|line| line.raw.iter().copied()).collect()
    }

    /// Replaces the file in one step. The lock proves that nobody edited it since it was loaded under the same lock.
    ///
    /// # Errors
    /// When it cannot be written; the old file is then still whole.
    pub fn save(&self, lock: &EditLock) -> Result<(), ConfigError> {
        lock.replace(&self.file, &self.to_bytes())
    }

    fn push(&mut self, raw: &[u8]) {
        let number = self.lines.len() + 1;
        let meaning = match self.read_line(number, raw) {
            Ok(Some(entry)) => Meaning::Entry(entry),
            Ok(None) => Meaning::Nothing,
            Err(error) => {
                self.errors.push(error);
                Meaning::Nothing
            }
        };
        self.lines.push(Line { raw: raw.to_owned(), meaning });
    }

    fn read_line(&self, line: usize, raw: &[u8]) -> Result<Option<MountEntry>, ConfigError> {
        let blank = |b: &u8| matches!(b, b' ' | b'\t' | b'\r' | b'\n');
        let fields: Vec<&[u8]> =
            raw.split(blank).filter(|f| !f.is_empty()).take_while(|f| !f.starts_with(b"#")).collect();
        let (path, options) = match fields[..] {
            [] => return Ok(None),
            [path] => (path, &b""[..]),
            [path, options] => (path, options),
            _ => return Err(self.error(line, "more than a path and its options", "write a space in a path as \\040")),
        };
        let path = self.read_path(line, path)?;
        let options = std::str::from_utf8(options)
            .map_err(|_| self.error(line, "the options are not UTF-8", "rewrite the line"))?
            .parse::<MountOptions>()
            .map_err(|problem| self.error(line, &problem.to_string(), &problem.remedy()))?;
        let volume = self.volume_of(line, &path, &options)?;
        self.refuse_twice(line, &path, &volume)?;
        Ok(Some(MountEntry { line, path, options, volume }))
    }

    fn read_path(&self, line: usize, field: &[u8]) -> Result<PathBuf, ConfigError> {
        let bytes = unescape(field).map_err(|_| {
            self.error(line, "a broken escape", "write a backslash as \\134 and a space as \\040, with three digits")
        })?;
        let text = String::from_utf8(bytes)
            .map_err(|_| self.error(line, "the path is not UTF-8", "rename the directory or mount one above it"))?;
        let path = Path::new(&text);
        match path.is_absolute() && !path.components().any(|part| part == Component::ParentDir) {
            true => Ok(path.components().collect()),
            false => Err(self.error(line, "the path is not absolute or holds \"..\"", "begin it with /")),
        }
    }

    fn volume_of(&self, line: usize, path: &Path, options: &MountOptions) -> Result<VolumeName, ConfigError> {
        if let Some(volume) = &options.volume {
            return Ok(volume.clone());
        }
        let last = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        VolumeName::new(&last)
            .map_err(|problem| self.error(line, &problem.to_string(), "name the volume with the option volume=NAME"))
    }

    fn refuse_twice(&self, line: usize, path: &Path, volume: &VolumeName) -> Result<(), ConfigError> {
        if let Some(first) = self.entries().find(|entry| entry.path == path) {
            let problem = format!("{} is already in line {}", path.display(), first.line);
            return Err(self.error(line, &problem, "remove one of the two lines"));
        }
        match self.find_volume(volume) {
            Some(first) => {
                let problem = format!("the volume name {volume} is already used in line {}", first.line);
                Err(self.error(line, &problem, "give one of them another name with the option volume=NAME"))
            }
            None => Ok(()),
        }
    }

    fn error(&self, line: usize, problem: &str, remedy: &str) -> ConfigError {
        ConfigError::Line { file: self.file.clone(), line, problem: problem.to_owned(), remedy: remedy.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> MountsFile {
        MountsFile::parse(Path::new("dtfs_mounts"), text.as_bytes())
    }

    const SAMPLE: &str = "# mounts of this host\n\n  /srv/data\tnorepatime   # live\r\n/home atime,volume=homes\n#end";

    #[test]
    fn keeps_every_byte() {
        let file = parse(SAMPLE);
        assert!(file.errors().is_empty(), "{:?}", file.errors());
        assert_eq!(file.to_bytes(), SAMPLE.as_bytes());
        let names: Vec<_> = file.entries().map(|e| (e.line, e.volume.as_str())).collect();
        assert_eq!(names, [(3, "data"), (4, "homes")]);
    }

    #[test]
    fn add_and_remove_touch_one_line() {
        let mut file = parse(SAMPLE);
        file.add(Path::new("/a b"), &"volume=ab".parse().unwrap()).unwrap();
        let text = String::from_utf8(file.to_bytes()).unwrap();
        assert_eq!(text, format!("{SAMPLE}\n/a\\040b  norepatime,volume=ab\n"));
        assert_eq!(file.find_containing(Path::new("/a b/c")).unwrap().volume.as_str(), "ab");
        assert!(file.remove(Path::new("/srv/data")).is_some());
        assert!(file.remove(Path::new("/srv/data")).is_none());
        let text = String::from_utf8(file.to_bytes()).unwrap();
        assert!(text.starts_with("# mounts of this host\n\n/home "), "{text}");
    }

    #[test]
    fn a_bad_line_is_named_and_the_rest_goes_on() {
        let file = parse("/a\n/b nosuch\nrelative\n/a x\\\n/c\\04\n/d d d\n/x/a\n/ok\n");
        let lines: Vec<_> = file.errors().iter().filter_map(ConfigError::line).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6, 7]);
        assert_eq!(file.entries().count(), 2);
        assert!(file.errors()[0].to_string().starts_with("dtfs_mounts:2: "), "{}", file.errors()[0]);
    }

    #[test]
    fn a_refused_addition_changes_nothing() {
        let mut file = parse("/a\n");
        assert!(file.add(Path::new("/x/a"), &MountOptions::default()).is_err());
        assert_eq!(file.to_bytes(), b"/a\n");
        assert!(file.errors().is_empty());
    }
}
