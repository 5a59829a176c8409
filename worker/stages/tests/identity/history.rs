//! Random histories: what sources could send about a few people who keep being linked.

use millstream_model::key::group_of;
use millstream_model::proto::change::Op;
use millstream_model::proto::{Action, Change, Event, Identifier, List, Merge, Stamp, Value};

pub const TENANT: &str = "acme";

/// A small generator (splitmix64): one number names a whole run.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// A record; identifiers are numbers of the pool, the first one routes and resolves.
#[derive(Clone, Debug)]
pub struct Record {
    pub identifiers: Vec<usize>,
    /// Attribute 0 is set; attribute 1 is a set to which an element is added.
    pub attribute: Option<(u8, u8)>,
    pub device: Option<usize>,
    /// A further identifier of the device, or the only one that the record knows.
    pub advertising: Option<usize>,
    pub event: bool,
    pub time_ms: i64,
    pub merge: bool,
    pub delete: bool,
    /// What routes it: 0 its first identifier; 1 the first, 2 the last of its device, when it names one.
    pub routed_by: usize,
}

#[derive(Clone, Debug)]
pub struct History {
    pub records: Vec<Record>,
    /// Added to each stamp, milliseconds.
    pub later_ms: u64,
}

impl History {
    /// Devices have one identifier each.
    pub fn random(rng: &mut Rng, deletes: bool) -> History {
        let (count, pool) = (5 + rng.below(36), 3 + rng.below(14));
        let most = 1 + rng.below(4);
        let records = (0..count).map(|_| {
            let identifiers: Vec<usize> = (0..1 + rng.below(most)).map(|_| rng.below(pool)).collect();
            let merge = identifiers.len() >= 2 && identifiers[0] != identifiers[1] && rng.one_in(5);
            Record {
                attribute: rng.one_in(2).then(|| (rng.below(3) as u8, rng.below(4) as u8)),
                device: rng.one_in(4).then(|| rng.below(3)),
                advertising: None,
                event: rng.one_in(2),
                time_ms: rng.below(100) as i64,
                delete: deletes && rng.one_in(6),
                merge,
                routed_by: 0,
                identifiers,
            }
        });
        History { records: records.collect(), later_ms: 0 }
    }

    /// Devices route some of their records.
    pub fn with_routes(mut self, rng: &mut Rng) -> History {
        self.records.iter_mut().for_each(|record| record.routed_by = rng.below(3));
        self
    }

    /// With devices that are named by one identifier or by the other, or by both.
    pub fn with_aliases(rng: &mut Rng, deletes: bool) -> History {
        let mut history = History::random(rng, deletes);
        for record in &mut history.records {
            record.device = record.device.or_else(|| rng.one_in(3).then(|| rng.below(3)));
            record.advertising = rng.one_in(2).then(|| rng.below(3));
        }
        history.with_routes(rng)
    }

    /// Stamps grow along the history; records of different routing keys may have the same one.
    pub fn stamp(&self, index: usize) -> Stamp {
        let routing = |index: usize| self.routing(index);
        let same_key = index % 2 == 1 && routing(index) == routing(index - 1);
        Stamp { time_ms: 1_000 + self.later_ms + index as u64 / 2, offset: u64::from(same_key), index: 0 }
    }

    /// By which identifier a record chooses its shard.
    pub fn routing(&self, index: usize) -> Identifier {
        let record = &self.records[index];
        record.routing_device().map_or_else(|| identifier(record.identifiers[0]), |(_, device)| device)
    }

    pub fn action(&self, index: usize) -> Action {
        let record = &self.records[index];
        let mut identifiers: Vec<Identifier> = Vec::new();
        for number in &record.identifiers {
            let identifier = identifier(*number);
            if !identifiers.contains(&identifier) && (identifiers.is_empty() || !record.delete) {
                identifiers.push(identifier);
            }
        }
        let is_merge = record.merge && !record.delete;
        let merge =
            is_merge.then(|| Merge { retained: identifiers.first().cloned(), merged: identifiers.get(1).cloned() });
        let plain = !record.delete && !is_merge;
        Action {
            tenant: TENANT.into(),
            group: u32::from(group_of(TENANT, &self.routing(index))),
            by_device: record.routing_device().is_some(),
            routing: record.routing_device().map_or(0, |(index, _)| index),
            stamp: Some(self.stamp(index)),
            record_id: (index as u128).to_be_bytes().to_vec(),
            message_id: format!("m{index}"),
            user_identifiers: identifiers,
            device_identifiers: if plain { record.device_identifiers() } else { Vec::new() },
            time_ms: record.time_ms,
            user_changes: record
                .attribute
                .filter(|_| plain)
                .map(|(name, value)| change(name, value))
                .into_iter()
                .collect(),
            event: (record.event && plain).then(|| Event { name: "seen".into(), properties: Vec::new() }),
            merge,
            delete: record.delete,
            kind: "event".into(),
            ..Action::default()
        }
    }
}

impl Record {
    /// The one of its device that routes it, and which that is.
    fn routing_device(&self) -> Option<(u32, Identifier)> {
        let devices = (0..).zip(self.device_identifiers());
        match self.routed_by {
            _ if self.merge || self.delete => None,
            1 => devices.into_iter().next(),
            2 => devices.last(),
            _ => None,
        }
    }

    fn device_identifiers(&self) -> Vec<Identifier> {
        self.device.map(device).into_iter().chain(self.advertising.map(advertising)).collect()
    }
}

/// Identifier of a number; types differ, so that lists per type do.
pub fn identifier(number: usize) -> Identifier {
    Identifier::new(["user_id", "anonymous_id", "email"][number % 3], number.to_string())
}

pub fn device(number: usize) -> Identifier {
    Identifier::new("device_id", format!("device-{number}"))
}

/// A further identifier of devices.
pub fn advertising(number: usize) -> Identifier {
    Identifier::new("gaid", format!("ad-{number}"))
}

fn change(name: u8, value: u8) -> Change {
    let text = Value::string(format!("v{value}"));
    let list = || List { items: vec![text.clone()] };
    let op = match (name, value) {
        (0, 3) => Op::Unset(true),
        (0, _) => Op::Set(text),
        (1, _) => Op::Add(list()),
        (_, 0) => Op::Set(Value::list(list().items)),
        (_, 1) => Op::Remove(list()),
        (_, _) => Op::Add(list()),
    };
    Change { name: format!("a.{name}"), op: Some(op) }
}
