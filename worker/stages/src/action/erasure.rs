//! Everything of a tenant goes: its users, its devices, and whatever is still on its way to them.
//!
//! Three things follow from what is published about a tenant ([`Erasures`]):
//!
//! - **While it is under way, nothing of the tenant is taken**, whenever it was received: a record ends as a reject that does not show it (I2), a message of the protocol is dropped; and the shard goes
//!   through all that it has of the tenant ([`sweep`]), a part with each batch, and all of it goes. A document gets its tombstone; what waited in a node or a device for its turn ends as a reject. When
//!   every shard has been through, nothing is left anywhere, and only then the next step is published.
//! - **After that, what was received up to a time is refused**, for good, wherever it is met. It is told by the stamp that the record or message carries, or by when the user was created whom it is about,
//!   and not by when it is met; so it does not matter how long it was under way, and what is sent later, in a new life of the tenant, is taken, whichever shards have heard of that already.
//! - **What is old and still there is not seen.** An erasure can be given up in the middle. A step takes out what it is about, when that is old, before it looks ([`Work::step`]): so a new life never
//!   meets what is left of the old one.
//!
//! A user of a new life has another id. A device has the id that it had, because that follows from its identifier; its revisions go on from the time of the erasure, in milliseconds, which is more
//! than it had before: the document store takes no older one (I8).

use super::document::{Cause, publish_device, publish_user, tombstone};
use super::outcome;
use super::state::Value;
use super::work::{Work, action_of};
use crate::{At, Outbox, StateError};
use millstream_model::id::UserId;
use millstream_model::key::StateKey;
use millstream_model::proto::action::Way;
use millstream_model::proto::exchange::Body;
use millstream_model::proto::{Action, DeviceState, Exchange, Stamp, User};
use millstream_model::reject::{Reason, Refusal};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is erased.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Erasures {
    /// Of each tenant of whom anything ever was: what was received up to here, milliseconds since 1970.
    pub until_ms: BTreeMap<String, u64>,
    /// Those whose state is to be gone through.
    pub under_way: Arc<BTreeMap<String, u64>>,
}

impl Erasures {
    /// Up to when everything of the tenant is erased; 0: nothing is. While that is under way, there is nothing later.
    pub(super) fn until_ms(&self, tenant: &str) -> u64 {
        if self.under_way.contains_key(tenant) { u64::MAX } else { self.former_ms(tenant) }
    }

    /// When a former life of the tenant ended; 0: there was none.
    pub(super) fn former_ms(&self, tenant: &str) -> u64 {
        self.until_ms.get(tenant).copied().unwrap_or_default()
    }
}

/// Why records of an erased tenant are refused.
pub fn refusal() -> Refusal {
    let message = "its tenant was erased after it was received; what the tenant has sent since then, if it is there again, is taken";
    Refusal::new(Reason::TenantErased, message)
}

/// Is it of before, by what it carries? Of what carries nothing that says so, what it is about is gone, and it does nothing.
pub(super) fn is_erased(message: &Exchange, until_ms: u64) -> bool {
    let by_stamp = |stamp: Option<Stamp>| stamp.is_some_and(|stamp| stamp.time_ms <= until_ms);
    let by_user = |bytes: &[u8]| UserId::from_bytes(bytes).is_some_and(|id| id.created_ms() <= until_ms);
    let by_action = |body| action_of(body).is_some_and(|action| by_stamp(action.stamp));
    match &message.body {
        Some(body @ (Body::Resolve(_) | Body::Device(_))) => by_action(body),
        Some(body @ Body::Apply(it)) => by_user(&it.user) || by_action(body),
        Some(Body::Link(it)) => by_user(&it.user) || by_stamp(it.stamp),
        Some(Body::Unlink(it)) => it.users.iter().any(|user| by_user(user)),
        Some(Body::Merge(it)) => by_user(&it.smaller) || by_user(&it.larger) || by_stamp(it.stamp),
        Some(Body::Absorb(it)) => by_user(&it.survivor) || by_user(&it.loser) || by_stamp(it.stamp),
        Some(Body::Erase(it)) => by_user(&it.user) || by_stamp(it.stamp),
        Some(Body::Drain(it)) => by_user(&it.user),
        Some(Body::Forget(it)) => by_stamp(it.stamp),
        Some(Body::Relink(it)) => by_user(&it.user),
        Some(Body::Name(it)) => by_stamp(it.stamp),
        Some(Body::Drained(it)) => by_user(&it.user),
        Some(Body::Arrival(it)) => by_stamp(it.stamp),
        Some(Body::Replace(_)) | None => false,
    }
}

