//! What a shard writes to, and what of it is there, also where readers do not see it.
//!
//! Frames, rejects and some of a batch's events say by their *origin*, a header, which batch of which epoch of which shard wrote them: others write to the exchange and to rejects, too, and what
//! they have open there is theirs.
//!
//! Nothing may build on a commit that was forgotten after it was told ([`Written::settle_doubt`]; [`crate::hanging`] says how that can be).

use crate::ShardError;
use crate::log::{EachRead, Ends, Log, LogError, ORIGIN, Outgoing, TopicPartition, Transactional, View, Whole};
use crate::mutant::{self, Mutant};
use crate::output;
use crate::topics::Topics;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// So many looks, one behind the other, before it is read whose transactions hold partitions back that others write to as well: they have some open all the time, each for
/// some tens of milliseconds.
const LOOKS_AT_OTHERS: u32 = 20;
/// How often an owner in doubt looks whether what it wrote comes to be visible.
const LOOKS_IN_DOUBT: u32 = 200;

/// Partitions that are read at once: a client keeps some megabytes of each.
const AT_ONCE: usize = 16;

/// Offsets by partition.
pub(crate) type Offsets = BTreeMap<TopicPartition, u64>;

/// Part of a partition.
pub(crate) type Part = (TopicPartition, Range<u64>);

/// Which batch of a shard wrote a message, and in which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) epoch: u64,
    pub(crate) batch: u64,
}

/// How a shard writes origins: `<stage>/<shard>/<generation>/<epoch>/<batch>`. Public topics are those of all generations.
#[derive(Debug)]
pub(crate) struct Writer(String);

impl Writer {
    pub(crate) fn of(topics: &Topics, stage: &str, shard: u32) -> Writer {
        Writer(format!("{stage}/{shard}/{}/", topics.generation))
    }

    pub(crate) fn say(&self, Origin { epoch, batch }: Origin) -> String {
        format!("{}{epoch}/{batch}", self.0)
    }

    /// What ends a transaction says so: it is this shard's, but of no batch.
    fn say_end(&self) -> String {
        format!("{}end", self.0)
    }

    pub(crate) fn is_author(&self, whole: &Whole) -> bool {
        whole.header(ORIGIN).is_some_and(|origin| origin.starts_with(&self.0))
    }

    /// The origin of a message, if this shard wrote it in a batch and it says so.
    fn origin(&self, whole: &Whole) -> Option<Origin> {
        let (epoch, batch) = whole.header(ORIGIN)?.strip_prefix(&self.0)?.split_once('/')?;
        Some(Origin { epoch: epoch.parse().ok()?, batch: batch.parse().ok()? })
    }
}

/// All that a shard writes to.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) writer: Writer,
    pub(crate) changelog: TopicPartition,
    events: Arc<str>,
    /// Outputs that nobody else writes to.
    pub(crate) own: Vec<TopicPartition>,
    /// The exchange, and rejects, which are of two stages.
    pub(crate) shared: Vec<TopicPartition>,
}

impl Written {
    pub(crate) fn of(topics: &Topics, stage: &str, shard: u32) -> Written {
        let Topics { exchange, rejects, shards, .. } = topics;
        let outputs = output::topics_of(stage, topics);
        let own = outputs.iter().filter(|topic| ![exchange, rejects].contains(topic));
        let own = own.map(|topic| TopicPartition::new((*topic).clone(), shard)).collect();
        let sent_to = 0..if outputs.contains(&exchange) { *shards } else { 0 };
        let exchange = sent_to.map(|number| TopicPartition::new(exchange.clone(), number));
        let shared = exchange.chain([TopicPartition::new(rejects.clone(), shard)]).collect();
        let changelog = TopicPartition::new(topics.changelog(stage), shard);
        let events = topics.events.clone();
        Written { writer: Writer::of(topics, stage, shard), changelog, events, own, shared }
    }

    /// Is each message of this output a frame of this shard?
    pub(crate) fn is_of_frames(&self, output: &TopicPartition) -> bool {
        self.own.contains(output) && output.topic != self.events
    }

    /// Nothing may build on a commit that was forgotten after it was told: the next one of the same id would end it in some of its partitions only. To be called before
    /// each transaction of an owner, and now and then while it has none.
    ///
    /// # Errors
    /// [`ShardError::Away`] when it may be so.
    pub(crate) fn settle_doubt(&self, producer: &mut dyn Transactional, log: &dyn Log) -> Result<(), ShardError> {
        let Some(why) = producer.take_doubt() else { return Ok(()) };
        let mut open = self.open(log)?;
        if mutant::is(Mutant::DoubtOfChangelogOnly) {
            open.retain(|at, _| *at == self.changelog);
        }
        for _ in 0..LOOKS_IN_DOUBT {
            if open.is_empty() {
                return Ok(());
            }
            open = still_open(log, &open)?;
        }
        let at = open.keys().next().unwrap_or(&self.changelog);
        Err(ShardError::Away(format!("{at} is held back, and the last commit is in doubt: {why}")))
    }

