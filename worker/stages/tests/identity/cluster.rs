//! Action shards with state in memory, and an exchange that keeps the order of each channel and no other.

use crate::history::{Rng, TENANT};
use millstream_model::id::{DeviceId, UserId};
use millstream_model::key::Kind;
use millstream_model::key::{StateKey, shard_of};
use millstream_model::proto::User;
use millstream_model::proto::exchange::Body;
use millstream_model::proto::user::Fate;
use millstream_model::proto::{Action, DeviceState, Exchange, Identifier, Mutation, Stamp};
use millstream_stages::action::{ActionLimits, ActionStage, Erasures, Node, Record, Value};
use millstream_stages::{At, Input, MemoryState, Outbox, PublicMessage, Stage, StateError, StateValue};
use prost::Message;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub type Memory = MemoryState<Value>;

/// Where a record or message waits: actions per key group, exchange messages per (from, to).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Channel {
    Actions(u32),
    Exchange(u32, u32),
}

pub struct Cluster {
    shards: u32,
    /// Of each shard.
    stages: Vec<ActionStage>,
    /// What shards have still to go through.
    listed: BTreeMap<u32, Vec<StateKey>>,
    pub states: Vec<Memory>,
    channels: BTreeMap<Channel, VecDeque<Vec<u8>>>,
    rng: Rng,
    /// One with a bias to some channels lets others fall far behind.
    bias: usize,
    pub mutations: Vec<Mutation>,
    pub events: Vec<PublicMessage>,
    pub rejects: Vec<PublicMessage>,
    pub effects: u64,
    pub rejected: u64,
    pub steps: u64,
    /// Bytes of the largest message on the exchange, and of the largest mutation.
    pub largest: (usize, usize),
    /// Messages that carried the state of a user.
    pub absorbs: usize,
}

impl Cluster {
    pub fn new(shards: u32, seed: u64) -> Cluster {
        Cluster::within(ActionLimits::default(), shards, seed)
    }

    pub fn within(limits: ActionLimits, shards: u32, seed: u64) -> Cluster {
        let mut rng = Rng(seed ^ 0x5eed);
        let bias = rng.below(3);
        Cluster {
            shards,
            stages: vec![ActionStage::new(limits); shards as usize],
            listed: BTreeMap::new(),
            states: (0..shards).map(|_| Memory::default()).collect(),
            channels: BTreeMap::new(),
            rng,
            bias,
            mutations: Vec::new(),
            events: Vec::new(),
            rejects: Vec::new(),
            effects: 0,
            rejected: 0,
            steps: 0,
            largest: (0, 0),
            absorbs: 0,
        }
    }

    pub fn send(&mut self, action: &Action) {
        self.channels.entry(Channel::Actions(action.group)).or_default().push_back(action.encode_to_vec());
    }

    /// A message that was sent long ago and comes only now.
    pub fn send_late(&mut self, group: u16, body: Body) {
        let message = Exchange { tenant: TENANT.into(), group: u32::from(group), hops: 1, body: Some(body) };
        let to = shard_of(group, self.shards);
        self.channels.entry(Channel::Exchange(to, to)).or_default().push_back(message.encode_to_vec());
    }

    /// Delivers everything, one record at a time, from a channel chosen at random.
    pub fn run(&mut self) -> Result<(), String> {
        self.run_watched(|_| {})
    }

    /// [`Self::run`], with a look at the state after each record.
    pub fn run_watched(&mut self, watch: impl Fn(&Cluster)) -> Result<(), String> {
        self.run_some(usize::MAX, watch)
    }

    /// The same, for so many records at most.
    pub fn run_some(&mut self, most: usize, watch: impl Fn(&Cluster)) -> Result<(), String> {
        for _ in 0..most {
            if self.channels.is_empty() {
                break;
            }
            self.steps += 1;
            if self.steps > 100_000 {
                return Err("does not come to rest".into());
            }
            let channel = self.choose();
            let queue = self.channels.get_mut(&channel).unwrap();
            let bytes = queue.pop_front().unwrap();
            if queue.is_empty() {
                self.channels.remove(&channel);
            }
            self.process(channel, &bytes).map_err(|error| error.to_string())?;
            watch(self);
        }
        Ok(())
    }

    /// Mostly uniform; with a bias, actions come before messages, or the last channels before the first.
    fn choose(&mut self) -> Channel {
        let count = self.channels.len();
        let at_random = self.rng.below(count);
        let index = match self.bias {
            1 if !self.rng.one_in(4) => self.rng.below(1 + count / 3),
            2 if !self.rng.one_in(4) => count - 1 - self.rng.below(1 + count / 3),
            _ => at_random,
        };
        *self.channels.keys().nth(index).unwrap()
    }

    fn process(&mut self, channel: Channel, bytes: &[u8]) -> Result<(), StateError> {
        let (input, partition) = match channel {
            Channel::Actions(group) => (Input::Actions, shard_of(group as u16, self.shards)),
            Channel::Exchange(_, to) => (Input::Exchange, to),
        };
        let stamp = Stamp { time_ms: 1, offset: self.steps, index: 0 };
        let at = At { input, partition, stamp, batch_ms: 1, generation: 1, shards: self.shards };
        let record: Record = self.stages[partition as usize].decode(input, bytes).unwrap();
        if std::env::var_os("IDENTITY_TRACE").is_some() {
            println!("step {} {channel:?} {}", self.steps, format!("{record:?}").replace('\n', " "));
        }
        let mut out = Outbox::default();
        self.stages[partition as usize].process(record, &at, &mut self.states[partition as usize], &mut out)?;
        self.take(partition, out);
        Ok(())
    }

