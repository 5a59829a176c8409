//! What a source's reader makes of a record: drafts of actions, without position or ids.

use super::config::Judgement;
use super::times;
use crate::source::identity;
use millstream_model::proto::{Change, Event, Identifier, Merge, Object, Value};
use millstream_model::reject::{Reason, Refusal};

/// What a reader knows besides the record itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading<'a> {
    /// What goes for its tenant.
    pub(super) rules: &'a Judgement,
    /// What the envelope calls the record; one of the source's kinds.
    pub(super) kind: &'a str,
    /// When the record entered the log, milliseconds since 1970 (I7: the only "now" there is).
    pub(super) received_ms: i64,
    /// The sender's clock when it sent the record.
    pub(super) sent_ms: Option<i64>,
    /// By what the record was routed.
    pub(super) routing: &'a Identifier,
    /// What the request said about all its records, JSON.
    pub(super) context: &'a [u8],
}

/// An action in the making.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Draft {
    pub(super) users: Vec<Identifier>,
    pub(super) devices: Vec<Identifier>,
    /// An identifier of its device routes the record.
    pub(super) by_device: bool,
    /// Which of them; 0 when none does.
    pub(super) routing: u32,
    pub(super) time_ms: i64,
    pub(super) user_changes: Vec<Change>,
    pub(super) device_changes: Vec<Change>,
    pub(super) event: Option<Event>,
    pub(super) merge: Option<Merge>,
    pub(super) delete: bool,
    pub(super) update_existing_only: bool,
    /// What was cut or dropped, for the sender to know; the rest goes on.
    pub(super) reports: Vec<Refusal>,
}

/// The parts of a record, each an action or refused; a refusal instead of parts is one of the whole record.
pub(super) type Parts = Result<Vec<Result<Draft, Refusal>>, Refusal>;

impl<'a> Reading<'a> {
    /// A draft about what these identifiers name.
    ///
    /// # Errors
    /// The routing identifier, or the only one, is forbidden; or one of them cannot be stored.
    pub(super) fn draft(&self, identifiers: Vec<Named>, time_ms: i64) -> Result<Draft, Refusal> {
        let mut draft = Draft { time_ms, ..Draft::default() };
        if identifiers.len() > self.rules.limits.max_identifiers {
            let message = format!("more than {} identifiers; send fewer", self.rules.limits.max_identifiers);
            return Err(Refusal::field(Reason::TooLarge, "identifiers", message));
        }
        for Named { field, identifier, importance } in identifiers {
            identity::check(&field, &identifier)?;
            if self.rules.is_forbidden(&identifier.value) {
                self.forbidden(&mut draft, field, &identifier, importance)?;
                continue;
            }
            let list = if identifier.names_device() { &mut draft.devices } else { &mut draft.users };
            if !list.contains(&identifier) {
                list.push(identifier);
            }
        }
        draft.users.sort_by(|left, right| self.order(left).cmp(&self.order(right)));
        draft.devices.sort_by(|left, right| left.rank().cmp(&right.rank()));
        let routing = (0..).zip(&draft.devices).find(|(_, device)| *device == self.routing);
        draft.by_device = routing.is_some();
        draft.routing = routing.map_or(0, |(index, _)| index);
        Ok(draft)
    }

    fn forbidden(
        &self,
        draft: &mut Draft,
        field: String,
        identifier: &Identifier,
        importance: Importance,
    ) -> Result<(), Refusal> {
        let shown: String = identifier.value.chars().take(40).collect();
        let message = format!("`{shown}` names nobody in particular; send {field} only when it is known");
        let refusal = Refusal::field(Reason::ForbiddenIdentifier, field, message);
        match importance {
            _ if identifier == self.routing => Err(refusal),
            Importance::Required => Err(refusal),
            Importance::Optional => {
                draft.reports.push(refusal);
                Ok(())
            }
            Importance::Incidental => Ok(()),
        }
    }

    fn order<'b>(&self, identifier: &'b Identifier) -> (bool, (usize, &'b str, &'b str)) {
        (identifier != self.routing, identifier.rank())
    }

    /// When a record happened by its own clock, corrected by the sender's; see [`times`].
    pub(super) fn time(&self, field: &str, value: Option<&Value>) -> Result<i64, Refusal> {
        times::happened(field, value, self.sent_ms, self.received_ms, &self.rules.limits)
    }
}

/// An identifier and where the record has it.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) field: String,
    pub(super) identifier: Identifier,
    pub(super) importance: Importance,
}

/// What to do when an identifier's value is forbidden and something else names the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Importance {
    /// Reject the record.
    Required,
    /// Leave the identifier out and report it.
    Optional,
    /// Leave it out: SDKs fill it without knowing, such as the advertising id of zeros.
    Incidental,
}

/// The identifier in a member of a record, when it has one.
///
/// # Errors
/// The member is neither absent, null, blank, a string nor an integer.
pub(super) fn named(
    object: &Object,
    path: &str,
    member: &str,
    kind: &str,
    importance: Importance,
) -> Result<Option<Named>, Refusal> {
    let field = if path.is_empty() { member.to_owned() } else { format!("{path}.{member}") };
    let Some(value) = object.get(member).filter(|value| !value.is_null()) else { return Ok(None) };
    match identity::identifier(kind, value) {
        Some(identifier) => Ok(Some(Named { field, identifier, importance })),
        None if value.as_str().is_some() => Ok(None),
        None => {
            let message = format!("`{field}` must be a string or an integer, it is of type {}", value.type_name());
            Err(Refusal::field(Reason::WrongType, field, message))
        }
    }
}

/// Every identifier of a map `{type: value}`.
///
/// # Errors
/// The member is no object, or one of its values no identifier.
pub(super) fn named_map(object: &Object, member: &str, rename: impl Fn(&str) -> String) -> Result<Vec<Named>, Refusal> {
    let Some(map) = super::fields::object(object, "", member)? else { return Ok(Vec::new()) };
    let mut identifiers = Vec::new();
    for (kind, _) in map.pairs() {
        identifiers.extend(named(map, member, kind, &rename(kind), Importance::Optional)?);
    }
    Ok(identifiers)
}
