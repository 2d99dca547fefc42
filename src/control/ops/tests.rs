use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::config::{Adoption, MountOptions, MountsFile, OpenFiles, TargetName, VolumeFile, VolumeName};
use crate::control::{ExitCode, Handler, MountsReply, ReplySink, Server, Stopper, Verdict};

struct Place {
    _dir: tempfile::TempDir,
    top: PathBuf,
    paths: Paths,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    for name in ["data/sub", "other", "copy"] {
        fs::create_dir_all(top.join(name)).unwrap();
    }
    let paths = Paths::new(Some(top.join("host")));
    Place { _dir: dir, top, paths }
}

fn volume(name: &str) -> VolumeName {
    VolumeName::new(name).unwrap()
}

fn target(place: &Place, dir: &str) -> NewTarget {
    let url = format!("local:{}", place.top.join(dir).display()).parse().unwrap();
    NewTarget { url, name: None, adoption: Adoption::Refuse, period: None, delay: None }
}

#[test]
fn the_files_are_enough_without_a_daemon() {
    let place = place();
    let (entry, told) = define_volume(&place.paths, &volume("data"), &place.top.join("data")).unwrap();
    assert_eq!((entry.volume, told), (volume("data"), Told::NoDaemon));
    let (copy, _) = define_target(&place.paths, &volume("data"), target(&place, "copy")).unwrap();
    assert_eq!(copy.name.as_str(), "copy");
    let inside = place.top.join("data/sub");
    assert_eq!(resolve_volume(&place.paths, inside.to_str().unwrap()), Ok(volume("data")));
    assert_eq!(list_entries(&place.paths).unwrap().mounts.len(), 1);

    let again = define_target(&place.paths, &volume("data"), target(&place, "copy")).unwrap_err();
    assert_eq!(again.code, ExitCode::Usage);
    let nested = define_target(&place.paths, &volume("data"), target(&place, "data/sub")).unwrap_err();
    assert_eq!(nested.code, ExitCode::Refused);

    forget_target(&place.paths, &volume("data"), &TargetName::new("copy").unwrap()).unwrap();
    assert!(VolumeFile::load(&place.paths, &volume("data")).unwrap().targets.is_empty());
    fs::create_dir_all(place.paths.volume_state(&volume("data")).join("journal")).unwrap();
    forget_volume(&place.paths, &volume("data")).unwrap();
    assert_eq!(MountsFile::load(&place.paths).unwrap().entries().count(), 0);
    assert!(!place.paths.volume_state(&volume("data")).exists());
    assert!(place.top.join("data/sub").exists());
}

#[test]
fn a_refused_entry_changes_nothing() {
    let place = place();
    let options: MountOptions = format!("store={}", place.top.join("data/j").display()).parse().unwrap();
    let refused = add_entry(&place.paths, &place.top.join("data"), &options).unwrap_err();
    assert_eq!(refused.code, ExitCode::Refused);
    assert!(!place.paths.mounts_file().exists());
    assert_eq!(
        define_volume(&place.paths, &volume("x"), &place.top.join("nothing")).unwrap_err().code,
        ExitCode::Usage
    );
    assert!(!place.paths.volume_file(&volume("x")).exists());
}

#[test]
fn mounting_needs_a_daemon_and_a_rehearsal_does_not() {
    let place = place();
    add_entry(&place.paths, &place.top.join("data"), &MountOptions::default()).unwrap();
    add_entry(&place.paths, &place.top.join("other"), &MountOptions::default()).unwrap();
    fs::remove_dir(place.top.join("other")).unwrap();
    let how = |rehearsal| MountHow { rehearsal, open_files: OpenFiles::Refuse };
    let failure = mount(&place.paths, &Which::All, how(Rehearsal::ForReal)).unwrap_err();
    assert_eq!(failure.code, ExitCode::NoDaemon);
    let tried = mount(&place.paths, &Which::All, how(Rehearsal::DryRun)).unwrap();
    assert_eq!(tried.verdicts[0].verdict, Verdict::WouldMount);
    assert!(matches!(&tried.verdicts[1].verdict, Verdict::NotDone(failure) if failure.code == ExitCode::Usage));
    assert_eq!(tried.exit_code(), ExitCode::Partly);
}

/// Says that every entry is mounted, and remembers what it was asked.
struct Daemon {
    paths: Paths,
    asked: Mutex<Vec<Request>>,
}

impl Handler for Daemon {
    fn handle(&self, request: Request, _sink: &mut dyn ReplySink) -> Result<Reply, Failure> {
        self.asked.lock().push(request.clone());
        match request {
            Request::MountsList => Ok(Reply::Mounts(MountsReply::from_file(&MountsFile::load(&self.paths)?, |_| {
                Some(crate::control::VolumeState::Mounted)
            }))),
            Request::Reload => Ok(Reply::Notes(vec!["one new entry".to_owned()])),
            _ => Ok(Reply::Done),
        }
    }
}

fn start(paths: &Paths) -> (Arc<Daemon>, Stopper, std::thread::JoinHandle<()>) {
    let server = Server::bind(paths).unwrap();
    let stopper = server.stopper();
    let daemon = Arc::new(Daemon { paths: paths.clone(), asked: Mutex::default() });
    let handler: Arc<dyn Handler> = Arc::clone(&daemon) as _;
    let thread = std::thread::spawn(move || server.serve(handler).unwrap());
    (daemon, stopper, thread)
}

#[test]
fn a_running_daemon_is_told_and_protects_what_is_mounted() {
    let place = place();
    let (daemon, stopper, thread) = start(&place.paths);
    let (_, told) = add_entry(&place.paths, &place.top.join("data"), &MountOptions::default()).unwrap();
    assert_eq!(told, Told::Daemon(vec!["one new entry".to_owned()]));
    define_target(&place.paths, &volume("data"), target(&place, "copy")).unwrap();
    let asked = daemon.asked.lock().clone();
    assert!(matches!(asked[..], [Request::Reload, Request::DefineTarget { .. }]), "{asked:?}");
    assert_eq!(remove_entry(&place.paths, &place.top.join("data")).unwrap_err().code, ExitCode::Busy);
    assert_eq!(forget_volume(&place.paths, &volume("data")).unwrap_err().code, ExitCode::Busy);
    assert_eq!(MountsFile::load(&place.paths).unwrap().entries().count(), 1);
    stopper.stop();
    thread.join().unwrap();
}

#[test]
fn an_unknown_volume_suggests_the_nearest() {
    let place = place();
    add_entry(&place.paths, &place.top.join("data"), &MountOptions::default()).unwrap();
    let failure = resolve_volume(&place.paths, "dato").unwrap_err();
    assert_eq!(failure.code, ExitCode::Usage);
    assert_eq!(failure.remedy.as_deref(), Some("did you mean \"data\"?"));
    assert!(resolve_volume(&place.paths, "/nowhere").is_err());
}
