//! The daemon's life: mount everything, answer, stop cleanly.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::drain::{DEFAULT_PATIENCE, Hurry};
use super::handler::DaemonHandler;
use super::meter;
use super::volumes::{Run, Volumes};
use super::{metrics, relay, service};
use crate::config::{DaemonFile, OpenFiles, Paths};
use crate::control::{ExitCode, Failure, Selection, Server, Stopper};

/// Runs until SIGTERM, SIGINT or a request to stop.
///
/// # Errors
/// [`Failure`] when another daemon runs, `dtfs.toml` is not understood, the socket cannot be made, or a volume could not be
/// closed cleanly.
pub fn run(paths: &Paths) -> Result<(), Failure> {
    let io = |what: &str, error: std::io::Error| Failure::new(ExitCode::Failed, format!("{what}: {error}"));
    // A working directory inside a mount would keep it busy.
    std::env::set_current_dir("/").map_err(|error| io("/", error))?;
    raise_open_files();
    let settings = DaemonFile::load(paths)?;
    let server = Server::bind(paths)?;
    let volumes = Arc::new(Volumes::new(paths.clone()));
    let hurry = Hurry::default();
    watch_signals(server.stopper(), hurry.clone(), volumes.clone()).map_err(|error| io("signals", error))?;
    // Before a session that works on one of them.
    super::guard::put_back(paths, super::guard::guarding_of(&settings));
    let reply = volumes.mount(&Selection::All, Run::Real, OpenFiles::Refuse)?;
    for problem in &reply.problems {
        tracing::warn!(%problem, "entry skipped");
    }
    if let Some(address) = settings.metrics {
        // Whoever watches will notice; the files are served all the same.
        let _ = metrics::serve(address, volumes.clone())
            .inspect_err(|error| tracing::error!(%address, %error, "no metrics are served"));
    }
    volumes.set_relays();
    service::ready(&volumes);
    let handler = DaemonHandler { volumes: volumes.clone(), stopper: server.stopper() };
    let tended = tend(volumes.clone()).map_err(|error| io("a thread", error))?;
    // An address that cannot be had keeps nobody's volume from being mounted.
    if let Err(error) = volumes.listening.set(paths, settings.listen) {
        tracing::error!(%error, "no source can call");
    }
    let watched = service::watch(volumes.clone()).map_err(|error| io("a thread", error))?;
    let served = server.serve(Arc::new(handler));
    service::stopping("unmounting, and sending what targets lack");
    let _ = volumes.listening.set(paths, None);
    drop(tended);
    let patience = settings.drain.map_or(DEFAULT_PATIENCE, |drain| drain.0);
    let closed = volumes.close(patience, &hurry);
    drop(watched);
    served.and(closed)
}

/// SIGHUP reads the files again; the first SIGTERM or SIGINT stops, the second one stops without waiting for targets.
fn watch_signals(stopper: Stopper, hurry: Hurry, volumes: Arc<Volumes>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    std::thread::Builder::new().name("dtfs-signals".into()).spawn(move || {
        let mut stopping = false;
        for signal in signals.forever() {
            if signal == SIGHUP {
                service::reloading();
                match volumes.reload(Run::Real) {
                    Ok(notes) => notes.iter().for_each(|note| tracing::info!(%note, "reload")),
                    Err(failure) => tracing::warn!(%failure, "reload"),
                }
                service::ready(&volumes);
            } else if std::mem::replace(&mut stopping, true) {
                hurry.set();
            } else {
                stopper.stop();
            }
        }
    })?;
    Ok(())
}

/// Tends the volumes every now and then, until the returned end is dropped.
fn tend(volumes: Arc<Volumes>) -> std::io::Result<Sender<()>> {
    const EVERY: Duration = Duration::from_secs(30);
    let (end, ended) = bounded::<()>(0);
    // A thread of its own, because tending may wait for a disk.
    let (measured, measuring) = (volumes.clone(), ended.clone());
    std::thread::Builder::new().name("dtfs-meter".into()).spawn(move || {
        while measuring.recv_timeout(meter::EVERY) == Err(RecvTimeoutError::Timeout) {
            measured.meter.look(&measured);
        }
    })?;
    let (looked, looking) = (volumes.clone(), ended.clone());
    std::thread::Builder::new().name("dtfs-relays".into()).spawn(move || {
        while looking.recv_timeout(relay::LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
            looked.tend_relays();
        }
    })?;
    std::thread::Builder::new().name("dtfs-tend".into()).spawn(move || {
        while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
            volumes.tend();
        }
    })?;
    Ok(end)
}

/// Every file that programs hold open is one descriptor here.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
