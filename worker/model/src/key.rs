//! The key space: key groups, shards, and the keys of a shard's state.
//!
//! key group = xxh3_64(tenant, 0x00, type, 0x00, value) mod 4,096; shard = group × shards / 4,096. The hash is part of
//! the format: it never changes, and `tests::vectors` pins it. No id and no stored key contains a shard number, and every state
//! key starts with (group, tenant, kind), so that a shard's state is a contiguous range however many shards there are.
//!
//! State that is only remembered for a while is kept by *period*, under keys that start with (group, no tenant, kind, period): one range per key group
//! holds everything of the periods before some time, so that it is forgotten without reading it.

mod bytes;

use crate::proto::Identifier;
use bytes::KeyBytes;
use xxhash_rust::xxh3::Xxh3;

/// Number of key groups; fixed for ever.
pub const GROUPS: u16 = 4096;

/// The key group of a tenant's identifier, 0..[`GROUPS`].
pub fn group_of(tenant: &str, identifier: &Identifier) -> u16 {
    group_of_parts(tenant, &identifier.r#type, &identifier.value)
}

/// [`group_of`] for an identifier that is not in one piece.
pub fn group_of_parts(tenant: &str, kind: &str, value: &str) -> u16 {
    let mut hash = Xxh3::new();
    for part in [tenant, kind] {
        hash.update(part.as_bytes());
        hash.update(&[0]);
    }
    hash.update(value.as_bytes());
    (hash.digest() % u64::from(GROUPS)) as u16
}

/// The shard that owns `group` when a stage has `shards` shards (1..=[`GROUPS`]).
pub fn shard_of(group: u16, shards: u32) -> u32 {
    u32::from(group) * shards / u32::from(GROUPS)
}

/// The key groups that `shard` of `shards` owns.
pub fn groups_of(shard: u32, shards: u32) -> std::ops::Range<u16> {
    let first = |shard: u32| (shard * u32::from(GROUPS)).div_ceil(shards) as u16;
    first(shard)..first(shard + 1)
}

/// What a state key's value is; the byte after the tenant in a [`StateKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Unify: a message id that was seen; kept by period.
    Seen = 1,
    /// Action: which user an identifier names.
    Node = 2,
    /// Action: a user.
    User = 3,
    /// Action: a device.
    Device = 4,
    /// Sums of a tenant ([`crate::proto::Usage`]).
    Usage = 5,
    /// Action: the newest deletion of an identifier's user; its key holds a hash of the identifier.
    Erased = 6,
    /// A frame for another shard that waits to be sent; under the tenant `*`, which is no tenant's name.
    Waiting = 7,
    /// Action: which device a further device identifier names.
    Alias = 8,
}

impl Kind {
    /// The kinds that are kept by period.
    pub const BY_PERIOD: [Kind; 1] = [Kind::Seen];

