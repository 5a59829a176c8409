//! The truth about the log.
//!
//! A transaction is *open*, then *decided*, then *landed* partition by partition: a partition shows what it holds, and whatever lies behind, only when the marker has landed
//! there. A producer of a transactional id is a *session*; a new one fences the one before, having ended its transaction. Sessions have numbers
//! of their own, so that an id that was forgotten and initialised again is not taken for the one before.

use crate::world::Waker;
use millstream_shard::log::{LogError, Outgoing, Retention, TopicPartition, TopicSpec, View, Whole};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// The largest message.
const MOST_BYTES: usize = 8 << 20;

/// So many of the newest messages of a compacted topic are not looked at.
const UNCOMPACTED: u64 = 16;

/// What is at an offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A message.
    #[default]
    Data,
    /// The end of a transaction.
    Control,
}

#[derive(Default)]
pub(super) struct Entry {
    pub(super) time_ms: u64,
    pub(super) key: Arc<[u8]>,
    pub(super) payload: Arc<[u8]>,
    pub(super) headers: Arc<[(String, String)]>,
    /// Place in `transactions`; of a plain producer none.
    pub(super) transaction: Option<usize>,
    pub(super) kind: Kind,
}

pub(super) struct Partition {
    pub(super) at: TopicPartition,
    pub(super) append_time: bool,
    /// Of a compacted topic: the newest offset of each key.
    newest: Option<BTreeMap<Arc<[u8]>, u64>>,
    pub(super) deleted: bool,
    pub(super) start: u64,
    pub(super) entries: Vec<Entry>,
    /// First offset of each transaction that has not landed here.
    pub(super) open: BTreeMap<u64, usize>,
    waiting: Vec<Waker>,
    newest_ms: u64,
    /// When readers could see up to where: what a follower that lags may still say.
    pub(super) ends: Vec<(u64, u64)>,
}

impl Partition {
    /// Was this message compacted away? Those of transactions are not, so that one that is aborted replaces nothing.
    pub(super) fn is_gone(&self, offset: u64, entry: &Entry) -> bool {
        let newest = self.newest.as_ref().filter(|_| offset + UNCOMPACTED < self.end() && entry.transaction.is_none());
        newest.is_some_and(|newest| newest.get(&entry.key).is_some_and(|newest| *newest > offset))
    }

    /// What read-committed readers can see.
    pub(super) fn end(&self) -> u64 {
        self.open.keys().next().copied().unwrap_or(self.entries.len() as u64)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// With its place among all decisions.
    Committed(u64),
    Aborted,
    /// Was decided, and forgotten before any partition had the decision: the next marker of its id decides it, in the partitions that the marker is for. (One that some
    /// partitions had the decision of is committed, or aborted, and pending in the others.)
    Hanging,
}

struct Transaction {
    session: usize,
    state: State,
    /// Partitions where its marker has not landed.
    pending: BTreeSet<usize>,
    /// Those it has written to, with more than nothing.
    partitions: BTreeSet<usize>,
    /// Where it was decided the other way round: it hung there, and a marker of its id ended it.
    otherwise: BTreeSet<usize>,
}

struct Session {
    id: Arc<str>,
    /// The transaction that is open or has not landed everywhere.
    current: Option<usize>,
    fenced: bool,
}

struct Topic {
    id: String,
    spec: TopicSpec,
    first: usize,
}

/// Partitions, transactions, and who has which transactional id.
#[derive(Default)]
pub struct Broker {
    topics: BTreeMap<Arc<str>, Topic>,
    pub(super) partitions: Vec<Partition>,
    transactions: Vec<Transaction>,
    sessions: Vec<Session>,
    ids: BTreeMap<Arc<str>, usize>,
    decisions: u64,
    /// Those that hang somewhere.
    hanging: BTreeSet<usize>,
    /// Those of them whose clients were told of a commit.
    told: Vec<usize>,
    /// Transactions whose clients were not told what became of them.
    unknown: Vec<usize>,
    made: u64,
    /// Whom to wake: what they wait for may be there.
    pub(super) woken: Vec<Waker>,
    /// Keep what followers that lag could say.
    keeps_ends: bool,
}

/// In which partitions a transaction has landed that is forgotten: those whose bit is set, of any 64 neighbours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Landed(pub(super) u64);

impl Landed {
    fn is_in(self, index: usize) -> bool {
        self.0 >> (index % 64) & 1 == 1
    }
}

/// A session was fenced, or its id forgotten.
#[derive(Debug)]
pub(super) struct Fenced;

/// A message of the log, for the auditor.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its offset.
    pub offset: u64,
    /// Its time.
    pub time_ms: u64,
    /// Its key.
    pub key: Arc<[u8]>,
    /// Its payload.
    pub payload: Arc<[u8]>,
    /// Its headers.
    pub headers: Arc<[(String, String)]>,
    /// The transaction that brought it: its number, its place among all decisions, and the transactional id.
    pub transaction: Option<(usize, u64, Arc<str>)>,
}

