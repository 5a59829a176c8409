//! The values of an action shard's state, their stored form and typed access.
//!
//! Values stay decoded in the cache; users and devices are boxed, so that a node, by far the most frequent value, stays small.

use crate::{State, StateError, StateValue};
use millstream_model::id::{DeviceId, UserId, message_hash};
use millstream_model::key::{Kind, StateKey, group_of};
use millstream_model::proto::{self, Alias, Closing, DeviceState, Identifier, Stamp, User};
use prost::Message;

/// A value of the action stage's state.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Which user an identifier names.
    Node(Node),
    /// A user, live, forwarded or deleted; at its home.
    User(Box<User>),
    /// A device; at its home.
    Device(Box<DeviceState>),
    /// The newest deletion of the user that an identifier named; there is no node.
    Erased(Stamp),
    /// Which device a further device identifier names.
    Alias(Box<Alias>),
}

/// What an identifier names.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The user that it named first. It may have become part of another one, to which its home forwards.
    pub user: UserId,
    /// Newest deletion of a user that the identifier named: what is older is refused.
    pub erased: Option<Stamp>,
    /// The user was deleted, and actions may still be on their way there.
    pub closing: Option<Box<Closing>>,
}

impl StateValue for Value {
    fn encode(&self, bytes: &mut Vec<u8>) {
        // Encoding into a vector, which grows, cannot fail.
        let _ = match self {
            Value::Node(node) => node.stored().encode(bytes),
            Value::User(user) => user.encode(bytes),
            Value::Device(device) => device.encode(bytes),
            Value::Erased(stamp) => stamp.encode(bytes),
            Value::Alias(alias) => alias.encode(bytes),
        };
    }

    fn decode(key: &StateKey, bytes: &[u8]) -> Result<Value, StateError> {
        let wrong = |error: prost::DecodeError| StateError::Invalid(format!("the value of {key:?}: {error}"));
        match key.parts().map(|(_, kind, _)| kind) {
            Some(Kind::Node) => Node::read(proto::Node::decode(bytes).map_err(wrong)?).map(Value::Node),
            Some(Kind::User) => Ok(Value::User(Box::new(User::decode(bytes).map_err(wrong)?))),
            Some(Kind::Device) => Ok(Value::Device(Box::new(DeviceState::decode(bytes).map_err(wrong)?))),
            Some(Kind::Erased) => Ok(Value::Erased(Stamp::decode(bytes).map_err(wrong)?)),
            Some(Kind::Alias) => Ok(Value::Alias(Box::new(Alias::decode(bytes).map_err(wrong)?))),
            _ => Err(StateError::Invalid(format!("{key:?} is no key of the action stage"))),
        }
    }

    fn memory(&self, stored_bytes: usize) -> usize {
        super::memory::of(self, stored_bytes)
    }
}

impl Node {
    fn stored(&self) -> proto::Node {
        let closing = self.closing.as_deref().cloned();
        proto::Node { user: self.user.as_bytes().to_vec(), erased: self.erased, closing }
    }

    fn read(node: proto::Node) -> Result<Node, StateError> {
        Ok(Node { user: user_id(&node.user)?, erased: node.erased, closing: node.closing.map(Box::new) })
    }
}

/// The user id in a message or a value.
pub(super) fn user_id(bytes: &[u8]) -> Result<UserId, StateError> {
    UserId::from_bytes(bytes).ok_or_else(|| StateError::Invalid(format!("{bytes:?} is no user id")))
}

/// The device id in a message.
pub(super) fn device_id(bytes: &[u8]) -> Result<DeviceId, StateError> {
    DeviceId::from_bytes(bytes).ok_or_else(|| StateError::Invalid(format!("{bytes:?} is no device id")))
}

/// A part that every message of its kind has.
pub(super) fn required<T>(part: Option<T>, name: &str) -> Result<T, StateError> {
    part.ok_or_else(|| StateError::Invalid(format!("an exchange message or action lacks `{name}`")))
}

