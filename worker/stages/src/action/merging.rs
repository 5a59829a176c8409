//! What a merge brings, within bounds: a merge cannot be refused, so what it makes of two users must fit by itself.
//!
//! - *Attributes* of a user come to at most `max_merged_bytes` after a merge: the newest first, each that fits ([`fit`]). What is left out is reported. Stamps
//!   decide, not whose an attribute was. Where attributes differ in size, several merges may leave out others in another order; who is one user (I9)
//!   never depends on it.
//! - *What identity needs* (identifiers, devices, ids of merged users, what deletions took) is never left out. A state that is too large for one message
//!   goes as several ([`parts`]), each of them as if it were a user of its own that became part of the survivor by the same link. Uniting is
//!   commutative and associative, so the protocol needs nothing for it.

use super::size::{self, Entity};
use millstream_model::proto::{Membership, Register, Stamp, User};
use std::collections::BTreeSet;

/// An attribute for which a merge left no room.
#[derive(Debug, PartialEq)]
pub(super) struct LeftOut {
    pub(super) register: Register,
    /// The absorbed user had it, and not only the survivor.
    pub(super) was_theirs: bool,
}

/// The names of the attributes that come with a state, when uniting it with `user` may need more than `most` bytes.
pub(super) fn crowded(user: &User, state: &User, most: usize) -> Option<BTreeSet<String>> {
    let bytes = |user: &User| user.attributes.iter().map(size::register).sum::<usize>();
    let names = || state.attributes.iter().map(|register| register.name.clone()).collect();
    (bytes(user) + bytes(state) > most).then(names)
}

/// Takes out of a user the attributes for which newer ones leave no room in `most` bytes; in the order of their names.
pub(super) fn fit(user: &mut User, theirs: &BTreeSet<String>, most: usize) -> Vec<LeftOut> {
    let mut all: Vec<&Register> = user.attributes.iter().collect();
    all.sort_by(|one, other| newer_first(one, other));
    let (mut room, mut gone) = (most, BTreeSet::new());
    for register in all {
        match room.checked_sub(size::register(register)) {
            Some(left) => room = left,
            None => drop(gone.insert(register.name.clone())),
        }
    }
    if gone.is_empty() {
        return Vec::new();
    }
    let out = user.attributes.extract_if(.., |register| gone.contains(&register.name));
    out.map(|register| LeftOut { was_theirs: theirs.contains(&register.name), register }).collect()
}

/// By what was last said of each; of several of one time by name.
fn newer_first(one: &Register, other: &Register) -> std::cmp::Ordering {
    newest(other).cmp(&newest(one)).then_with(|| one.name.cmp(&other.name))
}

fn newest(register: &Register) -> Option<Stamp> {
    let elements = register.elements.iter().filter_map(|element| element.stamp);
    register.stamp.max(elements.max())
}

/// The state of a user that becomes part of another one: whole, when it takes at most `most` bytes, else in parts that each do, but for what one
/// identifier and the fixed fields of a user take.
///
/// Each part has an identifier, since a state without any says that a deletion took all of it. Each identifier goes with each device in some part: a
/// deletion that meets the parts tells all devices of all identifiers, as it would have done of the whole. Ids of merged users go first: the nodes of the
/// identifiers behind them may name those.
pub(super) fn parts(mut user: User, most: usize) -> Vec<User> {
    if user.size() <= most {
        return vec![user];
    }
    let room = most / 8;
    let identifiers = chunks(std::mem::take(&mut user.identifiers), room, member);
    let mut devices = chunks(std::mem::take(&mut user.devices), room, |_| size::DEVICE);
    if devices.is_empty() {
        devices.push(Vec::new());
    }
    let mut attributes = std::mem::take(&mut user.attributes);
    attributes.sort_by(newer_first);
    let attributes = chunks(attributes, room, size::register);
    let merged = chunks(std::mem::take(&mut user.merged), room, |_| size::MERGED);
    let taken = chunks(std::mem::take(&mut user.taken), room, |_| size::FORGOTTEN);
    let part = || User {
        id: user.id.clone(),
        first_seen_ms: user.first_seen_ms,
        last_seen_ms: user.last_seen_ms,
        ..User::default()
    };
    let longest = longest_lived(&identifiers);
    let named = || User { identifiers: longest.clone(), ..part() };
    let sorted = |mut attributes: Vec<Register>| {
        attributes.sort_by(|one, other| one.name.cmp(&other.name));
        attributes
    };
    let mut parts: Vec<User> = merged.into_iter().map(|merged| User { merged, ..named() }).collect();
    parts.extend(taken.into_iter().map(|taken| User { taken, ..named() }));
    for identifiers in &identifiers {
        let with = |devices: &Vec<_>| User { identifiers: identifiers.clone(), devices: devices.clone(), ..part() };
        parts.extend(devices.iter().map(with));
    }
    parts.extend(attributes.into_iter().map(|attributes| User { attributes: sorted(attributes), ..named() }));
    if let Some(first) = parts.first_mut() {
        (first.events, first.retained) = (user.events, user.retained.take());
    }
    parts
}

/// The identifier that a deletion takes last: as long as anything of the user is left, it is.
fn longest_lived(identifiers: &[Vec<Membership>]) -> Vec<Membership> {
    identifiers.iter().flatten().max_by_key(|member| member.last).cloned().into_iter().collect()
}

fn member(member: &Membership) -> usize {
    member.identifier.as_ref().map_or(0, size::member)
}

/// Cuts a list into chunks of at most so many bytes, or of one item that has more.
pub(super) fn chunks<T>(items: Vec<T>, most: usize, bytes_of: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let (mut all, mut chunk, mut bytes) = (Vec::new(), Vec::new(), 0);
    for item in items {
        let more = bytes_of(&item);
        if bytes + more > most && !chunk.is_empty() {
            all.push(std::mem::take(&mut chunk));
            bytes = 0;
        }
        bytes += more;
        chunk.push(item);
    }
    if !chunk.is_empty() {
        all.push(chunk);
    }
    all
}