impl Broker {
    /// An empty one; it may keep what followers that lag could say.
    pub(super) fn new(keeps_ends: bool) -> Broker {
        Broker { keeps_ends, ..Broker::default() }
    }

    // ---- topics --------------------------------------------------------------------------------------------------------

    pub(super) fn create(&mut self, specs: &[TopicSpec]) -> Result<(), LogError> {
        for spec in specs {
            match self.topics.get(spec.name.as_str()) {
                Some(topic) if topic.spec.partitions != spec.partitions => {
                    return Err(about(&spec.name, "has another number of partitions"));
                }
                Some(topic) if topic.spec.append_time != spec.append_time => {
                    return Err(about(&spec.name, "has another kind of time stamp"));
                }
                Some(_) => {}
                None => self.create_one(spec),
            }
        }
        Ok(())
    }

    fn create_one(&mut self, spec: &TopicSpec) {
        let (name, first): (Arc<str>, usize) = (Arc::from(spec.name.as_str()), self.partitions.len());
        self.made += 1;
        for partition in 0..spec.partitions {
            self.partitions.push(Partition {
                at: TopicPartition::new(name.clone(), partition),
                append_time: spec.append_time,
                newest: (spec.retention == Retention::Compact).then(BTreeMap::new),
                deleted: false,
                start: 0,
                entries: Vec::new(),
                open: BTreeMap::new(),
                waiting: Vec::new(),
                newest_ms: 0,
                ends: Vec::new(),
            });
        }
        let id = format!("topic-{}", self.made);
        self.topics.insert(name, Topic { id, spec: spec.clone(), first });
    }

    /// Deletes a topic.
    pub fn delete_topic(&mut self, name: &str) {
        let Some(topic) = self.topics.remove(name) else { return };
        for index in topic.first..topic.first + topic.spec.partitions as usize {
            self.partitions[index].deleted = true;
            self.moved(index, 0);
        }
    }

    pub(super) fn topic_id(&self, name: &str) -> Result<String, LogError> {
        self.topics.get(name).map(|topic| topic.id.clone()).ok_or_else(|| about(name, "does not exist"))
    }

    pub(super) fn find(&self, topic: &str, partition: u32) -> Result<usize, LogError> {
        let known = self.topics.get(topic).ok_or_else(|| about(topic, "does not exist"))?;
        if partition >= known.spec.partitions {
            return Err(about(topic, &format!("has no partition {partition}")));
        }
        Ok(known.first + partition as usize)
    }

    /// First offset, and what readers can see.
    pub fn bounds(&self, topic: &str, partition: u32) -> Result<(u64, u64), LogError> {
        let partition = &self.partitions[self.find(topic, partition)?];
        Ok((partition.start, partition.end()))
    }

    /// The offset after the last message, open transactions included.
    pub fn whole_end(&self, topic: &str, partition: u32) -> Result<u64, LogError> {
        Ok(self.partitions[self.find(topic, partition)?].entries.len() as u64)
    }

