//! What the tests share: the conformance suites, faults, generated load, Millstream's processes, and the harness that starts real servers.

pub mod collisions;
pub mod conformance;
pub mod faulty;
pub mod load;
pub mod pipeline;
pub mod proxy;
pub mod servers;
