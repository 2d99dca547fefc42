use std::io::{Read, Write};
use std::time::Instant;

use super::super::{Client, LogEntry, StatusReply};
use super::*;
use crate::base::Tid;

/// Streams three parts for `log`, waits for the end of the world for `wait`, and answers the rest at once.
struct Echo;

impl Handler for Echo {
    fn handle(&self, request: Request, sink: &mut dyn ReplySink) -> Result<Reply, Failure> {
        match request {
            Request::Log { .. } => {
                for tid in 1..=3 {
                    sink.send(Reply::Log(vec![entry(tid)]))?;
                }
                Ok(Reply::Log(Vec::new()))
            }
            Request::Wait { .. } => {
                while sink.is_wanted() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(Failure::new(ExitCode::Behind, "stopped"))
            }
            Request::Status { .. } => Ok(Reply::Status(StatusReply::default())),
            other => Err(Failure::new(ExitCode::Failed, format!("{other:?}"))),
        }
    }
}

fn entry(tid: u64) -> LogEntry {
    LogEntry { tid: Tid(tid), time: None, op: "write".into(), object: "o".into(), detail: String::new() }
}

struct Running {
    paths: Paths,
    stopper: Stopper,
    thread: std::thread::JoinHandle<Result<(), Failure>>,
    _dir: tempfile::TempDir,
}

fn start() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::new(Some(dir.path().to_owned()));
    let server = Server::bind(&paths).unwrap();
    let stopper = server.stopper();
    let thread = std::thread::spawn(move || server.serve(Arc::new(Echo)));
    Running { paths, stopper, thread, _dir: dir }
}

impl Running {
    fn stop(self) -> Paths {
        self.stopper.stop();
        self.thread.join().unwrap().unwrap();
        self.paths
    }
}

fn until(met: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !met() {
        assert!(Instant::now() < deadline, "it did not happen in 60 seconds");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn wait_request() -> Request {
    Request::Wait { volume: "v".parse().unwrap(), target: None, tid: Some(Tid(u64::MAX)), timeout_ms: None }
}

#[test]
fn asks_streams_and_stops() {
    let running = start();
    let mut client = Client::connect(&running.paths).unwrap();
    assert_eq!(client.call(&Request::Status { volume: None }), Ok(Reply::Status(StatusReply::default())));
    let mut parts = Vec::new();
    let log = Request::Log { volume: "v".parse().unwrap(), from: None, follow: true, limit: None };
    let last = client.stream(&log, &mut |part| {
        parts.push(part);
        Ok(())
    });
    assert_eq!(last, Ok(Reply::Log(Vec::new())));
    assert_eq!(parts.len(), 3);
    assert_eq!(client.call(&Request::Stop).unwrap_err().message, "Stop");
    let paths = running.stop();
    assert!(!paths.socket().exists());
    assert_eq!(Client::connect(&paths).err().map(|f| f.code), Some(ExitCode::NoDaemon));
}

#[test]
fn a_waiting_request_ends_at_stop_with_an_answer() {
    let running = start();
    let paths = running.paths.clone();
    let caller = std::thread::spawn(move || Client::connect(&paths).unwrap().call(&wait_request()));
    until(|| !running.stopper.stop.callers.lock().is_empty());
    running.stop();
    assert!(caller.join().unwrap().is_err());
}

#[test]
fn a_waiting_request_ends_when_the_caller_hangs_up() {
    let running = start();
    let mut stream = UnixStream::connect(running.paths.socket()).unwrap();
    write_line(&mut stream, &RequestLine { v: VERSION, request: wait_request() }).unwrap();
    drop(stream);
    until(|| running.stopper.stop.callers.lock().is_empty());
    running.stop();
}

#[test]
fn a_second_daemon_is_refused_and_a_dead_ones_socket_is_replaced() {
    let running = start();
    assert_eq!(Server::bind(&running.paths).err().map(|f| f.code), Some(ExitCode::Busy));
    let paths = running.paths.clone();
    running.stopper.stop();
    running.thread.join().unwrap().unwrap();
    drop(UnixListener::bind(paths.socket()).unwrap());
    assert!(paths.socket().exists());
    assert!(Server::bind(&paths).is_ok());
    assert_eq!(paths.run_dir().metadata().unwrap().mode() & 0o777, 0o700);
}

#[test]
fn one_caller_too_many_is_told_to_try_again() {
    let running = start();
    let connect = || UnixStream::connect(running.paths.socket()).unwrap();
    let callers: Vec<UnixStream> = (0..MAX_CALLERS).map(|_| connect()).collect();
    let mut client = Client::connect(&running.paths).unwrap();
    assert_eq!(client.call(&Request::Status { volume: None }).unwrap_err().code, ExitCode::Busy);
    drop(callers);
    running.stop();
}

#[test]
fn nonsense_is_answered_with_a_sentence() {
    let running = start();
    for (line, word) in [("{}\n", "version"), ("{\"v\":1}\n", "not understood"), ("rubbish\n", "not understood")] {
        let mut stream = UnixStream::connect(running.paths.socket()).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(word) && answer.contains("\"last\":true"), "{answer}");
    }
    running.stop();
}

/// Who asks: user, group, further groups.
type Asker = (u32, u32, &'static str);

/// Asks as somebody else, and returns the code of the failure in the answer (empty when it is none), or `None` when the
/// socket cannot be reached.
fn ask_as(paths: &Paths, (uid, gid, groups): Asker, request: &Request) -> Option<String> {
    const SCRIPT: &str = "import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
try:
    s.sendall(sys.argv[2].encode() + b'\\n')
except OSError:
    pass # Refused before it was read: the reason waits.
print(s.makefile().readline())";
    let line = serde_json::to_string(&RequestLine { v: VERSION, request: request.clone() }).unwrap();
    let mut command = std::process::Command::new("setpriv");
    // Not root's own interpreter: others may not run it.
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
    match groups {
        "" => command.arg("--clear-groups"),
        groups => command.arg(format!("--groups={groups}")),
    };
    let output = command.args(["python3", "-c", SCRIPT]).arg(paths.socket()).arg(line).output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    Some(answer["failure"]["code"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn root_changes_members_of_the_group_look_and_others_are_not_heard() {
    const READERS: u32 = 54_321;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let paths = Paths::new(Some(dir.path().to_owned()));
    let server = Server::bind_for(&paths, Some(Gid::from_raw(READERS))).unwrap();
    let stopper = server.stopper();
    let thread = std::thread::spawn(move || server.serve(Arc::new(Echo)));
    let (status, stop) = (Request::Status { volume: None }, Request::Stop);
    let log = Request::Log { volume: "v".parse().unwrap(), from: None, follow: false, limit: None };
    // What the echo answers to what it does not know.
    let said = |code: &str| Some(code.to_owned());
    assert_eq!(ask_as(&paths, (0, 0, ""), &stop), said("failed"));
    for member in [(1234, READERS, ""), (1234, 1234, "54321")] {
        assert_eq!(ask_as(&paths, member, &status), said(""), "{member:?}");
        assert_eq!(ask_as(&paths, member, &stop), said("refused"), "{member:?}");
        assert_eq!(ask_as(&paths, member, &log), said("refused"), "{member:?}");
    }
    assert_eq!(ask_as(&paths, (1234, 1234, ""), &status), None);
    // Also one whom the permissions of the socket let through.
    std::fs::set_permissions(paths.run_dir(), Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(paths.socket(), Permissions::from_mode(0o666)).unwrap();
    assert_eq!(ask_as(&paths, (1234, 1234, ""), &status), said("refused"));
    stopper.stop();
    thread.join().unwrap().unwrap();
}
