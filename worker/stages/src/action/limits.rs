//! Bounds of one user's and one device's state: without them one runaway identifier would make a state that no message of the log can hold, and stop
//! its shard for good.
//!
//! What a record asks for is looked at before it is applied. What would take the state over a bound is taken out of it and reported as `too_large`
//! (a partial reject); the rest of the record takes effect. A change that makes nothing grow is never refused, whatever the state's size.
//!
//! Two things are not bounded here. *Merges* cannot be refused (docs: design, identity), so a survivor may have more than this; what it keeps of both
//! users' attributes has a bound of its own ([`super::merging`]), and after that it only shrinks. The *memory of deletions* is what keeps deleted data
//! away (I9); it replaces what was deleted, and takes less. Nothing that identity needs is ever dropped to make room: the ids of merged users and of
//! devices look like mere history, but a deletion finds nodes and devices by them.

use super::admission::Admission;
use super::size::{self, Entity};
use super::user;
use millstream_model::id::DeviceId;
use millstream_model::proto::change::Op;
use millstream_model::proto::{Action, Change, DeviceState, Identifier, Register, Stamp, User, Value};
use millstream_model::reject::Refusal;

/// What the state of one user or device may hold. The comments say what happens beyond.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionLimits {
    /// Identifiers (default 1,000). A new one is refused: it is not linked, and goes on naming whom it named. A merge record is rejected as a whole.
    pub max_identifiers: usize,
    /// Attributes, unset ones included, since the time of the unset must be known (default 2,000). A change of a further one is refused.
    pub max_attributes: usize,
    /// Elements of one attribute, added and removed ones since it was last set as a whole (default 500, since sets are compared element by element).
    /// An addition or removal that needs more is refused.
    pub max_elements: usize,
    /// Devices of one user (default 1,000). A further one is not remembered with the user, nor the user with it.
    pub max_devices: usize,
    /// Bytes of all of it, reckoned from above (default 512 KiB). What makes it grow is refused.
    pub max_bytes: usize,
    /// Bytes of a user's attributes after a merge, reckoned from above (default 2 MiB). Of more, the newest stay and the others are reported. What identity
    /// needs is not counted; it goes in messages of at most this size.
    pub max_merged_bytes: usize,
}

impl Default for ActionLimits {
    /// Far above what one person has; four users at their bound can become one, which is well within the log's largest message.
    fn default() -> ActionLimits {
        ActionLimits {
            max_identifiers: 1_000,
            max_attributes: 2_000,
            max_elements: 500,
            max_devices: 1_000,
            max_bytes: 512 * 1024,
            max_merged_bytes: 2 * 1024 * 1024,
        }
    }
}

/// What of a record was refused, taken out of it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Refused {
    pub(super) identifiers: Vec<Identifier>,
    pub(super) changes: Vec<Change>,
    /// The user does not take the record's device.
    pub(super) device: bool,
    /// Why, each with its field.
    pub(super) refusals: Vec<Refusal>,
}

impl ActionLimits {
    /// Takes out of an action what its user has no room for.
    pub(super) fn admit_user(&self, user: &mut User, action: &mut Action) -> Refused {
        let (identifiers, changes) = (&action.user_identifiers, &action.user_changes);
        let device = user::is_device_known(action);
        let asked = Asked { identifiers, changes, device, stamp: action.stamp };
        if self.has_room(user, &asked) {
            return Refused::default();
        }
        // Only now, because naming a device costs more than all of the above.
        let is_new = |id: DeviceId| user::find_device(&user.devices, id.as_bytes()).is_err();
        let device = user::device_of(action).is_some_and(is_new);
        let refused = self.decide(user, &Asked { device, ..asked });
        action.user_identifiers.retain(|identifier| !refused.identifiers.contains(identifier));
        action.user_changes.retain(|change| !refused.changes.contains(change));
        refused
    }

    /// [`ActionLimits::admit_user`] for the record's device. The action keeps its identifiers: its event shows them.
    pub(super) fn admit_device(&self, device: &mut DeviceState, action: &mut Action) -> Refused {
        let (identifiers, changes) = (&action.device_identifiers, &action.device_changes);
        let asked = Asked { identifiers, changes, device: false, stamp: action.stamp };
        if self.has_room(device, &asked) {
            return Refused::default();
        }
        let refused = self.decide(device, &asked);
        action.device_changes.retain(|change| !refused.changes.contains(change));
        refused
    }

    fn decide(&self, entity: &mut impl Entity, asked: &Asked<'_>) -> Refused {
        let (refused, size) = Admission::new(self, entity).decide(asked);
        *entity.bound_mut() = u32::try_from(size).unwrap_or(u32::MAX);
        refused
    }

    /// The answer for nearly all records, without looking at single attributes: is there room even if everything in the record is new?
    fn has_room(&self, entity: &mut impl Entity, asked: &Asked<'_>) -> bool {
        let more = asked.most();
        if *entity.bound_mut() == 0 || *entity.bound_mut() as usize + more > self.max_bytes {
            *entity.bound_mut() = u32::try_from(entity.size()).unwrap_or(u32::MAX);
        }
        let bound = *entity.bound_mut() as usize + more;
        let has_room = bound <= self.max_bytes
            && entity.identifiers().len() + asked.identifiers.len() <= self.max_identifiers
            && entity.attributes().len() + asked.changes.len() <= self.max_attributes
            && entity.devices().len() + usize::from(asked.device) <= self.max_devices
            && asked.elements_fit(entity, self.max_elements);
        if has_room {
            *entity.bound_mut() = u32::try_from(bound).unwrap_or(u32::MAX);
        }
        has_room
    }
}

/// What a record asks an entity to take.
pub(super) struct Asked<'a> {
    pub(super) identifiers: &'a [Identifier],
    pub(super) changes: &'a [Change],
    /// A device, which may be new to the user.
    pub(super) device: bool,
    pub(super) stamp: Option<Stamp>,
}

impl Asked<'_> {
    /// Its size if all of it is new.
    fn most(&self) -> usize {
        let changes = self.changes.iter().map(|change| size::name(&change.name) + brought(change));
        let identifiers = self.identifiers.iter().map(size::member);
        changes.sum::<usize>() + identifiers.sum::<usize>() + if self.device { size::DEVICE } else { 0 }
    }

    fn elements_fit(&self, entity: &impl Entity, most: usize) -> bool {
        let listed = |change: &&Change| matches!(change.op, Some(Op::Add(_) | Op::Remove(_)));
        let count: usize = self.changes.iter().map(|change| items(change).len()).sum();
        self.changes.iter().filter(listed).all(|change| {
            let register = find(entity.attributes(), &change.name);
            register.map_or(0, |register| register.elements.len()) + count <= most
        })
    }
}

/// The size of the value or of the elements that a change brings.
fn brought(change: &Change) -> usize {
    match &change.op {
        Some(Op::Set(value)) => size::value(Some(value)),
        _ => items(change).iter().map(size::element).sum(),
    }
}

/// The elements that a change adds or removes.
pub(super) fn items(change: &Change) -> &[Value] {
    match &change.op {
        Some(Op::Add(list) | Op::Remove(list)) => &list.items,
        _ => &[],
    }
}

/// An attribute by its name.
pub(super) fn find<'r>(registers: &'r [Register], name: &str) -> Option<&'r Register> {
    let index = registers.binary_search_by(|register| register.name.as_str().cmp(name)).ok()?;
    registers.get(index)
}
