//! What the daemon tells.

use super::{Finding, Severity};
use crate::config::{Paths, VolumeName};
use crate::control::ops::status;
use crate::control::{Failure, StatusReply, TargetState, TargetStatus, VolumeState, VolumeStatus, try_connect};

/// A target that is further behind than this is worth a look.
const BEHIND_SECONDS: f64 = 300.0;

pub(super) fn look(paths: &Paths) -> Result<Vec<Finding>, Failure> {
    if try_connect(paths)?.is_none() {
        let what = format!("no daemon answers at {}", paths.socket().display());
        return Ok(vec![Finding::new(
            "daemon",
            Severity::Error,
            what,
            "start it: dtfs daemon, or systemctl start dtfs",
        )]);
    }
    Ok(judge(&status(paths, None)?))
}

fn judge(status: &StatusReply) -> Vec<Finding> {
    let mut findings = Vec::new();
    let own = env!("CARGO_PKG_VERSION");
    if status.daemon.version != own {
        let what = format!("the daemon is version {}, this program {own}", status.daemon.version);
        findings.push(Finding::new(
            "version",
            Severity::Warning,
            what,
            "restart the daemon when it suits: systemctl restart dtfs",
        ));
    }
    for volume in &status.volumes {
        findings.extend(of_volume(volume));
        findings.extend(of_targets(&volume.name, &volume.targets));
    }
    for copy in &status.copies {
        findings.extend(copy.reason.as_deref().map(|reason| {
            let what = format!("{}: nothing is passed on to its targets: {reason}", copy.name);
            let fix = format!("see on {} how this copy stands: dtfs status", copy.host);
            Finding::new("copy-idle", Severity::Error, what, fix)
        }));
        findings.extend(of_targets(&copy.name, &copy.targets));
    }
    findings
}

fn of_targets(volume: &VolumeName, targets: &[TargetStatus]) -> Vec<Finding> {
    let found = targets.iter().flat_map(|target| [of_target(volume, target), of_clock(volume, target)]);
    found.flatten().collect()
}

fn of_volume(volume: &VolumeStatus) -> Vec<Finding> {
    let name = &volume.name;
    let mut findings = Vec::new();
    match &volume.state {
        VolumeState::Failed { reason } => findings.push(Finding::new(
            "volume-failed",
            Severity::Error,
            format!("{name}: {reason}"),
            "see to the disk, then: dtfs mounts unmount and dtfs daemon again; what is in doubt is compared",
        )),
        VolumeState::Refused { reason } => findings.push(Finding::new(
            "volume-refused",
            Severity::Error,
            format!("{name}: {reason}"),
            "see to the reason, then: dtfs mounts mount",
        )),
        VolumeState::Mounted | VolumeState::Unmounted => {}
    }
    if !volume.suspects.is_empty() {
        let who: Vec<String> = volume.suspects.iter().map(ToString::to_string).collect();
        findings.push(Finding::new(
            "bypass-suspect",
            Severity::Warning,
            format!("{name}: files that were open before the mount can be written behind it: {}", who.join(", ")),
            "restart these programs",
        ));
    }
    if !volume.unseen.is_empty() {
        let who: Vec<String> = volume.unseen.iter().map(ToString::to_string).collect();
        findings.push(Finding::new(
            "bypass-unseen",
            Severity::Warning,
            format!("{name}: whether somebody writes behind the mount is not known: {}", who.join(", ")),
            "end these processes, or what they wait for; then everything is compared once",
        ));
    }
    let fill = volume.journal_bytes * 100 / volume.journal_cap_bytes.max(1);
    if volume.journal_cap_bytes > 0 && fill >= 60 {
        findings.push(Finding::new(
            "journal-fill",
            if fill >= 80 { Severity::Error } else { Severity::Warning },
            format!("{name}: the journal has filled {fill} % of its cap"),
            "bring the slowest target back, or raise journal_cap",
        ));
    }
    findings
}

fn of_clock(volume: &VolumeName, target: &TargetStatus) -> Option<Finding> {
    let what = format!("{volume} to {}: {}", target.name, target.clock_skew()?);
    let fix = "let both hosts follow one clock (chrony, systemd-timesyncd); replication does not need it, people who read times do";
    Some(Finding::new("clock-skew", Severity::Warning, what, fix))
}

fn of_target(volume: &VolumeName, target: &TargetStatus) -> Option<Finding> {
    let who = format!("{volume} to {}", target.name);
    let error = |id, reason: &str, fix| Some(Finding::new(id, Severity::Error, format!("{who}: {reason}"), fix));
    match &target.state {
        TargetState::Offline { reason } => {
            error("target-offline", reason, "see that the target's host runs and can be reached")
        }
        TargetState::Refused { reason } => {
            error("target-refused", reason, "it needs a decision of yours: the reason says which")
        }
        TargetState::Stalled { reason } => error("target-full", reason, "make room on the target's disk"),
        _ if target.lag_seconds > BEHIND_SECONDS => Some(Finding::new(
            "target-behind",
            Severity::Warning,
            format!("{who}: {} changes behind, the oldest is {:.0} s old", target.lag_changes, target.lag_seconds),
            "see whether the line or the target's disk is the limit: dtfs status --watch",
        )),
        _ => None,
    }
}
