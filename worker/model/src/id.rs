//! Internal ids of users, devices and records.
//!
//! A user's id is 18 bytes: home key group (2), generation (2), creation time in milliseconds (6), hash (8), all big
//! endian. It names the user's home, is unique, depends only on the creating record's position and content, and gives
//! merges their fixed order: the *smaller* of two users in ([`UserId::age`]: creation time, then hash, then all bytes) survives, so that
//! merges never form a cycle and no shard collects all survivors. A device's id is a function of its primary identifier alone,
//! so that any shard can name a device without asking.

use crate::key::{self, GROUPS};
use crate::proto::{Identifier, Stamp};
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed, xxh3_128};

const LENGTH: usize = 18;

/// A user's internal id.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UserId([u8; LENGTH]);

impl UserId {
    /// The id of the user that the record at `stamp` creates for `identifier`; its home is the identifier's key group.
    pub fn create(tenant: &str, identifier: &Identifier, stamp: &Stamp, generation: u16) -> UserId {
        let mut hash = Xxh3::new();
        for part in [tenant, &identifier.r#type, &identifier.value] {
            hash.update(part.as_bytes());
            hash.update(&[0]);
        }
        hash.update(&stamp.offset.to_be_bytes());
        hash.update(&stamp.index.to_be_bytes());
        let [_, _, time @ ..] = stamp.time_ms.to_be_bytes();
        UserId(assemble(key::group_of(tenant, identifier), generation, time, hash.digest()))
    }

    /// An id read from a message; `None` when it is not one.
    pub fn from_bytes(bytes: &[u8]) -> Option<UserId> {
        let id = UserId(bytes.try_into().ok()?);
        (id.home() < GROUPS).then_some(id)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key group of the user's home.
    pub fn home(&self) -> u16 {
        let [high, low, ..] = self.0;
        u16::from_be_bytes([high, low])
    }

    /// When the record that created it was received, milliseconds since 1970.
    pub fn created_ms(&self) -> u64 {
        let [_, _, _, _, a, b, c, d, e, f, ..] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// What orders users for merges: the smaller survives.
    pub fn age(&self) -> impl Ord + use<> {
        let mut order = self.0;
        order.rotate_left(4);
        order
    }

    /// `u_` and 36 hexadecimal digits, as documents and events show it; see [`std::fmt::Display`] for the reverse.
    pub fn parse(text: &str) -> Option<UserId> {
        UserId::from_bytes(&unhex(text.strip_prefix("u_")?)?)
    }
}

fn assemble(group: u16, generation: u16, time: [u8; 6], hash: u64) -> [u8; LENGTH] {
    let mut id = [0; LENGTH];
    let parts = group.to_be_bytes().into_iter().chain(generation.to_be_bytes()).chain(time).chain(hash.to_be_bytes());
    for (to, from) in id.iter_mut().zip(parts) {
        *to = from;
    }
    id
}

impl std::fmt::Display for UserId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "u_{}", hex(&self.0))
    }
}

impl std::fmt::Debug for UserId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// A device's internal id: key group (2 bytes) and hash (16) of its primary identifier.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceId([u8; LENGTH]);

impl DeviceId {
    /// The device that a primary identifier names.
    pub fn of(tenant: &str, identifier: &Identifier) -> DeviceId {
        let mut text = Vec::with_capacity(tenant.len() + identifier.r#type.len() + identifier.value.len() + 2);
        for part in [tenant, &identifier.r#type] {
            text.extend_from_slice(part.as_bytes());
            text.push(0);
        }
        text.extend_from_slice(identifier.value.as_bytes());
        let mut id = [0; LENGTH];
        let group = key::group_of(tenant, identifier).to_be_bytes();
        for (to, from) in id.iter_mut().zip(group.into_iter().chain(xxh3_128(&text).to_be_bytes())) {
            *to = from;
        }
        DeviceId(id)
    }

    /// An id read from a message; `None` when it is not one.
    pub fn from_bytes(bytes: &[u8]) -> Option<DeviceId> {
        let id = DeviceId(bytes.try_into().ok()?);
        (id.home() < GROUPS).then_some(id)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key group of the device's home.
    pub fn home(&self) -> u16 {
        let [high, low, ..] = self.0;
        u16::from_be_bytes([high, low])
    }

    /// `d_` and 36 hexadecimal digits; see [`std::fmt::Display`] for the reverse.
    pub fn parse(text: &str) -> Option<DeviceId> {
        DeviceId::from_bytes(&unhex(text.strip_prefix("d_")?)?)
    }
}

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "d_{}", hex(&self.0))
    }
}

impl std::fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// The id of the record at a position of `ingress` (16 bytes): the id of its event or reject. `part` counts the actions
/// that one envelope becomes.
pub fn record_id(tenant: &str, message_id: &str, partition: u32, stamp: &Stamp, part: u32) -> [u8; 16] {
    let mut hash = Xxh3::new();
    for text in [tenant, message_id] {
        hash.update(text.as_bytes());
        hash.update(&[0]);
    }
    for number in [partition, stamp.index, part] {
        hash.update(&number.to_be_bytes());
    }
    hash.update(&stamp.offset.to_be_bytes());
    hash.digest128().to_be_bytes()
}

/// What unify remembers of a message id. Part of the stored format: it never changes.
pub fn message_hash(message_id: &str) -> [u8; 16] {
    xxh3_128(message_id.as_bytes()).to_be_bytes()
}

/// A hash of bytes, never 0.
pub fn content_hash(bytes: &[u8]) -> u64 {
    xxh3_64(bytes).max(1)
}

/// A hash of an entry of a shard's state, for before-images in the changelog and for the digest of the whole state, which is the sum over all
/// entries; never 0, which stands for "absent".
pub fn entry_hash(key: &[u8], value: &[u8]) -> u64 {
    xxh3_64_with_seed(value, xxh3_64(key)).max(1)
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().map_or('?', char::from);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The bytes of hexadecimal text; `None` when it is not.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(time_ms: u64, offset: u64) -> Stamp {
        Stamp { time_ms, offset, index: 0 }
    }

    fn identifier(value: &str) -> Identifier {
        Identifier { r#type: "user_id".into(), value: value.into() }
    }

    #[test]
    fn the_older_user_is_smaller_wherever_it_lives() {
        let old = UserId::create("acme", &identifier("zz"), &stamp(1_000, 9), 1);
        let new = UserId::create("acme", &identifier("a"), &stamp(1_001, 1), 0);
        assert!(old.age() < new.age());
        assert_eq!(UserId::parse(&new.to_string()), Some(new));
        assert_eq!(new.home(), key::group_of("acme", &identifier("a")));
        let device = DeviceId::of("acme", &identifier("a"));
        assert_eq!(DeviceId::parse(&device.to_string()), Some(device));
        assert_eq!((DeviceId::parse(&new.to_string()), DeviceId::parse("d_")), (None, None));
    }

    #[test]
    fn no_two_positions_share_a_record_id() {
        let ids: std::collections::BTreeSet<_> = (0..100)
            .flat_map(|offset| (0..3).map(move |part| record_id("acme", "m", 0, &stamp(1, offset), part)))
            .collect();
        assert_eq!(ids.len(), 300);
    }

    #[test]
    fn hexadecimal_both_ways() {
        assert_eq!(hex(&[0, 255, 16]), "00ff10");
        assert_eq!(unhex("00ff10"), Some(vec![0, 255, 16]));
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("zz"), None);
    }
}