    /// Deletes what lies below an offset.
    pub fn delete_records(&mut self, topic: &str, partition: u32, before: u64) {
        if let Ok(index) = self.find(topic, partition) {
            let partition = &mut self.partitions[index];
            partition.start = partition.start.max(before.min(partition.end()));
        }
    }

    // ---- messages ------------------------------------------------------------------------------------------------------

    pub(super) fn admit(&self, message: &Outgoing<'_>) -> Result<usize, LogError> {
        let size = message.payload.len() + message.key.len();
        if size > MOST_BYTES {
            return Err(LogError::TooLarge { topic: message.topic.to_owned(), size });
        }
        self.find(message.topic, message.partition)
    }

    fn append(&mut self, index: usize, mut entry: Entry) -> u64 {
        let partition = &mut self.partitions[index];
        partition.newest_ms = partition.newest_ms.max(entry.time_ms);
        let offset = partition.entries.len() as u64;
        // A marker has no time that anybody sees.
        if entry.kind == Kind::Control {
            entry.time_ms = partition.newest_ms;
        }
        if let Some(newest) = partition.newest.as_mut().filter(|_| entry.kind == Kind::Data) {
            newest.insert(entry.key.clone(), offset);
        }
        partition.entries.push(entry);
        offset
    }

    /// A message of a plain producer.
    pub(super) fn append_plain(&mut self, index: usize, key: &Arc<[u8]>, payload: &Arc<[u8]>, now_ms: u64) -> u64 {
        let (key, payload) = (key.clone(), payload.clone());
        let offset = self.append(index, Entry { time_ms: now_ms, key, payload, ..Entry::default() });
        self.moved(index, now_ms);
        offset
    }

    /// Readers may see more than before.
    fn moved(&mut self, index: usize, now_ms: u64) {
        let partition = &mut self.partitions[index];
        self.woken.append(&mut partition.waiting);
        if self.keeps_ends {
            let end = partition.end();
            partition.ends.push((now_ms, end));
        }
    }

    pub(super) fn wait(&mut self, index: usize, waker: Waker) {
        let waiting = &mut self.partitions[index].waiting;
        // An earlier wait of the same coroutine is over.
        waiting.retain(|other| !other.is_of_same(&waker));
        waiting.push(waker);
    }

    /// Is this message visible, or for ever hidden? (Asked below the end only, where everything has landed.)
    pub(super) fn is_visible(&self, index: usize, entry: &Entry) -> bool {
        let committed = |number: usize| {
            let transaction = &self.transactions[number];
            matches!(transaction.state, State::Committed(_)) != transaction.otherwise.contains(&index)
        };
        entry.kind == Kind::Data && entry.transaction.is_none_or(committed)
    }

    /// What is there, from an offset to the end.
    pub(super) fn read(&self, at: &TopicPartition, offsets: Range<u64>, view: View) -> Result<Vec<Whole>, LogError> {
        let index = self.find(&at.topic, at.partition)?;
        let partition = &self.partitions[index];
        let from = offsets.start;
        if from < partition.start {
            let (start, end) = (partition.start, partition.end());
            return Err(LogError::OutOfRange { at: at.clone(), offset: from, start, end });
        }
        let end = if view == View::Committed { partition.end() } else { partition.entries.len() as u64 };
        let end = end.min(offsets.end);
        let entries = partition.entries.get(from as usize..end as usize).unwrap_or_default();
        let entries = entries.iter().enumerate().map(|(place, entry)| (from + place as u64, entry));
        let shown = entries.filter(|(_, entry)| match view {
            View::Committed => self.is_visible(index, entry),
            View::Everything => entry.kind == Kind::Data,
        });
        let whole = |(offset, entry): (u64, &Entry)| {
            let (key, payload) = (entry.key.to_vec(), entry.payload.to_vec());
            Whole { offset, key, payload, headers: entry.headers.to_vec() }
        };
        Ok(shown.map(whole).collect())
    }

    // ---- transactions --------------------------------------------------------------------------------------------------

