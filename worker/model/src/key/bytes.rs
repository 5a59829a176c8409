//! The bytes of a key: in place where they are few, else shared.
//!
//! A key is made for each record, compared in each look-up and copied into each flush. In place, that takes no allocation and no look
//! at memory that is far away: a look-up in a large table waits for memory, not for the processor.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// What fits in place: identifiers with their group, tenant and kind mostly do. With it a key takes 48 bytes.
const PLACE: usize = 46;

/// Bytes that compare and hash as a slice does.
#[derive(Clone)]
pub(super) enum KeyBytes {
    Short { length: u8, place: [u8; PLACE] },
    Long(Arc<[u8]>),
}

impl KeyBytes {
    /// The parts, one after the other.
    pub(super) fn of_parts(parts: &[&[u8]]) -> KeyBytes {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        let mut place = [0; PLACE];
        let Some(mut rest) = place.get_mut(..length) else { return KeyBytes::Long(parts.concat().into()) };
        for part in parts {
            let (start, after) = rest.split_at_mut(part.len());
            start.copy_from_slice(part);
            rest = after;
        }
        KeyBytes::Short { length: length as u8, place }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            KeyBytes::Short { length, place } => place.get(..usize::from(*length)).unwrap_or_default(),
            KeyBytes::Long(bytes) => bytes,
        }
    }
}

impl PartialEq for KeyBytes {
    fn eq(&self, other: &KeyBytes) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for KeyBytes {}

impl Hash for KeyBytes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_slice().hash(state);
    }
}

impl PartialOrd for KeyBytes {
    fn partial_cmp(&self, other: &KeyBytes) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for KeyBytes {
    fn cmp(&self, other: &KeyBytes) -> Ordering {
        self.as_slice().cmp(other.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_compare_as_slices_whatever_their_length() {
        assert_eq!(size_of::<KeyBytes>(), 48);
        let lengths = [0, 1, PLACE - 1, PLACE, PLACE + 1, 300];
        let slices: Vec<Vec<u8>> = lengths.iter().flat_map(|length| [vec![0; *length], vec![7; *length]]).collect();
        for a in &slices {
            let key = KeyBytes::of_parts(&[&a[..a.len() / 3], &a[a.len() / 3..]]);
            assert_eq!(key.as_slice(), a);
            for b in &slices {
                assert_eq!(key.cmp(&KeyBytes::of_parts(&[b])), a.cmp(b), "{a:?} {b:?}");
            }
        }
    }
}