/// The record that ends with this message, if one does: a device's part is not the one that is counted.
fn record_of(message: &Exchange) -> Option<&Action> {
    match message.body.as_ref()? {
        Body::Device(part) if !part.resolve_user => None,
        body => action_of(body),
    }
}

/// A record of before ends here.
pub(super) fn refuse(action: &Action, at: &At, out: &mut Outbox) {
    outcome::refuse(action, refusal(), at, out);
}

/// A message of before ends here, and the record that it carries; a question is answered, since something newer may wait for that.
pub(super) fn drop_message(work: &mut Work<'_>, message: &Exchange) -> Result<(), StateError> {
    if let Some(Way::Ask(ask)) = message.body.as_ref().and_then(action_of).and_then(|action| action.way.clone()) {
        return work.arrive(&message.tenant, ask, false);
    }
    if let Some(action) = record_of(message) {
        refuse(action, work.at, work.out);
    }
    Ok(())
}

/// Takes an entry out, when it began before the time.
pub(super) fn sweep(work: &mut Work<'_>, tenant: &str, key: StateKey) -> Result<(), StateError> {
    let until_ms = work.erasures.until_ms(tenant);
    // Before it is taken to be changed, which costs a copy.
    if !work.state.get(&key)?.is_some_and(|value| began_by(value, until_ms)) {
        return Ok(());
    }
    let cause = Cause { tenant, stamp: work.at.stamp, record_id: &[], trace: None };
    let mut left = Vec::new();
    match work.state.get_mut(&key)? {
        Some(Value::Node(node)) => {
            let closing = node.closing.take().map(|closing| *closing).unwrap_or_default();
            left.extend(closing.returned.into_iter().chain(closing.waiting));
        }
        Some(Value::User(user)) if has_document(user) => {
            publish_user(user, tombstone(), cause, work.at, work.out);
        }
        Some(Value::Device(device)) => {
            let path = device.path.take().unwrap_or_default();
            let actions = path.waiting.into_iter().filter_map(|waiting| waiting.action);
            actions.for_each(|action| refuse(&action, work.at, work.out));
            if device.revision > 0 {
                publish_device(device, tombstone(), cause, work.at, work.out);
            }
        }
        _ => {}
    }
    work.state.remove(key);
    left.iter().try_for_each(|message| drop_message(work, message))
}

/// Is it of before?
fn began_by(value: &Value, until_ms: u64) -> bool {
    let is_old = |stamp: Option<Stamp>| stamp.is_none_or(|stamp| stamp.time_ms <= until_ms);
    match value {
        Value::Node(node) => node.user.created_ms() <= until_ms,
        Value::User(user) => UserId::from_bytes(&user.id).is_some_and(|id| id.created_ms() <= until_ms),
        Value::Device(device) => is_old(began(device)),
        Value::Erased(stamp) => is_old(Some(*stamp)),
        Value::Alias(alias) => is_old(alias.stamp),
    }
}

/// Of one that became part of another, or was deleted, the tombstone was sent then.
fn has_document(user: &User) -> bool {
    user.fate.is_none() && user.revision > 0
}

/// When the first record named it. One that was only spoken of, or whose records all go on to another one: any time that it knows of.
fn began(device: &DeviceState) -> Option<Stamp> {
    let named = device.identifiers.iter().filter_map(|member| member.stamp).min();
    let path = || device.path.iter();
    let waiting = || path().flat_map(|path| &path.waiting).filter_map(|waiting| waiting.action.as_ref()?.stamp);
    let asked = || path().filter_map(|path| path.asked.as_ref()?.stamp);
    let same = || path().flat_map(|path| &path.same).filter_map(|same| same.stamp);
    let forgotten = || device.forgotten.iter().filter_map(|forgotten| forgotten.stamp);
    named.or_else(|| waiting().chain(asked()).chain(same()).chain(forgotten()).max())
}
