//! Peers that do not keep to the protocol, on both sides of it: each ends its session with an error that names what it did,
//! memory stays bounded, and nothing outside the tree is touched.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use dtfs::backing::Tree;
use dtfs::base::{AtimeMode, Commit, EpochId, Guarded, Oid, Position, Space, StoredTimes, Tid, VolumeUuid};
use dtfs::journal::{Journal, JournalOptions, TargetId};
use dtfs::record::{Attrs, Draft, Name, Op, Shape, Slot, Xattr};
use dtfs::sender::{Forked, SenderOptions, SenderThread};
use dtfs::stack::{Stack, StackOptions};
use dtfs::sys::InodeFlags;
use dtfs::wire::{
    Ack, BANNER, Breaker, Compression, Connection, FrameReader, FrameWriter, Hello, HelloReply, Message,
    PROTOCOL_VERSION, Peer, ReplicaState,
};
use support::behind::Behind;
use support::hand::Hand;
use support::process::wait_until;
use support::scratch::Directory;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(120);
/// A frame has at most 12 MiB; the program itself takes some 30.
const MOST_RESIDENT_BYTES: i64 = 160 << 20;
const RECORD_HEADER_BYTES: usize = 56;

// --- What a hostile source says ---

fn framed(head: [u8; 4], raw_len: u32, stored: &[u8]) -> Vec<u8> {
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

fn frame(message: &Message) -> Vec<u8> {
    let body = message.encode();
    framed([message.kind(), 0, 0, 0], body.len() as u32, &body)
}

fn hello() -> Message {
    Message::Hello(Hello {
        version: PROTOCOL_VERSION,
        volume: VolumeUuid([1; 16]),
        spaces: Space(7).into(),
        epoch: EpochId([2; 16]),
        durable: Tid(100),
        access_times: AtimeMode::AtClose,
        label: "data".into(),
        epochs: Vec::new(),
        delay_seconds: 0,
    })
}

const START: Message = Message::Start { after: Position::START, jump: false };

fn oid(ino: u64) -> Oid {
    Oid { space: Space(7), generation: 0, ino }
}

fn attrs() -> Attrs {
    Attrs { mode: 0o100_644, ..Attrs::default() }
}

fn create(name: &[u8]) -> Op {
    Op::Create {
        slot: Slot { parent: Oid::ROOT, name: Name::new(name).unwrap() },
        shape: Shape::plain(libc::S_IFREG),
        attrs: attrs(),
        xattrs: vec![],
        flags: InodeFlags::default(),
        parent_after: Attrs { mode: 0o040_755, ..Attrs::default() },
    }
}

fn record(tid: u64, op: &Op) -> Vec<u8> {
    Draft::new(oid(100 + tid), op, &[]).seal(Tid(tid), 0).bytes().to_vec()
}

/// The record of a new file in the root whose name is `name`, though no encoder would write such a one.
fn record_named(name: &[u8]) -> Vec<u8> {
    let good = record(1, &create(b"x"));
    let fields_len = u32::from_le_bytes(good[40..44].try_into().unwrap()) as usize;
    let fields = &good[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + fields_len];
    let fields = [&fields[..16], &(name.len() as u16).to_le_bytes(), name, &fields[19..]].concat();
    let mut bad = good[..RECORD_HEADER_BYTES].to_vec();
    bad.extend_from_slice(&fields);
    bad.resize(bad.len().next_multiple_of(8), 0);
    let total = bad.len() as u32;
    bad[0..4].copy_from_slice(&total.to_le_bytes());
    bad[40..44].copy_from_slice(&(fields.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bad[..52]), &fields);
    bad[52..56].copy_from_slice(&crc.to_le_bytes());
    bad
}

fn records(prev: u64, first: u64, last: u64, count: u32, body: Vec<u8>) -> Message {
    Message::Records { batch: 1, prev: Tid(prev), first: Tid(first), last: Tid(last), count, body }
}

/// After a whole greeting, `messages`.
fn greeted(messages: &[Message]) -> Vec<u8> {
    let all = [hello(), START];
    all.iter().chain(messages).fold(BANNER.to_vec(), |bytes, message| [bytes, frame(message)].concat())
}

fn one(body: Vec<u8>) -> Vec<u8> {
    greeted(&[records(0, 1, 1, 1, body)])
}

/// Says what it claims to, and has `actual` bytes.
fn bomb(claims: u32, actual: usize) -> Vec<u8> {
    let stored = zstd::bulk::compress(&vec![0; actual], 3).unwrap();
    framed([6, 1, 0, 0], claims, &stored)
}

/// What is said, and a part of the error that the target ends with.
fn attacks() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let plain = |messages: &[Message]| messages.iter().fold(BANNER.to_vec(), |b, m| [b, frame(m)].concat());
    let file = |tid: u64| record(tid, &create(format!("f{tid}").as_bytes()));
    let state = record(1, &Op::StateGone);
    let own = Op::SetXattr { xattr: Xattr { name: b"trusted.dtfs.oid".to_vec(), value: vec![0; 16] }, attrs: attrs() };
    let bounds = "length or flags are out of bounds";
    let holds = "does not hold the records that its header names";
    vec![
        ("another protocol", b"GET / HTTP/1.1\r\nHost: \x1b[2J\r\n\r\n".to_vec(), "is not dtfs"),
        ("a long frame before the greeting", [BANNER, &framed([1, 0, 0, 0], 5000, &[0; 5000])].concat(), bounds),
        ("a length of 4 GiB", [BANNER, &framed([1, 0, 0, 0], u32::MAX, b"x")].concat(), bounds),
        ("a frame too long", [greeted(&[]), framed([6, 0, 0, 0], (12 << 20) + 1, b"x")].concat(), bounds),
        ("an unknown kind", [greeted(&[]), framed([77, 0, 0, 0], 0, b"")].concat(), "message kind"),
        ("a bomb of 1 GiB", [greeted(&[]), bomb(12 << 20, 1 << 30)].concat(), "does not decompress"),
        ("records before hello", plain(&[records(0, 1, 1, 1, file(1))]), "did not say who it is"),
        ("records before start", plain(&[hello(), records(0, 1, 1, 1, file(1))]), "did not say where it begins"),
        ("state before start", plain(&[hello(), Message::State { batch: 1, body: state.clone() }]), "where it begins"),
        ("a second hello", greeted(&[hello()]), "did not say who it is"),
        ("an ack", greeted(&[Message::Ack(Ack::default())]), "did not say who it is"),
        ("a start elsewhere", plain(&[hello(), Message::Start { after: far(), jump: false }]), "was received last"),
        ("a gap", greeted(&[records(5, 6, 6, 1, file(6))]), "was received last"),
        ("falling TIDs", greeted(&[records(0, 1, 2, 3, [file(1), file(3), file(2)].concat())]), holds),
        ("the same TID twice", greeted(&[records(0, 1, 1, 2, [file(1), file(1)].concat())]), holds),
        ("another count", greeted(&[records(0, 1, 1, 2, file(1))]), holds),
        ("state among records", one(state), holds),
        ("records among state", greeted(&[Message::State { batch: 1, body: file(1) }]), holds),
        ("a cut record", one(file(1)[..40].to_vec()), "record header"),
        ("a name with a slash", one(record_named(b"../../outside/x")), "slash"),
        ("an absolute name", one(record_named(b"/etc/passwd")), "slash"),
        ("dot", one(record_named(b".")), ". or .."),
        ("dot dot", one(record_named(b"..")), ". or .."),
        ("a name with NUL", one(record_named(b"a\0b")), "NUL"),
        ("no name", one(record_named(b"")), "empty"),
        ("a long name", one(record_named(&[b'n'; 256])), "256"),
        ("the reserved directory", one(record_named(b".dtfs")), "reserved"),
        ("a reserved xattr", one(record(1, &own)), "reserved"),
        ("pings that nobody reads the answers of", flood(), "says more than it may"),
        ("comparisons that nobody reads the answers of", checks(), "says more than it may"),
    ]
}

