//! What a process tells about itself: [`metrics`], [`logs`] and [`traces`].
//!
//! Nothing here may slow or stop a record's way: metrics are counters in memory, spans go through a bounded queue that drops (and counts)
//! when the collector is slow. Labels are bounded: tenants are those of the configuration and a thousand published ones, everything else is an enumeration.

pub mod checkpoints;
pub mod logs;
pub mod metrics;
pub mod state;
pub mod traces;

pub use metrics::Metrics;
pub use state::StateFigures;
pub use traces::{Span, SpanExporter};
