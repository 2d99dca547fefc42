//! The answer to `status`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{MirrorReply, Opener, Unseen, VerifyReply, tid_text};
use crate::base::{Tid, Timespec};
use crate::config::{TargetName, VolumeName};

/// Every volume that was asked for.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct StatusReply {
    /// The daemon itself.
    #[serde(default)]
    pub daemon: DaemonStatus,
    /// In the order of `dtfs_mounts`.
    pub volumes: Vec<VolumeStatus>,
    /// Copies that other hosts write here over tls://, by name; none when one volume was asked for.
    #[serde(default)]
    pub copies: Vec<CopyStatus>,
}

impl StatusReply {
    /// All targets with the names of their volumes: those of volumes, then those of copies that pass on what they get.
    pub fn targets(&self) -> impl Iterator<Item = (&VolumeName, &TargetStatus)> {
        let of_volumes = self.volumes.iter().map(|volume| (&volume.name, &volume.targets));
        let of_copies = self.copies.iter().map(|copy| (&copy.name, &copy.targets));
        of_volumes.chain(of_copies).flat_map(|(name, targets)| targets.iter().map(move |target| (name, target)))
    }
}

/// A copy of another host's volume, as `define source` made it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CopyStatus {
    /// What it is called here.
    pub name: VolumeName,
    /// Who may write it.
    pub host: String,
    /// Its directory.
    pub path: PathBuf,
    /// The newest change that is durable in its tree; 0 before the first session, and when it cannot be read.
    #[serde(with = "tid_text")]
    pub applied_tid: Tid,
    /// Whom it is passed on to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<TargetStatus>,
    /// Why nothing is passed on, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The daemon that answered.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it was started, RFC 3339.
    pub started: String,
}

/// One volume now.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name on this host.
    pub name: VolumeName,
    /// The directory it is mounted at.
    pub path: PathBuf,
    /// The volume's uuid; `None` before it was mounted for the first time.
    pub uuid: Option<String>,
    /// Mounted or why not.
    #[serde(flatten)]
    pub state: VolumeState,
    /// The newest change.
    #[serde(with = "tid_text")]
    pub last_tid: Tid,
    /// The newest change that is on disk in the journal.
    #[serde(with = "tid_text")]
    pub durable_tid: Tid,
    /// Bytes that the journal takes on disk.
    pub journal_bytes: u64,
    /// The most bytes that it keeps for targets that are behind; 0 while the volume is not open.
    #[serde(default)]
    pub journal_cap_bytes: u64,
    /// Requests of the kernel that were answered since it was mounted; with the processor's time of the daemon, what one costs.
    #[serde(default)]
    pub requests: u64,
    /// The same by the kind of request, without those that never came.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests_by_kind: BTreeMap<String, u64>,
    /// Who can write behind the mount's back, through files that were open before it. No target is consistent until they
    /// are closed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspects: Vec<Opener>,
    /// Who may do so as well, because it could not be looked into. No target is consistent until it could, or has ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<Unseen>,
    /// What its targets are sent of it: the rules of the volume's file by which the senders work, the first that matches first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
    /// In the order of the volume's file.
    pub targets: Vec<TargetStatus>,
}

/// Whether a volume is mounted. In JSON the key `state`, with `reason` beside it where there is one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum VolumeState {
    /// Changes pass through it.
    Mounted,
    /// It is defined and not mounted.
    Unmounted,
    /// It was not mounted, because that would endanger data.
    Refused {
        /// Why, in one sentence.
        reason: String,
    },
    /// It stopped by itself: a disk refused to sync, the journal is damaged.
    Failed {
        /// Why, in one sentence.
        reason: String,
    },
}

impl VolumeState {
    /// The word and the reason, for tables.
    pub fn parts(&self) -> (&'static str, Option<&str>) {
        match self {
            VolumeState::Mounted => ("mounted", None),
            VolumeState::Unmounted => ("unmounted", None),
            VolumeState::Refused { reason } => ("refused", Some(reason)),
            VolumeState::Failed { reason } => ("failed", Some(reason)),
        }
    }
}