fn far() -> Position {
    Position { tid: Tid(50), epoch: EpochId([2; 16]), ..Position::START }
}

/// More answers than the pipe holds and the target keeps.
fn flood() -> Vec<u8> {
    let ping = frame(&Message::Ping);
    [greeted(&[]), ping.repeat(40_000)].concat()
}

/// As [`flood`], with few answers that are long: nothing of what each of these asks about is there.
fn checks() -> Vec<u8> {
    let body: Vec<u8> =
        (0..4096).flat_map(|tid| record(tid, &Op::StateHole { offset: 0, len: 1, attrs: attrs() })).collect();
    let check = |batch| {
        let body = Message::Check { batch, body: body.clone() }.encode();
        framed([12, 1, 0, 0], body.len() as u32, &zstd::bulk::compress(&body, 3).unwrap())
    };
    (1..=160).fold(greeted(&[]), |bytes, batch| [bytes, check(batch)].concat())
}

/// How a target ended.
struct End {
    code: Option<i32>,
    said: String,
    resident_bytes: i64,
}

/// Lets the real program hear `bytes`; its answers are not read.
fn tell(root: &Path, bytes: &[u8]) -> End {
    let log = root.join("said");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dtfs"));
    command.arg("--root").arg(root.join("host")).args(["serve", "--stdio"]).arg(root.join("target"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(fs::File::create(&log).unwrap());
    let mut child = command.spawn().unwrap();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    // It may end before it has heard everything.
    let _ = stdin.write_all(bytes);
    drop(stdin);
    let (status, resident_bytes) = wait_with_usage(&mut child);
    drop(stdout);
    End { code: status, said: fs::read_to_string(log).unwrap(), resident_bytes }
}

/// Waits with a limit; the exit code, and the most memory that it had.
#[allow(unsafe_code, reason = "std does not tell what a child used")]
fn wait_with_usage(child: &mut std::process::Child) -> (Option<i32>, i64) {
    let pid = child.id() as libc::pid_t;
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    let reaped = || {
        // SAFETY: both places live; a child that was not waited for keeps its number.
        let done = unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG, usage.as_mut_ptr()) };
        (done == pid).then_some(())
    };
    wait_until("the target to end", LIMIT, reaped);
    // SAFETY: wait4 filled it.
    let resident = unsafe { usage.assume_init() }.ru_maxrss * 1024;
    (libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)), resident)
}

