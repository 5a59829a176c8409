//! Golden files of the sources: `fixtures/<source>/<name>.json` is a request, `<name>.golden.json` what becomes of it: the envelopes (or why
//! not), the actions, the rejects and the sums. With `apply`, a list of numbers of actions, also what the action stage rejects when they come to
//! it in that order. `UPDATE_GOLDEN=1 cargo test -p millstream-stages --test golden` rewrites them;
//! review the difference like code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use millstream_stages::source::{DataApiKind, Endpoint, SegmentKind};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use support::{Memory, Users, accepted_json, act, action_json, envelopes, request, split_default, unify};

fn endpoint(name: &str) -> Endpoint {
    match name {
        "native" => Endpoint::NativeBatch,
        "data_api/customer" => Endpoint::DataApi(DataApiKind::Customer),
        "data_api/event" => Endpoint::DataApi(DataApiKind::Event),
        "data_api/device" => Endpoint::DataApi(DataApiKind::Device),
        "data_api/transition" => Endpoint::DataApi(DataApiKind::Transition),
        "data_api/merge" => Endpoint::DataApi(DataApiKind::Merge),
        "data_api/delete" => Endpoint::DataApi(DataApiKind::Delete),
        "segment/identify" => Endpoint::Segment(SegmentKind::Identify),
        "segment/track" => Endpoint::Segment(SegmentKind::Track),
        "segment/page" => Endpoint::Segment(SegmentKind::Page),
        "segment/screen" => Endpoint::Segment(SegmentKind::Screen),
        "segment/group" => Endpoint::Segment(SegmentKind::Group),
        "segment/alias" => Endpoint::Segment(SegmentKind::Alias),
        "segment/batch" => Endpoint::Segment(SegmentKind::Batch),
        other => panic!("no endpoint `{other}`: write it into the fixture's `endpoint`"),
    }
}

fn outcome(fixture: &Value) -> Value {
    let body = match &fixture["body"] {
        Value::String(text) => text.clone(),
        body => body.to_string(),
    };
    let mut request = request(endpoint(fixture["endpoint"].as_str().unwrap()), body.as_bytes());
    request.ndjson = fixture["ndjson"] == true;
    let accepted = match split_default(&request) {
        Ok(accepted) => accepted,
        Err(refusal) => {
            return json!({"request_refused": {"reason": refusal.reason.code(), "field": refusal.field, "message": refusal.message}});
        }
    };
    let out = unify(&envelopes(&accepted), &mut Memory::default());
    let reject =
        |message: &millstream_stages::PublicMessage| serde_json::from_slice::<Value>(&message.payload).unwrap();
    let usage = out.usage.get("acme").copied().unwrap_or_default();
    let mut outcome = json!({
        "split": accepted.iter().map(accepted_json).collect::<Vec<_>>(),
        "actions": out.actions.iter().map(action_json).collect::<Vec<_>>(),
        "rejects": out.rejects.iter().map(reject).collect::<Vec<_>>(),
        "usage": {"accepted": usage.accepted, "duplicates": usage.duplicates, "rejects": usage.rejects},
    });
    if let Some(order) = fixture["apply"].as_array() {
        let actions = order.iter().map(|index| out.actions[index.as_u64().unwrap() as usize].clone());
        let mut applied = millstream_stages::Outbox::default();
        act(actions.collect(), &mut Users::default(), &mut applied);
        outcome["action_rejects"] = applied.rejects.iter().map(reject).collect();
    }
    outcome
}

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let folders = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let files = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
    let is_fixture = |path: &PathBuf| !path.to_str().unwrap().ends_with(".golden.json");
    let mut files: Vec<PathBuf> = files.filter(is_fixture).collect();
    files.sort();
    files
}

#[test]
fn requests_become_what_the_golden_files_say() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 12, "fixtures are missing: {fixtures:?}");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut different = Vec::new();
    for path in fixtures {
        let fixture: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let found = serde_json::to_string_pretty(&outcome(&fixture)).unwrap() + "\n";
        let golden = path.with_extension("golden.json");
        if update {
            std::fs::write(&golden, found).unwrap();
            continue;
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if found != expected {
            let line = found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
            different.push(format!("{}: first different line {:?}", golden.display(), line.map(|line| line + 1)));
        }
    }
    assert!(different.is_empty(), "UPDATE_GOLDEN=1 rewrites them, then review:\n{}", different.join("\n"));
}