    /// A new session of an id; true when it aborted an open transaction of the one before. That may be forgotten before it has landed everywhere.
    pub(super) fn init(&mut self, id: &str, now_ms: u64, forget: Option<Landed>) -> (usize, bool) {
        let id: Arc<str> = Arc::from(id);
        let mut aborted = false;
        if let Some(former) = self.ids.get(&id).copied() {
            if let Some(landed) = forget {
                drop(self.hang(former, false, landed, now_ms));
            }
            aborted = self.fence(former, now_ms);
        }
        self.sessions.push(Session { id: id.clone(), current: None, fenced: false });
        let session = self.sessions.len() - 1;
        self.ids.insert(id, session);
        (session, aborted)
    }

    /// How often the ids of a shard were initialised: those that are this and one part more.
    pub(super) fn inits_of(&self, shard: &str) -> usize {
        let of = |session: &&Session| session.id.rsplit_once('.').is_some_and(|(of, _)| of == shard);
        self.sessions.iter().filter(of).count()
    }

    /// Ends what the session has open; it can do nothing more.
    fn fence(&mut self, session: usize, now_ms: u64) -> bool {
        self.sessions[session].fenced = true;
        let Some(number) = self.sessions[session].current else { return false };
        let open = self.transactions[number].state == State::Open;
        if open {
            self.decide(number, false);
        }
        self.land_all(number, now_ms);
        open
    }

    fn decide(&mut self, number: usize, commit: bool) {
        self.decisions += 1;
        let state = if commit { State::Committed(self.decisions) } else { State::Aborted };
        self.transactions[number].state = state;
    }

    /// The marker lands in one partition.
    pub(super) fn land(&mut self, number: usize, index: usize, now_ms: u64) {
        let is_decided = !matches!(self.transactions[number].state, State::Open | State::Hanging);
        if !is_decided || !self.transactions[number].pending.remove(&index) {
            return;
        }
        let control = Entry { transaction: Some(number), kind: Kind::Control, ..Entry::default() };
        self.append(index, control);
        self.partitions[index].open.retain(|_, other| *other != number);
        self.end_hanging(number, index);
        self.moved(index, now_ms);
        let session = self.transactions[number].session;
        if self.transactions[number].pending.is_empty() && self.sessions[session].current == Some(number) {
            self.sessions[session].current = None;
        }
    }

    /// A partition knows of one transaction per id, and this marker ends it, with everything since it began.
    fn end_hanging(&mut self, number: usize, index: usize) {
        let id = |transaction: usize| self.sessions[self.transactions[transaction].session].id.clone();
        let here = |other: &usize| id(*other) == id(number) && self.transactions[*other].pending.contains(&index);
        let ended: Vec<usize> = self.hanging.iter().copied().filter(here).collect();
        for other in ended {
            let commit = matches!(self.transactions[number].state, State::Committed(_));
            match self.transactions[other].state {
                State::Hanging => self.decide(other, commit),
                decided if matches!(decided, State::Committed(_)) != commit => {
                    self.transactions[other].otherwise.insert(index);
                }
                _ => {}
            }
            self.partitions[index].open.retain(|_, open| *open != other);
            self.transactions[other].pending.remove(&index);
            if self.transactions[other].pending.is_empty() {
                self.hanging.remove(&other);
            }
        }
    }

    pub(super) fn land_all(&mut self, number: usize, now_ms: u64) {
        for index in self.transactions[number].pending.clone() {
            self.land(number, index, now_ms);
        }
        // One without a message lands nowhere.
        let session = self.transactions[number].session;
        if self.sessions[session].current == Some(number) {
            self.sessions[session].current = None;
        }
    }

    pub(super) fn is_current(&self, session: usize) -> bool {
        let known = &self.sessions[session];
        !known.fenced && self.ids.get(&known.id) == Some(&session)
    }

    /// The session's last transaction is decided, but not landed everywhere: it cannot send yet.
    pub(super) fn is_landing(&self, session: usize) -> bool {
        self.sessions[session].current.is_some_and(|number| self.transactions[number].state != State::Open)
    }

