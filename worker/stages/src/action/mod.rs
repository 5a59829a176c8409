//! Action: which user and which device a record is about, and what it does to them.
//!
//! Keeps **identity converges** (I9): which identifiers form one user depends only on the links between them; **order** (I3): records
//! with one routing key take effect in their order, through merges and deletions (what devices route: within the bounds that [`path`] names); **one outcome** (I2): each action is counted exactly
//! once, as an effect or a reject, where it ends.
//!
//! # Who is where
//! An identifier's *node* lives in the shard of the identifier's key group and names one user. A user lives at its *home*, the key group in its
//! id; a device likewise. Everything that one shard has to tell another is a message on `exchange.action`, in the transaction of the
//! batch that caused it; between two shards messages keep their order, between others nothing is assumed.
//!
//! # Protocol
//! - *Resolve* by the action's first identifier: no node, and the user is created there; else *Apply* at the user's home.
//! - *Apply*: each identifier of the action that is new to the user becomes a member, and its node is told (*Link*). A node that names
//!   another user asks the home of the larger (younger) of both to *merge*: it becomes a *forward* to the smaller and sends its whole
//!   state there (*Absorb*). Forwards lead to ever older users, so there are no cycles; nobody waits for anybody.
//! - A node is never pointed anew and chains of forwards are never shortened: an action that took a shorter way would overtake those
//!   that are on the longer one. An action that follows a merge is behind the state that was sent ahead of it.
//! - *Delete* takes everything up to its stamp from the user. Nodes of members that go are *unlinked*; what is on the way from them to the
//!   user comes back, and what comes later waits in the node until a *drain* along the same way has returned.
//! - Only a user's own home links a node to it. A merge that finds that a deletion took the common identifier asks the other user's home to
//!   link it again (*Relink*), if it is still a member there.
//! - What a device identifier routes goes by way of the device, which sends everything by one way at a time ([`path`]).
//! - A device is found by its primary identifier, or by a further one whose *alias* says which device has it (*Name*).
//! - The reaction stage asks for the whole document of a user or device that turned out to lack something (*Replace*, I8).
//!
//! What one user or device may hold is bounded ([`ActionLimits`]): what a record brings beyond is refused at the home, before anything is linked.
//!
//! The reasons, the races and the numbers of the proof are in `docs/src/design/identity.md`.

mod absorb;
mod admission;
mod attributes;
mod device;
mod document;
mod erasure;
mod home;
mod inspect;
mod limits;
mod listed;
mod memory;
mod merging;
mod outcome;
mod path;
mod relink;
mod resolve;
mod size;
mod state;
mod user;
mod work;

pub use document::{DEVICES, USERS, render_device, render_user};
pub use erasure::{Erasures, refusal as erased};
pub use inspect::{Answer, AttributeView, DeviceView, IdentifierView, Inspect, MergeView, UserView, inspect};
pub use limits::ActionLimits;
pub use state::{Node, Value};

use crate::{At, DecodeError, Input, Outbox, Stage, State, StateError};
use millstream_model::id::DeviceId;
use millstream_model::key::{Kind, StateKey};
use millstream_model::proto::exchange::Body;
use millstream_model::proto::{Action, Exchange, Identifier};
use prost::Message;
use state::{alias_key, device_id, device_key, node_key, user_id, user_key};
use std::collections::BTreeMap;
use std::sync::Arc;
use work::Work;

/// A decoded record of an input of this stage.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// Of `actions`.
    Action(Box<Action>),
    /// Of `exchange.action`.
    Exchange(Box<Exchange>),
}

/// The action stage. Rules of identity come later.
#[derive(Clone, Debug, Default)]
pub struct ActionStage {
    limits: ActionLimits,
    erasures: Arc<Erasures>,
}

impl ActionStage {
    /// With these bounds of what one user or device may hold.
    pub fn new(limits: ActionLimits) -> ActionStage {
        ActionStage { limits, erasures: Arc::default() }
    }

    /// Goes by these erasures from the next record on.
    pub fn adopt(&mut self, erasures: Arc<Erasures>) {
        self.erasures = erasures;
    }

    fn work<'a>(&'a self, at: &'a At, state: &'a mut dyn State<Value>, out: &'a mut Outbox) -> Work<'a> {
        Work::new(&self.limits, &self.erasures, at, state, out)
    }
}

impl Stage for ActionStage {
    type Value = Value;
    type Record = Record;

