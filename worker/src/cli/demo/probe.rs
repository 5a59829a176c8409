//! Freshness: from the moment in which a sender knows that its record is accepted, until the record's document can be read.
//!
//! Several probers send records to a tenant of their own while the load runs, each one after the other. A probe is about a new device, whose
//! document has an id that is known beforehand; the document is asked for again and again until it is there. So the figure
//! contains the asking (a few milliseconds). A probe that waits long keeps its prober from sending others, but not the other probers.

use crate::cli::{Admin, snapshot};
use crate::generate::api_key;
use anyhow::{Context, bail};
use millstream_model::id::DeviceId;
use millstream_model::proto::Identifier;
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Probes until `stop`; how long each took, shortest first.
pub(super) fn probe(url: &str, admin: &Admin, stop: &AtomicBool) -> anyhow::Result<Vec<Duration>> {
    let client = reqwest::blocking::Client::new();
    let series = |first: usize| -> anyhow::Result<Vec<Duration>> {
        let mut took = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            took.push(one(url, admin, &client, first + took.len() * PROBERS)?);
            std::thread::sleep(PAUSE);
        }
        Ok(took)
    };
    let mut took = std::thread::scope(|scope| {
        let series = &series;
        let probers: Vec<_> = (0..PROBERS).map(|first| scope.spawn(move || series(first))).collect();
        let mut took = Vec::new();
        for prober in probers {
            took.extend(prober.join().map_err(|_| anyhow::anyhow!("a prober crashed; please report it"))??);
        }
        anyhow::Ok(took)
    })?;
    took.sort_unstable();
    Ok(took)
}

/// What was measured, in words; `sorted` ascends.
pub(super) fn describe(sorted: &[Duration]) -> String {
    let ms = |share| percentile(sorted, share).unwrap_or_default().as_millis();
    let p99 = if sorted.len() < ENOUGH { String::new() } else { format!("p99 {} ms, ", ms(0.99)) };
    format!("p50 {} ms, {p99}longest {} ms, by {} probes during the load", ms(0.5), ms(1.0), sorted.len())
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
    fn a_percentile_needs_as_many_probes() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(describe(&times), "p50 50 ms, p99 99 ms, longest 100 ms, by 100 probes during the load");
        assert_eq!(describe(&times[..99]), "p50 50 ms, longest 99 ms, by 99 probes during the load");
    }
}
