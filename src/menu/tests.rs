use std::fs;
use std::io::Cursor;
use std::path::PathBuf;

use super::*;
use crate::config::MountsFile;

struct Place {
    _dir: tempfile::TempDir,
    data: PathBuf,
    paths: Paths,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    fs::create_dir_all(top.join("da ta")).unwrap();
    Place { data: top.join("da ta"), paths: Paths::new(Some(top.join("host"))), _dir: dir }
}

impl Place {
    fn run(&self, typed: &str, start: &[&str]) -> (Result<ExitCode, Failure>, String) {
        let mut output = Vec::new();
        let start: Vec<String> = start.iter().map(|word| (*word).to_owned()).collect();
        let ended = run(&self.paths, &mut Cursor::new(typed.as_bytes()), &mut output, &start);
        (ended, String::from_utf8(output).unwrap())
    }

    fn entries(&self) -> Vec<String> {
        let mounts = MountsFile::load(&self.paths).unwrap();
        mounts.entries().map(|entry| format!("{} {}", entry.path.display(), entry.options)).collect()
    }
}

#[test]
fn walks_down_adds_and_removes() {
    let place = place();
    let options = ["1.3.1.1", place.data.to_str().unwrap(), "n"];
    // The directory's name is no volume name, so the first try is refused and says so.
    let (ended, _) = place.run("", &options);
    assert_eq!(ended.unwrap_err().code, ExitCode::Usage);
    let data = place.data.with_file_name("data");
    fs::rename(&place.data, &data).unwrap();
    let (ended, shown) = place.run(&format!("1\n3\n1\n1\n{}\nmaybe\ny\n0\n0\n0\n0\n", data.display()), &[]);
    assert_eq!(ended, Ok(ExitCode::Ok));
    assert!(shown.contains("1.3.1.3  Mount all entries now"), "{shown}");
    assert!(shown.contains("Please answer y or n."), "{shown}");
    assert!(shown.contains(&format!("mounts add {} -o atime", data.display())), "{shown}");
    assert_eq!(place.entries(), [format!("{} atime", data.display())]);

    let (ended, shown) = place.run("1.3.1.2\n1\nq\n", &[]);
    assert_eq!(ended, Ok(ExitCode::Ok));
    assert!(shown.contains("Removed"), "{shown}");
    assert!(place.entries().is_empty());
}

#[test]
fn answers_may_come_from_the_command_line() {
    let place = place();
    let data = place.data.with_file_name("data");
    fs::rename(&place.data, &data).unwrap();
    let (ended, shown) = place.run("", &["1.3.1.1", data.to_str().unwrap(), "n"]);
    assert_eq!(ended, Ok(ExitCode::Ok), "{shown}");
    assert_eq!(place.entries(), [format!("{} norepatime", data.display())]);
    let (ended, _) = place.run("", &["1.3.1.3"]);
    assert_eq!(ended.unwrap_err().code, ExitCode::NoDaemon);
    assert_eq!(place.run("", &["1.3.1.3", "x"]).0.unwrap_err().code, ExitCode::Usage);
    assert_eq!(place.run("", &["1.9"]).0.unwrap_err().code, ExitCode::Usage);
}

#[test]
fn the_end_of_the_input_does_nothing() {
    let place = place();
    for typed in ["", "1\n", "1.3.1.1\n", "1.3.1.1\n/srv\n", "1.3.1.2\n"] {
        let (ended, _) = place.run(typed, &[]);
        assert_eq!(ended, Ok(ExitCode::Ok), "{typed:?}");
    }
    assert!(place.entries().is_empty());
}

#[test]
fn a_failure_is_shown_and_the_menu_goes_on() {
    let place = place();
    let (ended, shown) = place.run("1.3.1.1\n/\nn\n7\nq\n", &[]);
    assert_eq!(ended, Ok(ExitCode::Refused));
    assert!(shown.contains("/ cannot be replicated as a whole"), "{shown}");
    assert!(shown.contains("7 is not offered here."), "{shown}");
}

#[test]
fn every_number_of_dtsetup_says_something() {
    let place = place();
    let numbers = ["1.1.1", "1.1.3", "1.2.2", "1.3.2.1", "1.4", "1.5", "1.7", "2.2", "2.3", "3", "5", "6.1"];
    for number in numbers {
        let (ended, shown) = place.run("", &[number]);
        assert_eq!(ended, Ok(ExitCode::Ok), "{number}");
        assert!(shown.trim().len() > 40, "{number}: {shown}");
    }
    let (ended, shown) = place.run("", &["1.3.2.4"]);
    assert!(ended.is_ok() && shown.contains("Image files on a volume are captured"), "{shown}");
    assert!(place.entries().is_empty());
}

#[test]
fn targets_are_defined_and_forgotten_by_number() {
    let place = place();
    let data = place.data.with_file_name("data");
    fs::rename(&place.data, &data).unwrap();
    place.run("", &["1.3.1.1", data.to_str().unwrap(), "n"]).0.unwrap();
    let url = format!("local:{}", data.with_file_name("copy").display());
    let (ended, shown) = place.run("", &["1.6.1", "data", &url]);
    assert_eq!(ended, Ok(ExitCode::Ok), "{shown}");
    assert!(shown.contains(&format!("define target data {url}")), "{shown}");
    let (ended, shown) = place.run("", &["6.2"]);
    assert_eq!(ended, Ok(ExitCode::Ok), "{shown}");
    assert!(shown.contains("All is good"), "{shown}");
    let (ended, _) = place.run("", &["1.6.2", "data", "copy"]);
    assert_eq!(ended, Ok(ExitCode::Ok));
    assert_eq!(place.run("", &["1.6.2", "data", "copy"]).0.unwrap_err().code, ExitCode::Usage);
    for daemon_only in ["1.6.3", "4.1", "4.2", "2.1"] {
        assert_eq!(place.run("", &[daemon_only]).0.unwrap_err().code, ExitCode::NoDaemon, "{daemon_only}");
    }
    let (ended, shown) = place.run("", &["6.3"]);
    assert_eq!(ended, Ok(ExitCode::Differences), "no daemon runs: {shown}");
}
