//! The official Segment SDK for Node, unchanged, against the gateway: it must be content, and its calls must be in the log as it made them.
//!
//! The SDK is pinned in `tests/segment-sdk` and installed once into the cache folder; this test needs `node` and `npm` of version 20 or newer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use millstream_model::proto::{Envelope, Source};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Gateway, Mode, config};

/// Tests of this file run at one time and share the installation.
static INSTALLED: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();

fn cache() -> PathBuf {
    let below = |variable: &str, folder: &str| Some(PathBuf::from(std::env::var_os(variable)?).join(folder));
    below("MILLSTREAM_CACHE", "")
        .or_else(|| below("XDG_CACHE_HOME", "millstream"))
        .or_else(|| below("HOME", ".cache/millstream"))
        .expect("set MILLSTREAM_CACHE to a folder for test tools")
}

fn check_node() {
    let version = Command::new("node").arg("--version").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let major: u32 = version.trim_start_matches('v').split('.').next().unwrap_or_default().parse().unwrap_or(0);
    assert!(
        major >= 20,
        "this test runs the official Segment SDK and needs node 20 or newer with npm in PATH; found `{version}`. Debian: apt-get install nodejs npm"
    );
}

/// The folder with the script and the installed SDK. Its name has the hash of the lock file, so that another version is another folder;
/// it is installed beside its place and renamed, so that an interrupted or a concurrent installation leaves nothing half done.
fn installed() -> &'static Path {
    INSTALLED.get_or_init(|| {
        check_node();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("segment-sdk");
        let lock = std::fs::read(source.join("package-lock.json")).unwrap();
        let target = cache().join(format!("segment-sdk-{:016x}", millstream_model::id::content_hash(&lock)));
        if !target.join("node_modules").is_dir() {
            install(&source, &target);
        }
        std::fs::copy(source.join("run.mjs"), target.join("run.mjs")).unwrap();
        target
    })
}

fn install(source: &Path, target: &Path) {
    std::fs::create_dir_all(target.parent().unwrap()).unwrap();
    let beside = tempfile::tempdir_in(target.parent().unwrap()).unwrap();
    for file in ["package.json", "package-lock.json", ".npmrc"] {
        std::fs::copy(source.join(file), beside.path().join(file)).unwrap();
    }
    let npm = Command::new("npm").arg("ci").current_dir(beside.path()).output();
    let npm =
        npm.expect("npm is missing: this test installs the official Segment SDK with it. Debian: apt-get install npm");
    let errors = String::from_utf8_lossy(&npm.stderr);
    assert!(npm.status.success(), "`npm ci` failed; it is needed once, with network: {errors}");
    let folder = beside.keep();
    if std::fs::rename(&folder, target).is_err() {
        assert!(target.join("node_modules").is_dir(), "the SDK could not be put into {}", target.display());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

/// Runs the script: what the SDK delivered, and its errors.
fn run(gateway: &Gateway, key: &str) -> Value {
    let host = format!("http://{}", gateway.address);
    let output = Command::new("node").arg("run.mjs").args([&host, key]).current_dir(installed()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let said = serde_json::from_str(text.trim());
    said.unwrap_or_else(|_| panic!("the script failed: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

fn body(envelope: &Envelope) -> Value {
    serde_json::from_slice(&envelope.body).unwrap()
}

#[test]
fn every_call_is_in_the_log_as_it_was_made() {
    let gateway = Gateway::start(&config());
    let said = run(&gateway, "key-acme");
    assert_eq!(said["errors"], json!([]));
    let envelopes = gateway.log.envelopes();
    let find = |kind: &str| {
        let found: Vec<&Envelope> = envelopes.iter().filter(|envelope| envelope.kind == kind).collect();
        assert_eq!(found.len(), 1, "{kind}");
        found[0]
    };
    assert_eq!(envelopes.len(), 6);
    for (kind, members) in [
        ("identify", json!({"traits": {"name": "Zoë", "plan": "pro"}})),
        ("track", json!({"event": "Order Completed", "properties": {"revenue": 12.5, "currency": "EUR"}})),
        ("page", json!({"name": "Home", "properties": {"path": "/"}})),
        ("screen", json!({"name": "Start"})),
        ("group", json!({"groupId": "account-1", "traits": {"seats": 12}})),
        ("alias", json!({"userId": "user-42", "previousId": "anonymous-0"})),
    ] {
        let envelope = find(kind);
        assert_eq!((envelope.tenant.as_str(), envelope.source()), ("acme", Source::Segment));
        let body = body(envelope);
        for (name, value) in members.as_object().unwrap() {
            assert_eq!(&body[name], value, "{kind}.{name}");
        }
        assert_eq!(body["messageId"], envelope.message_id);
        assert_eq!(body["context"]["library"]["name"], "@segment/analytics-node");
        let sent_ms = envelope.sent_ms.expect("the SDK says when it sent the batch");
        assert!((sent_ms - envelope.received_ms).abs() < 60_000, "{sent_ms} {}", envelope.received_ms);
    }
    assert_eq!(find("track").message_id, "own-id-1");
    assert_eq!(find("alias").group, u32::from(millstream_model::key::group_of_parts("acme", "user_id", "user-42")));
    let anonymous = u32::from(millstream_model::key::group_of_parts("acme", "anonymous_id", "anonymous-7f1c"));
    assert!(["identify", "track", "page", "screen", "group"].iter().all(|kind| find(kind).group == anonymous));
    assert_eq!(said["delivered"].as_array().unwrap().len(), 6);
}

#[test]
fn a_lost_acknowledgement_makes_the_sdk_repeat_with_the_same_ids() {
    let gateway = Gateway::start(&config());
    gateway.log.set(Mode::LoseAcknowledgement);
    let log = gateway.log.clone();
    let heal = std::thread::spawn(move || {
        log.wait_for(|log| !log.envelopes().is_empty());
        log.set(Mode::Acknowledge);
    });
    let said = run(&gateway, "key-acme");
    heal.join().unwrap();
    assert_eq!(said["errors"], json!([]));
    let mut ids: Vec<String> = gateway.log.envelopes().into_iter().map(|envelope| envelope.message_id).collect();
    let all = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 6, "the same ids come again, no others");
    assert!(all > 6, "the lost frame came twice");
}

#[test]
fn a_wrong_write_key_is_an_error_of_the_sdk() {
    let gateway = Gateway::start(&config());
    let said = run(&gateway, "key-of-somebody");
    assert!(!said["errors"].as_array().unwrap().is_empty(), "{said}");
    assert!(gateway.log.envelopes().is_empty());
}