/// Names, contents and times of everything below `dir`, a change of which an escape would be.
fn look(dir: &Path) -> Vec<(PathBuf, i64, i64, Vec<u8>)> {
    use std::os::unix::fs::MetadataExt;
    let mut all: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.push(dir.to_owned());
    all.sort();
    let of = |path: PathBuf| {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = fs::read(&path).unwrap_or_default();
        (path, meta.ctime(), meta.ctime_nsec(), content)
    };
    all.into_iter().map(of).collect()
}

#[test]
fn a_hostile_source_ends_its_session_and_touches_nothing() {
    for (what, bytes, part) in attacks() {
        let root = Directory::new();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("canary"), b"sings").unwrap();
        let before = look(&outside);
        let End { code, said, resident_bytes } = tell(root.path(), &bytes);
        assert_eq!(code, Some(1), "{what}: {said}");
        assert!(said.contains(part), "{what}: {said}");
        assert!(!said.contains('\x1b'), "{what}: the terminal hears of it: {said:?}");
        assert!(resident_bytes < MOST_RESIDENT_BYTES, "{what}: {resident_bytes} bytes resident");
        assert_eq!(look(&outside), before, "{what}: something outside of the tree was changed");
        let target = root.path().join("target");
        let behind = target.exists().then(|| Behind::of(&target));
        let names = fs::read_dir(behind.as_ref().map_or(target, Behind::path))
            .map(|dir| dir.map(|e| e.unwrap().file_name()).collect());
        let names: Vec<_> = names.unwrap_or_default();
        assert!(names.iter().all(|name| name == ".dtfs"), "{what}: {names:?}");
        // The tree is as good as before: somebody who keeps to the protocol can use it.
        let good = tell(root.path(), &greeted(&[records(0, 1, 1, 1, record(1, &create(b"x"))), Message::Bye]));
        assert_eq!(good.code, Some(0), "{what}, then a good source: {}", good.said);
    }
}

// --- What a hostile target says ---

/// A source with one file, whose target is whatever `act` does after the greeting.
struct Source {
    stack: Arc<Stack>,
    target: TargetId,
    sender: Option<SenderThread>,
    _root: TempDir,
}

type Act = fn(&mut Far);

/// The target's end of a connection.
struct Far {
    reader: FrameReader<UnixStream>,
    writer: FrameWriter<UnixStream>,
    raw: UnixStream,
}

impl Far {
    fn say(&mut self, message: &Message) {
        // The source hangs up when it has heard enough.
        let _ = self.writer.send(message);
    }

