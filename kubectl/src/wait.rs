//! Waiting for what the operator carries out, and saying meanwhile what is going on.

use crate::{Outcome, Waits};
use std::time::{Duration, Instant};

/// How often it is looked at.
const EVERY: Duration = Duration::from_millis(500);

/// What a look came to.
pub(crate) enum Look {
    /// It is done: what to say.
    Done(String),
    /// Not yet: what is going on.
    Going(String),
}

/// Looks again and again, says each new thing once, and gives up after a while.
///
/// # Errors
/// When nothing can be printed.
pub(crate) async fn wait<F: Future<Output = anyhow::Result<Look>>>(
    waits: &Waits,
    mut look: impl FnMut() -> F,
) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    let mut last = String::new();
    loop {
        let going = match look().await {
            Ok(Look::Done(said)) => {
                crate::print(format_args!("{said}\n"))?;
                return Ok(Outcome::Good);
            }
            Ok(Look::Going(said)) => said,
            // Another operator may be about to lead: what was changed stays changed.
            Err(error) => format!("not known: {error:#}"),
        };
        if last != going {
            crate::print(format_args!("{going}\n"))?;
            last = going;
        }
        if waits.no_wait {
            return Ok(Outcome::Good);
        }
        if began.elapsed() > waits.timeout {
            crate::print(format_args!("not done after {} s; the operator goes on\n", waits.timeout.as_secs()))?;
            return Ok(Outcome::Bad);
        }
        tokio::time::sleep(EVERY).await;
    }
}
