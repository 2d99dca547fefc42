//! What the fuzz targets share: getting past checksums, and damaging files.

use std::fs;
use std::path::{Path, PathBuf};

/// Length of a record's header (src/record/FORMAT.md).
const HEADER_BYTES: usize = 56;

/// Takes `data` as kind, length of the payload, fields and payload of a record and gives it a header with right lengths and
/// checksums, so that the fuzzer gets past them.
pub fn sealed(data: &[u8]) -> Option<Vec<u8>> {
    let (head, body) = data.split_at_checked(4)?;
    let payload_len = usize::from(u16::from_le_bytes([head[2], head[3]])).min(body.len());
    Some(seal(head[0], 0, [head[1]; 16], body, payload_len))
}

/// A record whose header fits its parts.
pub fn seal(kind: u8, tid: u64, oid: [u8; 16], body: &[u8], payload_len: usize) -> Vec<u8> {
    let fields_len = body.len() - payload_len;
    let mut record = vec![0; HEADER_BYTES];
    record.extend_from_slice(body);
    record.resize(record.len().next_multiple_of(8), 0);
    let total = record.len() as u32;
    let mut put = |at: usize, bytes: &[u8]| record[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &total.to_le_bytes());
    put(4, &u16::from(kind).to_le_bytes());
    put(6, &u16::from(payload_len > 0).to_le_bytes());
    put(8, &tid.to_le_bytes());
    put(24, &oid);
    put(40, &(fields_len as u32).to_le_bytes());
    put(44, &(payload_len as u32).to_le_bytes());
    put(48, &crc32c::crc32c(&body[fields_len..]).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&record[..52]), &body[..fields_len]);
    record[52..56].copy_from_slice(&crc.to_le_bytes());
    record
}

/// One file of a directory. Most of a segment is room for what comes: it is kept as a length.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stored {
    inside: PathBuf,
    content: Vec<u8>,
    len: u64,
}

/// Every regular file below `dir`.
pub fn load(dir: &Path) -> Vec<Stored> {
    let mut files = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).expect("a readable directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let mut content = fs::read(&path).expect("a readable file");
            let len = content.len() as u64;
            content.truncate(content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
            files.push(Stored { inside: path.strip_prefix(dir).expect("it lies below").to_owned(), content, len });
        }
    }
    files.sort();
    files
}

/// Makes `files` all that is below `dir`.
pub fn store(dir: &Path, files: &[Stored]) {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir).expect("a directory");
    for Stored { inside, content, len } in files {
        let path = dir.join(inside);
        fs::create_dir_all(path.parent().expect("it lies below")).expect("a directory");
        fs::write(&path, content).expect("a file");
        let file = fs::File::options().write(true).open(&path).expect("it was written");
        file.set_len(*len).expect("a sparse file");
    }
}

/// Five bytes of `orders` are one damage: which file, where, and what the byte is XORed with; 0 cuts the file there.
pub fn damage(files: &mut [Stored], orders: &[u8]) {
    for order in orders.chunks_exact(5) {
        let count = files.len();
        let Stored { content, len, .. } = &mut files[usize::from(order[0]) % count];
        let at = u32::from_le_bytes([order[1], order[2], order[3], 0]) as usize % content.len().max(1);
        match order[4] {
            0 => {
                content.truncate(at);
                *len = at as u64;
            }
            mask => content.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= mask),
        }
    }
}

/// A directory in memory, gone with it.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let builder = || tempfile::Builder::new().prefix("dtfs-fuzz-").tempdir_in(memory);
    builder().expect("a directory in memory")
}

/// A frame with right lengths and checksums; its body is not compressed (src/wire/PROTOCOL.md).
pub fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    framed([kind, 0, 0, 0], body.len() as u32, body)
}

/// A frame with right checksums around what may be wrong.
pub fn framed(head: [u8; 4], raw_len: u32, stored: &[u8]) -> Vec<u8> {
    let mut header = [0; 24];
    header[0..4].copy_from_slice(b"DTW1");
    header[4..8].copy_from_slice(&head);
    header[8..12].copy_from_slice(&raw_len.to_le_bytes());
    header[12..16].copy_from_slice(&(stored.len() as u32).to_le_bytes());
    header[16..20].copy_from_slice(&crc32c::crc32c(stored).to_le_bytes());
    let crc = crc32c::crc32c(&header[..20]);
    header[20..24].copy_from_slice(&crc.to_le_bytes());
    [&header, stored].concat()
}
