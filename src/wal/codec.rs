//! How the parts of a record are laid out in bytes: numbers little-endian, tags one byte.
//!
//! Never panics on any input: what is too short or has an unknown tag decodes to `None`.

use bytes::{Buf, Bytes};

use crate::entry::{
    Departure, Effect, KEY_BYTES_CEILING, Key, Position, Record, RequestId, ShardId, Timestamp,
    Verdict, Version,
};

pub(crate) fn take<const N: usize>(from: &mut Bytes) -> Option<[u8; N]> {
    let bytes = from.get(..N)?.try_into().ok()?;
    from.advance(N);
    Some(bytes)
}

pub(crate) fn take_u8(from: &mut Bytes) -> Option<u8> {
    take::<1>(from).map(|[byte]| byte)
}

pub(crate) fn take_u16(from: &mut Bytes) -> Option<u16> {
    take(from).map(u16::from_le_bytes)
}

pub(crate) fn take_u32(from: &mut Bytes) -> Option<u32> {
    take(from).map(u32::from_le_bytes)
}

pub(crate) fn take_u64(from: &mut Bytes) -> Option<u64> {
    take(from).map(u64::from_le_bytes)
}

pub(crate) fn take_u128(from: &mut Bytes) -> Option<u128> {
    take(from).map(u128::from_le_bytes)
}

fn take_bytes(from: &mut Bytes, n: usize) -> Option<Bytes> {
    (from.len() >= n).then(|| from.split_to(n))
}

/// epoch u32, seq u64
pub(crate) fn put_position(into: &mut Vec<u8>, position: Position) {
    into.extend_from_slice(&position.epoch.to_le_bytes());
    into.extend_from_slice(&position.seq.to_le_bytes());
}

pub(crate) fn get_position(from: &mut Bytes) -> Option<Position> {
    Some(Position { epoch: take_u32(from)?, seq: take_u64(from)? })
}

/// length u16, bytes; length 0 stands for no key.
pub(crate) fn put_key(into: &mut Vec<u8>, key: Option<&Key>) {
    let bytes = key.map_or(&[][..], Key::as_bytes);
    let length = u16::try_from(bytes.len()).expect("a key fits its ceiling of 65,535 bytes");
    into.extend_from_slice(&length.to_le_bytes());
    into.extend_from_slice(bytes);
}

pub(crate) fn get_key(from: &mut Bytes) -> Option<Option<Key>> {
    let length = usize::from(take_u16(from)?);
    if length == 0 {
        return Some(None);
    }
    Key::new(take_bytes(from, length)?, KEY_BYTES_CEILING).ok().map(Some)
}

/// tag u8: 0 internal, 1 counted (incarnation, counter, waits_from: u64 each), 2 keyed (key u128,
/// request u64)
pub(crate) fn put_request(into: &mut Vec<u8>, request: &RequestId) {
    match request {
        RequestId::Internal => into.push(0),
        RequestId::Counted { incarnation, counter, waits_from } => {
            into.push(1);
            into.extend_from_slice(&incarnation.to_le_bytes());
            into.extend_from_slice(&counter.to_le_bytes());
            into.extend_from_slice(&waits_from.to_le_bytes());
        }
        RequestId::Keyed { key, request } => {
            into.push(2);
            into.extend_from_slice(&key.to_le_bytes());
            into.extend_from_slice(&request.to_le_bytes());
        }
    }
}

pub(crate) fn get_request(from: &mut Bytes) -> Option<RequestId> {
    Some(match take_u8(from)? {
        0 => RequestId::Internal,
        1 => RequestId::Counted {
            incarnation: take_u64(from)?,
            counter: take_u64(from)?,
            waits_from: take_u64(from)?,
        },
        2 => RequestId::Keyed { key: take_u128(from)?, request: take_u64(from)? },
        _ => return None,
    })
}

/// tag u8: 0 created, 1 replaced, 2 deleted, 3 number (i64), 4 touched, 5 counted (u64), 6
/// condition failed on nothing, 7 condition failed on a version (u64), 8 not an integer, 9 absent
pub(crate) fn put_verdict(into: &mut Vec<u8>, verdict: &Verdict) {
    let (tag, number) = match verdict {
        Verdict::Created => (0, None),
        Verdict::Replaced => (1, None),
        Verdict::Deleted => (2, None),
        Verdict::Number(n) => (3, Some(n.to_le_bytes())),
        Verdict::Touched => (4, None),
        Verdict::Counted(n) => (5, Some(n.to_le_bytes())),
        Verdict::ConditionFailed(None) => (6, None),
        Verdict::ConditionFailed(Some(version)) => (7, Some(version.0.to_le_bytes())),
        Verdict::NotAnInteger => (8, None),
        Verdict::Absent => (9, None),
    };
    into.push(tag);
    if let Some(number) = number {
        into.extend_from_slice(&number);
    }
}

