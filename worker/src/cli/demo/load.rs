//! What the demo sends: generated records, and those of `examples/`.

use super::probe;
use crate::cli::generate::now_ms;
use crate::cli::sender::{self, Progress, Target};
use crate::cli::verify::Answers;
use crate::generate::{self, Options, Stream, api_key, truth::Truth};
use anyhow::Context;
use millstream_model::proto::Source;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// The tenant of the example records.
const EXAMPLES: &str = "examples";
const EXAMPLE_FILES: [(Source, &str); 3] = [
    (Source::Segment, include_str!("../../../../examples/segment.ndjson")),
    (Source::DataApi, include_str!("../../../../examples/data-api.ndjson")),
    (Source::Native, include_str!("../../../../examples/native.ndjson")),
];
const EXAMPLE_TRUTH: &str = include_str!("../../../../examples/truth.json");

/// The records of one tenant and source, and how far their sending is.
pub(super) struct Shipment {
    tenant: String,
    key: String,
    source: Source,
    pub(super) lines: Vec<String>,
    pub(super) progress: Progress,
}

impl Shipment {
    fn of(stream: Stream) -> Shipment {
        let Stream { tenant, key, source, lines } = stream;
        Shipment { tenant, key, source, lines, progress: Progress::default() }
    }

    /// Sends them all.
    pub(super) fn send(&self, url: &str) -> anyhow::Result<()> {
        let source = generate::write::source_name(self.source);
        let target = Target {
            to: url.to_owned(),
            key: self.key.clone(),
            source: self.source,
            batch: 500,
            parallel: 2,
            attempts: 10,
            prefix: format!("demo-{source}"),
        };
        let name = format!("{}.{source}", self.tenant);
        sender::send_lines(&target, &name, self.lines.iter().map(String::as_str), &self.progress)
    }
}

/// Everything to send, and what must come of it.
pub(super) fn prepare(tenants: u32, users: u32, seed: u64) -> anyhow::Result<(Vec<Shipment>, Truth)> {
    let options = Options { tenants, users, seed, now_ms: now_ms(), days: 20, bad_share: 0.01, duplicates: 0.02 };
    let mut load = generate::generate(&options)?;
    load.truth.add(serde_json::from_str(EXAMPLE_TRUTH).context("examples/truth.json is not a truth")?);
    let examples = EXAMPLE_FILES.map(|(source, text)| Stream {
        tenant: EXAMPLES.to_owned(),
        key: api_key(EXAMPLES),
        source,
        lines: text.lines().map(str::to_owned).collect(),
    });
    Ok((load.streams.into_iter().chain(examples).map(Shipment::of).collect(), load.truth))
}

/// All tenants with their keys, the probes' included.
pub(super) fn tenants(shipments: &[Shipment]) -> impl Iterator<Item = (String, String)> {
    let tenants: BTreeMap<String, String> =
        shipments.iter().map(|shipment| (shipment.tenant.clone(), shipment.key.clone())).collect();
    tenants.into_iter().chain([(probe::TENANT.to_owned(), api_key(probe::TENANT))])
}

/// What the senders were told.
pub(super) fn answers(shipments: &[Shipment]) -> BTreeMap<String, Answers> {
    let mut answers: BTreeMap<String, Answers> = BTreeMap::new();
    for shipment in shipments {
        let of_tenant = answers.entry(shipment.tenant.clone()).or_default();
        of_tenant.accepted += shipment.progress.accepted.load(Ordering::Relaxed);
        for failure in shipment.progress.failures() {
            *of_tenant.refused.entry(failure.problem.reason).or_default() += 1;
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_json_and_counted_right() {
        let (shipments, truth) = prepare(1, 1, 1).unwrap();
        let examples = shipments.iter().filter(|shipment| shipment.tenant == EXAMPLES);
        let lines: Vec<&String> = examples.flat_map(|shipment| &shipment.lines).collect();
        assert!(lines.iter().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
        let truth = &truth.tenants[EXAMPLES];
        assert_eq!((truth.sent, truth.accepted), (lines.len() as u64, lines.len() as u64));
        assert_eq!(truth.events, truth.users.iter().map(|user| user.events.len() as u64).sum::<u64>());
    }
}