    /// Where something is open now that this shard may have written, and where it ends.
    pub(crate) fn open(&self, log: &dyn Log) -> Result<Offsets, LogError> {
        let changelog = std::iter::once(&self.changelog);
        let all: Vec<TopicPartition> = changelog.chain(&self.own).chain(&self.shared).cloned().collect();
        let mut open = ends(log, &all, Ends::is_held_back)?;
        for _ in 0..LOOKS_AT_OTHERS {
            if !open.keys().any(|at| self.shared.contains(at)) {
                break;
            }
            open = still_open(log, &open)?;
        }
        let (hidden, mut ours) = (hidden(log, &open)?, BTreeSet::new());
        self.read(log, &hidden, View::Everything, &mut |place, whole| {
            if let (true, Some((at, _))) = (self.writer.is_author(&whole), hidden.get(place)) {
                ours.insert(at.clone());
            }
        })?;
        open.retain(|at, _| *at == self.changelog || ours.contains(at));
        Ok(open)
    }

    /// The outputs, those that nobody else writes to first.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = &TopicPartition> {
        self.own.iter().chain(&self.shared)
    }

    /// The origins of what this shard wrote in each of these parts, each with its offset.
    pub(crate) fn origins(
        &self,
        log: &dyn Log,
        parts: &[Part],
        view: View,
    ) -> Result<Vec<Vec<(u64, Origin)>>, LogError> {
        let mut written = vec![Vec::new(); parts.len()];
        self.read(log, parts, view, &mut |place, whole| {
            if let (Some(origin), Some(here)) = (self.writer.origin(&whole), written.get_mut(place)) {
                here.push((whole.offset, origin));
            }
        })?;
        Ok(written)
    }

    /// All that this shard wrote in these parts, whether readers see it or not, each message with the batch that it is of. Where only this shard writes, what says nothing is of the batch that said something
    /// last.
    pub(crate) fn attribute(
        &self,
        log: &dyn Log,
        parts: &[Part],
        each: &mut dyn FnMut(usize, Origin, Whole),
    ) -> Result<(), LogError> {
        let mut last = vec![None; parts.len()];
        self.read(log, parts, View::Everything, &mut |place, whole| {
            let (Some((at, _)), Some(last)) = (parts.get(place), last.get_mut(place)) else { return };
            if whole.header(ORIGIN).is_some() || self.shared.contains(at) {
                *last = self.writer.origin(&whole);
            }
            if let Some(origin) = last.filter(|_| !whole.is_empty()) {
                each(place, origin, whole);
            }
        })
    }

    /// Reads parts of partitions, some at a time, as far as the log has them.
    pub(crate) fn read(&self, log: &dyn Log, parts: &[Part], view: View, each: EachRead<'_>) -> Result<(), LogError> {
        for (number, some) in parts.chunks(AT_ONCE).enumerate() {
            let mut clamped = Vec::with_capacity(some.len());
            for (at, part) in some {
                clamped.push((at.clone(), part.start.max(log.bounds(at)?.0)..part.end));
            }
            let read = log.read(&clamped, view, &mut |place, whole| each(number * AT_ONCE + place, whole));
            read.map_err(|error| match error {
                LogError::OutOfRange { at, .. } => LogError::Unavailable(format!("{at} was trimmed meanwhile")),
                error => error,
            })?;
        }
        Ok(())
    }
}

/// Aborts whatever the client's id has open in these partitions.
///
/// # Errors
/// [`ShardError`].
pub(crate) fn abort_in<'a>(
    client: &mut dyn Transactional,
    these: impl IntoIterator<Item = &'a TopicPartition>,
    writer: &Writer,
) -> Result<(), ShardError> {
    let end = writer.say_end();
    client.begin()?;
    for TopicPartition { topic, partition } in these {
        let headers = &[(ORIGIN, end.as_str())];
        client.send(Outgoing { topic, partition: *partition, key: &[], payload: &[], headers })?;
    }
    client.abort()?;
    match client.take_doubt() {
        Some(why) => Err(ShardError::Away(format!("what ended a forgotten transaction is in doubt: {why}"))),
        None => Ok(()),
    }
}

/// Is a transaction open in this partition?
///
/// # Errors
/// [`LogError`].
pub(crate) fn is_held_back(log: &dyn Log, at: &TopicPartition) -> Result<bool, LogError> {
    Ok(log.ends(std::slice::from_ref(at))?.iter().any(Ends::is_held_back))
}

/// Where those of these partitions end of which that is to be known.
///
/// # Errors
/// [`LogError`].
pub(crate) fn ends(log: &dyn Log, of: &[TopicPartition], which: impl Fn(&Ends) -> bool) -> Result<Offsets, LogError> {
    let ends = of.iter().zip(log.ends(of)?).filter(|(_, ends)| which(ends));
    Ok(ends.map(|(at, ends)| (at.clone(), ends.end)).collect())
}

/// Those of which readers do not see everything yet that was there when they ended here: what was open then is still open, or something behind it, also when
/// something before it has ended.
///
/// # Errors
/// [`LogError`].
pub(crate) fn still_open(log: &dyn Log, then: &Offsets) -> Result<Offsets, LogError> {
    let of: Vec<TopicPartition> = then.keys().cloned().collect();
    let open = then.iter().zip(log.ends(&of)?).filter(|((_, end), now)| now.visible < **end);
    Ok(open.map(|((at, end), _)| (at.clone(), *end)).collect())
}

/// What readers do not see yet of partitions that end there.
///
/// # Errors
/// [`LogError`].
pub(crate) fn hidden(log: &dyn Log, these: &Offsets) -> Result<Vec<Part>, LogError> {
    let of: Vec<TopicPartition> = these.keys().cloned().collect();
    let ends = log.ends(&of)?;
    let parts = these.iter().zip(ends).map(|((at, end), now)| (at.clone(), now.visible..(*end).max(now.visible)));
    Ok(parts.collect())
}
