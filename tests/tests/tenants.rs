//! `millstream tenant` on a real Kafka, with two gateways that follow `control`, and unify where records are judged: what is published is in force, and what is not to be published is not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_plan::view::Bounds;
use millstream_shard::control::Listener;
use millstream_shard::log::{Log, TopicPartition};
use millstream_shard::topics::Topics;
use millstream_stores::kafka::KafkaLog;
use millstream_tests::conformance::unique;
use millstream_tests::pipeline::{Pipeline, Process, Settings, binary, until};
use millstream_tests::plan::{FOLLOWS, plan_auto};
use millstream_tests::servers::Kafka;
use serde_json::{Value, json};
use std::process::{Command, Stdio};

/// What a command came to.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

/// A pipeline's gateways, and whoever publishes for them.
struct Scene {
    pipeline: Pipeline,
    settings: Settings,
    log: KafkaLog,
    folder: tempfile::TempDir,
}

impl Scene {
    fn start(gateways: &[&str]) -> Scene {
        Scene::of("orders", gateways)
    }

    /// Of a pipeline of this name, in a namespace of its own.
    fn of(name: &str, gateways: &[&str]) -> Scene {
        let processes: Vec<_> = gateways.iter().map(|name| ("gateway", *name)).collect();
        Scene::with(name, &processes)
    }

