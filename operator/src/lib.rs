//! The operator: brings about what `IngestionPipeline` resources ask for.
//!
//! A pipeline is reconciled in steps, each of which has one job:
//!
//! | step | reads or writes | |
//! |---|---|---|
//! | dereference | the API server | what the resource refers to: Secrets, `StageScale`s; the result is a [`Prepared`] |
//! | [`validate`](validate::validate) | nothing | what a schema cannot say; each problem names its field and what to do |
//! | [`build`](build::build) | nothing | every object that the pipeline needs, as it should be |
//! | apply | the API server | server-side apply under a field manager of our own; objects that are not built any more go |
//! | observe | the API server, `status` | what came of it |
//! | status | the API server | conditions and figures, written when they change |
//!
//! The pure steps are functions of a [`Prepared`] and nothing else: the same resource, Secrets and scales give the same objects, byte by byte, whoever asks and when.
//! That is what makes `kubectl millstream preview` right, and what keeps an upgrade of the operator from restarting workers by accident: a golden test holds the objects.
//!
//! The operator is not in the data path, nor in that of failover: while it is away, workers go on and take over from each other.

#[cfg(feature = "controller")]
mod apply;
pub mod build;
#[cfg(feature = "controller")]
pub mod controller;
#[cfg(feature = "controller")]
mod dereference;
mod prepared;
#[cfg(feature = "controller")]
pub mod status;
#[cfg(feature = "controller")]
mod trouble;
pub mod validate;

pub use prepared::{Prepared, SecretHashes};
#[cfg(feature = "controller")]
pub use trouble::Trouble;

/// Who we are in server-side apply, and in the label of what we made.
pub const FIELD_MANAGER: &str = "millstream-operator";
