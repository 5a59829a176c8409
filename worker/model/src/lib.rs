//! Records, actions, mutations and their wire formats.
//!
//! Everything that crosses a topic or rests in a shard's state has its shape here: the Protobuf contract
//! ([`proto`], from `proto/millstream.proto`), the [`frame`] that packs many records into one log message, the key
//! space ([`key`]), the internal [`id`]s, [`stamp`] order, attribute [`value`]s, and the public JSON of
//! [`event`]s and [`reject`]s. No I/O, no clock, no async: the crate is pure.

pub mod action;
pub mod document;
pub mod event;
pub mod frame;
pub mod id;
pub mod identifier;
pub mod key;
pub mod reject;
pub mod stamp;
pub mod trace;
mod usage;
pub mod value;

/// The messages of `proto/millstream.proto`.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/millstream.v1.rs"));

    /// The descriptor set of the contract, for the compatibility test and for tools.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/millstream.binpb"));
}
