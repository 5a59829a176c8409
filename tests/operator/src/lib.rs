//! The operator, judged by those whom it is for: workers read the configurations, a real API server takes the objects, and users see what they expect with `kubectl`.
//!
//! A crate of its own, because its tests mostly wait, for the API server and for pauses of the operator: they run on more threads than there are cores, which those that load the machine must
//! not.
#![cfg(test)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod at_each_write;
mod basics;
mod broken;
mod deletion;
mod erasure;
mod leader;
mod objects;
mod pods;
mod refused;
mod retention;
mod strimzi;
mod terminating;
