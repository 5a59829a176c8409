//! Real servers for tests: Apache Kafka (KRaft, from its jars), a MongoDB-compatible server, MinIO for S3, and the API server of Kubernetes, on loopback with free ports.
//!
//! - **Installed once** into a cache outside the checkout (`$MILLSTREAM_CACHE`, else `~/.cache/millstream`), at pinned versions, under a lock
//!   file, so that test processes that run at once do not disturb each other. An installation that was cut short is done again.
//! - **Never left behind.** Each server runs below a small shell that ends it when a pipe closes which this process holds. The kernel closes
//!   it whatever happens here, `kill -9` included; the shell then removes the server's data, too.
//! - **Ready** means that the server answered, not that time went by.

pub mod acls;
mod cache;
pub mod certificates;
mod cluster;
mod image;
mod kafka;
mod kubectl;
mod kubernetes;
mod minio;
mod mongo;
mod process;
mod scram;

pub use cache::{install_helm, install_kafka, install_kubernetes, install_minio, install_mongo};
pub use cluster::{Cluster, IMAGE, Inside};
pub use kafka::{Kafka, MutualTls, USER, trusted};
pub use kubectl::Kubectl;
pub use kubernetes::ApiServer;
pub use minio::Minio;
pub use mongo::Mongo;
pub use process::{Server, Stop, free_ports, host};
