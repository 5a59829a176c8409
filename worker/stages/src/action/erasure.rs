//! Everything of a tenant goes: its users, its devices, and whatever is still on its way to them.
//!
//! Two things follow from what is published about a tenant ([`Erasures`]):
//!
//! - **What was received up to a time is refused**, for good, wherever it is met: a record ends as a reject that does not show it (I2), a message of the protocol is dropped. That is judged by the
//!   stamp that the record or message carries, or by when its user was created, and not by when it is met; so it does not matter in which order shards hear of an erasure, or of the tenant's new
//!   life after it, or how long a message was under way.
//! - **While the erasure is under way, the shard goes through all that it has of the tenant** ([`sweep`]), a part with each batch: what began before the time goes. A document gets its tombstone; what
//!   waited in a node or a device for its turn ends as a reject.
//!
//! Both together: a shard that has heard of it makes nothing old any more, and what it had is gone at the end of one pass. What is younger than the time is left alone, so that a shard that
//! hears late that the tenant is there again takes nothing from its new life.
//!
//! A user of a new life has another id. A device has the id that it had, because that follows from its identifier; its revisions go on from the time of the erasure, in milliseconds, which is more
//! than it had before: the document store takes no older one (I8).

use super::document::{Cause, publish_device, publish_user, tombstone};
use super::outcome;
use super::state::{Value, user_id};
use super::work::Work;
use crate::{At, Outbox, StateError};
use millstream_model::id::UserId;
use millstream_model::key::StateKey;
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
    /// Up to when everything of the tenant is erased; 0: nothing is.
    pub(super) fn until_ms(&self, tenant: &str) -> u64 {
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
    match &message.body {
        Some(Body::Resolve(it)) => it.action.as_ref().is_some_and(|action| by_stamp(action.stamp)),
        Some(Body::Apply(it)) => by_user(&it.user) || it.action.as_ref().is_some_and(|action| by_stamp(action.stamp)),
        Some(Body::Device(it)) => it.action.as_ref().is_some_and(|action| by_stamp(action.stamp)),
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
        Body::Resolve(it) => it.action.as_ref(),
        Body::Apply(it) => it.action.as_ref(),
        Body::Device(it) => it.action.as_ref().filter(|_| it.resolve_user),
        _ => None,
    }
}

/// A record of before ends here.
pub(super) fn refuse(action: &Action, at: &At, out: &mut Outbox) {
    outcome::refuse(action, refusal(), at, out);
}

/// A message of before ends here, and the record that it carries.
pub(super) fn drop_message(message: &Exchange, at: &At, out: &mut Outbox) {
    if let Some(action) = record_of(message) {
        refuse(action, at, out);
    }
}

/// Takes an entry out, when it began before the time.
pub(super) fn sweep(work: &mut Work<'_>, tenant: &str, key: StateKey) -> Result<(), StateError> {
    let until_ms = work.erasures.until_ms(tenant);
    let is_old = |stamp: Option<Stamp>| stamp.is_none_or(|stamp| stamp.time_ms <= until_ms);
    let cause = Cause { tenant, stamp: work.at.stamp, record_id: &[], trace: None };
    let mut left = Vec::new();
    match work.state.get_mut(&key)? {
        None => return Ok(()),
        Some(Value::Node(node)) if node.user.created_ms() <= until_ms => {
            let closing = node.closing.take().map(|closing| *closing).unwrap_or_default();
            left.extend(closing.returned.into_iter().chain(closing.waiting));
        }
        Some(Value::User(user)) if user_id(&user.id)?.created_ms() <= until_ms => {
            if has_document(user) {
                publish_user(user, tombstone(), cause, work.at, work.out);
            }
        }
        Some(Value::Device(device)) if is_old(began(device)) => {
            let path = device.path.take().unwrap_or_default();
            let actions = path.waiting.into_iter().filter_map(|waiting| waiting.action);
            actions.for_each(|action| refuse(&action, work.at, work.out));
            if device.revision > 0 {
                publish_device(device, tombstone(), cause, work.at, work.out);
            }
        }
        Some(Value::Erased(stamp)) if is_old(Some(*stamp)) => {}
        Some(Value::Alias(alias)) if is_old(alias.stamp) => {}
        Some(_) => return Ok(()),
    }
    work.state.remove(key);
    left.iter().for_each(|message| drop_message(message, work.at, work.out));
    Ok(())
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
