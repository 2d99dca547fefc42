//! `mount.dtfs`: what mount(8) calls for a line of fstab(5).
//!
//! Both forms are understood: `dtfs DIR dtfs OPTIONS` and `DIR DIR fuse.dtfs OPTIONS`. The daemon mounts; this asks it to,
//! and returns when it has. A directory without an entry gets one with the options of the line; one whose entry says
//! something else is refused, because only one of the two can be meant.

use std::path::{Path, PathBuf};

use super::print::report;
use crate::config::{MountEntry, MountOptions, MountsFile, OpenFiles, Paths, VolumeName};
use crate::control::ops::{self, MountHow, Rehearsal, Which};
use crate::control::{ExitCode, Failure, MountReply, Verdict};

/// The exit codes of mount(8).
const INVOCATION: u8 = 1;
const MOUNT_FAILURE: u8 = 32;

const USAGE: &str = "usage: mount.dtfs SPEC DIR [-fnsv] [-o OPTIONS] [-t TYPE]; SPEC is dtfs, dtfs:VOLUME or DIR";

/// Words of fstab and mount(8) that are nobody's options: they say when a line counts, or what is so anyhow.
const FOR_OTHERS: [&str; 19] = [
    "rw",
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "nouser",
    "owner",
    "group",
    "dev",
    "suid",
    "exec",
    "async",
    "relatime",
    "nolazytime",
    "norelatime",
    "nostrictatime",
    "silent",
    "loud",
];
/// These would be broken promises: the mount is as the directory below it is.
const REFUSED: [&str; 10] =
    ["ro", "nodev", "nosuid", "noexec", "noatime", "sync", "dirsync", "user", "users", "remount"];

/// What was asked for.
#[derive(PartialEq, Debug)]
struct Line {
    volume: Option<VolumeName>,
    dir: PathBuf,
    options: MountOptions,
    /// The words that became `options`.
    words: String,
    rehearsal: Rehearsal,
    verbose: Verbose,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verbose {
    No,
    Yes,
}

/// Unknown options are refused, or with `-s` skipped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unknown {
    Refused,
    Skipped,
}

/// Does what mount(8) wants; `args` are those behind the program's name. Returns the code to end with.
pub(super) fn run(args: &[String]) -> u8 {
    let paths = Paths::new(std::env::var_os("DTFS_ROOT").map(Into::into));
    match read(args).and_then(|line| mount(&paths, &line)) {
        Ok(()) => 0,
        Err(failure) => {
            report(&failure);
            if failure.code == ExitCode::Usage { INVOCATION } else { MOUNT_FAILURE }
        }
    }
}

fn wrong(message: impl Into<String>, remedy: impl Into<String>) -> Failure {
    Failure::new(ExitCode::Usage, message.into()).with_remedy(remedy.into())
}

fn read(args: &[String]) -> Result<Line, Failure> {
    let (mut rehearsal, mut verbose, mut unknown) = (Rehearsal::ForReal, Verbose::No, Unknown::Refused);
    let (mut places, mut words) = (Vec::new(), Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.strip_prefix('-') {
            None => places.push(arg.as_str()),
            Some("o") => words.extend(args.next().map(String::as_str).unwrap_or_default().split(',')),
            Some("t" | "N") => drop(args.next()),
            Some(flags) => {
                for flag in flags.chars() {
                    match flag {
                        'f' => rehearsal = Rehearsal::DryRun,
                        'v' => verbose = Verbose::Yes,
                        's' => unknown = Unknown::Skipped,
                        'n' => {}
                        _ => return Err(wrong(format!("mount.dtfs does not know -{flag}"), USAGE)),
                    }
                }
            }
        }
    }
    let [spec, dir] = places[..] else { return Err(wrong("a source and a directory are needed", USAGE)) };
    let words = own_words(&words)?;
    let options = read_options(&words, unknown)?;
    Ok(Line { volume: read_spec(spec, dir)?, dir: dir.into(), options, words: words.join(","), rehearsal, verbose })
}

/// The words that are dtfs's options.
fn own_words<'a>(words: &[&'a str]) -> Result<Vec<&'a str>, Failure> {
    let is_others = |word: &str| {
        word.is_empty() || FOR_OTHERS.contains(&word) || word.starts_with("x-") || word.starts_with("comment=")
    };
    if let Some(word) = words.iter().find(|word| REFUSED.contains(word)) {
        return Err(wrong(
            format!("a dtfs mount cannot be \"{word}\": it is as the directory below it"),
            "mount the filesystem below with this option, and take it out of this line",
        ));
    }
    // mount(8) takes `atime` for its own and never passes it on, so here it has a name that is ours alone.
    let ours = |word: &'a str| if word == "repatime" { "atime" } else { word };
    Ok(words.iter().copied().filter(|word| !is_others(word)).map(ours).collect())
}

