//! What the tests share: the conformance suites, faults, generated load, Millstream's processes, and the harness that starts real servers.

pub mod api_proxy;
pub mod at_once;
pub mod bucket;
pub mod canned;
pub mod collisions;
pub mod conformance;
pub mod counting;
pub mod faulty;
pub mod freshness;
pub mod kafka_proxy;
pub mod load;
pub mod nodes;
pub mod pipeline;
pub mod plan;
pub mod proxy;
pub mod scene;
pub mod servers;
pub mod shop;
pub mod small_disk;
