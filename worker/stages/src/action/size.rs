//! How many bytes a user or a device takes, reckoned from above.
//!
//! Encoding an entity for every record in order to know its size would cost more than processing the record. So what is *variable* in it is counted
//! (texts and values), and everything else at the most that its stored form can take. So the size grows and shrinks only by what records add
//! and replace, never because a stamp has become longer, and a change's share in it is known without looking at the rest. Each entity keeps a bound of its size
//! (`size_bound`), to which additions are added; only when that reaches the limit is the entity measured.

use super::path::MOST_SAME;
use millstream_model::proto::{DeviceState, DeviceUse, Identifier, Membership, Register, Stamp, User, Value};
use prost::Message;

// The most that the stored form takes besides texts and values: tags, lengths, stamps (30 bytes each) and record ids (18).
const MEMBER: usize = 132;
const REGISTER: usize = 66;
const ELEMENT: usize = 62;
pub(super) const DEVICE: usize = 52;
pub(super) const MERGED: usize = 70;
pub(super) const FORGOTTEN: usize = 50;
const EXPELLED: usize = 18;
const USER: usize = 278;
const DEVICE_STATE: usize = 142;
/// Of a path: two identifiers, an id, a stamp and the hashes. What waits in it is on its way, and has a bound of its own ([`super::path`]).
const PATH: usize = 128 + 2 * IDENTIFIER + MOST_SAME * FORGOTTEN;
/// The longest identifier that unify lets through: type of 64 bytes, value of 512 characters. Kept free for the one that is replaced without being
/// asked about: `retained` of a user, `user` of a device.
const IDENTIFIER: usize = 64 + 512 * 4;

/// An entity whose size is bounded.
pub(super) trait Entity {
    /// What messages call it.
    const NAME: &'static str;

    fn identifiers(&self) -> &[Membership];
    fn attributes(&self) -> &[Register];
    fn devices(&self) -> &[DeviceUse];
    /// Its size besides identifiers and attributes.
    fn rest(&self) -> usize;
    fn bound_mut(&mut self) -> &mut u32;

    /// At least as many bytes as it has when it is stored.
    fn size(&self) -> usize {
        let members = self.identifiers().iter().filter_map(|member| member.identifier.as_ref()).map(member);
        members.sum::<usize>() + self.attributes().iter().map(register).sum::<usize>() + self.rest()
    }
}

impl Entity for User {
    const NAME: &'static str = "user";

    fn identifiers(&self) -> &[Membership] {
        &self.identifiers
    }

    fn attributes(&self) -> &[Register] {
        &self.attributes
    }

    fn devices(&self) -> &[DeviceUse] {
        &self.devices
    }

    fn rest(&self) -> usize {
        let lists = self.devices.len() * DEVICE + self.merged.len() * MERGED;
        USER + IDENTIFIER + lists + self.taken.len() * FORGOTTEN + self.expelled.len() * EXPELLED
    }

    fn bound_mut(&mut self) -> &mut u32 {
        &mut self.size_bound
    }
}

impl Entity for DeviceState {
    const NAME: &'static str = "device";

    fn identifiers(&self) -> &[Membership] {
        &self.identifiers
    }

    fn attributes(&self) -> &[Register] {
        &self.attributes
    }

    fn devices(&self) -> &[DeviceUse] {
        &[]
    }

    fn rest(&self) -> usize {
        let path = if self.path.is_some() { PATH } else { 0 };
        DEVICE_STATE + IDENTIFIER + path + self.forgotten.len() * FORGOTTEN
    }

    fn bound_mut(&mut self) -> &mut u32 {
        &mut self.size_bound
    }
}

/// A membership.
pub(super) fn member(identifier: &Identifier) -> usize {
    MEMBER + identifier.r#type.len() + identifier.value.len()
}

/// An attribute that is not there yet, without value and elements. In the document some characters of its name take three bytes.
pub(super) fn name(name: &str) -> usize {
    let escaped = name.bytes().filter(|byte| matches!(byte, b'%' | b'.' | b'$' | b'\0')).count();
    REGISTER + name.len() + 2 * escaped
}

/// A value of an attribute.
pub(super) fn value(value: Option<&Value>) -> usize {
    value.map_or(0, Message::encoded_len)
}

/// An element of a set.
pub(super) fn element(value: &Value) -> usize {
    ELEMENT + value.encoded_len()
}

