//! Freshness: from the moment in which a sender knows that its record is accepted, until the record's document can be read.
//!
//! Several probers send records to a tenant of their own while the load runs, each one after the other. A probe is about a new device, whose
//! document has an id that is known beforehand; the document is asked for again and again until it is there. So the figure
//! contains the asking (a few milliseconds). A probe that waits long keeps its prober from sending others, but not the other probers.
//!
//! A load that is over soon leaves time for few probes: then they go on until there are enough to say what one in a hundred takes, and it is said how many came
//! after the load.

use crate::cli::{Admin, snapshot};
use crate::generate::api_key;
use anyhow::{Context, bail};
use millstream_model::id::DeviceId;
use millstream_model::proto::Identifier;
use serde_json::json;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The probes' tenant.
pub(super) const TENANT: &str = "probe";
/// Between the end of one probe and the next.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two questions for one document.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// A document that is not there after this is a failure of the demo.
const PATIENCE: Duration = Duration::from_secs(60);

/// Probers at a time.
const PROBERS: usize = 8;
/// With fewer probes, one in a hundred is none of them.
const ENOUGH: usize = 100;

/// What probes measured.
#[derive(Debug)]
pub(super) struct Freshness {
    /// How long each took, shortest first.
    sorted: Vec<Duration>,
    /// How many of them began when the load was over.
    after: usize,
}

/// Probes until `over` and there are enough of them.
pub(super) fn probe(url: &str, admin: &Admin, over: &AtomicBool) -> anyhow::Result<Freshness> {
    let client = reqwest::blocking::Client::new();
    measure(over, |number| one(url, admin, &client, number))
}

/// The first failure is the outcome: each probe is bounded by its own patience, and so is their number after the load.
fn measure(over: &AtomicBool, one: impl Fn(usize) -> anyhow::Result<Duration> + Sync) -> anyhow::Result<Freshness> {
    let (begun, after) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let series = || -> anyhow::Result<Vec<Duration>> {
        let mut took = Vec::new();
        loop {
            let (is_over, number) = (over.load(Ordering::Relaxed), begun.fetch_add(1, Ordering::Relaxed));
            if is_over && number >= ENOUGH {
                return Ok(took);
            }
            after.fetch_add(usize::from(is_over), Ordering::Relaxed);
            took.push(one(number)?);
            std::thread::sleep(PAUSE);
        }
    };
    let mut sorted = std::thread::scope(|scope| {
        let series = &series;
        let probers: Vec<_> = (0..PROBERS).map(|_| scope.spawn(series)).collect();
        let mut took = Vec::new();
        for prober in probers {
            took.extend(prober.join().map_err(|_| anyhow::anyhow!("a prober crashed; please report it"))??);
        }
        anyhow::Ok(took)
    })?;
    sorted.sort_unstable();
    Ok(Freshness { sorted, after: after.into_inner() })
}

/// What was measured, in words.
pub(super) fn describe(Freshness { sorted, after }: &Freshness) -> String {
    let ms = |share| percentile(sorted, share).unwrap_or_default().as_millis();
    let when = if *after == 0 { "during the load".to_owned() } else { format!("{after} of them after the load") };
    let (p50, p99, longest, count) = (ms(0.5), ms(0.99), ms(1.0), sorted.len());
    format!(
        "p50 {p50} ms, p99 {p99} ms, longest {longest} ms, by {count} probes{}{when}",
        if *after == 0 { " " } else { ", " }
    )
}

fn one(url: &str, admin: &Admin, client: &reqwest::blocking::Client, number: usize) -> anyhow::Result<Duration> {
    let device = Identifier::new("device_id", format!("probe-device-{number}"));
    let record = json!({"type": "event", "message_id": format!("probe-{number}"), "event": "Probe",
        "identifiers": {"user_id": format!("probe-user-{number}"), "device_id": device.value},
        "device": {"set": {"probe": number}}});
    let request = client.post(format!("{url}/v1/batch")).bearer_auth(api_key(TENANT)).json(&json!({"batch": [record]}));
    let answer = request.send().context("cannot send a probe")?;
    let status = answer.status();
    let text = answer.text().context("cannot send a probe")?;
    let acknowledged = Instant::now();
    if !status.is_success() {
        bail!("a probe is answered {status}: {text}");
    }
    let id = DeviceId::of(TENANT, &device).to_string();
    while snapshot::documents(admin, TENANT, "devices", Some(&id))?.is_empty() {
        if acknowledged.elapsed() > PATIENCE {
            bail!("the document {id} of an accepted record cannot be read after {PATIENCE:?}");
        }
        std::thread::sleep(ASK_EVERY);
    }
    Ok(acknowledged.elapsed())
}

/// The time within which this share (0 to 1) of the probes took; `sorted` ascends.
fn percentile(sorted: &[Duration], share: f64) -> Option<Duration> {
    let last = sorted.len().checked_sub(1)?;
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1).min(last)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        let of = |share| percentile(&times, share).unwrap().as_millis();
        assert_eq!((of(0.5), of(0.99), of(1.0), of(0.0)), (50, 99, 100, 1));
        assert_eq!(percentile(&times[..1], 0.99), Some(times[0]));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn it_is_said_how_many_probes_came_after_the_load() {
        let sorted: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        let mut freshness = Freshness { sorted, after: 0 };
        assert_eq!(describe(&freshness), "p50 50 ms, p99 99 ms, longest 100 ms, by 100 probes during the load");
        freshness.after = 40;
        let said = describe(&freshness);
        assert_eq!(said, "p50 50 ms, p99 99 ms, longest 100 ms, by 100 probes, 40 of them after the load");
    }

    #[test]
    fn a_short_load_is_followed_by_enough_probes() {
        let over = AtomicBool::new(false);
        let one = |number: usize| {
            over.store(number >= 20, Ordering::Relaxed);
            Ok(Duration::from_millis(number as u64))
        };
        let freshness = measure(&over, one).unwrap();
        assert_eq!(freshness.sorted.len(), ENOUGH, "as many as one in a hundred needs, and no more");
        assert!((ENOUGH - 20 - PROBERS..=ENOUGH - 20).contains(&freshness.after), "{}", freshness.after);
    }

    #[test]
    fn a_probe_that_fails_ends_the_probing() {
        let over = AtomicBool::new(true);
        let error = measure(&over, |_| bail!("no document")).unwrap_err();
        assert_eq!(error.to_string(), "no document");
    }
}
