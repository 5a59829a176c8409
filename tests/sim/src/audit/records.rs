//! I1, I2 and I3: each record has one outcome, records of one routing identifier keep their order, and the sums say what happened.

use super::changelog::Story;
use super::{Findings, decode};
use crate::counts::Protocol;
use crate::sim::Sim;
use millstream_model::frame::Content;
use millstream_model::key::Kind;
use millstream_model::proto::{Action, Envelope, Mutation, Stamp, Usage};
use millstream_model::reject::Reject;
use prost::Message;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

type Stories = BTreeMap<(&'static str, u32), Story>;
/// Tenant and message id.
type Name = (String, String);

/// Everything that the pipeline took in and gave out.
#[derive(Default)]
pub struct Flow {
    /// Records of `ingress`, with partition, offset, index.
    pub envelopes: Vec<(Envelope, u32, u64, u32)>,
    /// By partition, in order.
    pub actions: Vec<(u32, Action)>,
    /// In the order of partition and offset.
    pub mutations: Vec<Mutation>,
    /// With the place of the transaction among all decisions.
    pub events: Vec<(u64, u32, u64, Value)>,
    /// Whole ones, not parts.
    pub rejects: Vec<Reject>,
}

impl Flow {
    /// Reads every topic.
    pub fn read(sim: &Sim, findings: &mut Findings) -> Flow {
        let mut flow = Flow::default();
        let topics = &sim.topics;
        for partition in 0..sim.settings.shards {
            let all = |topic: &str| sim.log.look(|broker| broker.committed(topic, partition));
            for message in all(&topics.ingress) {
                let records = decode::<Envelope>(&message.payload, Content::Envelope).unwrap_or_default();
                let place = |(index, it)| (it, partition, message.offset, index);
                flow.envelopes.extend((0..).zip(records).map(place));
            }
            for message in all(&topics.actions) {
                let actions = decode::<Action>(&message.payload, Content::Action).unwrap_or_default();
                flow.actions.extend(actions.into_iter().map(|action| (partition, action)));
            }
            for message in all(&topics.mutations) {
                flow.mutations.extend(decode::<Mutation>(&message.payload, Content::Mutation).unwrap_or_default());
            }
            for message in all(&topics.events) {
                let order = message.transaction.map_or(0, |(_, order, _)| order);
                let event = serde_json::from_slice(&message.payload).unwrap_or_default();
                flow.events.push((order, partition, message.offset, event));
            }
            for message in all(&topics.rejects) {
                match serde_json::from_slice::<Reject>(&message.payload) {
                    Ok(reject) if reject.partial => {}
                    Ok(reject) => flow.rejects.push(reject),
                    Err(error) => findings.check(false, || format!("I2: an unreadable reject: {error}")),
                }
            }
        }
        flow.events.sort_by_key(|(order, partition, offset, _)| (*order, *partition, *offset));
        flow
    }
}

/// Checks all of it.
pub fn check(sim: &Sim, told: &Stories, findings: &mut Findings) {
    transactions_are_whole(sim, told, findings);
    let flow = Flow::read(sim, findings);
    acknowledged_is_there(sim, &flow, findings);
    let duplicates = one_outcome_of_unify(sim, &flow, findings);
    one_outcome_of_action(&flow, findings);
    in_order(sim, &flow, findings);
    stamps_ascend(&flow, findings);
    sums(told, &flow, duplicates, findings);
    flow.rejects.iter().for_each(|_| sim.world.count(Protocol::Rejected));
}

/// Outputs are committed with the batch that they come from, and with all of it.
fn transactions_are_whole(sim: &Sim, told: &Stories, findings: &mut Findings) {
    let whole: BTreeSet<usize> = told.values().flat_map(|story| story.whole.iter().copied()).collect();
    let topics = &sim.topics;
    let outputs = [&topics.actions, &topics.exchange, &topics.mutations, &topics.events, &topics.rejects];
    sim.log.look(|broker| {
        for (number, partitions) in broker.transactions() {
            let writes = partitions.iter().any(|at| outputs.contains(&&at.topic));
            findings.check(!writes || whole.contains(&number), || {
                format!("I1: transaction {number} has outputs, but no whole batch: {partitions:?}")
            });
        }
    });
}

fn acknowledged_is_there(sim: &Sim, flow: &Flow, findings: &mut Findings) {
    let there: BTreeSet<(&str, &str)> =
        flow.envelopes.iter().map(|(it, ..)| (it.tenant.as_str(), it.message_id.as_str())).collect();
    for ((tenant, id), sent) in &sim.truth().sent {
        let is_there = there.contains(&(tenant.as_str(), id.as_str()));
        findings
            .check(is_there || !sent.acknowledged, || format!("I2: {tenant} {id} was acknowledged and is not there"));
    }
}

/// The first record with a message id has one outcome, every other is a duplicate; gives how many those are.
fn one_outcome_of_unify(sim: &Sim, flow: &Flow, findings: &mut Findings) -> u64 {
    let mut outcomes: BTreeMap<(u32, u64, u32), u64> = BTreeMap::new();
    for (partition, action) in &flow.actions {
        let Stamp { offset, index, .. } = action.stamp.unwrap_or_default();
        *outcomes.entry((*partition, offset, index)).or_default() += 1;
    }
    let mut refused: BTreeMap<Name, u64> = BTreeMap::new();
    for reject in flow.rejects.iter().filter(|reject| reject.stage == "unify") {
        *refused.entry((reject.tenant.clone(), reject.message_id.clone())).or_default() += 1;
    }
    let (mut seen, mut duplicates) = (BTreeSet::new(), 0);
    for (envelope, partition, offset, index) in &flow.envelopes {
        let name = (envelope.tenant.clone(), envelope.message_id.clone());
        let effects = outcomes.remove(&(*partition, *offset, *index)).unwrap_or_default();
        if seen.insert(name.clone()) {
            let rejects = refused.remove(&name).unwrap_or_default();
            findings.check(effects + rejects == 1, || {
                format!("I1: {name:?} led to {effects} actions and {rejects} rejects of unify")
            });
        } else {
            duplicates += 1;
            sim.world.count(Protocol::Duplicate);
            findings.check(effects == 0, || format!("I1: {name:?} took effect again, at {partition}/{offset}"));
        }
    }
    findings.check(outcomes.is_empty(), || format!("I1: actions of no record: {outcomes:?}"));
    findings.check(refused.is_empty(), || format!("I1: rejects of no record, or twice: {refused:?}"));
    duplicates
}

/// Each action with an event has one event, or is rejected.
fn one_outcome_of_action(flow: &Flow, findings: &mut Findings) {
    let mut events: BTreeMap<Name, u64> = BTreeMap::new();
    for (.., event) in &flow.events {
        *events.entry(name_of(event)).or_default() += 1;
    }
    let mut refused: BTreeMap<Name, u64> = BTreeMap::new();
    for reject in flow.rejects.iter().filter(|reject| reject.stage == "action") {
        *refused.entry((reject.tenant.clone(), reject.message_id.clone())).or_default() += 1;
    }
    for (_, action) in &flow.actions {
        let name = (action.tenant.clone(), action.message_id.clone());
        let came = events.remove(&name).unwrap_or_default();
        let rejects = refused.remove(&name).unwrap_or_default();
        let holds = if action.event.is_some() { came + rejects == 1 } else { came == 0 && rejects <= 1 };
        findings.check(holds, || format!("I1: {name:?} led to {came} events and {rejects} rejects of action"));
    }
    findings.check(events.is_empty() && refused.is_empty(), || {
        format!("I1: events or rejects of no action, or twice: {events:?} {refused:?}")
    });
}

fn name_of(event: &Value) -> Name {
    let text = |member: &str| event[member].as_str().unwrap_or_default().to_owned();
    (text("tenant"), text("message_id"))
}

/// Events of one routing identifier of a source come in the order in which their records were acknowledged.
fn in_order(sim: &Sim, flow: &Flow, findings: &mut Findings) {
    let truth = sim.truth();
    let mut newest: BTreeMap<(u32, &str), u64> = BTreeMap::new();
    for (.., event) in &flow.events {
        let name = name_of(event);
        let Some(sent) = truth.sent.get(&name) else { continue };
        let before = newest.insert((sent.source, &sent.routing), sent.number);
        findings.check(before < Some(sent.number), || {
            format!("I3: {name:?}, routed by {}, came after record {before:?} of its source", sent.routing)
        });
    }
}

/// Stamps of a partition ascend, and so are actions in the order of their records.
fn stamps_ascend(flow: &Flow, findings: &mut Findings) {
    let mut newest: BTreeMap<u32, Stamp> = BTreeMap::new();
    for (partition, action) in &flow.actions {
        let stamp = action.stamp.unwrap_or_default();
        let before = newest.insert(*partition, stamp);
        findings.check(before < Some(stamp), || format!("I7: {stamp:?} after {before:?} in partition {partition}"));
    }
}

/// The sums of all shards are what is in the topics.
fn sums(told: &Stories, flow: &Flow, duplicates: u64, findings: &mut Findings) {
    let mut total: BTreeMap<&str, Usage> = BTreeMap::new();
    for ((stage, _), story) in told {
        for (key, value) in &story.state {
            if let Some((_, Kind::Usage, _)) = key.parts() {
                *total.entry(stage).or_default() += &Usage::decode(value.as_slice()).unwrap_or_default();
            }
        }
    }
    let (unify, action) = (total.remove("unify").unwrap_or_default(), total.remove("action").unwrap_or_default());
    let count = |stage: &str| flow.rejects.iter().filter(|reject| reject.stage == stage).count() as u64;
    let pairs = [
        ("records accepted by unify", unify.accepted, flow.envelopes.len() as u64),
        ("duplicates", unify.duplicates, duplicates),
        ("rejects of unify", unify.rejects, count("unify")),
        ("rejects of action", action.rejects, count("action")),
        ("effects and rejects of action", action.effects + action.rejects, flow.actions.len() as u64),
        ("mutations", action.mutations, flow.mutations.len() as u64),
        ("events", action.events, flow.events.len() as u64),
    ];
    for (what, summed, there) in pairs {
        findings.check(summed == there, || format!("I2: {what}: the sums say {summed}, the log has {there}"));
    }
}