    /// What a shard sends and counts.
    fn take(&mut self, partition: u32, mut out: Outbox) {
        for message in std::mem::take(&mut out.exchange) {
            let to = shard_of(message.group as u16, self.shards);
            self.largest.0 = self.largest.0.max(message.encoded_len());
            self.absorbs += usize::from(matches!(message.body, Some(Body::Absorb(_))));
            self.channels.entry(Channel::Exchange(partition, to)).or_default().push_back(message.encode_to_vec());
        }
        let largest = out.mutations.iter().map(Message::encoded_len).max().unwrap_or(0);
        self.largest.1 = self.largest.1.max(largest);
        let usage = *out.usage(TENANT);
        let is_whole =
            |reject: &&PublicMessage| !String::from_utf8_lossy(&reject.payload).contains(r#""partial":true"#);
        assert_eq!(usage.rejects as usize, out.rejects.iter().filter(is_whole).count());
        assert_eq!(usage.mutations as usize, out.mutations.len());
        assert_eq!(usage.events as usize, out.events.len());
        self.effects += usage.effects;
        self.rejected += usage.rejects;
        self.mutations.append(&mut out.mutations);
        self.events.append(&mut out.events);
        self.rejects.append(&mut out.rejects);
    }

    /// A shard hears what is erased, and lists what it has.
    pub fn hear(&mut self, shard: u32, until_ms: u64) {
        let tenants: BTreeMap<String, u64> = [(TENANT.to_owned(), until_ms)].into();
        let erasures = Erasures { until_ms: tenants.clone(), under_way: Arc::new(tenants) };
        self.stages[shard as usize].adopt(Arc::new(erasures));
        self.listed.insert(shard, self.states[shard as usize].entries.keys().cloned().collect());
    }

    /// A shard hears that every shard has been through.
    pub fn hear_the_end(&mut self, shard: u32, until_ms: u64) {
        let until_ms = [(TENANT.to_owned(), until_ms)].into();
        self.stages[shard as usize].adopt(Arc::new(Erasures { until_ms, ..Erasures::default() }));
    }

    /// It goes through a part of it.
    pub fn sweep(&mut self, shard: u32, most: usize) -> Result<(), StateError> {
        let listed = self.listed.get_mut(&shard).unwrap();
        let keys = listed.split_off(listed.len().saturating_sub(most));
        let stamp = Stamp { time_ms: 1, ..Stamp::default() };
        let at =
            At { input: Input::Exchange, partition: shard, stamp, batch_ms: 1, generation: 1, shards: self.shards };
        let mut out = Outbox::default();
        for key in keys {
            self.stages[shard as usize].sweep(key, &at, &mut self.states[shard as usize], &mut out)?;
        }
        self.take(shard, out);
        Ok(())
    }

    /// All of it.
    pub fn erase(&mut self, shard: u32, until_ms: u64) -> Result<(), StateError> {
        self.hear(shard, until_ms);
        self.sweep(shard, usize::MAX)
    }

    /// All values, each in the shard of its group and equal to its stored form.
    pub fn values(&self) -> Result<Vec<(&StateKey, &Value)>, String> {
        let mut all = Vec::new();
        for (shard, state) in self.states.iter().enumerate() {
            for (key, value) in &state.entries {
                if shard_of(key.group().unwrap(), self.shards) != shard as u32 {
                    return Err(format!("{key:?} is in shard {shard}"));
                }
                let mut bytes = Vec::new();
                value.encode(&mut bytes);
                if Value::decode(key, &bytes).unwrap() != *value {
                    return Err(format!("{key:?} does not come back from its stored form"));
                }
                all.push((key, value));
            }
        }
        Ok(all)
    }

    pub fn user(&self, id: &UserId) -> Option<&User> {
        let key = StateKey::new(id.home(), TENANT, Kind::User, id.as_bytes());
        match self.states[shard_of(id.home(), self.shards) as usize].entries.get(&key) {
            Some(Value::User(user)) => Some(user),
            _ => None,
        }
    }

    pub fn node(&self, identifier: &Identifier) -> Option<&Node> {
        let key = StateKey::of_identifier(TENANT, Kind::Node, identifier);
        match self.states[shard_of(key.group().unwrap(), self.shards) as usize].entries.get(&key) {
            Some(Value::Node(node)) => Some(node),
            _ => None,
        }
    }

    pub fn device(&self, id: &DeviceId) -> Option<&DeviceState> {
        let key = StateKey::new(id.home(), TENANT, Kind::Device, id.as_bytes());
        match self.states[shard_of(id.home(), self.shards) as usize].entries.get(&key) {
            Some(Value::Device(device)) => Some(device),
            _ => None,
        }
    }

    /// The device that an identifier names, by aliases or as its primary one.
    pub fn device_named(&self, identifier: &Identifier) -> Option<&DeviceState> {
        let key = StateKey::of_identifier(TENANT, Kind::Alias, identifier);
        match self.states[shard_of(key.group().unwrap(), self.shards) as usize].entries.get(&key) {
            Some(Value::Alias(alias)) => self.device_named(alias.primary.as_ref().unwrap()),
            _ => self.device(&DeviceId::of(TENANT, identifier)),
        }
    }

    /// The end of a user's chain of forwards.
    pub fn last(&self, id: UserId) -> Result<(UserId, &User), String> {
        let mut id = id;
        for _ in 0..1_000 {
            let user = self.user(&id).ok_or_else(|| format!("{id} is named and not there"))?;
            match &user.fate {
                Some(Fate::Forward(to)) => id = UserId::from_bytes(to).unwrap(),
                _ => return Ok((id, user)),
            }
        }
        Err(format!("{id} is forwarded in a circle"))
    }
}
