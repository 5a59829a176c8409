//! Workers that follow a plan, on real servers, with everything that can befall them while records flow: each record takes effect once, whatever dies, hangs or
//! comes back (I1, I2, I4, I8, I9). No operator runs: the plan names owners and successors, and the workers do the rest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_tests::conformance::{Numbers, unique};
use millstream_tests::load::{Sending, check_against_ingress, generated, settings};
use millstream_tests::pipeline::{Pipeline, Process, Settings, binary, until};
use millstream_tests::plan::{FOLLOWS, owners, plan_auto, recovered, shards, start, swap, works_again};
use millstream_tests::proxy::Relay;
use millstream_tests::servers::{Kafka, Mongo, Server, Stop};
use millstream_tests::small_disk::SmallDisk;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

/// Of three, each writes to two others, and may do so to one at a time (below).
const SHARDS: u32 = 3;

fn settings_on(kafka: &Kafka, replication: u16, what: &str, load: &millstream::generate::Load) -> Settings {
    let mut settings = settings(&unique(what), load);
    settings.shards = SHARDS;
    settings.kafka = Some(kafka.bootstrap().to_owned());
    settings.replication = replication;
    settings.mongodb = Some(Mongo::shared().unwrap().uri().to_owned());
    // The least memory that such a worker takes: not all state stays in it.
    settings.more = format!("{FOLLOWS}batch: {{max_exchange_partitions: 1}}\nstate: {{memory: 24MiB}}\n");
    settings
}

/// How long the load flows; `MILLSTREAM_CHAOS_SECONDS` for longer runs.
fn duration() -> Duration {
    let seconds = std::env::var("MILLSTREAM_CHAOS_SECONDS").ok().map(|text| text.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(300))
}

