//! The frame's layout, and that whatever goes in comes out.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::entry::{
    CONTENT_TYPE_BYTES_MAX, Departure, KEY_BYTES_CEILING, RequestId, Timestamp, Verdict,
};

const SALT: u32 = 7;

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..=max).prop_map(Bytes::from)
}

fn key() -> impl Strategy<Value = Key> {
    let any_key = prop_oneof![9 => 1..40_usize, 1 => Just(KEY_BYTES_CEILING)];
    any_key.prop_flat_map(|n| vec(any::<u8>(), n)).prop_map(|bytes| {
        Key::new(bytes, KEY_BYTES_CEILING).expect("its length is between 1 and the ceiling")
    })
}

fn time() -> impl Strategy<Value = Option<Timestamp>> {
    option::of(any::<u64>().prop_map(Timestamp))
}

fn effect() -> impl Strategy<Value = Effect> {
    let put = (bytes(300), bytes(CONTENT_TYPE_BYTES_MAX), time());
    prop_oneof![
        Just(Effect::None),
        put.prop_map(|(value, content_type, expires_at)| Effect::Put {
            value,
            content_type,
            expires_at
        }),
        time().prop_map(|expires_at| Effect::Touch { expires_at }),
        Just(Effect::Remove(Departure::Deleted)),
        Just(Effect::Remove(Departure::Expired)),
        Just(Effect::Remove(Departure::Evicted)),
    ]
}

fn request() -> impl Strategy<Value = RequestId> {
    prop_oneof![
        Just(RequestId::Internal),
        any::<[u64; 3]>().prop_map(|[incarnation, counter, waits_from]| RequestId::Counted {
            incarnation,
            counter,
            waits_from
        }),
        any::<(u128, u64)>().prop_map(|(key, request)| RequestId::Keyed { key, request }),
    ]
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Created),
        Just(Verdict::Replaced),
        Just(Verdict::Deleted),
        any::<i64>().prop_map(Verdict::Number),
        Just(Verdict::Touched),
        any::<u64>().prop_map(Verdict::Counted),
        option::of(any::<u64>().prop_map(Version)).prop_map(Verdict::ConditionFailed),
        Just(Verdict::NotAnInteger),
        Just(Verdict::Absent),
    ]
}

prop_compose! {
    fn position()(epoch: u32, seq: u64) -> Position {
        Position { epoch, seq }
    }
}

prop_compose! {
    fn record()(
        shard: u16,
        position in position(),
        predecessor_epoch: u32,
        key in option::of(key()),
        effect in effect(),
        version: u64,
        request in request(),
        verdict in verdict(),
    ) -> Record {
        let (shard, version) = (ShardId(shard), Version(version));
        Record { shard, position, predecessor_epoch, key, effect, version, request, verdict }
    }
}

fn frame() -> impl Strategy<Value = Frame> {
    let state = (key(), any::<u64>(), effect());
    let state = state.prop_map(|(key, version, effect)| KeyState {
        key,
        version: Version(version),
        effect,
    });
    let shard = || any::<u16>().prop_map(ShardId);
    prop_oneof![
        4 => record().prop_map(Frame::Record),
        1 => (shard(), any::<u32>()).prop_map(|(shard, epoch)| Frame::Fence { shard, epoch }),
        1 => (shard(), position(), vec(state, 0..3), vec(record(), 0..3), vec(request(), 0..3))
            .prop_map(|(shard, kept, states, records, gone)| Frame::GiveUp {
                shard, kept, states, records, gone
            }),
        1 => (shard(), any::<u128>(), position(), any::<(u32, u64)>())
            .prop_map(|(shard, session, position, (fence, life))| Frame::Adopt {
                shard, session, position, fence, life
            }),
        1 => (shard(), any::<u64>()).prop_map(|(shard, life)| Frame::Vouch { shard, life }),
        1 => (shard(), any::<u32>()).prop_map(|(shard, fence)| Frame::Drop { shard, fence }),
    ]
}

