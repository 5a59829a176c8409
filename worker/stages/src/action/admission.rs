//! What of a record is admitted when not all of it may fit ([`super::limits`]): part by part, in the record's order, so that the same record on the
//! same state is always cut the same.

use super::limits::{ActionLimits, Asked, Refused, find, items};
use super::size::{self, Entity};
use super::user;
use millstream_model::proto::change::Op;
use millstream_model::proto::{Change, Identifier, Register, Stamp, Value};
use millstream_model::reject::{Reason, Refusal};
use std::collections::BTreeMap;

/// The state, with what was granted so far.
pub(super) struct Admission<'a, E> {
    limits: &'a ActionLimits,
    entity: &'a E,
    size: usize,
    identifiers: usize,
    attributes: usize,
    /// Elements of each attribute that was granted a change.
    elements: BTreeMap<&'a str, usize>,
    refused: Refused,
}

/// What a change does to an attribute.
struct Growth {
    comes: usize,
    goes: usize,
    /// Elements of the attribute afterwards.
    elements: usize,
}

impl<'a, E: Entity> Admission<'a, E> {
    /// Measures the entity.
    pub(super) fn new(limits: &'a ActionLimits, entity: &'a E) -> Admission<'a, E> {
        Admission {
            limits,
            entity,
            size: entity.size(),
            identifiers: entity.identifiers().len(),
            attributes: entity.attributes().len(),
            elements: BTreeMap::new(),
            refused: Refused::default(),
        }
    }

    /// What is refused, and the entity's size with all the rest.
    pub(super) fn decide(mut self, asked: &Asked<'a>) -> (Refused, usize) {
        for identifier in asked.identifiers {
            self.identifier(identifier);
        }
        for change in asked.changes {
            if let Err(message) = self.change(change, asked.stamp) {
                self.refuse(field(change), message);
                self.refused.changes.push(change.clone());
            }
        }
        if asked.device
            && let Err(message) = self.device()
        {
            self.refuse("identifiers".to_owned(), message);
            self.refused.device = true;
        }
        (self.refused, self.size)
    }

    fn refuse(&mut self, field: String, message: String) {
        self.refused.refusals.push(Refusal::field(Reason::TooLarge, field, message));
    }

    /// Takes room for what comes, and gives back that of what goes. What does not grow needs none.
    fn take(&mut self, comes: usize, goes: usize) -> Result<(), String> {
        let (name, most) = (E::NAME, self.limits.max_bytes);
        let size = (self.size + comes).saturating_sub(goes);
        if comes > goes && size > most {
            return Err(format!(
                "the {name} would take {size} bytes, at most {most} are allowed (action.max_bytes); unset large attributes, or set smaller values"
            ));
        }
        self.size = size;
        Ok(())
    }

    fn identifier(&mut self, identifier: &Identifier) {
        if user::find(self.entity.identifiers(), identifier).is_ok() {
            return;
        }
        let (name, count) = (E::NAME, self.identifiers);
        // The first identifier of a device is the one that names it: without it there would be no device.
        let room = if count > 0 && count >= self.limits.max_identifiers {
            Err(format!(
                "the {name} has {count} identifiers, no more are allowed (action.max_identifiers), so this one was not linked; look for a value that many share, and do not send it"
            ))
        } else {
            self.take(size::member(identifier), 0)
        };
        match room {
            Err(message) if count > 0 => {
                self.refuse(format!("identifiers.{}", identifier.r#type), message);
                self.refused.identifiers.push(identifier.clone());
            }
            _ => self.identifiers += 1,
        }
    }

    fn device(&mut self) -> Result<(), String> {
        let (count, most) = (self.entity.devices().len(), self.limits.max_devices);
        if count >= most {
            return Err(format!(
                "the user has {count} devices, no more are allowed (action.max_devices), so this one is not remembered with it; look for a user identifier that many share"
            ));
        }
        self.take(size::DEVICE, 0)
    }

    fn change(&mut self, change: &'a Change, stamp: Option<Stamp>) -> Result<(), String> {
        if matches!(change.op, Some(Op::UnsetMatching(_)) | None) {
            return Ok(());
        }
        let name = change.name.as_str();
        let known = find(self.entity.attributes(), name);
        let is_new = known.is_none() && !self.elements.contains_key(name);
        if is_new && self.attributes >= self.limits.max_attributes {
            let (name, count) = (E::NAME, self.attributes);
            return Err(format!(
                "the {name} has {count} attributes, unset ones included, no more are allowed (action.max_attributes); put what varies into properties of events"
            ));
        }
        let Growth { comes, goes, elements } = self.growth(known, change, stamp)?;
        self.take(comes + if is_new { size::name(name) } else { 0 }, goes)?;
        self.attributes += usize::from(is_new);
        self.elements.insert(name, elements);
        Ok(())
    }

    /// As `attributes` will apply it.
    fn growth(&self, known: Option<&Register>, change: &Change, stamp: Option<Stamp>) -> Result<Growth, String> {
        let (base, count) = known.map_or((None, 0), |register| (register.stamp, register.elements.len()));
        let count = self.elements.get(change.name.as_str()).copied().unwrap_or(count);
        if stamp < base {
            return Ok(Growth { comes: 0, goes: 0, elements: count });
        }
        match &change.op {
            Some(Op::Add(_) | Op::Remove(_)) if stamp == base => Ok(Growth { comes: 0, goes: 0, elements: count }),
            Some(Op::Add(_) | Op::Remove(_)) => self.more_elements(known, items(change), count),
            op => {
                let value = if let Some(Op::Set(value)) = op { Some(value) } else { None };
                let comes = size::value(value);
                let goes = known.map_or(0, |register| size::replaced_by(register, stamp));
                // Of two with one stamp either may stay.
                let goes = if stamp == base { goes.min(comes) } else { goes };
                Ok(Growth { comes, goes, elements: count })
            }
        }
    }

    fn more_elements(&self, known: Option<&Register>, items: &[Value], count: usize) -> Result<Growth, String> {
        let elements = known.map_or(&[][..], |register| &register.elements);
        let is_known = |item: &&Value| elements.iter().any(|element| element.value.as_ref() == Some(*item));
        let (mut comes, mut after) = (0, count);
        for item in items.iter().filter(|item| !is_known(item)) {
            (comes, after) = (comes + size::element(item), after + 1);
        }
        if after > count && after > self.limits.max_elements {
            let most = self.limits.max_elements;
            return Err(format!(
                "{after} elements would have been added or removed since the attribute was last set, at most {most} are allowed (action.max_elements); set the whole list, to begin anew"
            ));
        }
        Ok(Growth { comes, goes: 0, elements: after })
    }
}

/// Where a change is in the record, as the reject shows it.
fn field(change: &Change) -> String {
    let verb = match &change.op {
        Some(Op::Set(_)) => "set",
        Some(Op::Unset(_)) => "unset",
        Some(Op::Add(_)) => "add",
        Some(Op::Remove(_)) => "remove",
        Some(Op::UnsetMatching(_)) | None => "unset_matching",
    };
    format!("{verb}.{}", change.name)
}

#[cfg(test)]
mod tests;