/// An attribute as it is.
pub(super) fn register(register: &Register) -> usize {
    name(&register.name) + replaced_by(register, None)
}

/// What goes of an attribute when it is set at a stamp (none: all of it, but the name).
pub(super) fn replaced_by(register: &Register, set: Option<Stamp>) -> usize {
    let gone = register.elements.iter().filter(|element| set.is_none() || element.stamp <= set);
    value(register.value.as_ref()) + gone.filter_map(|it| it.value.as_ref()).map(element).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_model::proto::goal::Whom;
    use millstream_model::proto::user::Fate;
    use millstream_model::proto::{Ask, Element, Forgotten, Goal, Merged, Path, Same};

    /// Everything at its longest.
    fn stamp() -> Option<Stamp> {
        Some(Stamp { time_ms: u64::MAX, offset: u64::MAX, index: u32::MAX })
    }

    fn members(count: usize) -> Vec<Membership> {
        let identifier = |number: usize| Some(Identifier::new("t".repeat(64), format!("{number:0>2048}")));
        let record_id = || vec![255; 16];
        let member = |number| Membership {
            identifier: identifier(number),
            stamp: stamp(),
            record_id: record_id(),
            last: stamp(),
            erased: stamp(),
        };
        (0..count).map(member).collect()
    }

    fn registers(count: usize, elements: usize) -> Vec<Register> {
        let value = || Some(Value::string("v".repeat(300)));
        let element = || Element { value: value(), stamp: stamp(), removed: true, record_id: vec![255; 16] };
        let register = |number: usize| Register {
            name: format!("{number:0>200}"),
            value: value(),
            stamp: stamp(),
            record_id: vec![255; 16],
            elements: (0..elements).map(|_| element()).collect(),
        };
        (0..count).map(register).collect()
    }

    fn forgotten(count: usize) -> Vec<Forgotten> {
        (0..count).map(|_| Forgotten { identifier: vec![255; 16], stamp: stamp(), refused: true }).collect()
    }

    #[test]
    fn no_stored_form_is_larger_than_the_size() {
        let identifier = || members(1).pop().and_then(|member| member.identifier);
        for count in [0, 1, 7, 300] {
            let user = User {
                id: vec![255; 18],
                revision: u64::MAX,
                first_seen_ms: i64::MIN,
                last_seen_ms: i64::MIN,
                identifiers: members(count),
                attributes: registers(count, count / 10),
                devices: (0..count).map(|_| DeviceUse { device: vec![255; 18], last: stamp() }).collect(),
                merged: (0..count)
                    .map(|_| Merged { user: vec![255; 18], stamp: stamp(), record_id: vec![255; 16] })
                    .collect(),
                retained: members(1).pop(),
                events: u64::MAX,
                fate: Some(Fate::Deleted(stamp().unwrap())),
                erased: stamp(),
                expelled: vec![vec![255; 16]; count],
                taken: forgotten(count),
                size_bound: u32::MAX,
                whole: u64::MAX,
            };
            assert!(user.encoded_len() <= user.size(), "{count}: {} > {}", user.encoded_len(), user.size());
            let device = DeviceState {
                same_as: vec![255; 18],
                id: vec![255; 18],
                revision: u64::MAX,
                first_seen_ms: i64::MIN,
                last_seen_ms: i64::MIN,
                identifiers: members(count),
                attributes: registers(count, count / 10),
                user: identifier(),
                user_stamp: stamp(),
                forgotten: forgotten(count),
                size_bound: u32::MAX,
                whole: u64::MAX,
                path: Some(Box::new(Path {
                    goal: Some(Goal { whom: identifier().map(Whom::User) }),
                    same: vec![Same { identifier: vec![255; 16], stamp: stamp() }; MOST_SAME],
                    asked: Some(Ask {
                        device: vec![255; 18],
                        identifier: identifier(),
                        stamp: stamp(),
                        user: Vec::new(),
                    }),
                    waiting: Vec::new(),
                })),
            };
            assert!(device.encoded_len() <= device.size(), "{count}: {} > {}", device.encoded_len(), device.size());
        }
    }

    /// The size is to say something: of what is stored in practice it must not be many times as much.
    #[test]
    fn the_size_is_not_far_above_what_is_stored() {
        let user = User { identifiers: members(10), attributes: registers(100, 2), ..User::default() };
        assert!(user.size() < user.encoded_len() * 5 / 4, "{} and {}", user.size(), user.encoded_len());
    }
}