    /// The kind of this byte, if it is one.
    pub fn from_byte(byte: u8) -> Option<Kind> {
        const ALL: [Kind; 8] =
            [Kind::Seen, Kind::Node, Kind::User, Kind::Device, Kind::Usage, Kind::Erased, Kind::Waiting, Kind::Alias];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A key in a shard's state: group (2 bytes, big endian), tenant, 0x00, kind, rest.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateKey(KeyBytes);

impl StateKey {
    /// The key of `rest` of a kind, for a tenant (which is never empty and never contains a zero byte).
    pub fn new(group: u16, tenant: &str, kind: Kind, rest: &[u8]) -> StateKey {
        StateKey::of_parts(&[&group.to_be_bytes(), tenant.as_bytes(), &[0, kind as u8], rest])
    }

    /// The key of `rest` of a kind that is forgotten with its period: group, 0x00, kind, period (4 bytes, big endian), tenant, 0x00, rest.
    pub fn in_period(group: u16, kind: Kind, period: u32, tenant: &str, rest: &[u8]) -> StateKey {
        let (group, period) = (group.to_be_bytes(), period.to_be_bytes());
        StateKey::of_parts(&[&group, &[0, kind as u8], &period, tenant.as_bytes(), &[0], rest])
    }

    fn of_parts(parts: &[&[u8]]) -> StateKey {
        StateKey(KeyBytes::of_parts(parts))
    }

    /// The key of an identifier of `kind` in its own key group.
    pub fn of_identifier(tenant: &str, kind: Kind, identifier: &Identifier) -> StateKey {
        let group = group_of(tenant, identifier).to_be_bytes();
        let (name, value) = (identifier.r#type.as_bytes(), identifier.value.as_bytes());
        StateKey::of_parts(&[&group, tenant.as_bytes(), &[0, kind as u8], name, &[0], value])
    }

    /// A key read back from the log or the state store.
    pub fn from_bytes(bytes: &[u8]) -> StateKey {
        StateKey::of_parts(&[bytes])
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_slice()
    }

    /// The key group, when the key is well formed.
    pub fn group(&self) -> Option<u16> {
        self.as_bytes().first_chunk::<2>().map(|group| u16::from_be_bytes(*group))
    }

    /// The period that it is kept by, when it is.
    pub fn period(&self) -> Option<u32> {
        match self.as_bytes().get(2..8)? {
            [0, _, a, b, c, d] => Some(u32::from_be_bytes([*a, *b, *c, *d])),
            _ => None,
        }
    }

    /// Tenant, kind and rest, when the key is well formed.
    pub fn parts(&self) -> Option<(&str, Kind, &[u8])> {
        let bytes = self.as_bytes();
        let name = bytes.get(if self.period().is_some() { 8 } else { 2 }..)?;
        let end = name.iter().position(|byte| *byte == 0)?;
        let tenant = std::str::from_utf8(name.get(..end)?).ok()?;
        let kind = if self.period().is_some() { bytes.get(3)? } else { name.get(end + 1)? };
        let rest = name.get(end + if self.period().is_some() { 1 } else { 2 }..)?;
        Some((tenant, Kind::from_byte(*kind)?, rest))
    }
}

/// The range of keys of a key group, first and one after the last, that are kept by a period before `period`.
pub fn periods_before(group: u16, kind: Kind, period: u32) -> [Vec<u8>; 2] {
    let [a, b] = group.to_be_bytes();
    let mut end = vec![a, b, 0, kind as u8];
    let start = end.clone();
    end.extend_from_slice(&period.to_be_bytes());
    [start, end]
}

impl std::fmt::Debug for StateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.parts() {
            Some((tenant, kind, rest)) => {
                write!(f, "{:?}/{tenant}/{kind:?}/{}", self.group(), rest.escape_ascii())
            }
            None => write!(f, "malformed {}", self.as_bytes().escape_ascii()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors() {
        // docs/src/reference/frames.md prints the same numbers.
        let group = |tenant, kind, value| group_of_parts(tenant, kind, value);
        assert_eq!(
            [
                group("acme", "user_id", "42"),
                group("acme", "anonymous_id", "7f1c"),
                group("globex", "user_id", "42"),
                group("acme", "email", "zoë@example.com"),
            ],
            VECTORS
        );
    }

    const VECTORS: [u16; 4] = [969, 422, 1488, 2855];

    #[test]
    fn every_group_has_exactly_one_shard() {
        for shards in [1, 2, 3, 7, 8, 100, 4096] {
            let mut next = 0;
            for shard in 0..shards {
                let range = groups_of(shard, shards);
                assert_eq!(range.start, next, "{shard} of {shards}");
                assert!(range.clone().all(|group| shard_of(group, shards) == shard));
                next = range.end;
            }
            assert_eq!(next, GROUPS);
        }
    }

    #[test]
    fn a_key_gives_back_its_parts() {
        let key = StateKey::new(513, "acme", Kind::User, &[0, 1, 2]);
        assert_eq!(key.group(), Some(513));
        assert_eq!(key.parts(), Some(("acme", Kind::User, &[0u8, 1, 2][..])));
        assert_eq!(StateKey::from_bytes(key.as_bytes()), key);
        assert_eq!(StateKey::from_bytes(&[1]).parts(), None);
        let long = StateKey::new(513, "acme", Kind::User, &[7; 300]);
        assert_eq!(long.parts(), Some(("acme", Kind::User, &[7u8; 300][..])));
    }

    #[test]
    fn a_key_kept_by_period_gives_back_its_parts_and_lies_in_the_range_of_what_is_forgotten() {
        let key = |period| StateKey::in_period(513, Kind::Seen, period, "acme", &[0, 1]);
        assert_eq!((key(7).group(), key(7).period()), (Some(513), Some(7)));
        assert_eq!(key(7).parts(), Some(("acme", Kind::Seen, &[0u8, 1][..])));
        assert_eq!(StateKey::new(513, "acme", Kind::User, &[0; 9]).period(), None);
        let [start, end] = periods_before(513, Kind::Seen, 7);
        let is_in = |key: &StateKey| (&start[..]..&end[..]).contains(&key.as_bytes());
        assert!(is_in(&key(0)) && is_in(&key(6)) && !is_in(&key(7)));
        assert!(!is_in(&StateKey::new(513, "a", Kind::Seen, &[])));
    }
}
