//! The driver: topics, worker processes, load, and the verdict.

use crate::Settings;
use crate::audit::{self, Output};
use crate::record::Record;
use crate::{load, rounds};
use anyhow::{Context, Result, anyhow, bail};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// An event of a worker.
pub struct Event {
    pub worker: String,
    pub body: Value,
}

impl Event {
    /// Its name.
    pub fn name(&self) -> &str {
        self.body["event"].as_str().unwrap_or_default()
    }

    /// One of its numbers.
    pub fn number(&self, field: &str) -> u64 {
        self.body[field].as_u64().unwrap_or_default()
    }
}

/// The worker processes.
pub struct Fleet {
    settings: Settings,
    children: HashMap<String, Child>,
    incarnations: HashMap<String, u64>,
    sender: Sender<Event>,
    events: Receiver<Event>,
    /// Who owned last, and with which epoch.
    pub owner: String,
    pub epoch: u64,
    /// Who found out that it had lost which epoch.
    pub lost: HashSet<(String, u64)>,
}

impl Fleet {
    fn new(settings: &Settings) -> Fleet {
        let (sender, events) = channel();
        let (children, incarnations) = (HashMap::new(), HashMap::new());
        Fleet {
            settings: settings.clone(),
            children,
            incarnations,
            sender,
            events,
            owner: String::new(),
            epoch: 0,
            lost: HashSet::new(),
        }
    }

    /// Starts a worker and waits until it follows.
    pub fn start(&mut self, name: &str) -> Result<()> {
        let settings = &self.settings;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["worker", name, &settings.shard.to_string(), "--brokers", &settings.brokers, "--run", &settings.run])
            .args(["--break", &settings.broken, "--hold", &settings.hold.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("stdout")?;
        let (sender, worker) = (self.sender.clone(), name.to_owned());
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let body = serde_json::from_str(&line).unwrap_or(Value::String(line));
                let _ = sender.send(Event { worker: worker.clone(), body });
            }
        });
        self.children.insert(name.to_owned(), child);
        let ready = self.wait(30, |event| event.worker == name && event.name() == "ready")?;
        self.incarnations.insert(name.to_owned(), ready.number("incarnation"));
        Ok(())
    }

    /// A worker's incarnation.
    pub fn incarnation(&self, name: &str) -> u64 {
        self.incarnations.get(name).copied().unwrap_or_default()
    }

    /// Sends a command.
    pub fn tell(&mut self, name: &str, command: &str) -> Result<()> {
        let child = self.children.get_mut(name).with_context(|| format!("no worker {name}"))?;
        let stdin = child.stdin.as_mut().context("stdin")?;
        writeln!(stdin, "{command}").with_context(|| format!("worker {name} is gone"))
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str, signal: &str) -> Result<()> {
        let pid = self.children.get(name).with_context(|| format!("no worker {name}"))?.id();
        let status = Command::new("bash").args(["-c", &format!("kill -{signal} {pid}")]).status()?;
        if status.success() { Ok(()) } else { Err(anyhow!("kill -{signal} {name}")) }
    }

    /// Runs `cluster.sh` for one broker.
    pub fn broker(&self, command: &str, node: usize) -> Result<()> {
        let (folder, jars) = self.settings.cluster.split_once(':').context("--cluster FOLDER:JARS is needed")?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster.sh");
        let status = Command::new(script).args([command, folder, jars, &node.to_string()]).status()?;
        if status.success() { Ok(()) } else { Err(anyhow!("{command} {node}")) }
    }

    /// Waits until every partition of the run, and of Kafka's own topics, has all three copies in sync.
    pub fn wait_in_sync(&self) -> Result<()> {
        let client: BaseProducer = ClientConfig::new().set("bootstrap.servers", &self.settings.brokers).create()?;
        let deadline = Instant::now() + Duration::from_secs(90);
        while Instant::now() < deadline {
            if let Ok(metadata) = client.client().fetch_metadata(None, Duration::from_secs(5))
                && metadata
                    .topics()
                    .iter()
                    .flat_map(|topic| topic.partitions())
                    .all(|partition| partition.isr().len() == 3)
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        bail!("the brokers did not get in sync again")
    }

    /// kill -9, and it is dead when this returns.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let mut child = self.children.remove(name).with_context(|| format!("no worker {name}"))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Waits for an event; every event is printed, and the owner is remembered.
    pub fn wait(&mut self, seconds: u64, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self
                .events
                .recv_timeout(left)
                .map_err(|_| anyhow!("the awaited event did not come within {seconds} s"))?;
            println!("  {} {}", event.worker, event.body);
            if event.name() == "owner" && event.number("epoch") > self.epoch {
                (self.owner, self.epoch) = (event.worker.clone(), event.number("epoch"));
            }
            if event.name() == "lost" {
                self.lost.insert((event.worker.clone(), event.number("epoch")));
            }
            if wanted(&event) {
                return Ok(event);
            }
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in self.children.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs one kind of round and says whether everything came out exactly once.
pub fn run(settings: Settings) -> Result<()> {
    let kind = settings.rest[0].clone();
    let count: usize = settings.rest.get(2).context("number of rounds")?.parse()?;
    create_topics(&settings)?;
    let stop = Arc::new(AtomicBool::new(false));
    let output = Output::watch(&settings)?;
    let mut fleet = Fleet::new(&settings);
    for name in ["A", "B", "C"] {
        fleet.start(name)?;
    }
    let load = load::start(&settings, stop.clone())?;
    fleet.tell("A", "takeover 0")?;
    fleet.wait(60, |event| event.name() == "owner")?;
    let outcome = rounds::play(&kind, count, &mut fleet, &output);
    stop.store(true, Ordering::Relaxed);
    let sent = load.join().map_err(|_| anyhow!("the load failed"))?;
    if let Ok(measured) = &outcome {
        rounds::report(&kind, measured);
    }
    verdict(&settings, &output, sent)?;
    outcome.map(|_| ())
}

fn verdict(settings: &Settings, output: &Output, sent: u64) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while output.with(|seen| seen.next) < sent as i64 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(500)); // anything that comes after the last would be a double
    let (mut violations, epoch, next) = audit::changelog(settings)?;
    let (seen, mut doubled) = output.with(|seen| (seen.next, seen.violations.clone()));
    violations.append(&mut doubled);
    println!("VERDICT records={sent} output={seen} changelog={next} epochs={epoch} violations={}", violations.len());
    for violation in violations.iter().take(20) {
        println!("VIOLATION {violation}");
    }
    if !violations.is_empty() || seen != sent as i64 || next != sent as i64 {
        bail!("NOT exactly once");
    }
    Ok(())
}

