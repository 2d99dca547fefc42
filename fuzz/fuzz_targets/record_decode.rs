//! Records from a peer or a disk: any bytes are refused or understood, and what is understood has one encoding only.
#![no_main]

use dtfs::record::{Draft, Record, RecordIter};
use libfuzzer_sys::fuzz_target;

const HEADER_BYTES: usize = 56;

fuzz_target!(|data: &[u8]| {
    for record in RecordIter::new(data).flatten() {
        encodes_the_same(&record);
    }
    if let Some(bytes) = sealed(data) {
        if let Ok((record, len)) = Record::parse(&bytes) {
            encodes_the_same(&record);
            assert_eq!(len, bytes.len());
        }
    }
});

fn encodes_the_same(record: &Record<'_>) {
    let again = Draft::new(record.oid, &record.op, record.payload).seal(record.tid, record.time_ns);
    let (decoded, _) = Record::parse(again.bytes()).expect("what was encoded can be decoded");
    assert_eq!(&decoded, record);
}

/// Takes `data` as kind, payload length, fields and payload of a record and gives it a header with right lengths and
/// checksums, so that the fuzzer gets past them. The layout is that of src/record/FORMAT.md.
fn sealed(data: &[u8]) -> Option<Vec<u8>> {
    let (head, body) = data.split_at_checked(4)?;
    let payload_len = usize::from(u16::from_le_bytes([head[2], head[3]])).min(body.len());
    let fields_len = body.len() - payload_len;
    let mut record = vec![0; HEADER_BYTES];
    record.extend_from_slice(body);
    record.resize(record.len().next_multiple_of(8), 0);
    let total = record.len() as u32;
    let mut put = |at: usize, bytes: &[u8]| record[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &total.to_le_bytes());
    put(4, &u16::from(head[0]).to_le_bytes());
    put(6, &u16::from(payload_len > 0).to_le_bytes());
    put(24, &[head[1]; 16]);
    put(40, &(fields_len as u32).to_le_bytes());
    put(44, &(payload_len as u32).to_le_bytes());
    put(48, &crc32c::crc32c(&body[fields_len..]).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&record[..52]), &body[..fields_len]);
    record[52..56].copy_from_slice(&crc.to_le_bytes());
    Some(record)
}
