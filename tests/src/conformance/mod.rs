//! One conformance suite per store trait, run by every implementation.
//!
//! A suite is a list of named cases over a subject: something that can open the store, and open it again after all of its clients are gone.
//! An integration test makes each case a test of its own by name:
//! ```text
//! mod log { millstream_tests::log_conformance!(super::subject()); }
//! ```
//! where `subject()` is an `impl Subject`. Every case uses topics, tenants and collections of its own, so that all of them can run at once on one
//! shared server. Cases wait on conditions with a [`DEADLINE`]; none of them sleeps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod documents;
pub mod late;
pub mod log;
pub mod log_faults;
pub mod log_transactions;
pub mod objects;
pub mod reader;
pub mod state;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// How long a case waits for what must happen.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A name that no other case, run or process uses; made of letters, digits and `-`.
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("conformance-{what}-{}-{:x}-{number}", std::process::id(), since.as_micros())
}

/// Calls `check` until it gives a value.
///
/// # Panics
/// When it gave none before the [`DEADLINE`].
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::yield_now();
    }
}

/// A small generator of numbers that look random and are the same in every run.
#[derive(Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// Numbers from a seed.
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    /// Puts items into another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end as u64 + 1) as usize);
        }
    }
}

/// Bytes that do not compress.
pub fn noise(length: usize) -> Vec<u8> {
    let mut numbers = Numbers::new(length as u64);
    (0..length).map(|_| numbers.below(256) as u8).collect()
}

/// Declares a suite: the list of its cases, and a macro that makes a test of each.
#[macro_export]
macro_rules! suite {
    ($d:tt $suite:ident, $subject:ty, [$($module:ident :: $case:ident,)*]) => {
        /// The cases by name.
        pub const CASES: &[(&str, fn(&$subject))] = &[$((stringify!($case), $crate::conformance::$module::$case)),*];

        /// Makes a test of each case; the argument is an expression of the subject to run it on.
        #[macro_export]
        macro_rules! $suite {
            ($d subject:expr) => {
                $(
                    #[test]
                    fn $case() {
                        $crate::conformance::$module::$case(&$d subject);
                    }
                )*
            };
        }
    };
}
