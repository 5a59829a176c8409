//! The work list of one input record.
//!
//! A step addressed to a key group of this shard is done at once, in the order in which steps were sent; any other becomes a message on
//! `exchange.action`. Both keep the order between one sender and one receiver, which is all that the protocol relies on, so the result is
//! the same for any number of shards.

use super::erasure::{self, Erasures};
use super::limits::ActionLimits;
use super::outcome;
use super::state::{Value, erased_key};
use crate::{At, Outbox, State, StateError};
use millstream_model::key::{GROUPS, shard_of};
use millstream_model::proto::action::Way;
use millstream_model::proto::exchange::Body;
use millstream_model::proto::{Action, Exchange};
use millstream_model::reject::Reason;
use std::collections::VecDeque;

/// How often a record may be sent on: a guard against a circle, which only damaged state can have, and no bound of honest chains. Each hop leads to an older user,
/// so a chain ends by itself; one as long as this takes so many merges in a row that each found an older user still. What deletes or merges is never
/// dropped, a person who asked to be forgotten is: in a circle, it stops the shard.
pub(super) const MAX_HOPS: u32 = 100_000;

/// What every message has.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) tenant: String,
    pub(super) group: u16,
    pub(super) hops: u32,
}

/// A record being processed.
pub(super) struct Work<'a> {
    pub(super) limits: &'a ActionLimits,
    pub(super) erasures: &'a Erasures,
    pub(super) at: &'a At,
    pub(super) state: &'a mut dyn State<Value>,
    pub(super) out: &'a mut Outbox,
    queue: VecDeque<Exchange>,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        limits: &'a ActionLimits,
        erasures: &'a Erasures,
        at: &'a At,
        state: &'a mut dyn State<Value>,
        out: &'a mut Outbox,
    ) -> Work<'a> {
        Work { limits, erasures, at, state, out, queue: VecDeque::new() }
    }

    /// Sends a step to a key group.
    pub(super) fn send(&mut self, tenant: &str, hops: u32, group: u16, body: Body) {
        let message = Exchange { tenant: tenant.to_owned(), group: u32::from(group), hops, body: Some(body) };
        if shard_of(group, self.at.shards) == self.at.partition {
            self.queue.push_back(message);
        } else {
            self.out.exchange.push(message);
        }
    }

    /// Does these steps of this shard before all others.
    pub(super) fn first(&mut self, messages: impl DoubleEndedIterator<Item = Exchange>) {
        for message in messages.rev() {
            self.queue.push_front(message);
        }
    }

    /// Does all steps that are this shard's.
    pub(super) fn run(mut self) -> Result<(), StateError> {
        while let Some(message) = self.queue.pop_front() {
            self.step(message)?;
        }
        Ok(())
    }

    /// Does one step.
    pub(super) fn step(&mut self, message: Exchange) -> Result<(), StateError> {
        let group = u16::try_from(message.group).ok().filter(|group| *group < GROUPS);
        let Some(group) = group.filter(|group| shard_of(*group, self.at.shards) == self.at.partition) else {
            return Err(StateError::Invalid(format!("an exchange message for key group {} came here", message.group)));
        };
        let header = Header { tenant: message.tenant, group, hops: message.hops };
        let Some(body) = message.body else {
            return Err(StateError::Invalid(
                "an exchange message of a kind that this version does not know".to_owned(),
            ));
        };
        if header.hops > MAX_HOPS {
            return self.lost(&header, &body);
        }
        if self.erasures.former_ms(&header.tenant) == 0 {
            return self.dispatch(header, body);
        }
        self.clear_old(&header.tenant, &body)?;
        let (tenant, hops) = (header.tenant.clone(), header.hops);
        let again = Exchange { tenant, group: u32::from(group), hops, body: Some(body.clone()) };
        match self.dispatch(header, body) {
            // Where clocks are wrong by minutes, something later may name a user who went with the erasure. That is one record's trouble, and no reason to stop the shard.
            Err(StateError::Missing(_)) => erasure::drop_message(self, &again),
            done => done,
        }
    }

    /// What was erased is not there, whether the shard has been through it yet or not.
    fn clear_old(&mut self, tenant: &str, body: &Body) -> Result<(), StateError> {
        let mut keys = Vec::new();
        super::body_keys(tenant, body, &mut keys);
        let identifier = match body {
            Body::Resolve(message) => message.via.as_ref(),
            Body::Link(message) => message.identifier.as_ref(),
            Body::Unlink(message) => message.identifier.as_ref(),
            _ => None,
        };
        keys.extend(identifier.map(|identifier| erased_key(tenant, identifier)));
        keys.into_iter().try_for_each(|key| erasure::sweep(self, tenant, key))
    }

    /// What went round in a circle.
    fn lost(&mut self, header: &Header, body: &Body) -> Result<(), StateError> {
        if let Some(Way::Ask(ask)) = action_of(body).and_then(|action| action.way.as_ref()) {
            return self.arrive(&header.tenant, ask.clone(), false);
        }
        let what = format!("its user was not found within {MAX_HOPS} merges: they go round in a circle");
        let Some(action) = action_of(body).filter(|action| !action.delete && action.merge.is_none()) else {
            return Err(StateError::Invalid(format!("a deletion or merge of the tenant {}: {what}", header.tenant)));
        };
        outcome::reject(action, Reason::Unresolved, format!("{what}; report it"), self.at, self.out);
        Ok(())
    }

    fn dispatch(&mut self, header: Header, body: Body) -> Result<(), StateError> {
        match body {
            Body::Resolve(message) => self.resolve(header, message),
            Body::Apply(message) => self.apply(&header, *message),
            Body::Link(message) => self.link(header, message),
            Body::Unlink(message) => self.unlink(&header, &message),
            Body::Merge(message) => self.merge(&header, message),
            Body::Absorb(message) => self.absorb(&header, *message),
            Body::Device(message) => self.device(&header, message),
            Body::Erase(message) => self.erase(&header, message),
            Body::Drain(message) => self.drain(&header, message),
            Body::Drained(message) => self.drained(&header, &message),
            Body::Forget(message) => self.forget(&header, message),
            Body::Name(message) => self.name(&header, message),
            Body::Arrival(message) => self.arrival(&header, &message),
            Body::Relink(message) => self.relink(&header, message),
            Body::Replace(message) => self.replace(&header, &message),
        }
    }
}

/// The action that a message carries.
pub(super) fn action_of(body: &Body) -> Option<&Action> {
    match body {
        Body::Resolve(message) => message.action.as_ref(),
        Body::Apply(message) => message.action.as_ref(),
        Body::Device(message) => message.action.as_ref(),
        _ => None,
    }
}

/// [`action_of`], to be changed.
pub(super) fn action_mut(body: &mut Body) -> Option<&mut Action> {
    match body {
        Body::Resolve(message) => message.action.as_mut(),
        Body::Apply(message) => message.action.as_mut(),
        Body::Device(message) => message.action.as_mut(),
        _ => None,
    }
}
