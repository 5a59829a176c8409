//! The judge: reads the output as any read-committed reader does, and the whole changelog at the end.

use crate::Settings;
use crate::follow::{Follower, assign, consumer};
use anyhow::{Result, bail};
use rdkafka::Message;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Records that became visible together.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub at: Instant,
    pub epoch: u64,
}

/// What was seen at the output.
#[derive(Default)]
pub struct Seen {
    /// Next input offset expected: each once, in order.
    pub next: i64,
    pub arrivals: Vec<Arrival>,
    pub violations: Vec<String>,
}

/// The output's reader.
#[derive(Clone, Default)]
pub struct Output(pub Arc<Mutex<Seen>>);

impl Output {
    /// Reads from the start, in a thread, for as long as the process lives.
    pub fn watch(settings: &Settings) -> Result<Output> {
        let output = Output::default();
        let (reader, seen) = (consumer(settings, 20)?, output.0.clone());
        assign(&reader, &settings.topic("output"), settings.shard, 0)?;
        std::thread::spawn(move || {
            loop {
                if let Some(Ok(message)) = reader.poll(Duration::from_millis(100)) {
                    let text = String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned();
                    seen.lock().expect("no panic holds it").take(&text, message.offset());
                }
            }
        });
        Ok(output)
    }

    /// Waits until the output shows the epoch, or `deadline`.
    pub fn wait_epoch(&self, epoch: u64, deadline: Duration) -> Result<Instant> {
        let began = Instant::now();
        while began.elapsed() < deadline {
            if let Some(found) = self.with(|seen| {
                seen.arrivals[seen.arrivals.len().saturating_sub(400)..].iter().find(|a| a.epoch >= epoch).copied()
            }) {
                return Ok(found.at);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("nothing of epoch {epoch} at the output within {deadline:?}")
    }

    /// Longest time without an arrival that touches from..to.
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        self.with(|seen| {
            let pairs = seen.arrivals.windows(2).rev().take_while(|pair| pair[1].at > from);
            let longest =
                pairs.filter(|pair| pair[0].at < to).map(|pair| pair[1].at - pair[0].at).max().unwrap_or_default();
            // What has not ended yet counts, too.
            seen.arrivals.last().map_or(longest, |last| longest.max(to.saturating_duration_since(last.at)))
        })
    }

    /// Looks at what was seen.
    pub fn with<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.0.lock().expect("no panic holds it"))
    }
}

impl Seen {
    fn take(&mut self, text: &str, at_offset: i64) {
        let Some((Ok(epoch), Ok(offset))) = text.split_once(' ').map(|(e, o)| (e.parse::<u64>(), o.parse::<i64>()))
        else {
            self.violations.push(format!("output {at_offset}: not of a worker: {text}"));
            return;
        };
        if offset != self.next {
            self.violations.push(format!("output {at_offset}: epoch {epoch} input {offset}, expected {}", self.next));
        }
        self.next = offset + 1;
        let at = Instant::now();
        match self.arrivals.last() {
            // One fetch brings many records: one arrival.
            Some(last) if last.epoch == epoch && at - last.at < Duration::from_millis(3) => {}
            _ => self.arrivals.push(Arrival { at, epoch }),
        }
    }
}

/// Folds the whole changelog; what contradicts the rules, and the last epoch.
pub fn changelog(settings: &Settings) -> Result<(Vec<String>, u64, i64)> {
    let mut follower = Follower::new(settings)?;
    follower.read_to_end()?;
    Ok((follower.view.violations, follower.view.epoch, follower.view.next_input))
}
