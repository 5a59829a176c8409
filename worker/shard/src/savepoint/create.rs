//! Creating a savepoint: by one process, which may be anybody who reaches the log and the object store. It owns nothing, and can die at any moment.
//!
//! **Protocol.**
//!
//! 1. Every worker that is heard must know markers; one that does not would stop at the first one.
//! 2. Where the reaction stage stands is read: before the cut, so what comes from there on is all that documents may lack.
//! 3. The newest checkpoint of each shard is leased, which keeps it, and the changelog behind it. One without a checkpoint still has its whole changelog; should that be trimmed before it was read, there is no savepoint.
//! 4. `begun.json` is written, on the condition that nobody has this id. From now on whatever there is of it has a name, and can be disposed of: who does that takes this record away first, and there is no savepoint from then on.
//! 5. The checkpoints' files are copied, while nobody has to wait for anything.
//! 6. The savepoint is published in `control`, until it is heard there: shards are cut.
//! 7. Each changelog is read from its checkpoint on, and copied, up to the cut.
//! 8. Each channel is read from where its receiver stood, at its cut, to the marker of each sender, and copied: what a sender sent behind its marker is left out.
//! 9. The manifest is written. If the record is still there after that, and the creator's own, the savepoint is there. It needs nothing of the log, or of any checkpoint.
//! 10. That it has ended is published, and the leases are given back.
//!
//! Whatever fails, and what is not complete at its deadline, is *given up*: that it has ended is published, leases are given back, and its objects deleted. When that cannot be done either, or the process is killed, its record is left; whoever disposes of it does the same.
//!
//! **What it must not do**: hold up a shard. Nobody waits for it; what it keeps from being trimmed it keeps until its deadline.

use super::copy::{Folder, Pieces};
use super::layout::{Begun, Between, Channel, Cut, FORMAT, Manifest, Pinned, Place, State};
use super::store::Store;
use super::{SavepointError, marker};
use crate::Clock;
use crate::changelog::{Assembler, Step};
use crate::checkpoint::layout::{Entry, ShardName};
use crate::checkpoint::repository::{Repository, RepositoryError};
use crate::control::Listener;
use crate::log::{Log, LogError, ORIGIN, Outgoing, TopicPartition, View, Whole};
use crate::objects::{ObjectError, ObjectStore};
use crate::topics::Topics;
use millstream_model::frame::{self, Content};
use millstream_model::proto::{Changelog, Position, changelog::Record};
use millstream_plan::message::{self, Control, Savepoint};
use millstream_plan::view::Bounds;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

/// Stages whose shards are cut.
const STAGES: [&str; 2] = ["unify", "action"];
/// How long is waited for news, where something is waited for.
const WAIT: Duration = Duration::from_millis(200);
/// A lease outlives the deadline by so much: what was begun just before it ends.
const LEASE_MORE_MS: u64 = 60_000;
/// So often another checkpoint is leased because the one before was dropped meanwhile, and another id tried because somebody else has it.
const TRIES: usize = 10;
/// So far back is looked for the newest position of the reaction stage, before all is read.
const LOOK_BACK: u64 = 100;

/// What a savepoint is created of, and with.
pub struct Parts {
    /// The log.
    pub log: Arc<dyn Log>,
    /// The pipeline's topics.
    pub topics: Topics,
    /// Where checkpoints are, and savepoints go.
    pub objects: Arc<dyn ObjectStore>,
    /// Now.
    pub clock: Arc<dyn Clock>,
    /// When workers are taken for gone.
    pub bounds: Bounds,
    /// Who creates it: no two have the same name.
    pub by: String,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It has this id from now on.
    Begun {
        /// The id.
        savepoint: u64,
    },
    /// Of the files of checkpoints so many bytes are copied.
    Files {
        /// Bytes.
        copied: u64,
        /// Of so many.
        of: u64,
    },
    /// So many shards are cut.
    Cut {
        /// Shards.
        shards: usize,
        /// Of so many.
        of: usize,
    },
    /// So many channels are copied.
    Channels {
        /// Channels.
        copied: usize,
        /// Of so many.
        of: usize,
    },
}