/// What befalls a pipeline, in turn.
#[derive(Clone, Copy, Debug)]
enum Blow {
    /// A worker dies, and its name comes back.
    Kill(&'static str),
    /// A worker hangs beyond the transaction time-out (10 s), and goes on as if nothing had been.
    Hang(&'static str),
    /// A worker is told to end, gives its shards away, and its name comes back.
    Terminate(&'static str),
    /// The two workers of a stage are given each other's shards.
    Swap(&'static str),
    /// A broker dies, and comes back.
    Broker(usize),
    /// A broker is told to end, so it gives what it leads and coordinates away in order, and comes back.
    Restart(usize),
    /// The gateway dies, and comes back: what it had not answered is sent again.
    Gateway,
    /// All connections to the document store are cut. (The server itself loses what it has acknowledged when it is killed: see the facts about it in the book.)
    Documents,
}

const STAGES: [&str; 3] = ["unify", "action", "reaction"];

const WORKERS: [&str; 6] = ["unify-0", "unify-1", "action-0", "action-1", "reaction-0", "reaction-1"];

/// The order of blows in `make test`, so that it is the same every time; `make chaos` draws another one each time, and prints it.
const USUAL_SEED: u64 = 1;

fn seed() -> u64 {
    std::env::var("MILLSTREAM_CHAOS_SEED").ok().map_or(USUAL_SEED, |text| text.parse().unwrap())
}

/// Everything that can befall a pipeline, in an order drawn at random. One broker alone is all the log there is, and so dies more often than others: what it forgets when it comes back
/// (transactions whose decision had not reached the partitions, with Kafka 4) must not show.
fn blows(brokers: usize, random: &mut Numbers) -> Vec<Blow> {
    let mut workers = WORKERS;
    random.shuffle(&mut workers);
    let mut stages = STAGES;
    random.shuffle(&mut stages);
    let mut blows = vec![Blow::Swap(stages[0]), Blow::Documents, Blow::Gateway];
    if brokers == 1 {
        blows.extend([Blow::Broker(0); 3]);
        blows.extend([
            Blow::Kill(workers[0]),
            Blow::Kill(workers[1]),
            Blow::Hang(workers[2]),
            Blow::Terminate(workers[3]),
        ]);
    } else {
        blows.extend(workers.iter().flat_map(|name| [Blow::Kill(name), Blow::Hang(name)]));
        blows.extend(workers[..3].iter().map(|name| Blow::Terminate(name)));
        blows.extend((0..brokers).map(Blow::Broker));
        blows.push(Blow::Restart(random.below(brokers as u64) as usize));
        blows.extend([Blow::Swap(stages[1]), Blow::Swap(stages[2]), Blow::Documents]);
    }
    random.shuffle(&mut blows);
    blows
}

/// A transaction of the workers is aborted by the brokers after 10 s.
const HANG: Duration = Duration::from_secs(13);

/// A pipeline under load, and what it stands on.
struct Struck {
    pipeline: Pipeline,
    kafka: Kafka,
    documents: Relay,
    sending: Sending,
}

impl Struck {
    /// Strikes; how long it took until every shard had an owner at work again.
    fn strike(&mut self, blow: Blow) -> Duration {
        match blow {
            Blow::Kill(name) => {
                let began = Instant::now();
                self.process(name).kill().unwrap();
                let took = self.works_again(&[name], began);
                self.process(name).start().unwrap();
                took
            }
            Blow::Hang(name) => {
                let began = Instant::now();
                self.process(name).signal("STOP").unwrap();
                let took = self.works_again(&[name], began);
                until("a hang beyond the time-out of its transactions", || Ok((began.elapsed() > HANG).then_some(())))
                    .unwrap();
                self.process(name).signal("CONT").unwrap();
                self.process(name).ready().unwrap();
                took
            }
            Blow::Terminate(name) => {
                let began = Instant::now();
                self.process(name).terminate().unwrap();
                let took = self.works_again(&[name], began);
                self.process(name).start().unwrap();
                took
            }
            Blow::Swap(stage) => {
                let began = Instant::now();
                swap(&self.pipeline, SHARDS, stage).unwrap();
                self.works_again(&[], began)
            }
            Blow::Gateway => {
                let began = Instant::now();
                self.process("gateway").kill().unwrap();
                self.process("gateway").start().unwrap();
                self.works_again(&[], began)
            }
            Blow::Broker(node) => self.strike_broker(node, false),
            Blow::Restart(node) => self.strike_broker(node, true),
            Blow::Documents => {
                assert!(self.documents.cut() > 0, "nobody was connected");
                let cut = Instant::now();
                // What was written before is recorded up to a second later.
                self.works_again(&[], cut + Duration::from_secs(2));
                cut.elapsed()
            }
        }
    }

    fn strike_broker(&mut self, node: usize, is_in_order: bool) -> Duration {
        let broker = self.kafka.node(node).unwrap();
        if is_in_order { broker.terminate() } else { broker.kill() }.unwrap();
        let killed = Instant::now();
        // One broker alone is the log: nothing goes on before it is back.
        let took = (self.kafka.nodes().len() > 1).then(|| self.works_again(&[], killed));
        self.kafka.node(node).unwrap().start_again().unwrap();
        let started = Instant::now();
        self.kafka.is_whole().unwrap();
        took.unwrap_or_else(|| self.works_again(&[], started))
    }

    fn works_again(&self, without: &[&str], since: Instant) -> Duration {
        works_again(&self.pipeline, &self.sending, SHARDS, without, since).unwrap()
    }

    fn process(&mut self, name: &str) -> &mut Process {
        self.pipeline.processes.iter_mut().find(|process| process.name == name).unwrap()
    }
}

/// Has a shard come to another owner so? The first opening of each, at epoch 1, is no change, and looks like a takeover.
fn changes_hands(logs: &str, by_handoff: bool) -> bool {
    let so = format!("by_handoff={by_handoff}");
    let epoch =
        |line: &str| line.split_whitespace().find_map(|field| field.strip_prefix("epoch=")?.parse::<u64>().ok());
    logs.lines().filter(|line| line.contains(&so)).any(|line| epoch(line).is_some_and(|epoch| epoch > 1))
}

#[test]
fn that_a_shard_is_opened_for_the_first_time_is_no_takeover() {
    let line = |epoch, by_handoff| {
        format!("INFO x: shard is open stage=\"action\" shard=0 epoch={epoch} by_handoff={by_handoff}\n")
    };
    let first = line(1, false) + &line(2, true);
    assert!(!changes_hands(&first, false) && changes_hands(&first, true));
    assert!(changes_hands(&(first + &line(3, false)), false));
}

/// Of each tenant, so many that both pipelines beside each other leave something of two cores; no more in a longer run, for all of them are held against the truth at the end.
fn users(time: Duration) -> u32 {
    u32::try_from(time.as_secs() * 5).unwrap().clamp(100, 12_000)
}

fn goes_on_through_everything(brokers: usize, time: Duration) {
    let load = generated(21, 2, users(time)).unwrap();
    let kafka = Kafka::start_cluster(brokers).unwrap();
    let documents = Relay::start(Mongo::shared().unwrap().port()).unwrap();
    let mut settings = settings_on(&kafka, brokers.min(3) as u16, "chaos", &load);
    settings.mongodb = Some(format!("mongodb://127.0.0.1:{}/?directConnection=true", documents.port));
    let pipeline = start(&settings).unwrap();
    let sending = Sending::paced(&pipeline.gateway().unwrap().url(), &load, time);
    let mut struck = Struck { pipeline, kafka, documents, sending };
    let (began, mut random) = (Instant::now(), Numbers::new(seed()));
    println!("MILLSTREAM_CHAOS_SEED={}", seed());
    // Each of them once at least, however long that takes.
    let mut left = blows(brokers, &mut random);
    let at_least = left.len();
    for number in 0.. {
        let Some(blow) = left.pop().filter(|_| number < at_least || began.elapsed() < time) else { break };
        let took = struck.strike(blow);
        println!("{:?} {blow:?}: every shard had an owner at work again after {took:?}", began.elapsed());
        if left.is_empty() {
            left = blows(brokers, &mut random);
        }
    }
    struck.sending.finish().unwrap();
    println!(
        "{} records in {:?}, {} requests sent again",
        struck.sending.total(),
        began.elapsed(),
        struck.sending.repeated()
    );
    let mut pipeline = struck.pipeline;
    check_against_ingress(&pipeline, &settings, load).unwrap();
    // Of reaction, who has a partition is the plan's word alone.
    let with_state = pipeline.processes.iter().filter(|process| !process.name.starts_with("reaction"));
    let logs: String = with_state.map(|process| process.logs()).collect();
    assert!(changes_hands(&logs, true), "no shard was ever handed off");
    assert!(changes_hands(&logs, false), "no shard was ever taken over");
    for process in &mut pipeline.processes {
        process.terminate().unwrap();
    }
}

#[test]
fn a_pipeline_of_two_workers_per_stage_on_three_brokers_goes_on_through_everything() {
    goes_on_through_everything(3, duration());
}

#[test]
fn a_pipeline_of_two_workers_per_stage_on_one_broker_goes_on_through_everything() {
    goes_on_through_everything(1, duration());
}

#[test]
fn the_older_of_two_processes_of_one_name_ends_and_loses_nothing() {
    let load = generated(22, 1, 60).unwrap();
    let kafka = Kafka::shared().unwrap();
    let settings = settings_on(kafka, 1, "twins", &load);
    let mut pipeline = start(&settings).unwrap();
    let mut sending = Sending::paced(&pipeline.gateway().unwrap().url(), &load, Duration::from_secs(15));
    sending.wait_for_share(1, 4).unwrap();
    // On a disk of its own, as on another node.
    let mut twin = Pipeline::launched(&settings, &[("action", "action-0")]).unwrap();
    let older = pipeline.processes.iter_mut().find(|process| process.name == "action-0").unwrap();
    assert_eq!(older.ended().unwrap(), Some(2), "{}", older.log());
    assert!(older.log().contains("a newer process of the worker action-0 runs"), "{}", older.log());
    twin.processes[0].ready().unwrap();
    let index = pipeline.processes.iter().position(|process| process.name == "action-0").unwrap();
    pipeline.processes[index] = twin.processes.remove(0);
    sending.finish().unwrap();
    check_against_ingress(&pipeline, &settings, load).unwrap();
}

fn index_of(pipeline: &Pipeline, name: &str) -> usize {
    pipeline.processes.iter().position(|process| process.name == name).unwrap()
}

/// Who owns what of action, by what a worker that is not struck has heard.
fn owners_of_action(pipeline: &Pipeline) -> anyhow::Result<BTreeMap<u32, String>> {
    let rows = shards(&pipeline.processes[index_of(pipeline, "unify-0")])?;
    let owners = owners(&rows, SHARDS)?.into_iter().filter(|((stage, _), _)| stage == "action");
    Ok(owners.map(|((_, shard), owner)| (shard, owner.worker.clone())).collect())
}

#[test]
fn a_worker_whose_disk_is_full_is_passed_over_and_owns_again_what_is_planned_for_it_once_there_is_room() {
    let load = generated(26, 1, 200).unwrap();
    let settings = settings_on(Kafka::shared().unwrap(), 1, "full-disk", &load);
    let folder = tempfile::tempdir().unwrap();
    let mut small = Process::new("action", "action-0", &settings, folder.path()).unwrap();
    let Some(disk) = SmallDisk::mount(&small.data().join("state")).unwrap() else { return };
    let others = [("gateway", "gateway"), ("unify", "unify-0"), ("action", "action-1"), ("action", "action-2")];
    let others: Vec<_> = others.into_iter().chain([("reaction", "reaction-0")]).collect();
    small.launch().unwrap();
    let mut pipeline = Pipeline::launched(&settings, &others).unwrap();
    pipeline.processes.push(small);
    // Until each of the three has a shard of action.
    let places = until("a plan in which each has a shard", || {
        plan_auto(&pipeline)?;
        let owners = owners_of_action(&pipeline)?;
        Ok(["action-0", "action-1", "action-2"]
            .iter()
            .all(|name| owners.values().any(|it| it == name))
            .then_some(owners))
    })
    .unwrap();
    let (shard, _) = places.iter().find(|(_, name)| *name == "action-0").unwrap();
    let mut sending = Sending::paced(&pipeline.gateway().unwrap().url(), &load, Duration::from_secs(90));
    let action_0 = index_of(&pipeline, "action-0");
    pipeline.processes[action_0].kill().unwrap();
    // With none of its files there it can make no room by itself.
    disk.clear().unwrap();
    disk.fill().unwrap();
    pipeline.processes[action_0].launch().unwrap();
    until("it says that it cannot open the shard", || {
        disk.fill()?;
        let log = pipeline.processes[action_0].log();
        Ok(log.contains("shard cannot be opened here for long").then_some(()))
    })
    .unwrap();
    // It is the planned owner, and its turn. Nobody else would get the shard as long as it is there.
    let successor = until("somebody else owns the shard", || {
        let owner = owners_of_action(&pipeline)?.remove(shard);
        Ok(owner.filter(|name| name != "action-0"))
    })
    .unwrap();
    let struck = index_of(&pipeline, &successor);
    pipeline.processes[struck].kill().unwrap();
    recovered(&pipeline, SHARDS, &["action-0", &successor]).unwrap();
    pipeline.processes[struck].launch().unwrap();
    assert!(sending.left() > 0, "the load had ended before");
    disk.free().unwrap();
    until("it owns what is planned for it", || {
        let owners = owners_of_action(&pipeline)?;
        anyhow::ensure!(owners == places, "{owners:?}, planned {places:?}");
        Ok(Some(()))
    })
    .unwrap();
    assert!(pipeline.processes[action_0].log().contains("shard is to be tried here again"));
    sending.finish().unwrap();
    check_against_ingress(&pipeline, &settings, load).unwrap();
    for process in &mut pipeline.processes {
        process.terminate().unwrap();
    }
}

#[test]
fn a_worker_that_is_told_to_end_hands_off_and_the_last_one_ends_at_once() {
    let load = generated(23, 1, 30).unwrap();
    let kafka = Kafka::shared().unwrap();
    let settings = settings_on(kafka, 1, "leaving", &load);
    let mut pipeline = start(&settings).unwrap();
    let rows = shards(&pipeline.processes[1]).unwrap();
    assert!(owners(&rows, SHARDS).unwrap().values().any(|owner| owner.worker == "action-0"), "{rows:?}");
    let index = pipeline.processes.iter().position(|process| process.name == "action-0").unwrap();
    pipeline.processes[index].terminate().unwrap();
    assert!(pipeline.processes[index].log().contains("shard was handed off"));
    recovered(&pipeline, SHARDS, &["action-0"]).unwrap();
    let heir = pipeline.processes.iter_mut().find(|process| process.name == "action-1").unwrap();
    assert!(changes_hands(&heir.log(), true), "{}", heir.log());
    let began = Instant::now();
    heir.terminate().unwrap();
    assert!(began.elapsed() < Duration::from_secs(15), "nobody is left to wait for: {:?}", began.elapsed());
}

/// What `millstream plan` prints.
fn plan_says(pipeline: &Pipeline, arguments: &[&str]) -> String {
    let config = pipeline.gateway().unwrap().config();
    let output =
        Command::new(binary().unwrap()).arg("plan").args(arguments).arg("--config").arg(config).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_watch_goes_on_when_the_log_was_away_and_looking_does_not_end_it() {
    let load = generated(24, 1, 10).unwrap();
    let mut kafka = Kafka::start().unwrap();
    let settings = settings_on(&kafka, 1, "watch", &load);
    let names = ["unify-0", "action-0", "action-1", "reaction-0"].map(|name| (name.split('-').next().unwrap(), name));
    let names: Vec<_> = std::iter::once(("gateway", "gateway")).chain(names).collect();
    let mut pipeline = Pipeline::launched(&settings, &names).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("watch")).unwrap();
    let config = pipeline.gateway().unwrap().config().display().to_string();
    let program = binary().unwrap().display().to_string();
    let command = [program, "plan".into(), "auto".into(), "--watch".into(), "--config".into(), config];
    let watch = Server::start(folder.path().join("watch"), Stop::Kill, &command).unwrap();
    recovered(&pipeline, SHARDS, &[]).unwrap();
    let owns = |pipeline: &Pipeline, name: &str| plan_says(pipeline, &["show"]).contains(&format!("owner: {name}"));
    until("a plan with all of them", || Ok(owns(&pipeline, "action-1").then_some(()))).unwrap();
    // Once all is where it belongs.
    until("nothing new", || Ok(plan_says(&pipeline, &["auto", "--dry-run"]).is_empty().then_some(()))).unwrap();
    let of = |name: &str| names.iter().position(|(_, other)| *other == name).unwrap();
    pipeline.processes[of("action-1")].kill().unwrap();
    until("a plan without the dead one", || Ok((!owns(&pipeline, "action-1")).then_some(()))).unwrap();
    kafka.node(0).unwrap().kill().unwrap();
    kafka.node(0).unwrap().start_again().unwrap();
    kafka.is_whole().unwrap();
    pipeline.processes[of("action-1")].launch().unwrap();
    until("a plan with it", || Ok(owns(&pipeline, "action-1").then_some(()))).unwrap();
    assert!(watch.is_running(), "{}", watch.log());
    assert!(watch.log().contains("trying again"), "{}", watch.log());
}
