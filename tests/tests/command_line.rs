//! The command line as its users have it: processes with arguments, output and exit codes, against `local` and against four roles on real servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_tests::conformance::unique;
use millstream_tests::load::{generated, settings};
use millstream_tests::pipeline::{DEADLINE, Pipeline, Settings, binary, until};
use millstream_tests::plan::FOLLOWS;
use millstream_tests::servers::{Kafka, Mongo};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// A visitor who turns out to be user 42, whose note would be two lines of ours; and a record that is too old, which unify rejects.
const GOOD: &str = r#"{"type":"event","message_id":"m1","event":"Product Viewed","identifiers":{"anonymous_id":"7f1c"}}
{"type":"user","message_id":"m2","identifiers":{"anonymous_id":"7f1c","user_id":"42"},"set":{"name":"Zoë","note":"x\n  name plan  value pro"},"add":{"tags":["a"]}}
{"type":"event","message_id":"m3","event":"Old","time":"2001-01-01T00:00:00Z","identifiers":{"user_id":"43"}}
"#;
/// The second line is not JSON.
const MIXED: &str = r#"{"type":"event","message_id":"m4","event":"Product Bought","identifiers":{"user_id":"42"}}
{"type":"user","message_id":"m5","identifiers":{"user_id":"42"},"set":{"age":NaN}}
"#;

/// An app with two identifiers, and a postback that knows the second one only.
const APP: &str = r#"{"type":"event","message_id":"m6","event":"App Opened","identifiers":{"user_id":"42","device_id":"D1","gaid":"G1"}}
"#;
const POSTBACK: &str = r#"{"type":"event","message_id":"m7","event":"Install","identifiers":{"gaid":"G1"},"properties":{"media_source":"ads"}}
"#;

/// What a command came to.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

