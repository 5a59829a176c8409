//! What a change of one tenant among thousands takes: until a gateway lets its new key in, and until the operator says that it is in force, at every gateway and in every shard of unify.
//!
//! A real API server, Kafka, the operator, one gateway, and one worker that has all shards of unify, both with the configuration that the operator writes, all on this machine; the tenants' keys are in
//! one Secret, and each tenant has a rate. A change gives a tenant another key, or another limit. One probe at a time asks the gateway whether it lets a key in, and the next one follows the answer; the
//! condition is asked for with the tenant itself. Then nothing is done for a while, and whatever is written to a tenant meanwhile is counted. Results go to `bench/results/tenants.json`.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use millstream_tests::api_proxy::ApiProxy;
use millstream_tests::pipeline::until;
use millstream_tests::scene::{Pods, Scene};
use reqwest::blocking::Client;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const NAMESPACE: &str = "many";
const GATEWAY: &str = "orders-gateway-0";
const UNIFY: &str = "orders-unify-0";
const SHARDS: usize = 8;
/// As many requests at once as an administrator's client makes.
const PARALLEL: usize = 4;

#[derive(Parser)]
struct Args {
    /// Tenants
    #[arg(long, default_value_t = 5_000)]
    tenants: usize,
    /// Changes, one after the other
    #[arg(long, default_value_t = 30)]
    changes: usize,
    /// Seconds in which nothing is done
    #[arg(long, default_value_t = 60)]
    rest: u64,
    /// Where the results go
    #[arg(long, default_value = "bench/results/tenants.json")]
    out: PathBuf,
}

#[derive(Serialize)]
struct Figure {
    figure: String,
    value: f64,
    unit: &'static str,
    aim: Option<f64>,
    met: Option<bool>,
}

impl Figure {
    fn at_most(figure: String, value: f64, unit: &'static str, aim: Option<f64>) -> Figure {
        Figure { figure, value, unit, aim, met: aim.map(|aim| value <= aim) }
    }
}

/// The API server, without `kubectl` and its start.
struct Api {
    client: Client,
    base: String,
    token: String,
}

impl Api {
    fn of(proxy: &ApiProxy) -> Result<Api> {
        let config: Value = serde_json::from_str(&proxy.config()?)?;
        let text = |path: &str| {
            Ok::<_, anyhow::Error>(config.pointer(path).and_then(Value::as_str).context("no such field")?.to_owned())
        };
        Ok(Api {
            client: Client::new(),
            base: text("/clusters/0/cluster/server")?,
            token: text("/users/0/user/token")?,
        })
    }

    fn tenants(&self) -> String {
        format!("{}/apis/ingestion.millstream.dev/v1alpha1/namespaces/{NAMESPACE}/tenants", self.base)
    }

    fn create(&self, tenant: &Value) -> Result<()> {
        let request = self.client.post(self.tenants()).bearer_auth(&self.token).json(tenant);
        Ok(request.send()?.error_for_status().map(drop)?)
    }

    fn give(&self, name: &str, key: &str) -> Result<()> {
        self.change(name, &json!({"apiKeys": [{"name": "keys", "key": key}]}))
    }

    fn change(&self, name: &str, spec: &Value) -> Result<()> {
        let patch = json!({ "spec": spec });
        let request = self.client.patch(format!("{}/{name}", self.tenants())).bearer_auth(&self.token);
        let request = request.header("content-type", "application/merge-patch+json").body(patch.to_string());
        Ok(request.send()?.error_for_status().map(drop)?)
    }

    fn get(&self, name: &str) -> Result<Value> {
        let request = self.client.get(format!("{}/{name}", self.tenants())).bearer_auth(&self.token);
        Ok(request.send()?.error_for_status()?.json()?)
    }

    fn all(&self) -> Result<Vec<Value>> {
        let list: Value =
            self.client.get(self.tenants()).bearer_auth(&self.token).send()?.error_for_status()?.json()?;
        Ok(list.get("items").and_then(Value::as_array).cloned().unwrap_or_default())
    }
}

