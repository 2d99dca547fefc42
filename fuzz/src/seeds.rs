//! Writes the first inputs of the fuzz targets to $DTFS_FUZZ_SEEDS/TARGET: what the golden files hold, the samples of
//! configuration, and one whole session. Dressed up as a fuzz target, because everything here is built for that runtime.
#![no_main]

use std::fs;
use std::io;
use std::path::Path;

use dtfs::record::RecordIter;

const BANNER_BYTES: usize = 28;
const FRAME_HEADER_BYTES: usize = 24;
const RECORD_HEADER_BYTES: usize = 56;

libfuzzer_sys::fuzz_target!(|_data: &[u8]| {
    let dir = std::env::var_os("DTFS_FUZZ_SEEDS").expect("DTFS_FUZZ_SEEDS says where to");
    seed(Path::new(&dir)).expect("seeds can be written");
});

fn seed(dir: &Path) -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    messages(&root, dir)?;
    records(&root, dir)?;
    config(&root, dir)?;
    control(dir)?;
    for target in ["segment_read", "replica_open", "journal_open"] {
        put(dir, target, "whole", b"")?;
        put(dir, target, "harmed", &[0, 100, 0, 0, 1, 1, 40, 0, 0, 0])?;
    }
    Ok(())
}

fn put(dir: &Path, target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let dir = dir.join(target);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join(name), bytes)
}

fn messages(root: &Path, dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root.join("src/wire/golden"))? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = fs::read(&path)?;
        put(dir, "frame_decode", &name, &bytes)?;
        let header = &bytes[BANNER_BYTES..BANNER_BYTES + FRAME_HEADER_BYTES];
        let body = &bytes[BANNER_BYTES + FRAME_HEADER_BYTES..];
        put(dir, "frame_decode", &format!("{name}-plain"), &[&header[4..12], body].concat())?;
        put(dir, "message_decode", &name, &[&header[4..5], body].concat())?;
    }
    Ok(())
}

/// Each record of the golden file alone, and all of them as a session: changes as one batch, state as another.
fn records(root: &Path, dir: &Path) -> io::Result<()> {
    let bytes = fs::read(root.join("src/record/golden/v1.bin"))?;
    put(dir, "record_decode", "all", &bytes)?;
    let (mut changes, mut states, mut rest) = (Vec::new(), Vec::new(), bytes.as_slice());
    for (at, record) in RecordIter::new(&bytes).enumerate() {
        let record = record.map_err(io::Error::other)?;
        let word = |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        let (len, kind, fields, payload) = (word(0) as usize, word(4) as u8, word(40) as u16, word(44) as u16);
        let body = &rest[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + usize::from(fields) + usize::from(payload)];
        put(dir, "record_decode", &format!("{at}"), &[&[kind, 1][..], &payload.to_le_bytes(), body].concat())?;
        let order = [&[kind, 100 + at as u8][..], &fields.to_le_bytes(), &payload.to_le_bytes(), body].concat();
        if record.op.is_state() {
            states.extend(order)
        } else {
            changes.extend(order)
        }
        rest = &rest[len..];
    }
    let order = |kind: u8, body: &[u8]| [&[kind][..], &(body.len() as u16).to_le_bytes(), body].concat();
    let (start, flush, bye) = (order(4, &[0]), order(8, &[]), order(11, &[]));
    let session = [&start, &order(6, &states), &order(5, &changes), &flush, &bye].map(Vec::as_slice).concat();
    put(dir, "session_serve", "golden", &session)?;
    put(
        dir,
        "session_serve",
        "jump",
        &[&order(4, &[1]), &order(5, &changes), &order(4, &[1]), &bye].map(Vec::as_slice).concat(),
    )
}

fn config(root: &Path, dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root.join("mounts.d"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        put(dir, "config_files", &name, &fs::read(&path)?)?;
    }
    put(
        dir,
        "config_files",
        "mounts",
        b"# what\n/srv/data volume=data,store=/x\\040y\n/srv/b atime,allow-open # no\n",
    )?;
    let words =
        ["atime,volume=data,allow-open,submounts=ignore,store=/x\\040y\\054z", "local:/srv/replica", "64K", "0x10"];
    for (at, word) in words.iter().enumerate() {
        put(dir, "config_text", &at.to_string(), word.as_bytes())?;
    }
    Ok(())
}

fn control(dir: &Path) -> io::Result<()> {
    let requests = [
        r#"{"verb":"mounts_list"}"#,
        r#"{"verb":"mount","which":{"paths":["/srv/data"]},"dry_run":true,"allow_open":false}"#,
        r#"{"verb":"wait","volume":"data","target":"spare","tid":"0x0000000000000010","timeout_ms":5}"#,
        r#"{"verb":"log","volume":"data","from":null,"follow":false,"limit":10}"#,
        r#"{"verb":"forget","volume":"data","target":null}"#,
    ];
    for (at, request) in requests.iter().enumerate() {
        put(dir, "control_line", &at.to_string(), format!("{{\"v\":1,\"request\":{request}}}").as_bytes())?;
    }
    Ok(())
}