    fn ack(&mut self, ack: Ack) {
        self.say(&Message::Ack(ack));
    }

    /// Waits for the first batch.
    fn batch(&mut self) {
        while self.reader.receive().is_ok_and(|message| !message.is_batch()) {}
    }
}

fn greet(near: UnixStream, act: Act) {
    let talk = || -> Result<(), dtfs::wire::WireError> {
        let writer = FrameWriter::start(near.try_clone()?, Compression::Off)?;
        let mut reader = FrameReader::start(near.try_clone()?)?;
        reader.trust();
        reader.receive()?;
        let mut far = Far { reader, writer, raw: near.try_clone()? };
        far.say(&Message::HelloReply(reply()));
        while !matches!(far.reader.receive()?, Message::Start { .. }) {}
        act(&mut far);
        // Until the source hangs up.
        let _ = std::io::copy(&mut far.raw, &mut std::io::sink());
        Ok(())
    };
    let _ = talk();
    let _ = near.shutdown(std::net::Shutdown::Both);
}

fn reply() -> HelloReply {
    HelloReply {
        version: PROTOCOL_VERSION,
        replica: VolumeUuid([3; 16]),
        state: ReplicaState::Fresh,
        received: Position::START,
        applied: Position::START,
        commit: Commit::default(),
        high_water: Tid(0),
        doubt: String::new(),
        stored_times: StoredTimes::Exact,
        guarded: Guarded::Kept,
        settled: 0,
    }
}

/// The writing half of a socket: dropping it ends the stream, as closing a pipe does.
struct Half(UnixStream);

impl Write for Half {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Write);
    }
}

impl Source {
    fn new(act: Act) -> Source {
        let root = tempfile::tempdir_in("/dev/shm").unwrap();
        let dir = root.path().join("source");
        fs::create_dir(&dir).unwrap();
        let options = JournalOptions { segment_bytes: 8 << 20, ..JournalOptions::default() };
        let (journal, _) = Journal::open(&root.path().join("journal"), options).unwrap();
        let stack = Stack::new(Tree::open(&dir).unwrap(), journal.clone(), StackOptions::default()).unwrap();
        Hand::new(&stack).file("/file", b"content").unwrap();
        journal.commit(journal.last_tid()).unwrap();
        let target = journal.store().target_add("target", "test:").unwrap();
        let connect = move || {
            let (near, far) = UnixStream::pair()?;
            std::thread::spawn(move || greet(far, act));
            let wire = near.try_clone()?;
            let cut = Breaker::new(move || drop(wire.shutdown(std::net::Shutdown::Both)));
            let reader: Box<dyn Read + Send> = Box::new(near.try_clone()?);
            Ok(Connection { reader, writer: Box::new(Half(near)), peer: Peer::none(cut) })
        };
        let options = SenderOptions {
            rules: Arc::default(),
            period: None,
            target,
            access_times: AtimeMode::AtClose,
            label: "data".into(),
            connect: Box::new(connect),
            compression: Compression::Off,
            rate: Box::new(|| None),
            orphans: None,
            delay_seconds: 0,
            forked: Forked::Refuse,
        };
        let sender = SenderThread::spawn(journal, stack.clone(), options).unwrap();
        Source { stack, target, sender: Some(sender), _root: root }
    }

    fn events(&self) -> Vec<String> {
        let rows = self.stack.journal().store().events(100).unwrap();
        rows.into_iter().map(|row| row.text).collect()
    }
}