fn create_topics(settings: &Settings) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &settings.brokers).create()?;
    wait_for_brokers(&admin)?;
    let names = [settings.topic("input"), settings.topic("output"), settings.topic("changelog")];
    let topics: Vec<NewTopic<'_>> = names
        .iter()
        .map(|name| NewTopic::new(name, 1 + settings.shard, TopicReplication::Fixed(3)).set("min.insync.replicas", "2"))
        .collect();
    for result in futures::executor::block_on(admin.create_topics(&topics, &AdminOptions::new()))? {
        result.map_err(|(topic, code)| anyhow!("topic {topic}: {code}; choose another --run"))?;
    }
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", &settings.brokers).set("acks", "all").create()?;
    let genesis = serde_json::to_string(&Record::Genesis)?;
    let record = BaseRecord::<(), str>::to(&names[2]).partition(settings.shard).payload(&genesis);
    producer.send(record).map_err(|(error, _)| error)?;
    Ok(producer.flush(Duration::from_secs(30))?)
}

/// Brokers that were just started take some seconds until all three are known.
fn wait_for_brokers(admin: &AdminClient<DefaultClientContext>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    while Instant::now() < deadline {
        if admin
            .inner()
            .fetch_metadata(None, Duration::from_secs(5))
            .is_ok_and(|metadata| metadata.brokers().len() == 3)
        {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    bail!("three brokers did not appear within two minutes")
}
