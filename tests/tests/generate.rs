//! The generator against the real code of the gateway's splitter and of unify: what it calls good passes, and what it calls bad is
//! refused where and why it says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream::generate::truth::Truth;
use millstream::generate::write::{self, MANIFEST};
use millstream::generate::{Options, Stream, generate};
use millstream_model::key::shard_of;
use millstream_model::proto::{Envelope, Source, Stamp};
use millstream_stages::source::{Accepted, DataApiKind, Endpoint, Limits, Request, SegmentKind, split};
use millstream_stages::unify::{Unify, UnifyConfig, UnifyValue};
use millstream_stages::{At, Input, MemoryState, Outbox, Rejected, Stage};
use std::collections::BTreeMap;

const NOW: i64 = 1_800_000_000_000;
const SHARDS: u32 = 8;

fn options(seed: u64) -> Options {
    Options { tenants: 5, users: 150, seed, now_ms: NOW, days: 25, bad_share: 0.05, duplicates: 0.05 }
}

type Memory = MemoryState<UnifyValue>;

/// One line as `millstream send` sends it.
fn request(source: Source, line: &str) -> (Endpoint, String) {
    match source {
        Source::Segment => {
            let sent_at = millstream_model::value::format_time(NOW);
            (Endpoint::Segment(SegmentKind::Batch), format!(r#"{{"batch":[{line}],"sentAt":"{sent_at}"}}"#))
        }
        Source::DataApi if line.contains("\"retained_user\"") => {
            (Endpoint::DataApi(DataApiKind::Merge), format!(r#"{{"merge_data":[{line}]}}"#))
        }
        Source::DataApi if line.contains("\"identity_type\"") => {
            (Endpoint::DataApi(DataApiKind::Delete), line.to_owned())
        }
        Source::DataApi => {
            (Endpoint::DataApi(DataApiKind::Transition), format!(r#"{{"type":"transition","elements":[{line}]}}"#))
        }
        _ => (Endpoint::NativeBatch, line.to_owned()),
    }
}

fn accept(stream: &Stream, line: &str) -> Accepted {
    let (endpoint, body) = request(stream.source, line);
    let request = Request {
        tenant: &stream.tenant,
        endpoint,
        body: body.as_bytes(),
        ndjson: endpoint == Endpoint::NativeBatch,
        idempotency_key: None,
        received_ms: NOW,
        trace: None,
    };
    let mut new_id = || panic!("a record without message id: {line}");
    let limits = Limits { max_context_bytes: 16 * 1024, ..Limits::default() };
    match split(&request, &limits, &mut new_id) {
        Ok(mut records) => {
            assert_eq!(records.len(), 1, "{line}");
            records.remove(0)
        }
        Err(refusal) => panic!("{line}: {refusal}"),
    }
}

fn unify(envelope: Envelope, position: u64, state: &mut Memory) -> Outbox {
    let partition = shard_of(envelope.group as u16, SHARDS);
    let stamp = Stamp { time_ms: NOW as u64 + position / 1000, offset: position, index: 0 };
    let at = At { input: Input::Ingress, partition, stamp, batch_ms: NOW as u64, generation: 1, shards: SHARDS };
    let mut out = Outbox::default();
    Unify::new(&UnifyConfig::default()).process(envelope, &at, state, &mut out).unwrap();
    out
}

/// What the gateway and unify really make of a tenant's records.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    accepted: u64,
    duplicates: u64,
    effects: u64,
    events: u64,
    refused: BTreeMap<String, u64>,
    rejects: BTreeMap<String, u64>,
    /// Records of which a part or a field was dropped.
    partial: Vec<String>,
}

fn outcomes(streams: &[Stream]) -> BTreeMap<String, Outcome> {
    let mut outcomes: BTreeMap<String, Outcome> = BTreeMap::new();
    let mut state = Memory::default();
    let mut position = 0;
    for stream in streams {
        let outcome = outcomes.entry(stream.tenant.clone()).or_default();
        for line in &stream.lines {
            position += 1;
            match accept(stream, line) {
                Accepted::Refused { refusal, .. } => {
                    *outcome.refused.entry(refusal.reason.code().into()).or_default() += 1
                }
                Accepted::Envelope(envelope) => {
                    let mut out = unify(envelope, position, &mut state);
                    let usage = *out.usage(&stream.tenant);
                    outcome.accepted += usage.accepted;
                    outcome.duplicates += usage.duplicates;
                    outcome.effects += out.actions.iter().filter(|action| !action.uncounted).count() as u64;
                    outcome.events += out.actions.iter().filter(|action| action.event.is_some()).count() as u64;
                    for Rejected { reason, .. } in &out.reasons {
                        *outcome.rejects.entry(reason.code().into()).or_default() += 1;
                    }
                    if out.rejects.len() as u64 != usage.rejects {
                        outcome.partial.push(line.clone());
                    }
                }
            }
        }
    }
    outcomes
}

fn expected(truth: &Truth) -> BTreeMap<String, Outcome> {
    let of = |truth: &millstream::generate::truth::TenantTruth| Outcome {
        accepted: truth.accepted,
        duplicates: truth.duplicates,
        effects: truth.effects,
        events: truth.events,
        refused: truth.refused.clone(),
        rejects: truth.rejects.clone(),
        partial: Vec::new(),
    };
    truth.tenants.iter().map(|(tenant, truth)| (tenant.clone(), of(truth))).collect()
}

#[test]
fn good_records_pass_and_bad_ones_are_refused_as_said() {
    for seed in [7, 8, 9] {
        let load = generate(&options(seed)).unwrap();
        let (found, expected) = (outcomes(&load.streams), expected(&load.truth));
        for (tenant, expected) in &expected {
            assert_eq!(&found[tenant], expected, "seed {seed}, {tenant}");
        }
    }
}

/// The identifiers that unify links, by a union-find over what it says, are the people of the truth.
#[test]
fn unify_links_what_the_truth_links() {
    let load = generate(&Options { bad_share: 0.0, duplicates: 0.0, ..options(7) }).unwrap();
    let mut state = Memory::default();
    let mut position = 0;
    let mut owners: BTreeMap<(String, String), usize> = BTreeMap::new();
    for (tenant, truth) in &load.truth.tenants {
        for (number, person) in truth.users.iter().chain(&truth.deleted).enumerate() {
            for (kind, values) in &person.identifiers {
                for value in values {
                    let old = owners.insert((tenant.clone(), format!("{kind}={value}")), number);
                    assert_eq!(old, None, "{tenant}: {kind}={value} is two people's");
                }
            }
        }
    }
    let mut unseen = owners.clone();
    for stream in &load.streams {
        for line in &stream.lines {
            position += 1;
            let Accepted::Envelope(envelope) = accept(stream, line) else { panic!("{line}") };
            for action in unify(envelope, position, &mut state).actions {
                let names = action.user_identifiers.iter().map(|name| (stream.tenant.clone(), name.to_string()));
                let names: Vec<_> = names.collect();
                let people: std::collections::BTreeSet<_> = names.iter().map(|name| owners[name]).collect();
                assert_eq!(people.len(), 1, "{line}");
                for name in &names {
                    unseen.remove(name);
                }
            }
        }
    }
    assert!(unseen.is_empty(), "{unseen:?}");
}

#[test]
fn files_are_the_same_for_the_same_seed_and_as_the_manifest_says() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for folder in &folders {
        write::write(&generate(&options(7)).unwrap(), folder.path()).unwrap();
    }
    let manifest = std::fs::read_to_string(folders[0].path().join(MANIFEST)).unwrap();
    let parts: Vec<write::Part> = serde_json::from_str(&manifest).unwrap();
    assert_eq!(parts.len(), 8);
    for part in &parts {
        let texts = folders.each_ref().map(|folder| std::fs::read(folder.path().join(&part.file)).unwrap());
        assert_eq!(texts[0], texts[1], "{}", part.file);
        assert_eq!(texts[0].iter().filter(|byte| **byte == b'\n').count() as u64, part.records, "{}", part.file);
    }
}

#[test]
fn the_truth_survives_its_file() {
    let truth = generate(&options(7)).unwrap().truth;
    let text = serde_json::to_string(&truth).unwrap();
    assert_eq!(serde_json::from_str::<Truth>(&text).unwrap(), truth);
}