fn run(arguments: &[&str]) -> Ended {
    let output = Command::new(binary().unwrap()).args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs a command that must end with a code; what it printed.
fn ends(code: i32, arguments: &[&str]) -> String {
    let ended = run(arguments);
    assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
    ended.out
}

/// The same where the reason is on standard error.
fn fails(code: i32, arguments: &[&str]) -> String {
    let ended = run(arguments);
    assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
    ended.err
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A command that goes on until it is ended.
struct Follow {
    child: Child,
    lines: Receiver<String>,
}

impl Follow {
    fn start(admin: &str, tenant: &str) -> Follow {
        Follow::of(&["tail", "events", "--follow", "--tenant", tenant, "--admin", admin])
    }

    fn of(arguments: &[&str]) -> Follow {
        let mut child = Command::new(binary().unwrap())
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (line, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).all(|text| line.send(text).is_ok()));
        Follow { child, lines }
    }

    /// The next event's name.
    fn next(&self) -> String {
        let line = self.lines.recv_timeout(DEADLINE).expect("an event");
        serde_json::from_str::<Value>(&line).unwrap()["event"].as_str().unwrap().to_owned()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its exit code and what it said last.
    fn end(self) -> (Option<i32>, String) {
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

/// Records in files, for as long as they are sent.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Files {
        Files { folder: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

/// Every command against a running pipeline; `stage` is the process whose admin port is followed, and which is stopped in the end.
fn every_command(pipeline: &mut Pipeline, settings: &Settings, stage: usize) {
    let (tenant, key) = &settings.tenants[0];
    let (to, admins) = (pipeline.gateway().unwrap().url(), pipeline.admins().join(","));
    let admin = pipeline.processes[stage].admin_url();
    let follow = Follow::start(&admin, tenant);
    send(&to, key);
    assert_eq!((follow.next(), follow.next()), ("Product Viewed".to_owned(), "Product Bought".to_owned()));
    sums(&admins, tenant);
    tails(&admin, tenant);
    inspections(&admins, tenant);
    devices(&to, key, &admins, tenant);
    pipeline.processes[stage].terminate().unwrap();
    let (code, said) = follow.end();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("ended the tail") || said.contains("lost"), "{said}");
}

fn send(to: &str, key: &str) {
    let files = Files::new();
    let (good, mixed) = (files.write("good.ndjson", GOOD), files.write("mixed.ndjson", MIXED));
    let send = |code, key: &str, file: &str| {
        let ended = run(&["send", "--source", "native", "--to", to, "--key", key, file]);
        assert_eq!(ended.code, Some(code), "{ended:?}");
        ended
    };
    assert!(send(0, key, &good).out.starts_with("3 accepted, 0 refused"));
    let refused = send(1, key, &mixed).out;
    assert!(
        refused.contains("mixed.ndjson:2: malformed_json") && refused.contains("1 accepted, 1 refused"),
        "{refused}"
    );
    assert!(send(0, key, &good).out.starts_with("3 accepted"), "repeated, which doubles nothing");
    let wrong = send(2, "no-such-key", &good);
    assert!(wrong.err.contains("key") && wrong.err.contains("401"), "{wrong:?}");
    assert!(send(2, key, &files.folder.path().join("none").display().to_string()).err.contains("none"));
}

/// Of 7 records: 3 had an effect, 3 were repeated, one was rejected.
fn sums(admins: &str, tenant: &str) {
    let usage = || {
        let all: Value = serde_json::from_str(&ends(0, &["usage", "--json", "--admin", admins]))?;
        Ok((all[tenant]["accepted"] == 7 && all[tenant]["in_progress"] == 0).then_some(all[tenant].clone()))
    };
    let sums = until("the end of the flow", usage).unwrap();
    let of = |name: &str| sums[name].as_u64().unwrap();
    assert_eq!(["effects", "duplicates", "rejects", "events"].map(of), [3, 3, 1, 2], "{sums}");
    let table = ends(0, &["usage", "--admin", admins, "--tenant", tenant]);
    assert!(table.lines().any(|line| line.starts_with(tenant) && line.contains("7 =")), "{table}");
    let unknown = ends(1, &["usage", "--admin", admins, "--tenant", "nobody"]);
    assert!(unknown.contains("no record of a tenant nobody has come") && unknown.contains(tenant), "{unknown}");
}

fn tails(admin: &str, tenant: &str) {
    let tail = |what: &str| lines(&ends(0, &["tail", what, "--tenant", tenant, "--admin", admin]));
    let events = tail("events");
    assert_eq!(events.len(), 2, "{events:?}");
    let rejects = tail("rejects");
    let shown: Vec<_> = rejects.iter().map(|reject| (&reject["message_id"], &reject["reason"])).collect();
    assert_eq!(shown, [(&"m3".into(), &"too_old".into())], "{rejects:?}");
    assert!(tail("mutations").iter().any(|mutation| mutation["collection"] == "users"));
    let nobody = fails(2, &["tail", "events", "--admin", "http://127.0.0.1:1"]);
    assert!(nobody.contains("cannot reach the admin port"), "{nobody}");
}

fn inspections(admins: &str, tenant: &str) {
    let inspect = |code, more: &[&str]| {
        let arguments = ["inspect", "user", "--tenant", tenant, "--admin", admins];
        ends(code, &[&arguments[..], more].concat())
    };
    let user: Value = serde_json::from_str(&inspect(0, &["--id", "user_id=42", "--json"])).unwrap();
    assert_eq!(user["events"], 2, "{user}");
    for attribute in user["attributes"].as_array().unwrap() {
        assert!(attribute["record"].as_str().is_some_and(|id| id.len() == 32), "by which record? {attribute}");
    }
    assert_eq!(inspect(0, &["--id", "anonymous_id=7f1c"]), inspect(0, &["--id", "user_id=42"]), "one person");
    let shown = inspect(0, &["--id", "user_id=42"]);
    assert!(
        shown.contains("name name  value Zoë  set ") && shown.contains(r#"value "x\n  name plan  value pro""#),
        "{shown}"
    );
    let forged = shown.lines().filter(|line| line.trim_start().starts_with("name plan"));
    assert_eq!(forged.count(), 0, "{shown}");
    assert!(inspect(1, &["--id", "user_id=unknown"]).starts_with("nobody at "));
}

/// A device is found by each of its identifiers, and what is sent by one of them is about its user.
fn devices(to: &str, key: &str, admins: &str, tenant: &str) {
    let files = Files::new();
    let send = |name: &str, text: &str| {
        ends(0, &["send", "--source", "native", "--to", to, "--key", key, &files.write(name, text)]);
    };
    let inspect = |entity: &str, id: &str| {
        let ended = run(&["inspect", entity, "--tenant", tenant, "--admin", admins, "--id", id, "--json"]);
        Ok(serde_json::from_str::<Value>(&ended.out).ok())
    };
    send("app.ndjson", APP);
    let device = until("the device", || inspect("device", "gaid=G1")).unwrap();
    assert_eq!(device["user"], "user_id=42", "{device}");
    send("postback.ndjson", POSTBACK);
    let user = until("the postback's effect", || {
        let user = inspect("user", "user_id=42")?;
        Ok(user.filter(|user| user["events"] == 4))
    });
    assert_eq!(user.unwrap()["devices"], serde_json::json!([device["id"]]));
}

#[test]
fn every_command_works_against_local() {
    let load = generated(31, 1, 1).unwrap();
    let settings = settings(&unique("commands"), &load);
    let mut pipeline = Pipeline::local(&settings).unwrap();
    every_command(&mut pipeline, &settings, 0);
}

#[test]
fn every_command_works_against_four_roles_on_real_servers() {
    let load = generated(31, 1, 1).unwrap();
    let mut settings = settings(&unique("commands-roles"), &load);
    settings.kafka = Some(Kafka::shared().unwrap().bootstrap().to_owned());
    settings.mongodb = Some(Mongo::shared().unwrap().uri().to_owned());
    let mut pipeline = Pipeline::roles(&settings).unwrap();
    every_command(&mut pipeline, &settings, 2);
}

/// A plan of one shard for each stage; unify's is this worker's, and the other one of the two comes next.
fn plan_of(unify: &str) -> String {
    let next = if unify == "unify-0" { "unify-1" } else { "unify-0" };
    format!(
        "generation: 1\nstages:\n  unify:\n    - {{shard: 0, owner: {unify}, successors: [{next}], warm: 1}}\n  \
         action:\n    - {{shard: 0, owner: action-0}}\n  reaction:\n    - {{shard: 0, owner: reaction-0}}\n"
    )
}

#[test]
fn a_plan_of_ones_own_is_checked_and_published_and_a_table_follows_it() {
    let settings = Settings {
        pipeline: unique("own-plan"),
        shards: 1,
        kafka: Some(Kafka::shared().unwrap().bootstrap().to_owned()),
        replication: 1,
        more: FOLLOWS.to_owned(),
        ..Settings::default()
    };
    let workers = [("unify", "unify-0"), ("unify", "unify-1"), ("action", "action-0")];
    let mut pipeline = Pipeline::launched(&settings, &workers).unwrap();
    let (files, config) = (Files::new(), pipeline.processes[0].config().display().to_string());
    let show = |code| ends(code, &["plan", "show", "--config", &config]);
    let apply = |text: &str, more: &[&str]| {
        let file = files.write("plan.yaml", text);
        run(&[&["plan", "apply", "--config", &config, "--file", &file], more].concat())
    };
    // What cannot be read, and what does not fit.
    let unread = apply("generation: 1\nstages:\n  unify:\n    - {shard: none}\n", &[]);
    assert!(unread.code == Some(2) && unread.err.contains("plan.yaml") && unread.err.contains("line 4"), "{unread:?}");
    let unheard = "action-0, unify-0, unify-1";
    until("all workers heard", || {
        let stranger = apply(&plan_of("unify-7"), &[]);
        assert_eq!(stranger.code, Some(2), "{stranger:?}");
        anyhow::ensure!(stranger.err.contains(unheard) && stranger.err.contains("unify-7"), "{}", stranger.err);
        Ok(Some(()))
    })
    .unwrap();
    let dry = apply(&plan_of("unify-0"), &["--force", "--dry-run"]);
    assert!(dry.code == Some(0) && dry.out.contains("owner: unify-0"), "{dry:?}");
    assert!(show(1).contains("no plan was published"));
    // Nobody has said yet that it does reaction.
    let unforced = apply(&plan_of("unify-0"), &[]);
    assert!(unforced.code == Some(2) && unforced.err.contains("reaction-0"), "{unforced:?}");
    let published = apply(&plan_of("unify-0"), &["--force"]);
    assert!(published.code == Some(0) && published.out.starts_with("published plan "), "{published:?}");
    // What is shown is what can be published.
    let shown = show(0);
    assert!(shown.contains("owner: unify-0"), "{shown}");
    assert_eq!(apply(&shown, &["--force", "--dry-run"]).code, Some(2), "a version counts once");
    for process in &mut pipeline.processes {
        process.ready().unwrap();
    }
    let admin = pipeline.processes[2].admin_url();
    let follow = Follow::of(&["shards", "--follow", "--stage", "unify", "--admin", &admin]);
    let owned_by = |worker: &str| {
        until(worker, || {
            let line = follow.lines.recv_timeout(DEADLINE)?;
            Ok((line.contains(" owner ") && line.contains(worker)).then_some(()))
        })
        .unwrap();
    };
    owned_by("unify-0");
    assert_eq!(apply(&plan_of("unify-1"), &["--force"]).code, Some(0));
    owned_by("unify-1");
    // It goes on when whoever it asks is away for a while.
    pipeline.processes[2].kill().unwrap();
    until("an error", || Ok(follow.lines.recv_timeout(DEADLINE)?.contains(&admin).then_some(()))).unwrap();
    pipeline.processes[2].start().unwrap();
    owned_by("unify-1");
    follow.kill();
}

#[test]
fn another_number_of_shards_is_refused_before_anything_starts() {
    let load = generated(32, 1, 1).unwrap();
    let mut pipeline = Pipeline::local(&settings(&unique("shards"), &load)).unwrap();
    pipeline.processes[0].terminate().unwrap();
    let config: PathBuf = pipeline.processes[0].config();
    let said = fails(2, &["local", "--shards", "2", "--config", &config.display().to_string()]);
    assert!(said.contains("this data_dir was made with shards: 4; the configuration says 2"), "{said}");
    assert!(said.contains("--shards 4") && !said.contains("ERROR") && !said.contains("ingress"), "{said}");
    pipeline.processes[0].start().unwrap();
}

/// In a folder that has the records of another demo already they are duplicates, and that does not add up.
#[test]
fn the_demo_ends_with_0_only_when_everything_adds_up() {
    let folder = tempfile::tempdir().unwrap();
    let demo = |code, within: &str| demo(code, folder.path(), within);
    let good = demo(0, "120");
    assert!(good.contains("everything adds up: "), "{good}");
    let freshness = good.lines().find(|line| line.starts_with("freshness")).unwrap();
    assert!(["p50 ", "p99 ", "longest "].iter().all(|figure| freshness.contains(figure)), "{freshness}");
    assert!(good.contains("millstream inspect user --tenant"), "a profile is shown: {good}");
    let bad = demo(1, "1");
    assert!(bad.contains("things are not as they must be:") && !bad.contains("everything adds up"), "{bad}");
}

fn demo(code: i32, folder: &Path, within: &str) -> String {
    let folder = folder.display().to_string();
    ends(code, &["demo", "--tenants", "1", "--users", "20", "--folder", &folder, "--within", within])
}