pub(super) fn node_key(tenant: &str, identifier: &Identifier) -> StateKey {
    StateKey::of_identifier(tenant, Kind::Node, identifier)
}

/// The key of an identifier's last deletion: it outlives the person's data, so it holds a hash and not the identifier.
pub(super) fn erased_key(tenant: &str, identifier: &Identifier) -> StateKey {
    StateKey::new(group_of(tenant, identifier), tenant, Kind::Erased, &identifier_hash(identifier))
}

/// What is remembered of an identifier whose user was deleted.
pub(super) fn identifier_hash(identifier: &Identifier) -> Vec<u8> {
    message_hash(&format!("{}\0{}", identifier.r#type, identifier.value)).to_vec()
}

pub(super) fn user_key(tenant: &str, id: &UserId) -> StateKey {
    StateKey::new(id.home(), tenant, Kind::User, id.as_bytes())
}

pub(super) fn device_key(tenant: &str, id: &DeviceId) -> StateKey {
    StateKey::new(id.home(), tenant, Kind::Device, id.as_bytes())
}

pub(super) fn alias_key(tenant: &str, identifier: &Identifier) -> StateKey {
    StateKey::of_identifier(tenant, Kind::Alias, identifier)
}

fn mismatch(key: &StateKey) -> StateError {
    StateError::Invalid(format!("{key:?} holds a value of another kind"))
}

pub(super) fn node<'s>(state: &'s mut dyn State<Value>, key: &StateKey) -> Result<Option<&'s Node>, StateError> {
    match state.get(key)? {
        None => Ok(None),
        Some(Value::Node(node)) => Ok(Some(node)),
        Some(_) => Err(mismatch(key)),
    }
}

pub(super) fn node_mut<'s>(
    state: &'s mut dyn State<Value>,
    key: &StateKey,
) -> Result<Option<&'s mut Node>, StateError> {
    match state.get_mut(key)? {
        None => Ok(None),
        Some(Value::Node(node)) => Ok(Some(node)),
        Some(_) => Err(mismatch(key)),
    }
}

/// When the identifier's user was last deleted, for an identifier without a node.
pub(super) fn erased(state: &mut dyn State<Value>, key: &StateKey) -> Result<Option<Stamp>, StateError> {
    match state.get(key)? {
        None => Ok(None),
        Some(Value::Erased(stamp)) => Ok(Some(*stamp)),
        Some(_) => Err(mismatch(key)),
    }
}

/// Which device a further device identifier names.
pub(super) fn alias<'s>(state: &'s mut dyn State<Value>, key: &StateKey) -> Result<Option<&'s Alias>, StateError> {
    match state.get(key)? {
        None => Ok(None),
        Some(Value::Alias(alias)) => Ok(Some(alias)),
        Some(_) => Err(mismatch(key)),
    }
}

/// A user that must be there: whoever names a user learnt of it after its home had made it.
pub(super) fn user<'s>(state: &'s mut dyn State<Value>, key: &StateKey) -> Result<&'s User, StateError> {
    match state.get(key)? {
        Some(Value::User(user)) => Ok(user),
        Some(_) => Err(mismatch(key)),
        None => Err(StateError::Missing(format!("{key:?}"))),
    }
}

/// [`user`], to be changed.
pub(super) fn user_mut<'s>(state: &'s mut dyn State<Value>, key: &StateKey) -> Result<&'s mut User, StateError> {
    match state.get_mut(key)? {
        Some(Value::User(user)) => Ok(user),
        Some(_) => Err(mismatch(key)),
        None => Err(StateError::Missing(format!("{key:?}"))),
    }
}

pub(super) fn device_mut<'s>(
    state: &'s mut dyn State<Value>,
    key: &StateKey,
) -> Result<Option<&'s mut DeviceState>, StateError> {
    match state.get_mut(key)? {
        None => Ok(None),
        Some(Value::Device(device)) => Ok(Some(device)),
        Some(_) => Err(mismatch(key)),
    }
}
