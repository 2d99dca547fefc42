use super::fields::MAX_TEXT_BYTES;
use super::*;
use crate::base::{AtimeMode, ChainDigest, Commit, Guarded, Oid, Space, Spaces, StoredTimes, VolumeUuid};

fn samples() -> Vec<Message> {
    let oid = Oid { space: Space(9), generation: 8, ino: 7 };
    vec![
        Message::Hello(Hello {
            version: 1,
            volume: VolumeUuid([1; 16]),
            spaces: Spaces::new(Space(6), [Space(5)]),
            epoch: EpochId([2; 16]),
            durable: Tid(77),
            access_times: AtimeMode::EachRead,
            label: "data".into(),
            epochs: vec![Position { epoch: EpochId([2; 16]), tid: Tid(7), digest: ChainDigest([8; 8]) }],
            delay_seconds: 3600,
        }),
        Message::HelloReply(HelloReply {
            version: 1,
            replica: VolumeUuid([3; 16]),
            state: ReplicaState::Replica,
            received: Position { epoch: EpochId([4; 16]), tid: Tid(5), digest: ChainDigest([5; 8]) },
            applied: Position::START,
            commit: Commit { number: 6, nonce: 7 },
            high_water: Tid(8),
            doubt: "no catalog".into(),
            stored_times: StoredTimes::Coarse,
            guarded: Guarded::Restored,
            settled: 9,
        }),
        Message::Refuse { code: RefuseCode::Wrong, text: "no".into() },
        Message::Keep { epoch: EpochId([7; 16]) },
        Message::Start { after: Position { tid: Tid(6), ..Position::START }, jump: true },
        Message::Records { batch: 1, prev: Tid(6), first: Tid(7), last: Tid(9), count: 3, body: vec![1, 2, 3] },
        Message::State { batch: 2, body: vec![4, 5] },
        Message::Ack(Ack {
            batch_taken: 2,
            batch_durable: 1,
            received: Tid(9),
            applied: Tid(7),
            commit: Commit { number: 3, nonce: 4 },
            convergence: Convergence::Consistent,
            downstream: Tid(6),
            blocked: 1,
            blocked_oid: oid,
            blocked_errno: 27,
            left_out: 3,
            stalled_errno: 28,
            stalled_at: Stall::Tree,
            needs: vec![Need { oid, offset: 0, len: 0 }],
        }),
        Message::Flush,
        Message::Ping,
        Message::Pong { clock_micros: 11 },
        Message::Bye,
        Message::Convergence(Convergence::Converging),
        Message::Settled { mark: 12 },
        Message::Superseded(History { volume: VolumeUuid([1; 16]), epochs: vec![Position::START] }),
    ]
}

#[test]
fn every_message_round_trips() {
    for message in samples() {
        assert_eq!(Message::decode(message.kind(), message.encode()), Ok(message));
    }
}

#[test]
fn a_cut_message_is_an_error_and_never_a_panic() {
    for message in samples() {
        let body = message.encode();
        let keeps_rest = matches!(message, Message::Records { .. } | Message::State { .. } | Message::Superseded(_));
        for len in 0..body.len() {
            let outcome = Message::decode(message.kind(), body[..len].to_vec());
            assert!(outcome.is_err() || keeps_rest, "{message:?} cut at {len}");
        }
    }
}

#[test]
fn text_from_a_peer_cannot_reach_the_terminal_raw() {
    let message = Message::Refuse { code: RefuseCode::Busy, text: "a\x1b[2Jb".into() };
    let decoded = Message::decode(message.kind(), message.encode()).unwrap();
    assert_eq!(decoded, Message::Refuse { code: RefuseCode::Busy, text: "a?[2Jb".into() });
}

#[test]
fn long_text_is_cut_between_characters_on_both_sides() {
    let message = Message::Refuse { code: RefuseCode::Busy, text: "\u{e9}".repeat(MAX_TEXT_BYTES) };
    let Ok(Message::Refuse { text, .. }) = Message::decode(message.kind(), message.encode()) else { panic!() };
    assert_eq!(text, "\u{e9}".repeat(MAX_TEXT_BYTES / 2));
    let mut body = FieldWriter::default();
    body.u8(0);
    body.short_bytes(&[0xff; MAX_TEXT_BYTES]);
    let decoded = Message::decode(3, body.0).unwrap();
    assert_eq!(Message::decode(decoded.kind(), decoded.encode()), Ok(decoded));
}