/// Is what the tenant says now in force?
fn is_effective(tenant: &Value) -> bool {
    let conditions = tenant.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|it| {
        it.get("type").is_some_and(|it| it == "Effective")
            && it.get("status").is_some_and(|it| it == "True")
            && it.get("observedGeneration") == tenant.pointer("/metadata/generation")
    })
}

fn name(number: usize) -> String {
    format!("tenant-{number:05}")
}

fn key(number: usize) -> String {
    format!("the-key-of-{number:05}-0123456789")
}

/// Memory that a process holds, MB.
fn memory(pid: i32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes / 1_000.0)
}

fn milliseconds(of: Duration) -> f64 {
    (of.as_secs_f64() * 1_000.0).round()
}

/// Makes so many tenants, each with a key of its own.
fn make_all(api: &Api, count: usize) -> Result<()> {
    std::thread::scope(|scope| -> Result<()> {
        let makers: Vec<_> = (0..PARALLEL)
            .map(|maker| {
                scope.spawn(move || {
                    (maker..count).step_by(PARALLEL).try_for_each(|number| {
                        let spec = json!({"pipelineRef": {"name": "orders"}, "apiKeys": [{"name": "keys", "key": format!("k{number}")}], "rate": {"recordsPerSecond": 1_000}});
                        api.create(&json!({"apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": name(number)}, "spec": spec}))
                    })
                })
            })
            .collect();
        makers.into_iter().try_for_each(|maker| maker.join().unwrap_or_else(|_| anyhow::bail!("a maker panicked")))
    })
}

/// Gives as many tenants another key, one after the other; how long each took until a gateway let it in, and until its condition said so, the shortest first.
fn change_some(api: &Api, pods: &Pods, tenants: usize, changes: usize) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut let_in, mut told) = (Vec::new(), Vec::new());
    for change in 0..changes {
        let number = change * tenants / changes;
        let began = Instant::now();
        api.give(&name(number), &format!("k{}", tenants + change))?;
        until("the new key let in", || Ok((pods.answer(GATEWAY, &key(tenants + change))? == 200).then_some(())))?;
        let_in.push(began.elapsed());
        ensure!(pods.answer(GATEWAY, &key(number))? == 401, "the former key is let in");
        until("the change told", || Ok(is_effective(&api.get(&name(number))?).then_some(())))?;
        told.push(began.elapsed());
    }
    let_in.sort_unstable();
    told.sort_unstable();
    Ok((let_in, told))
}

/// Gives as many tenants another limit, one after the other; how long each took until its condition said that all go by it, the shortest first.
fn limit_some(api: &Api, tenants: usize, changes: usize) -> Result<Vec<Duration>> {
    let mut told = Vec::new();
    for change in 0..changes {
        let name = name(change * tenants / changes);
        let began = Instant::now();
        api.change(&name, &json!({"limits": {"maxProperties": 100 + change}}))?;
        until("the change told", || Ok(is_effective(&api.get(&name)?).then_some(())))?;
        told.push(began.elapsed());
    }
    told.sort_unstable();
    Ok(told)
}

/// A worker of unify that owns all shards.
fn start_unify(scene: &Scene, pods: &mut Pods) -> Result<()> {
    pods.start(scene, "unify", 0);
    until("a worker with all shards of unify", || {
        let shown = scene.admin(&format!("/v1/pipelines/{NAMESPACE}/orders"));
        let owned = shown.matches(&format!("\"owner\":\"{UNIFY}\"")).count();
        ensure!(owned == SHARDS, "{owned} of {SHARDS}: {shown}");
        Ok(Some(()))
    })
}

