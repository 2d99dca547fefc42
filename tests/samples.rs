//! The samples in `mounts.d/` are what the program itself reads without a complaint.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

use std::fs;
use std::path::{Path, PathBuf};

use dtfs::config::{DaemonFile, MountsFile, VolumeFile, VolumeName};

fn sample(name: &str) -> (PathBuf, Vec<u8>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("mounts.d").join(name);
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (path, bytes)
}

#[test]
fn the_sample_of_dtfs_mounts_is_read() {
    let (path, bytes) = sample("dtfs_mounts");
    let mounts = MountsFile::parse(&path, &bytes);
    assert!(mounts.errors().is_empty(), "{:?}", mounts.errors());
    let volumes: Vec<_> = mounts.entries().map(|entry| entry.volume.as_str().to_owned()).collect();
    assert_eq!(volumes, ["data"]);
    assert_eq!(mounts.to_bytes(), bytes, "every byte is kept");
}

#[test]
fn the_sample_of_a_volume_file_is_read_also_with_its_comments_taken_away() {
    let (path, bytes) = sample("data.toml");
    let file = VolumeFile::parse(&path, &bytes).unwrap();
    assert_eq!(file.targets.len(), 1);
    let text = String::from_utf8(bytes).unwrap();
    let commented =
        ["# [[target]]", "# name =", "# url =", "# adopt =", "# bandwidth =", "# period =", "# paused =", "# rules ="];
    let uncomment = |line: &str| match commented.iter().any(|start| line.starts_with(start)) {
        true => line[2..].to_owned(),
        false => line.to_owned(),
    };
    let all = text.lines().map(uncomment).collect::<Vec<_>>().join("\n");
    let file = VolumeFile::parse(&path, all.as_bytes()).unwrap();
    assert_eq!(file.targets.len(), 3, "what is commented out is right too");
}

#[test]
fn the_sample_of_the_daemons_file_is_read_also_with_its_comments_taken_away() {
    let (path, bytes) = sample("dtfs.toml");
    assert_eq!(DaemonFile::parse(&path, &bytes).unwrap().listen, None, "nobody may call unless it is asked for");
    let text = String::from_utf8(bytes).unwrap();
    let all = text.replace("# metrics =", "metrics =").replace("# listen =", "listen =");
    let file = DaemonFile::parse(&path, all.as_bytes()).unwrap();
    assert!(file.metrics.is_some() && file.listen.is_some_and(|address| address.port() == 6320));
}

#[test]
fn every_volume_file_names_a_volume_of_the_mounts_file() {
    let (path, bytes) = sample("dtfs_mounts");
    let mounts = MountsFile::parse(&path, &bytes);
    for entry in fs::read_dir(path.parent().unwrap()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        // The daemon's own file lies beside them here only.
        if let Some(volume) = name.strip_suffix(".toml").filter(|_| name != "dtfs.toml") {
            let volume = VolumeName::new(volume).unwrap();
            assert!(mounts.find_volume(&volume).is_some(), "{name} has no entry");
        }
    }
}