pub(crate) fn get_verdict(from: &mut Bytes) -> Option<Verdict> {
    Some(match take_u8(from)? {
        0 => Verdict::Created,
        1 => Verdict::Replaced,
        2 => Verdict::Deleted,
        3 => Verdict::Number(i64::from_le_bytes(take(from)?)),
        4 => Verdict::Touched,
        5 => Verdict::Counted(take_u64(from)?),
        6 => Verdict::ConditionFailed(None),
        7 => Verdict::ConditionFailed(Some(Version(take_u64(from)?))),
        8 => Verdict::NotAnInteger,
        9 => Verdict::Absent,
        _ => return None,
    })
}

/// tag u8: 0 none; 1 put and 2 put with expiry ([expiry u64], content type length u8, content
/// type, value length u32, value); 3 touch and 4 touch with expiry ([expiry u64]); 5 deleted,
/// 6 expired, 7 evicted
pub(crate) fn put_effect(into: &mut Vec<u8>, effect: &Effect) {
    let (tag, expires_at) = match effect {
        Effect::None => (0, None),
        Effect::Put { expires_at, .. } => (1 + u8::from(expires_at.is_some()), *expires_at),
        Effect::Touch { expires_at } => (3 + u8::from(expires_at.is_some()), *expires_at),
        Effect::Remove(Departure::Deleted) => (5, None),
        Effect::Remove(Departure::Expired) => (6, None),
        Effect::Remove(Departure::Evicted) => (7, None),
    };
    into.push(tag);
    if let Some(at) = expires_at {
        into.extend_from_slice(&at.0.to_le_bytes());
    }
    if let Effect::Put { value, content_type, .. } = effect {
        let length = u8::try_from(content_type.len()).expect("a content type is capped at 255");
        into.push(length);
        into.extend_from_slice(content_type);
        let length = u32::try_from(value.len()).expect("a frame's size was checked before");
        into.extend_from_slice(&length.to_le_bytes());
        into.extend_from_slice(value);
    }
}

pub(crate) fn get_effect(from: &mut Bytes) -> Option<Effect> {
    let tag = take_u8(from)?;
    let expires_at = match tag {
        2 | 4 => Some(Timestamp(take_u64(from)?)),
        _ => None,
    };
    Some(match tag {
        0 => Effect::None,
        1 | 2 => {
            let length = usize::from(take_u8(from)?);
            let content_type = take_bytes(from, length)?;
            let length = usize::try_from(take_u32(from)?).ok()?;
            Effect::Put { value: take_bytes(from, length)?, content_type, expires_at }
        }
        3 | 4 => Effect::Touch { expires_at },
        5 => Effect::Remove(Departure::Deleted),
        6 => Effect::Remove(Departure::Expired),
        7 => Effect::Remove(Departure::Evicted),
        _ => return None,
    })
}

/// shard u16, position, predecessor's epoch u32, version u64, request, verdict, key, effect
pub(crate) fn put_record(into: &mut Vec<u8>, record: &Record) {
    into.extend_from_slice(&record.shard.0.to_le_bytes());
    put_position(into, record.position);
    into.extend_from_slice(&record.predecessor_epoch.to_le_bytes());
    into.extend_from_slice(&record.version.0.to_le_bytes());
    put_request(into, &record.request);
    put_verdict(into, &record.verdict);
    put_key(into, record.key.as_ref());
    put_effect(into, &record.effect);
}

pub(crate) fn get_record(from: &mut Bytes) -> Option<Record> {
    let shard = ShardId(take_u16(from)?);
    let position = get_position(from)?;
    let predecessor_epoch = take_u32(from)?;
    let version = Version(take_u64(from)?);
    let request = get_request(from)?;
    let verdict = get_verdict(from)?;
    let key = get_key(from)?;
    let effect = get_effect(from)?;
    Some(Record { shard, position, predecessor_epoch, key, effect, version, request, verdict })
}

/// A record's length in bytes, or a little more.
pub(crate) fn record_bytes(record: &Record) -> usize {
    const FIXED_BYTES_MAX: usize = 96;
    let key = record.key.as_ref().map_or(0, |key| key.as_bytes().len());
    FIXED_BYTES_MAX + key + effect_bytes(&record.effect)
}

pub(crate) fn effect_bytes(effect: &Effect) -> usize {
    match effect {
        Effect::Put { value, content_type, .. } => value.len() + content_type.len(),
        _ => 0,
    }
}
