//! The daemon's life: mount everything, answer, stop cleanly.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::handler::DaemonHandler;
use super::listener::Listener;
use super::volumes::{Run, Volumes};
use crate::config::{DaemonFile, OpenFiles, Paths};
use crate::control::{ExitCode, Failure, Selection, Server, Stopper};

/// Runs until SIGTERM, SIGINT or a request to stop.
///
/// # Errors
/// [`Failure`] when another daemon runs, the socket cannot be made, or a volume could not be closed cleanly.
pub fn run(paths: &Paths) -> Result<(), Failure> {
    let io = |what: &str, error: std::io::Error| Failure::new(ExitCode::Failed, format!("{what}: {error}"));
    // A working directory inside a mount would keep it busy.
    std::env::set_current_dir("/").map_err(|error| io("/", error))?;
    raise_open_files();
    let server = Server::bind(paths)?;
    let volumes = Arc::new(Volumes::new(paths.clone()));
    watch_signals(server.stopper(), volumes.clone()).map_err(|error| io("signals", error))?;
    let reply = volumes.mount(&Selection::All, Run::Real, OpenFiles::Refuse)?;
    for problem in &reply.problems {
        tracing::warn!(%problem, "entry skipped");
    }
    let handler = DaemonHandler { volumes: volumes.clone(), stopper: server.stopper() };
    let tended = tend(volumes.clone()).map_err(|error| io("a thread", error))?;
    let listener = listen(paths)?;
    let served = server.serve(Arc::new(handler));
    drop(listener);
    drop(tended);
    let closed = volumes.close();
    served.and(closed)
}

/// Lets sources call, when the settings say where. An address that cannot be had keeps nobody's volume from being mounted.
fn listen(paths: &Paths) -> Result<Option<Listener>, Failure> {
    let Some(address) = DaemonFile::load(paths)?.listen else { return Ok(None) };
    let listener = Listener::start(paths, address);
    Ok(listener.inspect_err(|error| tracing::error!(%error, "no source can call")).ok())
}

fn watch_signals(stopper: Stopper, volumes: Arc<Volumes>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    std::thread::Builder::new().name("dtfs-signals".into()).spawn(move || {
        for signal in signals.forever() {
            if signal == SIGHUP {
                match volumes.reload() {
                    Ok(notes) => notes.iter().for_each(|note| tracing::info!(%note, "reload")),
                    Err(failure) => tracing::warn!(%failure, "reload"),
                }
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
