//! What is said and what is not.

use super::*;
use crate::applier::Adopt;
use crate::base::{Oid, Space, VolumeUuid};
use crate::journal::LogOptions;
use crate::receiver::outbox::outbox;
use crate::record::{Attrs, Draft, Op};
use crate::sys::InodeFlags;
use crate::wire::Ack;

/// What is asked for goes out before its time; that says nothing of what is durable.
#[test]
fn asking_again_acknowledges_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (volume, tree) = (VolumeUuid([1; 16]), dir.path().join("tree"));
    let replica = Replica::open(&tree, &dir.path().join("states"), (volume, &Space(7).into()), Adopt::No).unwrap();
    let epoch = EpochId([2; 16]);
    let inbox = SegmentLog::open(&replica.inbox, volume, epoch, LogOptions::default()).unwrap();
    let positions = Positions::new(Position::START, Tid::ZERO, replica.commit(), Convergence::Consistent);
    let (out, outgoing) = outbox();
    let relay = RelayEnd::new(replica.state_dir());
    let (received, high_water, delay) = (Tid::ZERO, Tid::ZERO, Duration::ZERO);
    let beginning = Beginning { replica, received, high_water, delay, relay };
    let mut worker = Worker::new(beginning, Arc::new(inbox), &out, &positions).unwrap();
    worker.started = true;
    worker.retried = Instant::now().checked_sub(RETRY_BLOCKED).unwrap();
    let unknown = Oid { space: Space(7), generation: 1, ino: 99 };
    let op = Op::StateAttrs { attrs: Attrs::default(), xattrs: vec![], flags: InodeFlags::default() };
    let body = Draft::new(unknown, &op, &[]).seal(Tid(1), 0).bytes().to_vec();
    worker.job(Job::State { batch: 1, body }).unwrap();
    worker.idle().unwrap();
    let heard: Vec<Ack> = std::iter::from_fn(|| outgoing.next(Duration::ZERO).ok())
        .filter_map(|message| if let Message::Ack(ack) = message { Some(ack) } else { None })
        .collect();
    assert!(heard.iter().any(|ack| !ack.needs.is_empty()), "{heard:?}");
    assert!(heard.iter().all(|ack| ack.batch_durable == 0), "nothing was made durable: {heard:?}");
    worker.make_durable().unwrap();
    let last = std::iter::from_fn(|| outgoing.next(Duration::ZERO).ok()).last();
    assert!(matches!(last, Some(Message::Ack(Ack { batch_durable: 1, .. }))), "{last:?}");
}
