//! Sources: requests in the native shape through the real source code, into `ingress` as the gateway would write them.
//!
//! A source waits for the acknowledgement of a whole request before it sends the next one, and repeats what was not acknowledged until it is: then its records of one routing
//! identifier are acknowledged in their order (I3). Identifiers overlap between sources, so that users of different shards are linked while records are under way.

use crate::counts::Fault;
use crate::rng::Rng;
use crate::sim::Sim;
use crate::truth::Sent;
use crate::world::{ProcessId, Waker};
use millstream_model::frame::{Content, FrameWriter};
use millstream_model::key::{group_of_parts, shard_of};
use millstream_model::proto::Envelope;
use millstream_shard::log::{Log, Outgoing, Producer};
use millstream_stages::source::{Accepted, Endpoint, Limits, Request, split};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How long a source waits for the answers of a request.
const PATIENCE_MS: u64 = 4_000;

/// Starts a source; its last records, for every shard, are held back until there are no faults any more.
pub fn start(sim: &Sim, number: u32) {
    let process = sim.world.process(format!("source {number}"), 0);
    sim.truth().working += 1;
    let inside = sim.clone();
    sim.world.spawn(process, "main", move || {
        let source = Source { sim: inside.clone(), process, number, tenant: tenant(number) };
        source.run();
        inside.truth().working -= 1;
    });
}

fn tenant(number: u32) -> String {
    ["acme", "acme", "bolt"].get(number as usize % 3).copied().unwrap_or("acme").to_owned()
}

struct Source {
    sim: Sim,
    process: ProcessId,
    number: u32,
    tenant: String,
}

/// A record as it is sent, and what is known about it.
struct Draft {
    json: Value,
    routing: String,
    kind: &'static str,
}

impl Source {
    fn run(&self) {
        let (sim, world) = (&self.sim, &self.sim.world);
        let count = sim.settings.records;
        let pause_ms = sim.settings.faults_ms / (count / 3 + 1);
        let mut number = 0;
        let mut before: Option<Vec<Envelope>> = None;
        while number < count {
            let size = sim.draw(|rng| rng.between(1, 6)).min(count - number);
            let drafts = (number..number + size).map(|number| (number, self.draft(number))).collect();
            number += size;
            let envelopes = self.request(drafts);
            self.deliver(&envelopes);
            if world.happens(Fault::RecordRepeated)
                && let Some(before) = &before
            {
                self.deliver(before);
            }
            before = Some(envelopes);
            let pause_ms = sim.draw(|rng| rng.below(2 * pause_ms));
            world.sleep_ms(pause_ms);
        }
        if sim.settings.large {
            self.deliver(&self.request(self.large(number)));
            number += 40;
        }
        while world.has_faults() {
            world.sleep_ms(100);
        }
        self.deliver(&self.request(self.last(number)));
    }

    /// A record about one of a few people.
    fn draft(&self, number: u64) -> Draft {
        let deletes = self.sim.settings.deletes;
        let number_of_source = self.number;
        self.sim.draw(|rng| draft(rng, number_of_source, number, deletes))
    }

    /// A record for each shard, so that it shows whether each goes on.
    fn last(&self, first: u64) -> Vec<(u64, Draft)> {
        let mut found = BTreeMap::new();
        for number in 0..1_000 {
            let name = format!("last-{}-{number}", self.number);
            let shard = shard_of(group_of_parts(&self.tenant, "anonymous_id", &name), self.sim.settings.shards);
            found.entry(shard).or_insert(name);
        }
        let draft = |name: String| Draft {
            json: json!({"type": "event", "event": "Last", "identifiers": {"anonymous_id": name}}),
            routing: name,
            kind: "event",
        };
        (first..).zip(found.into_values().map(draft)).collect()
    }