fn encode(frame: &Frame, lsn: u64, unsure: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let durable = Lsn(lsn - 1 - u64::from(unsure));
    let about = (frame.kind(), frame.shard());
    put_frame(&mut bytes, SALT, (Lsn(lsn), durable), about, |into| frame.put_body(into));
    bytes
}

proptest! {
    #[test]
    fn any_frame_comes_back_as_it_was(frame in frame(), lsn: u64, unsure: u32) {
        let lsn = lsn.max(u64::from(unsure) + 1);
        let bytes = encode(&frame, lsn, unsure);
        let header = FrameHeader::parse(&bytes).expect("it is a frame");
        prop_assert_eq!(header.crc, checksum(SALT, &bytes));
        prop_assert_eq!(header.frame_bytes(), bytes.len());
        prop_assert_eq!(header.lsn, Lsn(lsn));
        prop_assert_eq!(header.durable, Lsn(lsn - 1 - u64::from(unsure)));
        let mut body = Bytes::from(bytes).split_off(FRAME_HEADER_BYTES);
        prop_assert_eq!(Frame::get(header.kind, header.shard, &mut body), Ok(frame));
    }

    #[test]
    fn a_frame_is_never_larger_than_what_is_checked(frame in frame()) {
        let checked = match &frame {
            Frame::Record(record) => codec::record_bytes(record),
            _ => return Ok(()),
        };
        prop_assert!(encode(&frame, 1, 0).len() <= checked + FRAME_HEADER_BYTES);
    }

    #[test]
    fn a_body_cut_short_or_made_longer_is_refused(frame in frame(), cut: usize) {
        let body = encode(&frame, 1, 0).split_off(FRAME_HEADER_BYTES);
        let get = |bytes: &[u8]| {
            Frame::get(frame.kind(), frame.shard(), &mut Bytes::copy_from_slice(bytes))
        };
        prop_assert_eq!(get(&body[..cut % body.len()]), Err(FrameError));
        prop_assert_eq!(get(&[&body[..], &[0]].concat()), Err(FrameError));
    }

    #[test]
    fn no_bytes_make_the_reader_panic(kind in 1_u8..6, bytes in bytes(200)) {
        let kind = Kind::from_byte(kind).expect("1 to 5 are kinds");
        let _ = FrameHeader::parse(&bytes);
        let _ = Frame::get(kind, ShardId(0), &mut bytes.clone());
    }
}

#[test]
fn a_record_stands_in_the_log_as_the_format_says() {
    let record = Record {
        shard: ShardId(0x0102),
        position: Position { epoch: 3, seq: 4 },
        predecessor_epoch: 2,
        key: Some(Key::new(&b"k"[..], 9).expect("it is a key")),
        effect: Effect::Put {
            value: Bytes::from_static(b"v"),
            content_type: Bytes::from_static(b"t"),
            expires_at: Some(Timestamp(5)),
        },
        version: Version(6),
        request: RequestId::Internal,
        verdict: Verdict::Created,
    };
    let bytes = encode(&Frame::Record(record), 9, 1);
    let expected = [
        &[47, 0, 0, 0][..],           // body
        &[9, 0, 0, 0, 0, 0, 0, 0],    // sequence number
        &[1, 0, 0, 0],                // not known to be durable
        &[1, 2, 1],                   // kind, shard
        &[2, 1],                      // shard
        &[3, 0, 0, 0],                // epoch
        &[4, 0, 0, 0, 0, 0, 0, 0],    // sequence number in the shard
        &[2, 0, 0, 0],                // predecessor's epoch
        &[6, 0, 0, 0, 0, 0, 0, 0],    // version
        &[0, 0],                      // request, verdict
        &[1, 0, b'k'],                // key
        &[2, 5, 0, 0, 0, 0, 0, 0, 0], // put with expiry
        &[1, b't', 1, 0, 0, 0, b'v'], // content type, value
    ];
    assert_eq!(bytes[4..], expected.concat());
}