    /// A message of a session's transaction, which begins with its first one: gives it then.
    pub(super) fn add(
        &mut self,
        session: usize,
        index: usize,
        message: &Outgoing<'_>,
        now_ms: u64,
    ) -> Result<Option<usize>, Fenced> {
        if !self.is_current(session) || self.partitions[index].deleted {
            return Err(Fenced);
        }
        let open = self.sessions[session].current;
        let number = open.unwrap_or(self.transactions.len());
        if open.is_none() {
            let (pending, partitions) = (BTreeSet::new(), BTreeSet::new());
            let otherwise = BTreeSet::new();
            self.transactions.push(Transaction { session, state: State::Open, pending, partitions, otherwise });
            self.sessions[session].current = Some(number);
        }
        let (key, payload): (Arc<[u8]>, Arc<[u8]>) = (message.key.into(), message.payload.into());
        let headers = message.headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let entry = Entry { time_ms: now_ms, key, payload, headers, transaction: Some(number), kind: Kind::Data };
        let offset = self.append(index, entry);
        let transaction = &mut self.transactions[number];
        if !(message.key.is_empty() && message.payload.is_empty()) {
            transaction.partitions.insert(index);
        }
        if transaction.pending.insert(index) {
            self.partitions[index].open.insert(offset, number);
        }
        Ok(open.is_none().then_some(number))
    }

    /// Decides the session's open transaction, if there is one, and says which. Its markers are still to land.
    pub(super) fn finish(&mut self, session: usize, commit: bool) -> Result<Option<usize>, Fenced> {
        if !self.is_current(session) {
            return Err(Fenced);
        }
        let current = self.sessions[session].current;
        let Some(number) = current.filter(|number| self.transactions[*number].state == State::Open) else {
            return Ok(None);
        };
        self.decide(number, commit);
        Ok(Some(number))
    }

    /// The session's open transaction is decided, and forgotten when it has landed in some partitions, or in none: which it is.
    pub(super) fn hang(
        &mut self,
        session: usize,
        commit: bool,
        landed: Landed,
        now_ms: u64,
    ) -> Result<Option<usize>, Fenced> {
        if !self.is_current(session) {
            return Err(Fenced);
        }
        let current = self.sessions[session].current;
        let open = current.filter(|number| self.transactions[*number].state == State::Open);
        let Some(number) = open else { return Ok(None) };
        let lands: Vec<usize> = self.pending(number).into_iter().filter(|index| landed.is_in(*index)).collect();
        if lands.is_empty() {
            self.transactions[number].state = State::Hanging;
        } else {
            self.decide(number, commit);
        }
        self.hanging.insert(number);
        lands.into_iter().for_each(|index| self.land(number, index, now_ms));
        if self.transactions[number].pending.is_empty() {
            self.hanging.remove(&number);
        }
        self.sessions[session].current = None;
        Ok(Some(number))
    }

    /// The client of a transaction that hangs was told that it is committed.
    pub(super) fn tell(&mut self, number: usize) {
        self.told.push(number);
    }

    /// Payloads of everything that a client was told to be committed, and that was forgotten.
    pub fn told(&self) -> impl Iterator<Item = &Arc<[u8]>> {
        let entries = self.partitions.iter().flat_map(|partition| &partition.entries);
        let told = |entry: &&Entry| entry.transaction.is_some_and(|number| self.told.contains(&number));
        entries.filter(told).map(|entry| &entry.payload)
    }

    /// The client is not told what becomes of its open transaction.
    pub(super) fn leave_open(&mut self, session: usize) {
        self.unknown.extend(self.sessions[session].current);
    }

    /// Of the transactions whose clients were not told, how many were committed, and how many not.
    pub fn unknown(&self) -> (usize, usize) {
        let committed = |number: &&usize| matches!(self.transactions[**number].state, State::Committed(_));
        let committed = self.unknown.iter().filter(committed).count();
        (committed, self.unknown.len() - committed)
    }

    /// Where the markers of a transaction have not landed.
    pub(super) fn pending(&self, number: usize) -> Vec<usize> {
        self.transactions[number].pending.iter().copied().collect()
    }