    /// With these processes, the gateways first.
    fn with(name: &str, processes: &[(&'static str, &str)]) -> Scene {
        let gateways = processes.iter().filter(|(role, _)| *role == "gateway").count();
        let kafka = Kafka::shared().unwrap();
        let settings = Settings {
            pipeline: format!("{}.{name}", unique("tenants").replace('.', "-")),
            shards: 1,
            kafka: Some(kafka.bootstrap().to_owned()),
            replication: 1,
            more: format!("{FOLLOWS}gateway: {{count: {gateways}}}\n"),
            ..Settings::default()
        };
        let mut pipeline = Pipeline::launched(&settings, processes).unwrap();
        if gateways < processes.len() {
            // Nobody is there for the shards of other stages: it says so, and places the others all the same.
            let unify = pipeline.processes.last().unwrap();
            until("a plan that unify follows", || {
                let planned = plan_auto(&pipeline).err();
                let answer = reqwest::blocking::get(format!("{}/readyz", unify.admin_url()))?;
                anyhow::ensure!(answer.status().is_success(), "{planned:?}, {}", answer.text()?);
                Ok(Some(()))
            })
            .unwrap();
        }
        pipeline.processes.iter_mut().for_each(|process| process.ready().unwrap());
        let log = KafkaLog::new(kafka.config()).unwrap();
        // A gateway is ready a moment before its first report is out.
        until("reports of all gateways", || {
            let topics = Topics::new(&settings.pipeline, settings.shards, 1);
            let listener = Listener::open(&log, &topics, Bounds::default(), 0);
            let count = listener?.view().gateways(0).count();
            Ok((count == gateways).then_some(()))
        })
        .unwrap();
        Scene { pipeline, settings, log, folder: tempfile::tempdir().unwrap() }
    }

    /// `millstream tenant`, with the first gateway's configuration.
    fn tenant(&self, arguments: &[&str]) -> Ended {
        let command = ["tenant"].iter().chain(arguments).chain(&["--config"]).copied().collect::<Vec<_>>();
        let config = self.pipeline.gateway().unwrap().config();
        let output = Command::new(binary().unwrap()).args(command).arg(config).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// `millstream tenant apply` of tenants, each with keys of the Secret `keys`.
    fn apply(&self, tenants: &[(&str, &[&str])], more: &[&str]) -> Ended {
        self.apply_on(tenants, &json!({}), more)
    }

    /// The same, each with this in its spec, too.
    fn apply_on(&self, tenants: &[(&str, &[&str])], terms: &Value, more: &[&str]) -> Ended {
        let path = self.folder.path().join("tenants.yaml");
        std::fs::write(&path, self.file(tenants, terms)).unwrap();
        let arguments: Vec<&str> = ["apply", "-f", path.to_str().unwrap()].iter().chain(more).copied().collect();
        self.tenant(&arguments)
    }

    fn file(&self, tenants: &[(&str, &[&str])], terms: &Value) -> String {
        let (_, pipeline) = self.settings.pipeline.split_once('.').unwrap();
        let tenant = |(name, keys): &(&str, &[&str])| {
            let keys: Vec<_> = keys.iter().map(|key| json!({"name": "keys", "key": key})).collect();
            let mut spec = json!({"pipelineRef": {"name": pipeline}, "apiKeys": keys});
            spec.as_object_mut().unwrap().extend(terms.as_object().unwrap().clone());
            json!({"apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": name}, "spec": spec})
        };
        let labels = json!({"ingestion.millstream.dev/api-keys": "true"});
        let keys = json!({"one": "first-key", "two": "second-key", "three": "third-key\n", "blank": "fourth key"});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys", "labels": labels}, "stringData": keys});
        let documents = tenants.iter().map(tenant).chain([secret]);
        documents.map(|document| serde_yaml::to_string(&document).unwrap()).collect::<Vec<_>>().join("---\n")
    }

    /// Every gateway answers this key so, at once: the command has waited for them.
    fn answers(&self, key: &str, expected: u16) {
        for gateway in &self.pipeline.processes {
            assert_eq!(answer(gateway, key), expected, "{key} at {}", gateway.name);
        }
    }

    /// Where `control` ends; also what was published and went again moves it.
    fn end(&self) -> u64 {
        let control = Topics::new(&self.settings.pipeline, self.settings.shards, 1).control;
        self.log.bounds(&TopicPartition::new(control, 0)).unwrap().1
    }

    /// What does not publish leaves `control` as it is, byte by byte.
    fn publishes_nothing(&self, command: impl FnOnce() -> Ended) -> Ended {
        let before = self.end();
        let ended = command();
        assert_eq!(self.end(), before, "{ended:?}");
        ended
    }
}

fn answer(gateway: &Process, key: &str) -> u16 {
    let record = json!({"type": "event", "message_id": "m", "event": "Opened", "identifiers": {"user_id": "u"}});
    let request = reqwest::blocking::Client::new()
        .post(format!("{}/v1/batch", gateway.url()))
        .bearer_auth(key)
        .header("content-type", "application/json")
        .body(json!({"batch": [record]}).to_string());
    request.send().unwrap().status().as_u16()
}

fn ends(ended: &Ended, code: i32, out: &str) {
    assert_eq!((ended.code, ended.out.as_str()), (Some(code), out), "{ended:?}");
}

#[test]
fn tenants_come_change_and_go_without_an_operator() {
    let scene = Scene::start(&["gateway-a", "gateway-b"]);
    let in_force = "in force at every gateway: gateway-a, gateway-b\n";
    scene.answers("first-key", 401);
    let dry = scene.publishes_nothing(|| scene.apply(&[("acme", &["one"])], &["--dry-run"]));
    ends(&dry, 0, "acme: created, 1 key\na dry run: nothing was published\n");
    ends(&scene.apply(&[("acme", &["one"])], &[]), 0, &format!("acme: created, 1 key\n{in_force}"));
    scene.answers("first-key", 200);
    scene.answers("second-key", 401);
    // One key is replaced by another, with both for a while.
    ends(&scene.apply(&[("acme", &["one", "two"])], &[]), 0, &format!("acme: changed, 2 keys\n{in_force}"));
    scene.answers("first-key", 200);
    scene.answers("second-key", 200);
    ends(&scene.apply(&[("acme", &["two"])], &[]), 0, &format!("acme: changed, 1 key\n{in_force}"));
    scene.answers("first-key", 401);
    scene.answers("second-key", 200);
    // The same again is nothing new.
    let again = scene.publishes_nothing(|| scene.apply(&[("acme", &["two"])], &[]));
    ends(&again, 0, &format!("acme: unchanged, 1 key\n{in_force}"));
    // Who is not in the file stays, until that is asked for.
    ends(&scene.apply(&[("globex", &["three"])], &[]), 0, &format!("globex: created, 1 key\n{in_force}"));
    scene.answers("second-key", 200);
    scene.answers("third-key", 200);
    let metrics = reqwest::blocking::get(format!("{}/metrics", scene.pipeline.processes[1].admin_url())).unwrap();
    let metrics = metrics.text().unwrap();
    assert!(
        metrics.contains("gateway_records_total{tenant=\"globex\",source=\"native\",outcome=\"accepted\"}"),
        "{metrics}"
    );
    let listed = scene.publishes_nothing(|| scene.tenant(&["list"]));
    ends(&listed, 0, "tenant  keys  hashes\nacme       1  f397f260\nglobex     1  c3459480\n");
    // Another one's key.
    let taken = scene.publishes_nothing(|| scene.apply(&[("copy", &["two"])], &[]));
    ends(&taken, 2, "");
    assert!(taken.err.contains("Tenant copy: one of its keys is tenant acme's, too, who is published"), "{taken:?}");
    // A file with mistakes, together with a change that would be good.
    let bad: &[(&str, &[&str])] = &[("acme", &["one"]), ("blank", &["blank"]), ("none", &["four"])];
    let bad = scene.publishes_nothing(|| scene.apply(bad, &["--prune"]));
    ends(&bad, 2, "");
    for words in [
        "tenants.yaml is not published: 2 to correct:\n- Tenant blank: what",
        "\n- Tenant none: Secret keys has nothing under `four`",
    ] {
        assert!(bad.err.contains(words), "{words:?} is not in {bad:?}");
    }
    ends(
        &scene.apply(&[("globex", &["three"])], &["--prune"]),
        0,
        &format!("acme: deleted\nglobex: unchanged, 1 key\n{in_force}"),
    );
    scene.answers("second-key", 401);
    scene.answers("third-key", 200);
    ends(&scene.tenant(&["delete", "globex"]), 0, &format!("globex: deleted\n{in_force}"));
    scene.answers("third-key", 401);
    let gone = scene.publishes_nothing(|| scene.tenant(&["delete", "globex"]));
    ends(&gone, 2, "");
    assert!(gone.err.contains("no tenant globex is published; `millstream tenant list`"), "{gone:?}");
}

#[test]
fn a_gateway_that_does_not_hear_it_is_named() {
    let mut scene = Scene::start(&["gateway-a", "gateway-b"]);
    scene.pipeline.processes[1].signal("STOP").unwrap();
    let ended = scene.apply(&[("acme", &["one"])], &["--timeout", "3s"]);
    ends(&ended, 1, "acme: created, 1 key\n");
    assert!(ended.err.contains("published, but after 3s not heard by gateway-b: "), "{ended:?}");
    scene.pipeline.processes[1].signal("CONT").unwrap();
    let again = scene.publishes_nothing(|| scene.apply(&[("acme", &["one"])], &[]));
    ends(&again, 0, "acme: unchanged, 1 key\nin force at every gateway: gateway-a, gateway-b\n");
    scene.answers("first-key", 200);
    scene.pipeline.processes.clear();
}

#[test]
fn where_an_operators_pods_report_nothing_is_published_unless_it_is_forced() {
    let scene = Scene::of("orders-of-an-operator", &["orders-of-an-operator-gateway-0"]);
    let pod = &scene.pipeline.processes[0].name;
    let refused = scene.publishes_nothing(|| scene.apply(&[("acme", &["one"])], &[]));
    ends(&refused, 2, "");
    assert!(refused.err.contains(&format!("{pod} has reported, which is what an operator calls a Pod")), "{refused:?}");
    let forced = scene.apply(&[("acme", &["one"])], &["--force"]);
    ends(&forced, 0, &format!("acme: created, 1 key\nin force at every gateway: {pod}\n"));
    scene.answers("first-key", 200);
}

/// What a gateway says to a request of acme.
struct Said {
    status: u16,
    retry_after_s: Option<u64>,
    body: Value,
}

fn send(gateway: &Process, path: &str, body: &Value) -> Said {
    let request = reqwest::blocking::Client::new()
        .post(format!("{}{path}", gateway.url()))
        .basic_auth("first-key", Some(""))
        .header("content-type", "application/json")
        .body(body.to_string());
    let answer = request.send().unwrap();
    let retry_after_s = answer.headers().get("retry-after").map(|value| value.to_str().unwrap().parse().unwrap());
    Said {
        status: answer.status().as_u16(),
        retry_after_s,
        body: serde_json::from_str(&answer.text().unwrap()).unwrap(),
    }
}

/// A record about these identifiers.
fn record(message_id: &str, identifiers: &Value) -> Value {
    json!({"type": "event", "message_id": message_id, "event": "Opened", "identifiers": identifiers})
}

/// One that has more identifiers than acme may send, one about nobody, and so many that are good.
fn batch(name: &str, good: usize) -> Value {
    let id = |what: &str| format!("{name}-{what}");
    let mut records: Vec<Value> =
        (0..good).map(|number| record(&id(&number.to_string()), &json!({"user_id": format!("u{number}")}))).collect();
    records.push(record(&id("two"), &json!({"user_id": "u1", "anonymous_id": "a1"})));
    records.push(record(&id("nobody"), &json!({"user_id": "Walk-In"})));
    json!({"batch": records})
}

/// Sums of acme at unify: accepted, duplicates, rejects, once so many are accepted.
fn sums(unify: &Process, accepted: u64) -> [u64; 3] {
    until("sums of unify", || {
        let rows: Value =
            serde_json::from_str(&reqwest::blocking::get(format!("{}/v1/usage", unify.admin_url()))?.text()?)?;
        let rows = rows.as_array().cloned().unwrap_or_default();
        let row = rows.into_iter().find(|row| row["tenant"] == "acme").unwrap_or_default();
        let sums = ["accepted", "duplicates", "rejects"].map(|name| row[name].as_u64().unwrap_or_default());
        Ok((sums[0] >= accepted).then_some(sums))
    })
    .unwrap()
}

#[test]
fn limits_rates_and_identity_rules_of_a_tenant_are_in_force_without_a_restart_and_nothing_is_lost() {
    let scene = Scene::with("orders", &[("gateway", "gateway-a"), ("gateway", "gateway-b"), ("unify", "unify-0")]);
    let [a, b, unify] = &scene.pipeline.processes[..] else { panic!("three processes") };
    let in_force = "in force at every gateway: gateway-a, gateway-b; at every worker of unify: unify-0\n";
    let terms = json!({
        "limits": {"maxRecordBytes": 1024, "maxStringChars": 512, "maxIdentifiers": 1},
        "rate": {"recordsPerSecond": 4},
        "identity": {"forbiddenValues": ["walk-in"]},
    });
    let applied = scene.apply_on(&[("acme", &["one"])], &terms, &[]);
    ends(&applied, 0, &format!("acme: created, 1 key, 4 records/s, limits, 1 forbidden values\n{in_force}"));
    let listed = scene.tenant(&["list"]);
    ends(&listed, 0, "tenant  keys  hashes\nacme       1  9e24b553  4 records/s, limits, 1 forbidden values\n");
    // Half of the rate, for ten seconds, is 20 records: a larger batch gets in, and the next ones wait for it.
    let said = send(a, "/native/v1/batch", &batch("first", 28));
    assert_eq!((said.status, &said.body["accepted"]), (200, &json!(30)), "{}", said.body);
    let refused = [
        ("/native/v1/batch", batch("second", 3)),
        ("/segment/v1/track", json!({"messageId": "s", "userId": "u1", "event": "Opened"})),
        (
            "/segment/v1/batch",
            json!({"batch": [{"type": "track", "messageId": "t", "userId": "u1", "event": "Opened"}]}),
        ),
        ("/v1/event", json!({"customer_id": "u1", "actions": [{"action": "Opened"}]})),
    ];
    for (path, body) in &refused {
        let said = send(a, path, body);
        assert_eq!(
            (said.status, &said.body["error"]["reason"]),
            (429, &json!("rate_limited")),
            "{path}: {}",
            said.body
        );
        assert!(said.retry_after_s.is_some_and(|seconds| (1..=6).contains(&seconds)), "{:?}", said.retry_after_s);
    }
    let metrics = reqwest::blocking::get(format!("{}/metrics", a.admin_url())).unwrap().text().unwrap();
    let line = "millstream_gateway_records_total{tenant=\"acme\",source=\"native\",outcome=\"limited\"} 5\n";
    assert!(metrics.contains(line), "{metrics}");
    // The other gateway has a share of its own. What is too large, it says itself.
    let mut long = batch("third", 0);
    long["batch"][0]["properties"] = json!({"text": "x".repeat(2_000)});
    let said = send(b, "/native/v1/batch", &long);
    assert_eq!(
        (said.status, &said.body["accepted"], &said.body["rejected"]),
        (200, &json!(1), &json!(1)),
        "{}",
        said.body
    );
    assert_eq!(said.body["records"][0]["error"]["reason"], "too_large");
    assert_eq!(sums(unify, 31), [31, 0, 3], "two identifiers, and twice about nobody");
    // All of it is raised, and what was refused is sent again as it was.
    let raised = json!({"limits": {"maxIdentifiers": 5}, "rate": {"recordsPerSecond": 1_000_000}});
    let applied = scene.apply_on(&[("acme", &["one"])], &raised, &[]);
    ends(&applied, 0, &format!("acme: changed, 1 key, 1000000 records/s, limits\n{in_force}"));
    for (path, body) in &refused {
        let said = send(a, path, body);
        assert_eq!((said.status, &said.body["rejected"]), (200, &json!(0)), "{path}: {}", said.body);
    }
    let said = send(b, "/native/v1/batch", &long);
    assert_eq!((said.status, &said.body["accepted"]), (200, &json!(2)), "{}", said.body);
    // 5 + 1 + 1 + 1 that were refused, and 2, of which one was taken before.
    assert_eq!(sums(unify, 41), [41, 1, 3]);
    // Terms that cannot be are refused with what to do, and nothing is published.
    let wrong = json!({"rate": {}, "limits": {"maxActions": 0}, "identity": {"forbiddenValues": [" x"]}});
    let refused = scene.publishes_nothing(|| scene.apply_on(&[("acme", &["one"])], &wrong, &[]));
    ends(&refused, 2, "");
    for words in [
        "3 to correct:",
        "give rate.recordsPerSecond",
        "maxActions is 0: take a number from 1 to 1000",
        "must not begin or end with blanks",
    ] {
        assert!(refused.err.contains(words), "{words:?} is not in {refused:?}");
    }
}

/// Nobody is there who could erase anything.
#[test]
fn an_erasure_that_takes_too_long_goes_on_when_it_is_asked_for_again_and_no_file_ends_it() {
    let scene = Scene::start(&["gateway-a"]);
    let in_force = "in force at every gateway: gateway-a\n";
    ends(&scene.apply(&[("acme", &["one"])], &[]), 0, &format!("acme: created, 1 key\n{in_force}"));
    let unknown = scene.publishes_nothing(|| scene.tenant(&["delete", "nobody", "--erase"]));
    assert!(unknown.code == Some(2) && unknown.err.contains("no tenant nobody was ever published"), "{unknown:?}");
    let hasty = scene.publishes_nothing(|| scene.tenant(&["delete", "acme", "--erase", "--no-wait"]));
    assert!(hasty.code == Some(2) && hasty.err.contains("one step after the other"), "{hasty:?}");
    let dry = scene.publishes_nothing(|| scene.tenant(&["delete", "acme", "--erase", "--dry-run"]));
    ends(&dry, 0, "acme: erasing\na dry run: nothing was published\n");
    let erase = || scene.tenant(&["delete", "acme", "--erase", "--timeout", "2s"]);
    let progress = "users and devices: 0 of 1 shards of action have erased them";
    let late = erase();
    assert!(late.code == Some(1) && late.out.ends_with(&format!("acme: {progress}\n")), "{late:?}");
    let said = format!("millstream: after 2s acme is not erased yet: {progress}. Run it again to go on\n");
    assert_eq!(late.err, said);
    scene.answers("first-key", 401);
    let again = scene.publishes_nothing(erase);
    ends(&again, 1, &format!("acme: erasing\nacme: {progress}\n"));
    let listed = scene.publishes_nothing(|| scene.tenant(&["list"]));
    ends(&listed, 0, "tenant  keys  hashes\nacme       0    erasing\n");
    // A file has nothing to say about it.
    let refused = scene.publishes_nothing(|| scene.apply(&[("acme", &["one"])], &[]));
    assert!(refused.code == Some(2) && refused.err.contains("Tenant acme: is being erased"), "{refused:?}");
    ends(&scene.apply(&[("globex", &["two"])], &["--prune"]), 0, &format!("globex: created, 1 key\n{in_force}"));
    let listed = scene.tenant(&["list"]);
    assert!(listed.out.contains("acme") && listed.out.contains("erasing"), "{listed:?}");
    // It ends without it only when that is asked for, and can be begun anew.
    let said = "acme: deleted, and what was not erased yet stays\n";
    ends(&scene.tenant(&["delete", "acme"]), 0, &format!("{said}{in_force}"));
    let early = scene.publishes_nothing(|| scene.apply(&[("acme", &["one"])], &[]));
    assert!(early.code == Some(2) && early.err.contains("what was received before"), "{early:?}");
    let anew = erase();
    assert!(anew.code == Some(1) && anew.out.ends_with(&format!("acme: {progress}\n")), "{anew:?}");
    assert!(scene.tenant(&["list"]).out.contains("erasing"));
}
