//! How the embedded log's keys and values look in RocksDB. Numbers in keys are big endian, so that order is theirs.
//!
//! ```text
//! column family "messages"
//!   topic number (4) | partition (4) | offset (8) -> kind (1) | time (8) | key length (4) | headers length (4) | key | headers | payload
//! column family "default"
//!   'F' -> format (1)            'D' -> id of the folder          'N' -> next topic number (4)
//!   'T' name -> topic            'P' topic number, partition -> start (8), newest time (8)          'X' transactional id -> epoch (8)
//! ```
//! A topic number is never used twice, so a topic created again cannot see the data of its former self.

use millstream_shard::log::{Outgoing, Retention, TopicSpec};

/// The format that this version writes.
pub(super) const FORMAT: u8 = 1;
/// Bytes before key, headers and payload.
const HEADER: usize = 17;
const DATA: u8 = 0;
const CONTROL: u8 = 1;

/// A partition, by numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PartitionId {
    pub(super) topic: u32,
    pub(super) partition: u32,
}

impl PartitionId {
    /// The key of an offset.
    pub(super) fn at(self, offset: u64) -> [u8; 16] {
        let number = u128::from(self.topic) << 96 | u128::from(self.partition) << 64 | u128::from(offset);
        number.to_be_bytes()
    }

    /// The offset of a key, if it is one of this partition.
    pub(super) fn offset_of(self, key: &[u8]) -> Option<u64> {
        let number = u128::from_be_bytes(*key.first_chunk::<16>()?);
        ((number >> 64) as u64 == (u64::from(self.topic) << 32 | u64::from(self.partition))).then_some(number as u64)
    }

    /// The key of its start.
    pub(super) fn meta_key(self) -> Vec<u8> {
        [&b"P"[..], &self.topic.to_be_bytes(), &self.partition.to_be_bytes()].concat()
    }
}

/// A value whose time is not known yet.
pub(super) fn encode(message: &Outgoing<'_>) -> Vec<u8> {
    let mut headers = Vec::new();
    for text in message.headers.iter().flat_map(|(name, value)| [name, value]) {
        headers.extend_from_slice(&(text.len() as u32).to_le_bytes());
        headers.extend_from_slice(text.as_bytes());
    }
    let mut value = Vec::with_capacity(HEADER + message.key.len() + headers.len() + message.payload.len());
    value.extend_from_slice(&[DATA, 0, 0, 0, 0, 0, 0, 0, 0]);
    value.extend_from_slice(&(message.key.len() as u32).to_le_bytes());
    value.extend_from_slice(&(headers.len() as u32).to_le_bytes());
    value.extend_from_slice(message.key);
    value.extend_from_slice(&headers);
    value.extend_from_slice(message.payload);
    value
}

/// Sets the time of a value.
pub(super) fn stamp(value: &mut [u8], time_ms: u64) {
    if let Some(place) = value.get_mut(1..9) {
        place.copy_from_slice(&time_ms.to_le_bytes());
    }
}

/// The value of a control record: the end of a transaction in a partition. Readers skip it.
pub(super) fn control(time_ms: u64) -> Vec<u8> {
    let mut value = vec![CONTROL; 1];
    value.extend_from_slice(&time_ms.to_le_bytes());
    value.extend_from_slice(&[0; 8]);
    value
}

/// A value, taken apart.
pub(super) struct Stored<'a> {
    pub(super) is_control: bool,
    pub(super) time_ms: u64,
    pub(super) key: &'a [u8],
    headers: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl Stored<'_> {
    /// Names and values.
    pub(super) fn headers(&self) -> Vec<(String, String)> {
        let (mut rest, mut all) = (self.headers, Vec::new());
        while let (Some(name), Some(value)) = (take_text(&mut rest), take_text(&mut rest)) {
            all.push((name.to_owned(), value.to_owned()));
        }
        all
    }
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let (length, behind) = rest.split_first_chunk::<4>()?;
    let (text, behind) = behind.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *rest = behind;
    std::str::from_utf8(text).ok()
}

