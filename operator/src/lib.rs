//! The operator: brings about what `IngestionPipeline` resources ask for.
//!
//! A pipeline is reconciled in steps, each of which has one job:
//!
//! | step | reads or writes | |
//! |---|---|---|
//! | dereference | the API server | what the resource refers to: Secrets, `StageScale`s; the result is a [`Prepared`] |
//! | [`validate`](validate::validate) | nothing | what a schema cannot say; each problem names its field and what to do |
//! | [`build`](build::build) | nothing | every object that the pipeline needs, as it should be |
//! | observe | the API server, Kafka | what there is: StatefulSets, Pods, and the [`Fleet`](fleet::Fleet) |
//! | [`plan`](plan::plan) | nothing | how far what should be can be now: whose shards go elsewhere, which Pod is replaced |
//! | apply | the API server, Kafka | server-side apply under a field manager of our own; objects that are not built any more go; the plan |
//! | status | the API server | conditions and figures, written when they change |
//!
//! `validate` and `build` are functions of a [`Prepared`] and nothing else: the same resource, Secrets and scales give the same objects, byte by byte, whoever asks and when.
//! That is what makes `kubectl millstream preview` right, and what keeps an upgrade of the operator from restarting workers by accident: a golden test holds the objects.
//!
//! The operator is not in the data path, nor in that of failover: while it is away, workers go on and take over from each other.

pub mod admin;
mod apply;
pub mod build;
pub mod change;
pub mod client;
pub mod controller;
mod deletion;
pub mod departures;
mod dereference;
pub mod erasure;
pub mod events;
mod finalizer;
pub mod fleet;
pub mod freshness;
pub mod leader;
pub mod lease;
pub mod metrics;
mod observe;
pub mod pins;
pub mod plan;
mod plans;
mod prepared;
mod reason;
pub mod status;
mod strimzi;
mod tell;
pub mod tenants;
pub mod terminating;
mod trouble;
pub mod validate;

pub use prepared::{Prepared, SecretHashes};
pub use reason::Reason;
pub use trouble::Trouble;

/// Who we are in server-side apply, and in the label of what we made.
pub const FIELD_MANAGER: &str = "millstream-operator";