/// Creates a savepoint, until then (milliseconds since 1970); `tell` is told how far it is.
///
/// # Errors
/// [`SavepointError`]: there is no savepoint. What there was of it is deleted, or says by `begun.json` that it can be.
pub fn create(parts: &Parts, deadline_ms: u64, tell: &mut dyn FnMut(Progress)) -> Result<Manifest, SavepointError> {
    let listener = Listener::open(&*parts.log, &parts.topics, parts.bounds, parts.clock.now_ms())?;
    let store = Store::new(parts.objects.clone(), &parts.topics.pipeline);
    let mut creation = Creation { parts, store, listener, deadline_ms, tell };
    creation.check_workers()?;
    let begun = creation.begin()?;
    let made = creation.make(&begun);
    if made.is_err() {
        creation.give_up(&begun);
    }
    made
}

/// Disposes of a savepoint, or of what is left of one: nobody is cut for it any more, its leases are given back, and its objects go. To be repeated when it fails. `log`: none where it is to be done without; then
/// shards may still be cut for one that was not complete.
///
/// # Errors
/// [`SavepointError`].
pub fn dispose(
    objects: &Arc<dyn ObjectStore>,
    topics: &Topics,
    log: Option<&dyn Log>,
    savepoint: u64,
) -> Result<(), SavepointError> {
    let store = Store::new(objects.clone(), &topics.pipeline);
    if let Some(log) = log {
        publish(log, topics, savepoint, true)?;
    }
    match store.begun(savepoint) {
        Ok(Some(begun)) => {
            let topics = Topics::new(&begun.pipeline, begun.shards, begun.generation);
            release(objects, &topics, &begun);
        }
        // Leases end by themselves, too.
        Ok(None) | Err(ObjectError::Damaged { .. } | ObjectError::Configuration(_)) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(store.delete(savepoint)?)
}

struct Creation<'a> {
    parts: &'a Parts,
    store: Store,
    listener: Listener,
    deadline_ms: u64,
    tell: &'a mut dyn FnMut(Progress),
}

/// A shard whose cut is looked for.
struct Looked {
    stage: &'static str,
    shard: u32,
    checkpoint: Option<Entry>,
    assembler: Assembler,
    /// Where to read on.
    from: u64,
    pieces: Pieces,
    cut: Option<Cut>,
}

/// Shards: stage and number.
type Senders = BTreeSet<(String, u32)>;

/// A channel that is being copied.
struct Copying {
    of: Between,
    at: TopicPartition,
    from: u64,
    /// Whose markers have not come yet: stage and shard.
    waits_for: Senders,
    pieces: Pieces,
}