    /// The transaction took too long: true when it was open, and is aborted and its session fenced.
    pub(super) fn time_out(&mut self, number: usize, now_ms: u64) -> bool {
        if self.transactions[number].state != State::Open {
            return false;
        }
        self.fence(self.transactions[number].session, now_ms);
        true
    }

    /// Forgets an id, unless a transaction of it is under way: true when it was known.
    pub(super) fn expire(&mut self, id: &str) -> bool {
        let Some(session) = self.ids.get(id).copied() else { return false };
        let hangs = |number: &usize| self.sessions[self.transactions[*number].session].id == self.sessions[session].id;
        if self.sessions[session].current.is_some() || self.hanging.iter().any(hangs) {
            return false;
        }
        self.sessions[session].fenced = true;
        self.ids.remove(id);
        true
    }

    // ---- for the auditor -------------------------------------------------------------------------------------------------

    /// Everything of a partition that was committed, also what was deleted since, but for empty messages.
    pub fn committed(&self, topic: &str, partition: u32) -> Vec<Seen> {
        let Ok(index) = self.find(topic, partition) else { return Vec::new() };
        let entries = (0..).zip(&self.partitions[index].entries).filter(|(_, entry)| self.is_visible(index, entry));
        let entries = entries.filter(|(_, entry)| !(entry.key.is_empty() && entry.payload.is_empty()));
        let seen = |(offset, entry): (u64, &Entry)| {
            let (key, payload, headers) = (entry.key.clone(), entry.payload.clone(), entry.headers.clone());
            Seen { offset, time_ms: entry.time_ms, key, payload, headers, transaction: self.decision(entry) }
        };
        entries.map(seen).collect()
    }

    /// The newest committed message of a partition for which `look` gives something.
    pub fn newest<T>(&self, topic: &str, partition: u32, mut look: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        let index = self.find(topic, partition).ok()?;
        let entries = self.partitions[index].entries.iter();
        entries.rev().filter(|entry| self.is_visible(index, entry)).find_map(|entry| look(&entry.payload))
    }

    /// Is anything at or behind this offset that readers see, and care for, or may come to see?
    pub fn has_more(&self, topic: &str, partition: u32, from: u64, care_for: impl Fn(&[u8]) -> bool) -> bool {
        let Ok(index) = self.find(topic, partition) else { return false };
        let partition = &self.partitions[index];
        let rest = partition.entries.get(from as usize..).unwrap_or_default();
        !partition.open.is_empty() || rest.iter().any(|entry| self.is_visible(index, entry) && care_for(&entry.payload))
    }

    /// Is a transaction open in a partition?
    pub fn is_open(&self, topic: &str, partition: u32) -> bool {
        self.find(topic, partition).is_ok_and(|index| !self.partitions[index].open.is_empty())
    }

    fn decision(&self, entry: &Entry) -> Option<(usize, u64, Arc<str>)> {
        let number = entry.transaction?;
        let transaction = &self.transactions[number];
        let State::Committed(order) = transaction.state else { return None };
        Some((number, order, self.sessions[transaction.session].id.clone()))
    }

    /// Does anything hang?
    pub fn hangs(&self) -> bool {
        !self.hanging.is_empty()
    }

    /// The partitions of every committed transaction that is not empty, and that ended in the same way everywhere: one that hung somewhere may have been aborted there, and copied.
    pub fn transactions(&self) -> impl Iterator<Item = (usize, Vec<&TopicPartition>)> {
        let is_committed = |it: &Transaction| {
            matches!(it.state, State::Committed(_)) && !it.partitions.is_empty() && it.otherwise.is_empty()
        };
        let committed = (0..).zip(&self.transactions).filter(move |(_, it)| is_committed(it));
        committed.map(|(number, it)| (number, it.partitions.iter().map(|index| &self.partitions[*index].at).collect()))
    }
}

pub(super) fn about(topic: &str, message: &str) -> LogError {
    LogError::Topic { topic: topic.to_owned(), message: message.to_owned() }
}