fn lies() -> [(&'static str, Act, &'static str); 12] {
    let not_sent = "it acknowledged what it was not sent";
    [
        ("received beyond what was sent", |far| far.ack(Ack { received: Tid(1 << 40), ..Ack::default() }), not_sent),
        ("applied beyond received", |far| far.ack(Ack { applied: Tid(1 << 40), ..Ack::default() }), not_sent),
        ("a batch that was not sent", |far| far.ack(Ack { batch_taken: 1 << 40, ..Ack::default() }), not_sent),
        (
            "durable before it was taken",
            |far| {
                far.batch();
                far.ack(Ack { batch_taken: 0, batch_durable: 1, ..Ack::default() });
            },
            not_sent,
        ),
        (
            "taken back",
            |far| {
                far.batch();
                // Each is heard: acks that ask for nothing wait as one.
                for batch_taken in [1, 0] {
                    let needs = vec![dtfs::wire::Need { oid: Oid::ROOT, offset: 0, len: 0 }];
                    far.ack(Ack { batch_taken, needs, ..Ack::default() });
                }
            },
            "it took an acknowledgement back",
        ),
        ("a second greeting", |far| far.say(&Message::HelloReply(reply())), "unexpected message"),
        ("records", |far| far.say(&records(0, 1, 1, 1, record(1, &create(b"x")))), "unexpected message"),
        ("start", |far| far.say(&START), "unexpected message"),
        (
            "a length of 4 GiB",
            |far| drop(far.raw.write_all(&framed([7, 0, 0, 0], u32::MAX, b"x"))),
            "length or flags are out of bounds",
        ),
        ("a bomb", |far| drop(far.raw.write_all(&bomb(1 << 20, 256 << 20))), "does not decompress"),
        ("noise", |far| drop(far.raw.write_all(&[0x1b; 100])), "magic is wrong"),
        ("more needs than an ack can have", |far| drop(far.raw.write_all(&many_needs())), "need count"),
    ]
}

/// The count of needs is the last of a plain ack's fields.
fn many_needs() -> Vec<u8> {
    let mut body = Message::Ack(Ack::default()).encode();
    let at = body.len() - 4;
    body[at..].copy_from_slice(&u32::MAX.to_le_bytes());
    framed([7, 0, 0, 0], body.len() as u32, &body)
}

#[test]
fn a_hostile_target_ends_its_session_and_frees_nothing() {
    for (what, act, part) in lies() {
        let mut source = Source::new(act);
        let limit = || source.events().iter().any(|text| text.contains(part)).then_some(());
        wait_until(&format!("{what}: an event that says \"{part}\""), LIMIT, limit);
        let journal = source.stack.journal();
        let row = journal.store().target_by_id(source.target).unwrap().unwrap();
        // A new target is begun at the end of the log, and the whole tree is work for it.
        let end = journal.durable_tid();
        assert!(row.received <= end && row.applied <= end, "{what}: the cursor is beyond the log");
        assert_ne!(journal.store().work_count(source.target).unwrap(), 0, "{what}: its work has ended");
        drop(source.sender.take());
    }
}

/// One that asks for ever, and for what there never was.
#[test]
fn a_target_that_asks_for_ever_does_not_grow_its_source() {
    let asks_for_ever = |far: &mut Far| {
        let need = |ino| dtfs::wire::Need { oid: oid(ino), offset: 0, len: 0 };
        for round in 0.. {
            let needs = (0..4096).map(|at| need(1_000_000 + round * 4096 + at)).collect();
            if far.writer.send(&Message::Ack(Ack { needs, ..Ack::default() })).is_err() {
                return;
            }
        }
    };
    let mut source = Source::new(asks_for_ever);
    let told = || source.events().iter().any(|text| text.contains("its whole tree is compared instead")).then_some(());
    let mut most = 0;
    let store = source.stack.journal().store();
    wait_until("the queue to be cut", 2 * LIMIT, || {
        most = most.max(store.work_count(source.target).unwrap());
        told()
    });
    assert!(most < 300_000, "{most} rows of work");
    assert!(store.work_count(source.target).unwrap() < 200_000, "what was asked for is still there");
    // The source goes on meanwhile.
    Hand::new(&source.stack).file("/meanwhile", b"content").unwrap();
    drop(source.sender.take());
}

// --- What is left to a session that somebody took over ---

#[test]
fn a_session_has_given_up_what_it_does_not_need() {
    let root = Directory::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dtfs"));
    command.arg("--root").arg(root.path().join("host")).args(["serve", "--stdio"]).arg(root.path().join("target"));
    let mut child = support::process::Process::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let (stdin, mut stdout) = child.pipes();
    let mut banner = vec![0; BANNER.len()];
    stdout.read_exact(&mut banner).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", child.pid())).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".into(), "2".into()));
    // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, LINUX_IMMUTABLE, SYS_ADMIN, SYS_RESOURCE, MKNOD, SETFCAP.
    let kept: u64 = [0, 1, 2, 3, 4, 9, 21, 24, 27, 31].iter().map(|cap| 1 << cap).sum();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        let has = u64::from_str_radix(&field(set), 16).unwrap();
        assert_eq!(has & !kept, 0, "{set} {has:x}");
    }
    drop(stdin);
}
