//! Freshness: from the moment in which a sender knows that its record is accepted, until the record's document can be read.
//!
//! Probe records are sent one after the other, to a tenant of their own, while the load runs. Each is about a new device, whose
//! document has an id that is known beforehand; the document is asked for again and again until it is there. So the figure
//! contains the asking (a few milliseconds), and a probe that waits long keeps fewer probes from being sent meanwhile.

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

/// Probes until `stop`; how long each took, shortest first.
pub(super) fn probe(url: &str, admin: &Admin, stop: &AtomicBool) -> anyhow::Result<Vec<Duration>> {
    let client = reqwest::blocking::Client::new();
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        took.push(one(url, admin, &client, took.len())?);
        std::thread::sleep(PAUSE);
    }
    took.sort_unstable();
    Ok(took)
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
pub(super) fn percentile(sorted: &[Duration], share: f64) -> Option<Duration> {
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
}