    /// So much at once that a batch's changes are larger than a message.
    fn large(&self, first: u64) -> Vec<(u64, Draft)> {
        let draft = |number: u64| {
            let name = format!("large-{}-{number}", self.number);
            let attributes = (0..64).map(|index| (format!("a{index}"), json!("x".repeat(500))));
            let set: serde_json::Map<String, Value> = attributes.collect();
            let json = json!({"type": "user", "identifiers": {"anonymous_id": name}, "set": set});
            (first + number, Draft { json, routing: name, kind: "user" })
        };
        (0..40).map(draft).collect()
    }

    /// The envelopes of a request.
    fn request(&self, drafts: Vec<(u64, Draft)>) -> Vec<Envelope> {
        let mut records = Vec::new();
        for (number, draft) in drafts {
            let id = format!("m{}-{number}", self.number);
            let Draft { mut json, routing, kind } = draft;
            json["message_id"] = json!(id);
            records.push(json);
            let (tenant, source) = (self.tenant.clone(), self.number);
            let sent = Sent { tenant: tenant.clone(), routing, number, source, kind, acknowledged: false };
            self.sim.truth().sent.insert((tenant, id), sent);
        }
        let body = serde_json::to_vec(&json!({"batch": records})).unwrap_or_default();
        let request = Request {
            tenant: &self.tenant,
            endpoint: Endpoint::NativeBatch,
            body: &body,
            ndjson: false,
            idempotency_key: None,
            received_ms: self.sim.world.true_ms() as i64,
            trace: None,
        };
        let accepted = split(&request, &Limits::default(), &mut || "made".to_owned());
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(refusal) => {
                self.sim.world.fail(format!("a request was refused: {refusal:?}"));
                return Vec::new();
            }
        };
        let envelope = |accepted: Accepted| match accepted {
            Accepted::Envelope(envelope) => Some(envelope),
            Accepted::Refused { message_id, refusal } => {
                self.sim.world.fail(format!("{message_id:?} was refused at once: {refusal:?}"));
                None
            }
        };
        accepted.into_iter().filter_map(envelope).collect()
    }

    /// Sends until everything is acknowledged.
    fn deliver(&self, envelopes: &[Envelope]) {
        let mut frames: BTreeMap<u32, Vec<&Envelope>> = BTreeMap::new();
        for envelope in envelopes {
            let group = u16::try_from(envelope.group).unwrap_or_default();
            frames.entry(shard_of(group, self.sim.settings.shards)).or_default().push(envelope);
        }
        let mut pause_ms = 50;
        while !frames.is_empty() {
            // A new connection each time: what an earlier one has under way may still arrive, late.
            if let Ok(producer) = self.sim.log.of(self.process).producer() {
                let arrived = self.attempt(&*producer, &frames);
                arrived.iter().for_each(|partition| self.acknowledge(&mut frames, *partition));
            }
            if !frames.is_empty() {
                self.sim.world.sleep_ms(pause_ms);
                pause_ms = (pause_ms * 2).min(800);
            }
        }
    }

    fn acknowledge(&self, frames: &mut BTreeMap<u32, Vec<&Envelope>>, partition: u32) {
        let mut truth = self.sim.truth();
        for envelope in frames.remove(&partition).into_iter().flatten() {
            let key = (envelope.tenant.clone(), envelope.message_id.clone());
            if let Some(sent) = truth.sent.get_mut(&key) {
                sent.acknowledged = true;
            }
        }
    }

    /// Sends each frame once; gives those that are acknowledged.
    fn attempt(&self, producer: &dyn Producer, frames: &BTreeMap<u32, Vec<&Envelope>>) -> Vec<u32> {
        let answers = SharedAnswers::default();
        lock(&answers).left = frames.len();
        for (partition, envelopes) in frames {
            let mut frame = FrameWriter::new(Content::Envelope);
            envelopes.iter().for_each(|envelope| frame.push(*envelope));
            let (payload, answers, partition) = (frame.finish(), answers.clone(), *partition);
            let message =
                Outgoing { topic: &self.sim.topics.ingress, partition, key: &[], payload: &payload, headers: &[] };
            let world = self.sim.world.clone();
            let answered = Box::new(move |fate: Result<u64, _>| {
                let mut answers = lock(&answers);
                answers.left -= 1;
                if fate.is_ok() {
                    answers.arrived.push(partition);
                }
                let waker = answers.waiting.take().filter(|_| answers.left == 0);
                drop(answers);
                waker.into_iter().for_each(|waker| world.wake(waker));
            });
            producer.send(message, answered);
        }
        let until_us = self.sim.world.now_us() + PATIENCE_MS * 1000;
        while lock(&answers).left > 0 && self.sim.world.now_us() < until_us {
            self.sim.world.park(until_us, |waker| lock(&answers).waiting = Some(waker));
        }
        std::mem::take(&mut lock(&answers).arrived)
    }
}

