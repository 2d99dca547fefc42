//! pjdfstest and fsx, the two suites from the crates registry, as functions from a directory to what they found.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use nix::unistd::{Group, User};

use super::process::Process;
use super::scratch::utf8;

const LIMIT: Duration = Duration::from_secs(1800);

/// The directory with the programs. `scripts/posix.sh tools` builds them once; it is quick when they are there.
fn tools() -> &'static Path {
    static TOOLS: OnceLock<PathBuf> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut script = Command::new("bash");
        script.arg(root.join("scripts/posix.sh")).arg("tools").stdin(Stdio::null());
        let status = Process::spawn(&mut script).wait("scripts/posix.sh tools", LIMIT);
        assert!(status.success(), "scripts/posix.sh tools: {status}");
        root.join("target/tools/bin")
    })
}

/// Test name to verdict ("ok", "skipped", "FAILED"), with the reason behind a failure.
pub(crate) type Verdicts = BTreeMap<String, String>;

/// Runs all of pjdfstest below `dir`, which is on another filesystem than the one for temporary files.
pub(crate) fn pjdfstest(dir: &Path) -> Verdicts {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let (config, output) = (scratch.path().join("config.toml"), scratch.path().join("output"));
    fs::write(&config, pjdfstest_config()).expect("a configuration file");
    let mut command = Command::new(tools().join("pjdfstest"));
    command.args(["-c", utf8(&config), "-p", utf8(dir), "-s", utf8(scratch.path())]);
    // One that fails ends with 1, as one that could not begin: the output tells.
    run(&mut command, &output);
    let text = fs::read_to_string(output).expect("what pjdfstest prints is UTF-8");
    let verdicts = verdicts_in(&text);
    assert!(verdicts.len() > 300, "pjdfstest ran {} tests only:\n{text}", verdicts.len());
    verdicts
}

/// Runs fsx for `ops` operations on the file `path`, with every kind of operation that it has.
pub(crate) fn fsx(path: &Path, seed: u64, ops: u64) {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let (config, output) = (scratch.path().join("config.toml"), scratch.path().join("output"));
    fs::write(&config, FSX_CONFIG).expect("a configuration file");
    let mut command = Command::new(tools().join("fsx"));
    command.args(["-f", utf8(&config), "-N", &ops.to_string(), "-S", &seed.to_string()]);
    command.args(["-P", utf8(scratch.path()), utf8(path)]);
    let ended_well = run(&mut command, &output);
    let text = fs::read_to_string(output).unwrap_or_default();
    let end = text.lines().rev().take(60).collect::<Vec<_>>();
    let end = end.into_iter().rev().collect::<Vec<_>>().join("\n");
    assert!(ended_well && text.contains("All operations completed"), "fsx on {}, seed {seed}:\n{end}", path.display());
}

fn run(command: &mut Command, output: &Path) -> bool {
    let file = fs::File::create(output).expect("an output file");
    command.stdin(Stdio::null()).stderr(file.try_clone().expect("a second handle")).stdout(file);
    command.env("NO_COLOR", "1");
    Process::spawn(command).wait("a conformance suite", LIMIT).success()
}

/// The users are those that every Debian has. The remounting tests would change the mount under all the others.
fn pjdfstest_config() -> String {
    format!(
        "[features]\nposix_fallocate = {{}}\nrename_ctime = {{}}\nutime_now = {{}}\nutimensat = {{}}\n\
         [settings]\nnaptime = 0.01\nallow_remount = false\n\
         [dummy_auth]\nentries = [{}, {}]\n",
        user("nobody"),
        user("daemon")
    )
}

fn user(name: &str) -> String {
    let user = User::from_name(name).expect("the user database").unwrap_or_else(|| panic!("no user {name}"));
    let group = Group::from_gid(user.gid).expect("the group database").expect("the user's own group");
    format!("[{name:?}, {:?}]", group.name)
}

fn verdicts_in(text: &str) -> Verdicts {
    let mut verdicts = Verdicts::new();
    let mut last = None;
    for line in text.lines() {
        match (line.strip_prefix('\t'), line.split_once(char::is_whitespace)) {
            (Some(detail), _) => {
                let failed = last.as_ref().and_then(|name| verdicts.get_mut(name));
                if let Some(verdict) = failed.filter(|verdict: &&mut String| verdict.starts_with("FAILED")) {
                    verdict.push_str(": ");
                    verdict.push_str(detail);
                }
            }
            (None, Some((name, verdict))) if name.contains("::") => {
                verdicts.insert(name.to_owned(), verdict.trim().to_owned());
                last = Some(name.to_owned());
            }
            _ => {}
        }
    }
    verdicts
}

const FSX_CONFIG: &str = "flen = 1048576\n\
[weights]\nclose_open = 1\nread = 10\nwrite = 10\nmapread = 10\nmapwrite = 10\ninvalidate = 1\ntruncate = 3\n\
fsync = 0.2\nfdatasync = 0.2\nposix_fallocate = 2\npunch_hole = 4\nsendfile = 3\nposix_fadvise = 2\ncopy_file_range = 4\n";