/// Takes a value apart; `None` when it is damaged.
pub(super) fn decode(value: &[u8]) -> Option<Stored<'_>> {
    let (kind, rest) = value.split_first()?;
    let (time, rest) = rest.split_first_chunk::<8>()?;
    let (key_length, rest) = rest.split_first_chunk::<4>()?;
    let (headers_length, rest) = rest.split_first_chunk::<4>()?;
    let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key_length) as usize)?;
    let (headers, payload) = rest.split_at_checked(u32::from_le_bytes(*headers_length) as usize)?;
    Some(Stored { is_control: *kind != DATA, time_ms: u64::from_le_bytes(*time), key, headers, payload })
}

/// Two numbers as a value.
pub(super) fn pair(first: u64, second: u64) -> [u8; 16] {
    (u128::from(first) << 64 | u128::from(second)).to_be_bytes()
}

/// The two numbers of a value.
pub(super) fn unpair(value: &[u8]) -> Option<(u64, u64)> {
    let number = u128::from_be_bytes(value.try_into().ok()?);
    Some(((number >> 64) as u64, number as u64))
}

const APPEND_TIME: u8 = 1;
const KEEP: u8 = 2;
const COMPACT: u8 = 4;

/// A topic's description: number (4), partitions (4), flags. Nothing is ever forgotten here, whatever a topic's retention allows.
pub(super) fn encode_topic(number: u32, spec: &TopicSpec) -> Vec<u8> {
    let retention = match spec.retention {
        Retention::Cluster => 0,
        Retention::Keep => KEEP,
        Retention::Compact => COMPACT,
    };
    let flags = if spec.append_time { retention | APPEND_TIME } else { retention };
    [&number.to_be_bytes()[..], &spec.partitions.to_be_bytes(), &[flags]].concat()
}

/// Number and description of a topic.
pub(super) fn decode_topic(name: &str, value: &[u8]) -> Option<(u32, TopicSpec)> {
    let (number, rest) = value.split_first_chunk::<4>()?;
    let (partitions, rest) = rest.split_first_chunk::<4>()?;
    let flags = rest.first()?;
    let spec = TopicSpec {
        name: name.to_owned(),
        partitions: u32::from_be_bytes(*partitions),
        append_time: flags & APPEND_TIME != 0,
        retention: match flags & (KEEP | COMPACT) {
            KEEP => Retention::Keep,
            COMPACT => Retention::Compact,
            _ => Retention::Cluster,
        },
    };
    Some((u32::from_be_bytes(*number), spec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_and_a_damaged_one_does_not() {
        let message = Outgoing { topic: "t", partition: 0, key: b"key", payload: b"payload", headers: &[("a", "b")] };
        let mut value = encode(&message);
        stamp(&mut value, 1_700_000_000_123);
        let stored = decode(&value).unwrap();
        assert_eq!((stored.is_control, stored.time_ms), (false, 1_700_000_000_123));
        assert_eq!((stored.key, stored.payload), (&b"key"[..], &b"payload"[..]));
        assert!(decode(&value[..20]).is_none() && decode(b"").is_none());
        assert!(decode(&control(7)).is_some_and(|stored| stored.is_control && stored.time_ms == 7));
    }

    #[test]
    fn keys_have_the_order_of_offsets_and_belong_to_one_partition() {
        let partition = PartitionId { topic: 1, partition: 2 };
        assert!(
            partition.at(255) < partition.at(256)
                && partition.at(u64::MAX) < PartitionId { topic: 1, partition: 3 }.at(0)
        );
        assert_eq!(partition.offset_of(&partition.at(77)), Some(77));
        assert_eq!(partition.offset_of(&PartitionId { topic: 2, partition: 2 }.at(77)), None);
    }
}
