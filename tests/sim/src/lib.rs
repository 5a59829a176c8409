//! The simulation: the real stages, shards, seats, members and planner, on a log and disks that fail in every way that is allowed, with time and chance from one seed.
//!
//! One seed is one run: [`run()`]. [`world`] says who goes on and what time it is; [`log`] and [`disk`] are what the code under test stands on; [`worker`], [`operator`],
//! [`source`], [`savepointer`] and [`chaos`] are who acts; [`audit`] judges the log and what is left on the disks, and asks nobody what they believe. [`counts`] tells what was hit.
//!
//! How it works, which faults there are, and what it finds: `docs/src/design/simulation.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod audit;
pub mod chaos;
pub mod counts;
pub mod disk;
mod gap;
pub mod log;
#[cfg(feature = "mutants")]
pub mod mutants;
pub mod objects;
pub mod operator;
pub mod rng;
pub mod run;
pub mod savepointer;
pub mod settings;
pub mod sim;
pub mod source;
pub mod truth;
pub mod worker;
pub mod world;

pub use run::{Outcome, many, of_seeds, run, run_with};