fn read_options(words: &[&str], unknown: Unknown) -> Result<MountOptions, Failure> {
    use crate::config::OptionProblem;
    match words.join(",").parse::<MountOptions>() {
        Ok(options) => Ok(options),
        Err(OptionProblem::Unknown { option, .. }) if unknown == Unknown::Skipped => {
            let known: Vec<&str> = words.iter().copied().filter(|word| *word != option).collect();
            match known.len() < words.len() {
                true => read_options(&known, unknown),
                false => Err(wrong(format!("unknown option \"{option}\""), USAGE)),
            }
        }
        Err(problem) => Err(wrong(problem.to_string(), problem.remedy())),
    }
}

fn read_spec(spec: &str, dir: &str) -> Result<Option<VolumeName>, Failure> {
    if spec == "dtfs" || spec == "none" || Path::new(spec) == Path::new(dir) {
        return Ok(None);
    }
    match spec.strip_prefix("dtfs:") {
        Some(name) => VolumeName::new(name).map(Some).map_err(|problem| wrong(problem.to_string(), USAGE)),
        None => Err(wrong(format!("{spec} is not mounted at {dir}: dtfs mounts a directory over itself"), USAGE)),
    }
}

fn mount(paths: &Paths, line: &Line) -> Result<(), Failure> {
    // Without an entry a rehearsal has nothing more to ask: the directory and the options were checked.
    let Some(MountEntry { path, .. }) = entry(paths, line)? else { return Ok(()) };
    let how = MountHow { rehearsal: line.rehearsal, open_files: OpenFiles::Refuse };
    let reply = ops::mount(paths, &Which::Paths(vec![path]), how)?;
    match verdict(reply)? {
        Verdict::NotDone(failure) => Err(failure),
        verdict => {
            if line.verbose == Verbose::Yes {
                println!("mount.dtfs: {}: {verdict}", line.dir.display());
            }
            Ok(())
        }
    }
}

fn verdict(reply: MountReply) -> Result<Verdict, Failure> {
    let first = reply.verdicts.into_iter().next();
    first.map(|verdict| verdict.verdict).ok_or_else(|| Failure::new(ExitCode::Failed, "the daemon said nothing of it"))
}

/// The entry that the line means; made when there is none, unless nothing shall be done.
fn entry(paths: &Paths, line: &Line) -> Result<Option<MountEntry>, Failure> {
    let mounts = MountsFile::load(paths)?;
    let Some(entry) = ops::find_entry(&mounts, &line.dir) else {
        let mut options = line.options.clone();
        options.volume = options.volume.or_else(|| line.volume.clone());
        return match line.rehearsal {
            Rehearsal::DryRun => {
                crate::config::check_volume_dir(paths, &line.dir, &mounts).map(|_| None).map_err(Into::into)
            }
            // Without a daemon nothing would be mounted, so nothing is written either.
            Rehearsal::ForReal => {
                crate::control::Client::connect(paths)?;
                ops::add_entry(paths, &line.dir, &options).map(|(entry, _)| Some(entry))
            }
        };
    };
    agree(&mounts, entry, line)?;
    Ok(Some(entry.clone()))
}

/// A line without options of dtfs takes those of the entry.
fn agree(mounts: &MountsFile, entry: &MountEntry, line: &Line) -> Result<(), Failure> {
    let mut said = line.options.clone();
    said.volume = said.volume.or_else(|| line.volume.clone());
    let named = said.volume.as_ref().is_none_or(|volume| *volume == entry.volume);
    said.volume = entry.options.volume.clone();
    if named && (line.words.is_empty() || said == entry.options) {
        return Ok(());
    }
    let place = format!("{}:{}", mounts.file().display(), entry.line);
    Err(wrong(
        format!(
            "the mount asks for {} with \"{}\", {place} says volume {} with \"{}\"",
            line.dir.display(),
            line.words,
            entry.volume,
            entry.options
        ),
        format!("make the line of /etc/fstab and {place} say the same, or leave dtfs's options out of fstab"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Line, Failure> {
        read(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn both_forms_of_fstab_mean_the_same() {
        let old = line("dtfs /level1 -o rw,norepatime").unwrap();
        let new =
            line("/level1 /level1 -o rw,_netdev,x-systemd.requires=dtfs.service,norepatime -t fuse.dtfs").unwrap();
        assert_eq!(old, new);
        assert_eq!(old.words, "norepatime");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(line("dtfs /a -o rw,repatime").unwrap().options, "atime".parse().unwrap());
        for bad in ["dtfs /a -o ro", "/b /a", "dtfs", "dtfs /a -x", "dtfs /a -o norepatim", "dtfs:a/b /a"] {
            assert_eq!(line(bad).unwrap_err().code, ExitCode::Usage, "{bad}");
        }
        assert_eq!(line("dtfs /a -s -o norepatim,atime").unwrap().options, "atime".parse().unwrap());
        assert_eq!(line("dtfs:data /a -fv").unwrap().volume, VolumeName::new("data").ok());
    }
}