/// What has become of the frames of an attempt.
#[derive(Default)]
struct Answers {
    left: usize,
    arrived: Vec<u32>,
    waiting: Option<Waker>,
}

type SharedAnswers = Arc<Mutex<Answers>>;

fn lock(answers: &SharedAnswers) -> MutexGuard<'_, Answers> {
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}

fn draft(rng: &mut Rng, source: u32, number: u64, deletes: bool) -> Draft {
    let anonymous = format!("s{source}-{}", rng.below(4));
    let user = format!("u{}", rng.below(5) + 10);
    let device = format!("d{source}-{}", rng.below(2));
    let mut identifiers = serde_json::Map::new();
    identifiers.insert("anonymous_id".into(), json!(anonymous));
    if rng.one_in(3) {
        identifiers.insert("user_id".into(), json!(user));
    }
    if rng.one_in(5) {
        identifiers.insert("email".into(), json!(format!("e{}@example.com", rng.below(4))));
    }
    let with_device = rng.one_in(4);
    if with_device {
        identifiers.insert("device_id".into(), json!(device));
    }
    let set = json!({"plan": rng.below(5), "city": format!("c{}", rng.below(3))});
    let add = json!({"tags": [format!("t{}", rng.below(4))]});
    match rng.below(20) {
        0 => {
            let json = json!({"type": "device", "identifiers": {"device_id": device}, "set": {"os": rng.below(3)}});
            Draft { json, routing: device, kind: "device" }
        }
        1 | 2 => {
            let merged = json!({"type": "user_id", "value": user});
            let retained = json!({"type": "anonymous_id", "value": anonymous});
            let json = json!({"type": "merge", "retained": retained, "merged": merged});
            Draft { json, routing: anonymous, kind: "merge" }
        }
        3 if deletes => {
            let json = json!({"type": "delete", "identifiers": {"anonymous_id": anonymous}});
            Draft { json, routing: anonymous, kind: "delete" }
        }
        4 => Draft { json: bad(rng, &anonymous), routing: anonymous, kind: "bad" },
        5..9 => {
            let mut json = json!({"type": "user", "identifiers": identifiers, "set": set, "add": add});
            if with_device {
                json["device"] = json!({"set": {"model": rng.below(3)}});
            }
            Draft { json, routing: anonymous, kind: "user" }
        }
        _ => {
            let mut json =
                json!({"type": "event", "event": "Seen", "identifiers": identifiers, "properties": {"n": number}});
            if rng.one_in(3) {
                json["set"] = set;
            }
            Draft { json, routing: anonymous, kind: "event" }
        }
    }
}

/// A record that unify rejects.
fn bad(rng: &mut Rng, anonymous: &str) -> Value {
    let identifiers = json!({"anonymous_id": anonymous});
    match rng.below(3) {
        0 => json!({"type": "nonsense", "identifiers": identifiers}),
        1 => json!({"type": "event", "identifiers": identifiers}),
        _ => json!({"type": "user", "identifiers": identifiers, "set": 7}),
    }
}