impl Creation<'_> {
    fn now_ms(&self) -> u64 {
        self.parts.clock.now_ms()
    }

    fn check_deadline(&self, what: impl FnOnce() -> String) -> Result<(), SavepointError> {
        if self.now_ms() < self.deadline_ms {
            return Ok(());
        }
        Err(SavepointError::Late(what()))
    }

    /// Somebody must hear of it; and whoever does not know markers stops at the first one.
    fn check_workers(&mut self) -> Result<(), SavepointError> {
        let is_heard = |stage: &&str| self.listener.view().reports().any(|(report, _)| report.stages.contains(*stage));
        if let Some(stage) = STAGES.into_iter().find(|stage| !is_heard(stage)) {
            return Err(SavepointError::NobodyHears(stage));
        }
        if self.listener.view().without_markers(0).is_none() {
            return Ok(());
        }
        // It may have ended long ago: who is there says so again.
        let since_ms = self.now_ms() + 1;
        while self.now_ms() <= since_ms + self.parts.bounds.silence_ms {
            let now_ms = self.now_ms();
            self.listener.listen(WAIT, now_ms)?;
        }
        match self.listener.view().without_markers(since_ms) {
            Some(worker) => Err(SavepointError::OldWorker(worker.to_owned())),
            None => Ok(()),
        }
    }

    /// Leases checkpoints, and gets an id.
    fn begin(&mut self) -> Result<Begun, SavepointError> {
        let written = self.written()?;
        let Topics { pipeline, generation, shards, .. } = &self.parts.topics;
        for _ in 0..TRIES {
            let savepoint = self.next()?;
            let mut begun = Begun {
                format: FORMAT,
                savepoint,
                pipeline: pipeline.clone(),
                generation: *generation,
                shards: *shards,
                began_ms: self.now_ms(),
                deadline_ms: self.deadline_ms,
                by: self.parts.by.clone(),
                pinned: Vec::new(),
                written: written.clone(),
            };
            let pinned = self.pin(&mut begun).and_then(|()| Ok(self.store.begin(&begun)?));
            match pinned {
                Ok(true) => {
                    (self.tell)(Progress::Begun { savepoint });
                    return Ok(begun);
                }
                // Nobody has heard of it.
                Ok(false) => self.release(&begun),
                Err(error) => {
                    self.release(&begun);
                    return Err(error);
                }
            }
        }
        Err(SavepointError::Busy)
    }

    /// The id after all that anybody knows of.
    fn next(&mut self) -> Result<u64, SavepointError> {
        let now_ms = self.now_ms();
        self.listener.read_to_end(&*self.parts.log, now_ms)?;
        let heard = self.listener.view().savepoints().keys().next_back().copied();
        let stored = self.store.ids()?.last().copied();
        Ok(heard.max(stored).unwrap_or_default() + 1)
    }

    fn shards(&self) -> impl Iterator<Item = (&'static str, u32)> + use<> {
        let shards = self.parts.topics.shards;
        STAGES.into_iter().flat_map(move |stage| (0..shards).map(move |shard| (stage, shard)))
    }

    fn repository(&self, stage: &str, shard: u32) -> Repository {
        repository(&self.parts.objects, &self.parts.topics, stage, shard)
    }

    fn pin(&self, begun: &mut Begun) -> Result<(), SavepointError> {
        let (holder, until_ms) = (holder(begun), self.deadline_ms + LEASE_MORE_MS);
        for (stage, shard) in self.shards() {
            let repository = self.repository(stage, shard);
            let topic_id = self.parts.log.topic_id(&self.parts.topics.changelog(stage))?;
            for tried in 1.. {
                let pointer = repository.pointer()?.unwrap_or_default();
                let newest = pointer.checkpoints.iter().find(|entry| entry.topic_id == topic_id);
                let Some(checkpoint) = newest.cloned() else { break };
                match repository.lease(&holder, &checkpoint.manifest, until_ms) {
                    Ok(()) => {
                        begun.pinned.push(Pinned { stage: stage.to_owned(), shard, checkpoint });
                        break;
                    }
                    Err(RepositoryError::NotKept(_)) if tried < TRIES => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Where the reaction stage has written to, of each partition of `mutations`.
    fn written(&self) -> Result<Vec<Place>, SavepointError> {
        let Topics { mutations, shards, .. } = &self.parts.topics;
        let (log, topic_id) = (&*self.parts.log, self.parts.log.topic_id(mutations)?);
        (0..*shards)
            .map(|partition| {
                let at = TopicPartition::new(self.parts.topics.changelog("reaction"), partition);
                let (start, end) = log.bounds(&at)?;
                let newest = |from: u64| {
                    let mut newest = None;
                    log.read(&[(at.clone(), from.max(start)..end)], View::Committed, &mut |_, whole| {
                        newest = position(&whole).filter(|it| it.topic_id == topic_id).or(newest.take());
                    })?;
                    Ok::<_, LogError>(newest)
                };
                let found = match newest(end.saturating_sub(LOOK_BACK))? {
                    None if end > LOOK_BACK => newest(start)?,
                    found => found,
                };
                // It has recorded nothing yet: everything is before it.
                let first = || Ok::<_, LogError>(log.bounds(&TopicPartition::new(mutations.clone(), partition))?.0);
                let offset = found.map_or_else(first, |position| Ok(position.offset))?;
                Ok(Place { topic: mutations.to_string(), partition, offset, topic_id: topic_id.clone() })
            })
            .collect()
    }

    fn make(&mut self, begun: &Begun) -> Result<Manifest, SavepointError> {
        let mut files = self.files(begun)?;
        self.publish(begun.savepoint, false)?;
        self.wait_until_heard(begun.savepoint)?;
        let states = self.cuts(begun)?;
        let channels = self.channels(begun, &states)?;
        let state = |looked: Looked| {
            let Looked { stage, shard, checkpoint, pieces, cut, .. } = looked;
            let files = files.remove(&(stage.to_owned(), shard)).unwrap_or_default();
            let cut = cut.ok_or_else(|| SavepointError::Late(format!("{stage} {shard} was not cut")))?;
            Ok(State { stage: stage.to_owned(), shard, checkpoint, files, changelog: pieces.done, cut })
        };
        let manifest = Manifest {
            format: FORMAT,
            savepoint: begun.savepoint,
            pipeline: begun.pipeline.clone(),
            generation: begun.generation,
            shards: begun.shards,
            began_ms: begun.began_ms,
            complete_ms: self.now_ms(),
            states: states.into_iter().map(state).collect::<Result<_, SavepointError>>()?,
            channels,
        };
        if !self.store.complete(begun, &manifest)? {
            return Err(SavepointError::Ended);
        }
        // It is there, whatever happens now: an end that nobody hears of, and leases, are of no harm.
        if let Err(error) = self.publish(begun.savepoint, true) {
            tracing::warn!(savepoint = begun.savepoint, %error, "that the savepoint is complete was not published; shards that are opened may be cut for it again");
        }
        self.release(begun);
        Ok(manifest)
    }

    fn folder(&self, savepoint: u64) -> Folder<'_> {
        Folder { store: &self.store, savepoint }
    }

    /// Copies the files of the checkpoints.
    fn files(
        &mut self,
        begun: &Begun,
    ) -> Result<BTreeMap<(String, u32), Vec<crate::checkpoint::layout::File>>, SavepointError> {
        let of = begun.pinned.iter().map(|it| it.checkpoint.bytes).sum();
        let (mut copied, mut files) = (0, BTreeMap::new());
        for Pinned { stage, shard, checkpoint } in &begun.pinned {
            let repository = self.repository(stage, *shard);
            let manifest = repository.manifest(&checkpoint.manifest)?;
            let mut of_shard = Vec::with_capacity(manifest.files.len());
            for file in &manifest.files {
                self.check_deadline(|| format!("{copied} of {of} bytes of checkpoints were copied"))?;
                of_shard.push(self.folder(begun.savepoint).copy(&repository.full(&file.object), file)?);
                copied += file.size;
                (self.tell)(Progress::Files { copied, of });
            }
            files.insert((stage.clone(), *shard), of_shard);
        }
        Ok(files)
    }

    fn publish(&self, savepoint: u64, has_ended: bool) -> Result<(), SavepointError> {
        publish(&*self.parts.log, &self.parts.topics, savepoint, has_ended)
    }

    fn wait_until_heard(&mut self, savepoint: u64) -> Result<(), SavepointError> {
        while !self.listener.view().savepoints().contains_key(&savepoint) {
            self.check_deadline(|| "what was published in `control` could not be read there".to_owned())?;
            let now_ms = self.now_ms();
            self.listener.listen(WAIT, now_ms)?;
        }
        Ok(())
    }

    /// Waits a moment, and hears meanwhile what becomes of it.
    fn wait(&mut self, savepoint: u64) -> Result<(), SavepointError> {
        let now_ms = self.now_ms();
        self.listener.listen(WAIT, now_ms)?;
        match self.listener.view().savepoints().get(&savepoint) {
            Some(Savepoint { has_ended: true, .. }) => Err(SavepointError::Ended),
            _ => Ok(()),
        }
    }

    /// Reads every changelog up to its cut.
    fn cuts(&mut self, begun: &Begun) -> Result<Vec<Looked>, SavepointError> {
        let mut looked: Vec<Looked> = self.shards().map(|(stage, shard)| look(begun, stage, shard)).collect();
        let (of, mut told) = (looked.len(), usize::MAX);
        loop {
            for one in looked.iter_mut().filter(|one| one.cut.is_none()) {
                self.read_on(begun.savepoint, one)?;
            }
            let waiting: Vec<&Looked> = looked.iter().filter(|one| one.cut.is_none()).collect();
            let shards = of - waiting.len();
            if shards != told {
                (self.tell)(Progress::Cut { shards, of });
                told = shards;
            }
            let Some(first) = waiting.first() else { return Ok(looked) };
            self.check_deadline(|| {
                format!("{shards} of {of} shards were cut; the first that was not is {} {}", first.stage, first.shard)
            })?;
            self.wait(begun.savepoint)?;
        }
    }

    /// Reads what is new of a changelog.
    fn read_on(&self, savepoint: u64, one: &mut Looked) -> Result<(), SavepointError> {
        let at = TopicPartition::new(self.parts.topics.changelog(one.stage), one.shard);
        let folder = self.folder(savepoint);
        one.from = self.read_from(&at, one.from, &mut |whole| match one.cut {
            None => one.take(&folder, savepoint, whole),
            Some(_) => Ok(()),
        })?;
        if one.cut.is_some() {
            one.pieces.close(&folder)?;
        }
        Ok(())
    }

    /// Reads what is there of a partition from an offset on; gives where to read on.
    fn read_from(
        &self,
        at: &TopicPartition,
        from: u64,
        each: &mut dyn FnMut(&Whole) -> Result<(), SavepointError>,
    ) -> Result<u64, SavepointError> {
        let (start, end) = self.parts.log.bounds(at)?;
        if from < start {
            return Err(SavepointError::Trimmed { at: at.clone(), from, start });
        }
        let mut taken = Ok(());
        self.parts.log.read(&[(at.clone(), from..end)], View::Committed, &mut |_, whole| {
            if taken.is_ok() {
                taken = each(&whole);
            }
        })?;
        taken.map(|()| from.max(end))
    }

    /// Copies every channel.
    fn channels(&mut self, begun: &Begun, states: &[Looked]) -> Result<Vec<Channel>, SavepointError> {
        let mut copying = self.begin_channels(begun, states)?;
        let of = copying.len();
        let mut done = Vec::with_capacity(of);
        while let Some(mut one) = copying.pop() {
            loop {
                self.copy_on(begun.savepoint, &mut one)?;
                let Some((stage, shard)) = one.waits_for.first() else { break };
                let (at, from) = (&one.at, format!("{stage} {shard}"));
                self.check_deadline(|| format!("the marker of {from} in {at} could not be read"))?;
                self.wait(begun.savepoint)?;
            }
            one.pieces.close(&self.folder(begun.savepoint))?;
            done.push(Channel { of: one.of, partition: one.at.partition, pieces: one.pieces.done });
            (self.tell)(Progress::Channels { copied: done.len(), of });
        }
        done.sort_by_key(|channel| (channel.of, channel.partition));
        Ok(done)
    }

    fn begin_channels(&self, begun: &Begun, states: &[Looked]) -> Result<Vec<Copying>, SavepointError> {
        let Topics { actions, exchange, mutations, shards, .. } = &self.parts.topics;
        let mut channels = Vec::new();
        for shard in 0..*shards {
            let cut = states.iter().find(|it| it.stage == "action" && it.shard == shard).and_then(|it| it.cut.as_ref());
            let inputs = cut.map(|cut| &cut.inputs[..]).unwrap_or_default();
            let action = |shard| ("action".to_owned(), shard);
            let of: [(Between, &Arc<str>, &[Place], Senders); 3] = [
                (Between::Actions, actions, inputs, [("unify".to_owned(), shard)].into()),
                (Between::Exchange, exchange, inputs, (0..*shards).map(action).collect()),
                (Between::Mutations, mutations, &begun.written, [action(shard)].into()),
            ];
            for (of, topic, places, waits_for) in of {
                let at = TopicPartition::new(topic.clone(), shard);
                let place = places.iter().find(|place| *place.topic == **topic && place.partition == shard);
                let place = place.ok_or_else(|| SavepointError::NoPosition(at.clone()))?;
                channels.push(Copying { of, at, from: place.offset, waits_for, pieces: Pieces::default() });
            }
        }
        Ok(channels)
    }

    fn copy_on(&self, savepoint: u64, one: &mut Copying) -> Result<(), SavepointError> {
        let (folder, at) = (self.folder(savepoint), one.at.clone());
        one.from = self.read_from(&at, one.from, &mut |whole| match one.waits_for.is_empty() {
            false => one.take(&folder, savepoint, whole),
            true => Ok(()),
        })?;
        Ok(())
    }

    fn release(&self, begun: &Begun) {
        release(&self.parts.objects, &self.parts.topics, begun);
    }

    /// Nobody need be cut for it any more, and nothing of it is left, as far as that can be had now.
    fn give_up(&self, begun: &Begun) {
        let id = begun.savepoint;
        self.release(begun);
        if let Ok(Some(other)) = self.store.begun(id).map(|there| there.filter(|there| there != begun)) {
            tracing::warn!(
                savepoint = id,
                by = other.by,
                "the savepoint was disposed of, and another one has its id by now"
            );
            return;
        }
        if let Err(error) = self.publish(id, true) {
            // Its record stays, so that somebody can.
            tracing::warn!(savepoint = id, %error, "that the savepoint was given up could not be published: dispose of it");
            return;
        }
        if let Err(error) = self.store.delete(id) {
            tracing::warn!(savepoint = id, %error, "what there is of the savepoint that was given up could not be deleted: dispose of it");
        }
    }
}

/// By a producer of its own: the one of plans is the operator's.
fn publish(log: &dyn Log, topics: &Topics, id: u64, has_ended: bool) -> Result<(), SavepointError> {
    let control = Control::Savepoint(Savepoint { id, has_ended, generation: u32::from(topics.generation) });
    let (key, payload) = (message::control_key(&control), message::encode_control(&control));
    let (done, told) = channel();
    let message =
        Outgoing { topic: &topics.control, partition: 0, key: key.as_bytes(), payload: &payload, headers: &[] };
    let producer = log.producer()?;
    producer.send(message, Box::new(move |fate| drop(done.send(fate))));
    let gone = || LogError::Unknown("nobody said what became of it".to_owned());
    told.recv().unwrap_or_else(|_| Err(gone()))?;
    Ok(())
}

fn repository(objects: &Arc<dyn ObjectStore>, topics: &Topics, stage: &str, shard: u32) -> Repository {
    let Topics { pipeline, generation, shards, .. } = topics;
    let (pipeline, stage) = (pipeline.clone(), stage.to_owned());
    Repository::new(objects.clone(), ShardName { pipeline, generation: *generation, stage, shard, shards: *shards })
}

fn release(objects: &Arc<dyn ObjectStore>, topics: &Topics, begun: &Begun) {
    for Pinned { stage, shard, .. } in &begun.pinned {
        if let Err(error) = repository(objects, topics, stage, *shard).release(&holder(begun)) {
            tracing::warn!(stage, shard, savepoint = begun.savepoint, %error, "a lease was not given back; it ends by itself");
        }
    }
}

/// Who leases for a savepoint.
fn holder(begun: &Begun) -> String {
    format!("savepoint/{}/{}", begun.savepoint, begun.by)
}

fn look(begun: &Begun, stage: &'static str, shard: u32) -> Looked {
    let pinned = begun.pinned.iter().find(|it| it.stage == stage && it.shard == shard);
    let checkpoint = pinned.map(|it| it.checkpoint.clone());
    let (from, assembler) = match &checkpoint {
        Some(entry) => {
            let digest = u64::from_str_radix(&entry.digest, 16).unwrap_or_default();
            (entry.changelog_offset, Assembler::after(entry.batch, digest))
        }
        None => (0, Assembler::default()),
    };
    Looked { stage, shard, checkpoint, assembler, from, pieces: Pieces::default(), cut: None }
}

impl Looked {
    /// Takes the next message of the changelog.
    fn take(&mut self, folder: &Folder<'_>, savepoint: u64, whole: &Whole) -> Result<(), SavepointError> {
        if whole.is_empty() {
            return Ok(());
        }
        self.pieces.add(folder, whole)?;
        for step in self.assembler.read(whole.offset, &whole.payload)? {
            match step {
                Step::Batch(batch) if batch.cuts.contains(&savepoint) => self.cut = Some(Cut::of(whole.offset, &batch)),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Copying {
    /// Takes the next message of the channel.
    fn take(&mut self, folder: &Folder<'_>, savepoint: u64, whole: &Whole) -> Result<(), SavepointError> {
        if whole.is_empty() {
            return Ok(());
        }
        if let Some(marker) = marker::read(&whole.payload) {
            if marker.savepoint == savepoint {
                self.waits_for.remove(&(marker.stage, marker.shard));
            }
            return Ok(());
        }
        // What says of nobody that it is theirs (a request of the reaction stage) does no harm when it comes twice.
        let is_behind = sender(whole).is_some_and(|sender| !self.waits_for.contains(&sender));
        if !is_behind {
            self.pieces.add(folder, whole)?;
        }
        Ok(())
    }
}

/// The shard that has sent a message: `<stage>/<shard>/...`.
fn sender(whole: &Whole) -> Option<(String, u32)> {
    let mut parts = whole.header(ORIGIN)?.split('/');
    Some((parts.next()?.to_owned(), parts.next()?.parse().ok()?))
}

/// The position that a record of the reaction stage's changelog says.
fn position(whole: &Whole) -> Option<Position> {
    let record = frame::read(&whole.payload, Content::Changelog).ok()?.next()?.ok()?;
    match Changelog::decode(record).ok()?.record? {
        Record::Batch(batch) => batch.inputs.into_iter().next(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{Listed, Object, Put, When};

    /// Nothing is to be written to it.
    struct Nowhere;

    fn nowhere<T>() -> Result<T, ObjectError> {
        Err(ObjectError::Unavailable("there is none".to_owned()))
    }

    impl ObjectStore for Nowhere {
        fn get(&self, _: &str) -> Result<Option<Object>, ObjectError> {
            nowhere()
        }
        fn read(&self, _: &str, _: u64, _: usize) -> Result<Option<Vec<u8>>, ObjectError> {
            nowhere()
        }
        fn put(&self, _: &str, _: &[u8], _: &When) -> Result<Put, ObjectError> {
            nowhere()
        }
        fn upload(&self, _: &str, _: u64, _: &mut dyn std::io::Read) -> Result<(), ObjectError> {
            nowhere()
        }
        fn list(&self, _: &str, _: Option<&str>) -> Result<Vec<Listed>, ObjectError> {
            nowhere()
        }
        fn delete(&self, _: &[String]) -> Result<(), ObjectError> {
            nowhere()
        }
    }

    #[test]
    fn what_each_sender_sent_before_its_marker_is_copied() {
        let store = Store::new(Arc::new(Nowhere), "p");
        let folder = Folder { store: &store, savepoint: 7 };
        let mut copying = Copying {
            of: Between::Exchange,
            at: TopicPartition::new("x", 0),
            from: 0,
            waits_for: [("action".to_owned(), 0), ("action".to_owned(), 1)].into(),
            pieces: Pieces::default(),
        };
        let mut offset = 0;
        let mut take = |payload: Vec<u8>, origin: Option<&str>| {
            offset += 1;
            let headers = origin.iter().map(|origin| (ORIGIN.to_owned(), (*origin).to_owned())).collect();
            let before = copying.pieces.count();
            copying.take(&folder, 7, &Whole { offset, key: Vec::new(), payload, headers }).unwrap();
            (copying.pieces.count() - before, copying.waits_for.len())
        };
        let marker = |savepoint, shard| marker::encode(savepoint, "action", shard);
        assert_eq!(take(b"a".to_vec(), Some("action/0/1/1/5")), (1, 2), "before the marker");
        assert_eq!(take(marker(6, 0), Some("action/0/1/1/6")), (0, 2), "of another savepoint");
        assert_eq!(take(marker(7, 0), Some("action/0/1/1/7")), (0, 1));
        assert_eq!(take(b"b".to_vec(), Some("action/0/1/1/8")), (0, 1), "behind it");
        assert_eq!(take(b"c".to_vec(), Some("action/1/1/1/3")), (1, 1), "of one whose marker has not come");
        assert_eq!(take(b"d".to_vec(), None), (1, 1), "a request says of nobody that it is theirs");
        assert_eq!(take(Vec::new(), Some("action/1/1/end")), (0, 1), "for nobody");
        assert_eq!(take(marker(7, 1), Some("action/1/1/1/4")), (0, 0), "the last one");
    }
}
