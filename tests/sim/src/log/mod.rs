//! A log in memory, with everything that can go wrong between a client and real brokers.
//!
//! [`Broker`](broker) is the truth: partitions, transactions, who has which transactional id. It knows no faults and no time but what it is told. The clients
//! ([`client`], [`consumer`], [`producer`], [`transactional`]) implement the traits of `worker/shard` on it, each call one or more steps of the simulated
//! world, and it is they, and what is on its way between them and the broker, that fail: requests that are lost, that are carried out without an answer,
//! that are carried out *later*, twice, or partition by partition.
//!
//! The contract is that of `millstream_shard::log`; outside of a simulation ([`SimLog::outside`]) there are no faults and calls block for real, so that the
//! conformance suite can run on it.

mod broker;
mod client;
mod consumer;
mod producer;
mod transactional;

pub use broker::{Broker, Kind, Seen};
pub use client::{SimLog, Slips};
