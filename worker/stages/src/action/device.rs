//! The home of a device: what it is, when it was seen, and whose it was last.
//!
//! A device is named by its primary identifier alone and devices are never merged: further device identifiers of a record are members
//! of that device. `user` is the identifier by which the newest record named its user; a record without any user identifier is
//! about that user, or, when the device has none, about the user whom the device's primary identifier itself names.
//!
//! The device's part of a record and the user's part go different ways. So a deletion can come here before a record that it covers; the
//! device remembers (by a hash) which identifiers it must not take from records up to which stamp.

use super::attributes::{self, Writer};
use super::document::{Cause, publish_device, set_device_user};
use super::listed::set_identifiers;
use super::outcome::{self, Part};
use super::state::{self, Value, device_id, device_key, identifier_hash, required};
use super::user;
use super::work::{Header, Work};
use crate::{State, StateError};
use millstream_model::key::StateKey;
use millstream_model::proto::{Action, Device, DeviceState, Forget, Identifier, Operation, Stamp};
use millstream_model::reject::Reason;

impl Work<'_> {
    pub(super) fn device(&mut self, header: &Header, message: Device) -> Result<(), StateError> {
        let mut action = required(message.action, "action")?;
        let id = device_id(&message.device)?;
        let key = device_key(&header.tenant, &id);
        let device = device_state(self.state, &key, message.device)?;
        if device.revision == 0 {
            (device.first_seen_ms, device.last_seen_ms) = (action.time_ms, action.time_ms);
        }
        let refused = self.limits.admit_device(device, &mut action);
        let operations = apply(device, &mut action, &refused.identifiers)?;
        outcome::partial(&action, Part::Device, refused, self.at, self.out);
        let stamp = required(action.stamp, "stamp")?;
        let trace = action.trace.as_ref();
        let cause = Cause { tenant: &header.tenant, stamp, record_id: &action.record_id, trace };
        publish_device(device, operations, cause, self.at, self.out);
        if !message.resolve_user {
            return Ok(());
        }
        match device.user.clone().or_else(|| action.device_identifiers.first().cloned()) {
            Some(via) => self.resolve_by(header.hops + 1, via, action, false),
            None => {
                outcome::reject(&action, Reason::MissingIdentifier, "the record names no device", self.at, self.out)
            }
        }
        Ok(())
    }

    /// Whoever these identifiers named was deleted: the device does not name them any longer, nor again by an older record.
    pub(super) fn forget(&mut self, header: &Header, message: Forget) -> Result<(), StateError> {
        let deletion = required(message.stamp, "stamp")?;
        let key = device_key(&header.tenant, &device_id(&message.device)?);
        let device = device_state(self.state, &key, message.device)?;
        for identifier in &message.identifiers {
            user::remember(&mut device.forgotten, identifier_hash(identifier), Some(deletion));
        }
        let is_gone = |user: &Identifier| message.identifiers.contains(user);
        if device.user.as_ref().is_some_and(is_gone) && device.user_stamp <= Some(deletion) {
            device.user = None;
            let cause = Cause { tenant: &header.tenant, stamp: deletion, record_id: &[], trace: None };
            publish_device(device, vec![set_device_user(None)], cause, self.at, self.out);
        }
        Ok(())
    }
}

fn device_state<'s>(
    state: &'s mut dyn State<Value>,
    key: &StateKey,
    id: Vec<u8>,
) -> Result<&'s mut DeviceState, StateError> {
    if state::device_mut(state, key)?.is_none() {
        let device = DeviceState { id, ..DeviceState::default() };
        state.put(key.clone(), Value::Device(Box::new(device)));
    }
    required(state::device_mut(state, key)?, "device")
}

fn is_forgotten(device: &DeviceState, user: &Identifier, stamp: Stamp) -> bool {
    let hash = identifier_hash(user);
    device.forgotten.iter().any(|entry| entry.identifier == hash && Some(stamp) <= entry.stamp)
}

fn apply(device: &mut DeviceState, action: &mut Action, refused: &[Identifier]) -> Result<Vec<Operation>, StateError> {
    let stamp = required(action.stamp, "stamp")?;
    let writer = Writer { stamp, record_id: &action.record_id };
    let mut new = Vec::new();
    for identifier in action.device_identifiers.iter().filter(|identifier| !refused.contains(identifier)) {
        if user::name(&mut device.identifiers, identifier, writer) {
            new.push(identifier.clone());
        }
    }
    let mut operations = set_identifiers(&device.identifiers, &new);
    attributes::apply(&mut device.attributes, std::mem::take(&mut action.device_changes), writer, &mut operations);
    user::see(&mut device.first_seen_ms, &mut device.last_seen_ms, action.time_ms, &mut operations);
    if let Some(user) = action.user_identifiers.first()
        && (Some(stamp), Some(user)) > (device.user_stamp, device.user.as_ref())
        && !is_forgotten(device, user, stamp)
    {
        if device.user.as_ref() != Some(user) {
            operations.push(set_device_user(Some(user)));
            device.user = Some(user.clone());
        }
        device.user_stamp = Some(stamp);
    }
    Ok(operations)
}