/// One target now.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct TargetStatus {
    /// Its name within the volume.
    pub name: TargetName,
    /// Where it is, as in the volume's file.
    pub url: String,
    /// What it does now.
    #[serde(flatten)]
    pub state: TargetState,
    /// Up to here its inbox is durable.
    #[serde(with = "tid_text")]
    pub received_tid: Tid,
    /// Up to here its tree is durable.
    #[serde(with = "tid_text")]
    pub applied_tid: Tid,
    /// Changes in the journal that it has not applied.
    pub lag_changes: u64,
    /// About how many bytes of journal these changes are.
    #[serde(default)]
    pub lag_bytes: u64,
    /// How long ago the oldest of them was made, beyond the delay, in seconds; 0 when there is none.
    #[serde(default)]
    pub lag_seconds: f64,
    /// How long it stays behind on purpose, in seconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub delay_seconds: u64,
    /// Bytes sent in a second, on the average of the last ten.
    #[serde(default)]
    pub rate_bytes: u64,
    /// In how many seconds the work that is left ends if it goes on as in the last minute; `None` when nothing is left, or
    /// when it did not become less.
    #[serde(default)]
    pub work_seconds: Option<u64>,
    /// Objects that it must still compare or fetch (initial mirror, repair, overflow).
    pub work_left: u64,
    /// Its tree is the source's tree after this change; `None` while it converges.
    #[serde(with = "tid_text::option")]
    pub consistent_at: Option<Tid>,
    /// Bytes sent to it since the daemon started, after compression.
    pub bytes_sent: u64,
    /// Sessions with it that ended with an error since the daemon started.
    #[serde(default)]
    pub errors: u64,
    /// By how many seconds its clock is ahead of this host's, behind when negative; `None` before it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_seconds: Option<f64>,
    /// What it stores otherwise than it is sent, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differs: Option<String>,
    /// Of how many objects it lacks something because it is restricted (`trust`); `None` for none, or before it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<u32>,
    /// How many orphans it had when it was last asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orphans: Option<u64>,
    /// How the mirror that runs stands, or how the last one ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorReply>,
    /// How the verification that runs stands, or how the last one since the daemon started ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<VerifyReply>,
    /// The last thing that went wrong, also when it was overcome.
    pub last_error: Option<LastError>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a target does now. In JSON the key `state`, with `reason` beside it where there is one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TargetState {
    /// Defined, and no session was up yet.
    New,
    /// An operator paused it; it keeps its place.
    Paused,
    /// The bulk copy runs, beside live changes.
    Mirroring,
    /// Work rows are left after the mirror (repair, overflow): not yet consistent at any TID.
    Converging,
    /// Consistent, and following the journal.
    Replicating,
    /// In a session, and waiting for room on its disk.
    Stalled {
        /// Where, in one sentence.
        reason: String,
    },
    /// No session; it is tried again.
    Offline {
        /// Why, in one sentence.
        reason: String,
    },
    /// The target or the source refused the session; it needs the operator.
    Refused {
        /// Why, in one sentence.
        reason: String,
    },
}

impl TargetStatus {
    /// In one sentence, when it lacks something because it is restricted.
    pub fn restricted(&self) -> Option<String> {
        self.left_out.map(|left_out| format!("restricted: lacks something of {left_out} objects"))
    }

    /// In one sentence, when the clocks differ by more than a message may take.
    pub fn clock_skew(&self) -> Option<String> {
        const WORTH_SAYING_SECONDS: f64 = 2.0;
        let offset = self.clock_offset_seconds.filter(|offset| offset.abs() >= WORTH_SAYING_SECONDS)?;
        let where_to = if offset > 0.0 { "ahead" } else { "behind" };
        Some(format!("its clock is {:.0} s {where_to}", offset.abs()))
    }
}

impl TargetState {
    /// The word and the reason, for tables.
    pub fn parts(&self) -> (&'static str, Option<&str>) {
        match self {
            TargetState::New => ("new", None),
            TargetState::Paused => ("paused", None),
            TargetState::Mirroring => ("mirroring", None),
            TargetState::Converging => ("converging", None),
            TargetState::Replicating => ("replicating", None),
            TargetState::Stalled { reason } => ("stalled", Some(reason)),
            TargetState::Offline { reason } => ("offline", Some(reason)),
            TargetState::Refused { reason } => ("refused", Some(reason)),
        }
    }
}

/// Something that went wrong, and when.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LastError {
    /// RFC 3339, as [`rfc3339`] writes it.
    pub time: String,
    /// What happened, in one sentence.
    pub message: String,
}

impl LastError {
    /// `message`, now.
    pub fn now(message: impl Into<String>) -> LastError {
        LastError { time: rfc3339(Timespec::now()), message: message.into() }
    }
}

/// A time as RFC 3339 in UTC with milliseconds. A time outside the years -9999 to 9999 is written as its seconds.
pub fn rfc3339(time: Timespec) -> String {
    match jiff::Timestamp::new(time.sec, time.nsec as i32) {
        Ok(stamp) => format!("{stamp:.3}"),
        Err(_) => time.sec.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_tids_as_text_and_states_as_words() {
        let status = VolumeStatus {
            name: VolumeName::new("data").unwrap(),
            path: "/srv/data".into(),
            uuid: None,
            state: VolumeState::Refused { reason: "no".to_owned() },
            last_tid: Tid(u64::MAX),
            durable_tid: Tid(16),
            journal_bytes: 1,
            journal_cap_bytes: 8,
            requests: 2,
            requests_by_kind: BTreeMap::new(),
            suspects: Vec::new(),
            unseen: Vec::new(),
            rules: vec!["- *.tmp".to_owned()],
            targets: Vec::new(),
        };
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["state"], "refused");
        assert_eq!(json["reason"], "no");
        assert_eq!(json["rules"][0], "- *.tmp");
        assert_eq!(json["last_tid"], "0xffffffffffffffff");
        assert_eq!(serde_json::from_value::<VolumeStatus>(json).unwrap(), status);
    }

    #[test]
    fn times() {
        assert_eq!(rfc3339(Timespec { sec: 0, nsec: 5_000_000 }), "1970-01-01T00:00:00.005Z");
    }
}