    fn name(&self) -> &'static str {
        "action"
    }

    fn decode(&self, input: Input, bytes: &[u8]) -> Result<Record, DecodeError> {
        let record = match input {
            Input::Actions => Action::decode(bytes).map(|action| Record::Action(Box::new(action))),
            Input::Exchange => Exchange::decode(bytes).map(|message| Record::Exchange(Box::new(message))),
            Input::Ingress => {
                return Err(DecodeError { input, message: "the action stage does not read it".to_owned() });
            }
        };
        record.map_err(|error| DecodeError { input, message: error.to_string() })
    }

    fn keys(&self, record: &Record, _: &At, _: &[u32], keys: &mut Vec<StateKey>) {
        match record {
            Record::Action(action) => action_keys(action, keys),
            Record::Exchange(message) => message_keys(message, keys),
        }
    }

    fn process(
        &self,
        record: Record,
        at: &At,
        state: &mut dyn State<Value>,
        out: &mut Outbox,
    ) -> Result<(), StateError> {
        match record {
            Record::Action(mut action) => {
                trace(&mut action, out);
                let until_ms = self.erasures.until_ms(&action.tenant);
                if action.stamp.is_some_and(|stamp| stamp.time_ms <= until_ms) {
                    erasure::refuse(&action, at, out);
                    return Ok(());
                }
                let mut work = self.work(at, state, out);
                work.start(*action);
                work.run()
            }
            Record::Exchange(message) if erasure::is_erased(&message, self.erasures.until_ms(&message.tenant)) => {
                let mut work = self.work(at, state, out);
                erasure::drop_message(&mut work, &message)?;
                work.run()
            }
            Record::Exchange(mut message) => {
                if let Some(action) = message.body.as_mut().and_then(work::action_mut) {
                    trace(action, out);
                }
                let mut work = self.work(at, state, out);
                work.step(*message)?;
                work.run()
            }
        }
    }

    fn sweeping(&self) -> Arc<BTreeMap<String, u64>> {
        self.erasures.under_way.clone()
    }

    fn sweeps(&self, kind: Kind) -> bool {
        [Kind::Node, Kind::User, Kind::Device, Kind::Erased, Kind::Alias].contains(&kind)
    }

    fn sweep(&self, key: StateKey, at: &At, state: &mut dyn State<Value>, out: &mut Outbox) -> Result<(), StateError> {
        let Some((tenant, ..)) = key.parts() else { return Ok(()) };
        let tenant = tenant.to_owned();
        let mut work = self.work(at, state, out);
        erasure::sweep(&mut work, &tenant, key)?;
        work.run()
    }
}

/// Opens the span of this shard's part in a sampled record; what the record leads to carries it.
fn trace(action: &mut Action, out: &mut Outbox) {
    let span = out.span(action.trace.as_ref(), "action", &action.kind, &action.tenant, &action.record_id);
    action.trace = span.or(action.trace.take());
}

/// The node and the device that an action names; which user that is, only the node knows.
fn action_keys(action: &Action, keys: &mut Vec<StateKey>) {
    keys.extend(action.user_identifiers.first().map(|via| node_key(&action.tenant, via)));
    if let Some(primary) = action.device_identifiers.first() {
        device_keys(&action.tenant, primary, keys);
    }
}

/// The device that an identifier is the primary one of, and which one it names otherwise.
fn device_keys(tenant: &str, primary: &Identifier, keys: &mut Vec<StateKey>) {
    keys.push(device_key(tenant, &DeviceId::of(tenant, primary)));
    keys.extend(primary.can_be_alias().then(|| alias_key(tenant, primary)));
}

fn message_keys(message: &Exchange, keys: &mut Vec<StateKey>) {
    if let Some(body) = &message.body {
        body_keys(&message.tenant, body, keys);
    }
}

/// What a step reads first: the node, the user, or the device and the alias that it is about. Nothing else that a step reads belongs to a user or a device.
fn body_keys(tenant: &str, body: &Body, keys: &mut Vec<StateKey>) {
    let user = |bytes: &[u8]| user_id(bytes).ok().map(|id| user_key(tenant, &id));
    let node = |identifier: &Option<_>| identifier.as_ref().map(|identifier| node_key(tenant, identifier));
    let key = match body {
        Body::Resolve(message) => node(&message.via),
        Body::Link(message) => node(&message.identifier),
        Body::Unlink(message) => node(&message.identifier),
        Body::Drained(message) => node(&message.identifier),
        Body::Apply(message) => user(&message.user),
        Body::Merge(message) => user(&message.larger),
        Body::Absorb(message) => user(&message.survivor),
        Body::Erase(message) => user(&message.user),
        Body::Relink(message) => user(&message.user),
        Body::Drain(message) => user(&message.user),
        Body::Device(message) => {
            let action = message.action.as_ref();
            if let Some(primary) = action.and_then(|action| device::primary(action, message.primary.as_ref())) {
                device_keys(tenant, primary, keys);
            }
            None
        }
        Body::Name(message) => {
            if let Some(identifier) = &message.identifier {
                device_keys(tenant, identifier, keys);
            }
            None
        }
        Body::Arrival(message) => device_id(&message.device).ok().map(|id| device_key(tenant, &id)),
        Body::Forget(message) => device_id(&message.device).ok().map(|id| device_key(tenant, &id)),
        Body::Replace(message) => document::state_key(tenant, message),
    };
    keys.extend(key);
}