/// To how many tenants something is written while nothing is done.
fn written_at_rest(api: &Api, rest: Duration) -> Result<usize> {
    let versions = || -> Result<Vec<Value>> {
        Ok(api.all()?.iter().filter_map(|tenant| tenant.pointer("/metadata/resourceVersion").cloned()).collect())
    };
    let before = versions()?;
    // Nothing is to be waited for: it is nothing that is measured.
    std::thread::sleep(rest);
    Ok(before.iter().zip(versions()?).filter(|(before, now)| **before != *now).count())
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (last, spares) = (args.tenants, args.changes);
    let scene = Scene::with_secret(NAMESPACE);
    let proxy = ApiProxy::start(scene.server.kubeconfig())?;
    let api = Api::of(&proxy)?;
    // Those behind the tenants' own are for the changes.
    let keys: serde_json::Map<String, Value> =
        (0..last + spares).map(|number| (format!("k{number}"), key(number).into())).collect();
    let metadata = json!({"name": "keys", "labels": {"ingestion.millstream.dev/api-keys": "true"}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": keys});
    scene.kubectl(&["create", "-f", "-"], &secret.to_string());
    scene.pipeline(&json!({ "shards": SHARDS }));
    scene.condition("Ready False WorkersNotReady");
    let mut pods = Pods::default();
    pods.start(&scene, "gateway", 0);
    start_unify(&scene, &mut pods)?;
    let operator = || memory(scene.operator.pid());
    let before = operator()?;

    let began = Instant::now();
    make_all(&api, last)?;
    let made = began.elapsed();
    until("all tenants in force", || {
        let count = api.all()?.iter().filter(|tenant| is_effective(tenant)).count();
        ensure!(count == last, "{count} of {last}");
        Ok(Some(()))
    })?;
    let all = began.elapsed();
    println!("{last} tenants made within {made:?}, all in force after {all:?}");

    let (let_in, told) = change_some(&api, &pods, last, spares)?;
    let limited = limit_some(&api, last, spares)?;
    let written = written_at_rest(&api, Duration::from_secs(args.rest))?;
    let longest = |times: &[Duration]| times.last().copied().map_or(0.0, milliseconds);
    let median = |times: &[Duration]| times.get(times.len() / 2).copied().map_or(0.0, milliseconds);
    let of = format!("of {last} tenants one gets another key");
    let of_limits = format!("of {last} tenants one gets another limit");
    let figures = [
        Figure::at_most(
            format!("{of}: until a gateway lets it in, longest of {spares}"),
            longest(&let_in),
            "ms",
            Some(2_000.0),
        ),
        Figure::at_most(format!("{of}: the same, median"), median(&let_in), "ms", Some(2_000.0)),
        Figure::at_most(
            format!("{of}: until its condition says so, longest of {spares}"),
            longest(&told),
            "ms",
            Some(2_000.0),
        ),
        Figure::at_most(format!("{of}: the same, median"), median(&told), "ms", Some(2_000.0)),
        Figure::at_most(
            format!("{of_limits}: until its condition says that every shard of unify goes by it, longest of {spares}"),
            longest(&limited),
            "ms",
            Some(2_000.0),
        ),
        Figure::at_most(format!("{of_limits}: the same, median"), median(&limited), "ms", Some(2_000.0)),
        Figure::at_most(
            format!("tenants written to in {} s in which nothing is done", args.rest),
            written as f64,
            "tenants",
            Some(0.0),
        ),
        Figure::at_most(
            format!("{last} tenants, made within {} s: until all are in force", made.as_secs()),
            all.as_secs_f64().round(),
            "s",
            None,
        ),
        Figure::at_most("memory of the operator without tenants".to_owned(), before.round(), "MB", None),
        Figure::at_most(format!("memory of the operator with {last} tenants"), operator()?.round(), "MB", Some(256.0)),
        Figure::at_most(
            format!("memory of a gateway with {last} tenants"),
            memory(pods.pid(GATEWAY))?.round(),
            "MB",
            None,
        ),
        Figure::at_most(
            format!("memory of a worker of unify with {SHARDS} shards and {last} tenants"),
            memory(pods.pid(UNIFY))?.round(),
            "MB",
            None,
        ),
    ];
    for figure in &figures {
        println!("{}: {} {}", figure.figure, figure.value, figure.unit);
    }
    std::fs::write(&args.out, serde_json::to_string_pretty(&figures)? + "\n")?;
    Ok(())
}
