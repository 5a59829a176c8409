//! When a shard that failed is opened again.

use millstream_shard::ShardError;
use std::time::Duration;

/// First and longest pause where trying again is likely to help.
const REOPEN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The same where a person must decide: an attempt costs a takeover and finds the same, until somebody has acted.
const STOPPED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// The pauses of one shard; each is twice as long as the one before.
#[derive(Debug)]
pub struct Backoff {
    reopen: Duration,
    stopped: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { reopen: REOPEN.0, stopped: STOPPED.0 }
    }
}

impl Backoff {
    /// How long to wait after this error.
    pub fn after(&mut self, error: &ShardError) -> Duration {
        let (next, longest) = match error {
            ShardError::Stopped(_) => (&mut self.stopped, STOPPED.1),
            _ => (&mut self.reopen, REOPEN.1),
        };
        let pause = *next;
        *next = (pause * 2).min(longest);
        pause
    }

    /// It works: the next failure is a first one.
    pub fn reset(&mut self) {
        *self = Backoff::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_of_their_own() {
        let mut backoff = Backoff::default();
        let (reopen, stopped) = (ShardError::Reopen(String::new()), ShardError::Stopped(String::new()));
        let mut pauses = |error: &ShardError| (0..8).map(|_| backoff.after(error).as_millis()).collect::<Vec<_>>();
        assert_eq!(pauses(&stopped), [5000, 10_000, 20_000, 40_000, 60_000, 60_000, 60_000, 60_000]);
        assert_eq!(pauses(&reopen), [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        backoff.reset();
        assert_eq!(backoff.after(&stopped).as_millis(), 5000);
    }
}
