//! Numbers for Prometheus, on an address of the loopback.
//!
//! Nothing that is served here is secret and nothing can be changed by it; still it is never offered to a network, because
//! nobody is asked who he is.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::openmetrics::{Exposition, Kind};
use super::volume::Volume;
use super::volumes::Volumes;
use crate::control::{Failure, StatusReply, TargetStatus, VolumeStatus};
use crate::fuse::{OP_SECONDS_BOUNDS, OpTimes};

/// The answer's type; the version is that of the format.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// A caller that neither asks nor listens is hung up on.
const PATIENCE: Duration = Duration::from_secs(5);
/// No request is longer.
const MAX_REQUEST_BYTES: u64 = 16 << 10;

const VOLUME_STATES: [&str; 4] = ["mounted", "unmounted", "refused", "failed"];
const TARGET_STATES: [&str; 7] = ["new", "mirroring", "converging", "replicating", "stalled", "offline", "refused"];

/// Serves the numbers of `volumes` until the process ends.
///
/// # Errors
/// When the address cannot be listened at, or the system has no thread to give.
pub(super) fn serve(address: SocketAddr, volumes: Arc<Volumes>) -> std::io::Result<()> {
    let listener = TcpListener::bind(address)?;
    std::thread::Builder::new().name("dtfs-metrics".into()).spawn(move || {
        for caller in listener.incoming() {
            // One at a time: a scrape takes a moment, and a crowd of them must not take the daemon's threads.
            let answered = caller.and_then(|caller| answer(&caller, &volumes));
            if let Err(error) = answered {
                tracing::debug!(%error, "a caller of the metrics was not answered");
                // Out of descriptors, perhaps: the caller still waits, so the next turn would come at once, for ever.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    })?;
    Ok(())
}

fn answer(mut caller: &TcpStream, volumes: &Volumes) -> std::io::Result<()> {
    caller.set_read_timeout(Some(PATIENCE))?;
    caller.set_write_timeout(Some(PATIENCE))?;
    let line = request_line(caller)?;
    let mut words = line.split(' ');
    let path = (words.next(), words.next().map(|path| path.split('?').next().unwrap_or_default()));
    let (status, kind, body) = match path {
        (Some("GET"), Some("/metrics")) => match render(volumes) {
            Ok(text) => ("200 OK", CONTENT_TYPE, text),
            Err(failure) => ("500 Internal Server Error", "text/plain", format!("{failure}\n")),
        },
        (Some("GET"), Some(_)) => ("404 Not Found", "text/plain", "the numbers are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "text/plain", "only GET is answered\n".to_owned()),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    caller.write_all(head.as_bytes())?;
    caller.write_all(body.as_bytes())
}

/// Reads the whole request, so that closing the connection does not reset it, and returns its first line.
fn request_line(caller: &TcpStream) -> std::io::Result<String> {
    let mut lines = BufReader::new(caller.take(MAX_REQUEST_BYTES));
    let mut first = String::new();
    lines.read_line(&mut first)?;
    let mut header = String::new();
    while lines.read_line(&mut header)? > 0 && !header.trim_end().is_empty() {
        header.clear();
    }
    Ok(first.trim_end().to_owned())
}

/// One volume's numbers, read at one moment.
struct Numbers<'a> {
    status: &'a VolumeStatus,
    limit_bytes: Option<u64>,
    ops: Vec<(&'static str, u64)>,
    times: Vec<OpTimes>,
}

/// The whole answer.
///
/// # Errors
/// When the state of a volume cannot be read.
fn render(volumes: &Volumes) -> Result<String, Failure> {
    let all = super::status::status(volumes, None)?;
    let numbers: Vec<Numbers<'_>> = all.volumes.iter().map(|status| numbers(volumes, status)).collect();
    let mut text = Exposition::default();
    text.family("dtfs_build", Kind::Info, "The version that runs.")
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    volume_families(&mut text, &numbers);
    op_families(&mut text, &numbers);
    target_families(&mut text, &all);
    Ok(text.finish())
}

fn numbers<'a>(volumes: &Volumes, status: &'a VolumeStatus) -> Numbers<'a> {
    let open: Option<Arc<Volume>> = volumes.find(&status.name);
    let limit_bytes = open.as_ref().map(|volume| volume.journal.cap_bytes());
    let live = open.as_ref().map(|volume| volume.live());
    let mounted = live.as_ref().and_then(|live| live.mounted.as_ref());
    let ops = mounted.map_or_else(Vec::new, |mounted| mounted.requests().into_iter().collect());
    let times = mounted.map_or_else(Vec::new, |mounted| mounted.times());
    drop(live);
    Numbers { status, limit_bytes, ops, times }
}

fn volume_families(text: &mut Exposition, all: &[Numbers<'_>]) {
    let mut states = text.family("dtfs_volume_state", Kind::StateSet, "What the volume does now.");
    for Numbers { status, .. } in all {
        states.states(&[("volume", status.name.as_str())], &VOLUME_STATES, status.state.parts().0);
    }
    type Value = fn(&Numbers<'_>) -> Option<u64>;
    let gauges: [(&str, &str, Value); 5] = [
        ("dtfs_last_tid", "The newest change.", |n| Some(n.status.last_tid.0)),
        ("dtfs_durable_tid", "The newest change that is on disk in the journal.", |n| Some(n.status.durable_tid.0)),
        ("dtfs_journal_bytes", "Bytes that the journal takes on disk.", |n| Some(n.status.journal_bytes)),
        ("dtfs_journal_limit_bytes", "Bytes that the journal may take on disk.", |n| n.limit_bytes),
        ("dtfs_bypass_openers", "Programs that can write behind the mount's back.", |n| {
            Some((n.status.suspects.len() + n.status.unseen.len()) as u64)
        }),
    ];
    for (name, help, value) in gauges {
        let mut family = text.family(name, Kind::Gauge, help);
        for numbers in all {
            if let Some(value) = value(numbers) {
                family.sample(&[("volume", numbers.status.name.as_str())], value);
            }
        }
    }
}

fn op_families(text: &mut Exposition, all: &[Numbers<'_>]) {
    let mut ops = text.family("dtfs_ops", Kind::Counter, "Requests of the kernel since the volume was mounted.");
    for Numbers { status, ops: counted, .. } in all {
        for (op, count) in counted {
            ops.sample(&[("volume", status.name.as_str()), ("op", op)], count);
        }
    }
    let mut times = text.family("dtfs_op_seconds", Kind::Histogram, "How long requests of the kernel took.");
    for Numbers { status, times: counted, .. } in all {
        for one in counted {
            let labels = [("volume", status.name.as_str()), ("op", one.op)];
            times.histogram(&labels, &OP_SECONDS_BOUNDS, &one.counts, one.seconds);
        }
    }
}

/// Of volumes, and of copies that pass on what they get.
fn target_families(text: &mut Exposition, all: &StatusReply) {
    let targets = || all.targets().map(|(name, target)| (name.as_str(), target));
    let mut states = text.family("dtfs_target_state", Kind::StateSet, "What the target does now.");
    for (volume, target) in targets() {
        let labels = [("volume", volume), ("target", target.name.as_str())];
        states.states(&labels, &TARGET_STATES, target.state.parts().0);
    }
    type Value = fn(&TargetStatus) -> f64;
    let families: [(&str, Kind, &str, Value); 10] = [
        ("dtfs_lag_seconds", Kind::Gauge, "How long the oldest change is there that it has not applied.", |t| {
            t.lag_seconds
        }),
        ("dtfs_lag_bytes", Kind::Gauge, "About how many bytes of journal it has not applied.", |t| t.lag_bytes as f64),
        ("dtfs_lag_ops", Kind::Gauge, "Changes that the target has not applied.", |t| t.lag_changes as f64),
        ("dtfs_received_tid", Kind::Gauge, "Up to here the target's inbox is durable.", |t| t.received_tid.0 as f64),
        ("dtfs_applied_tid", Kind::Gauge, "Up to here the target's tree is durable.", |t| t.applied_tid.0 as f64),
        ("dtfs_consistent", Kind::Gauge, "Whether the target's tree is a past state of the source's.", |t| {
            f64::from(t.consistent_at.is_some())
        }),
        ("dtfs_resync_left_objects", Kind::Gauge, "Objects that the target must still compare or fetch.", |t| {
            t.work_left as f64
        }),
        ("dtfs_left_out_objects", Kind::Gauge, "Objects that lack something there because it is restricted.", |t| {
            f64::from(t.left_out.unwrap_or(0))
        }),
        ("dtfs_sent_bytes", Kind::Counter, "Bytes sent, after compression.", |t| t.bytes_sent as f64),
        ("dtfs_apply_errors", Kind::Counter, "Sessions that ended with an error.", |t| t.errors as f64),
    ];
    for (name, kind, help, value) in families {
        let mut family = text.family(name, kind, help);
        for (volume, target) in targets() {
            family.sample(&[("volume", volume), ("target", target.name.as_str())], value(target));
        }
    }
}
