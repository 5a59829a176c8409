//! The stores behind the traits of the shard runtime: Kafka, MongoDB, RocksDB, S3, and the embedded ones.
//!
//! Each keeps the contract written at its trait in `worker/shard`; one conformance suite (`tests/src/conformance`) runs against all.

pub mod embedded;
pub mod kafka;
pub mod mongo;
pub mod rocks;
pub mod s3;
