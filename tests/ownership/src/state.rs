//! One shard as its transaction coordinator, its changelog and its workers see it.
//!
//! What is *not* here makes the model small and its runs unlimited. Producer epochs are only ever compared with the newest one, so a client is either
//! the id's holder or fenced ([`Id::holder`]). Aborted entries are removed: read-committed readers never see them.

/// One of a shard's two transactional ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// `….0`
    Zero,
    /// `….1`
    One,
}

impl Slot {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Slot {
        match self {
            Slot::Zero => Slot::One,
            Slot::One => Slot::Zero,
        }
    }
}

/// Something of each of the two ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Both<T> {
    zero: T,
    one: T,
}

impl<T> Both<T> {
    /// That of one id.
    pub fn of(&self, slot: Slot) -> &T {
        match slot {
            Slot::Zero => &self.zero,
            Slot::One => &self.one,
        }
    }

    /// That of one id, to change it.
    pub fn of_mut(&mut self, slot: Slot) -> &mut T {
        match slot {
            Slot::Zero => &mut self.zero,
            Slot::One => &mut self.one,
        }
    }
}

/// A worker: one process. Two processes of one name are two workers here, for nothing in the protocol goes by the name.
pub type WorkerId = u8;

/// What an entry of the changelog says. Its transaction carries the outputs of the same batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    /// An ownership record: the entry's id and epoch are the owner's.
    Ownership,
    /// A batch.
    Batch,
    /// A batch, and "released to that client".
    Release {
        /// The worker whose prepared client it is; none, when that client is gone and it makes no difference any more whose it was.
        to: Option<WorkerId>,
        /// That very client still waits for it.
        stands: bool,
    },
}

/// How far an entry's transaction is. An aborted one is no more in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fate {
    /// Hides itself and everything behind it from readers.
    Open,
    /// The coordinator has decided to commit; the marker is not in the changelog yet, so that for readers it is still open.
    Decided,
    /// Readable.
    Committed,
}

/// An entry of the changelog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    /// The id that wrote it.
    pub slot: Slot,
    /// Epoch of the owner that wrote it.
    pub epoch: i8,
    /// How many entries its writer had read or written before it: its place in the chain of digests.
    pub sequence: i8,
    /// What it says.
    pub content: Content,
    /// Its writer has asked for the commit.
    pub asked: bool,
    /// Its transaction.
    pub fate: Fate,
}

/// A transactional id at its coordinator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// Who has the client of the newest producer epoch; all other clients of the id are fenced.
    pub holder: Option<WorkerId>,
    /// A request of that epoch to commit is still under way. It does not say which transaction it means (no KIP-890 in librdkafka).
    pub late: bool,
}

/// What a worker that may write knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lease {
    /// The id of its client.
    pub slot: Slot,
    /// Entries it has read or written.
    pub read: i8,
    /// Its epoch.
    pub epoch: i8,
    /// Its ownership record is committed.
    pub announced: bool,
    /// It got the shard by a handoff (until it is announced).
    pub handed: bool,
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Worker {
    /// Has no client: was just started, follows, or has stopped.
    Idle,
    /// Has died, and nobody starts it again.
    Gone,
    /// Rule 2: the id is initialised, the log not read yet.
    Preparing(Slot),
    /// Rule 2: prepared and checked; its client waits for a release, or for a takeover.
    Prepared(Slot),
    /// Rule 4, under way.
    Taking(Takeover),
    /// Only when [`crate::rules::Mutant::NamedIdUsedOn`]: has initialised what it believes to be the named id.
    Again(Slot),
    /// May write, between two transactions.
    Owner(Lease),
    /// In a transaction. Its entry is in the log, unless the client was fenced.
    Writing(Lease),
}

/// A takeover under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Takeover {
    /// The id that the log named when it began.
    pub view: Slot,
    /// Epoch of the ownership record that named it. Only for [`crate::rules::Rules::compare_epochs`].
    pub epoch: i8,
    /// How far the log was read then. Only for [`crate::rules::Mutant::NotReadAgain`].
    pub read: i8,
    /// The idle id is initialised.
    pub idle: bool,
    /// The named id is initialised.
    pub named: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    /// The id that the log named before the entries of `log`: by the genesis record, or by what was folded away.
    pub named: Slot,
    /// Which ids any log before that named: what a stale view may still name.
    pub ever: Both<bool>,
    /// The changelog, without what was folded away.
    pub log: Vec<Entry>,
    /// The coordinator's view of the two ids.
    pub ids: Both<Id>,
    /// The workers.
    pub workers: Vec<Worker>,
}

impl State {
    /// A shard with its genesis record and nothing else.
    #[must_use]
    pub fn genesis(workers: usize) -> State {
        let ever = Both { zero: true, one: false };
        State { named: Slot::Zero, ever, log: Vec::new(), ids: Both::default(), workers: vec![Worker::Idle; workers] }
    }

    /// What a worker does.
    #[must_use]
    pub fn worker(&self, who: WorkerId) -> Worker {
        self.workers.get(usize::from(who)).copied().unwrap_or(Worker::Idle)
    }

    /// A worker goes on to something else. Its client, when it was prepared, is no longer one that a release can mean.
    pub fn set(&mut self, who: WorkerId, next: Worker) {
        if let Some(worker) = self.workers.get_mut(usize::from(who)) {
            *worker = next;
        }
        for entry in &mut self.log {
            if let Content::Release { to, stands } = &mut entry.content
                && *to == Some(who)
            {
                *stands = false;
            }
        }
    }

    /// A worker loses everything that it had in memory. What it has sent stays on its way.
    pub fn discard(&mut self, who: WorkerId, next: Worker) {
        self.set(who, next);
        for slot in [Slot::Zero, Slot::One] {
            let id = self.ids.of_mut(slot);
            id.holder = id.holder.filter(|holder| *holder != who);
        }
    }

    /// True when the worker's client of that id is not fenced.
    #[must_use]
    pub fn holds(&self, who: WorkerId, slot: Slot) -> bool {
        self.ids.of(slot).holder == Some(who)
    }

    /// `init_transactions`: returns when the id's transaction is decided, and fences all former clients.
    pub fn init(&mut self, slot: Slot, holder: Option<WorkerId>) {
        self.land_marker(slot);
        self.abort(slot);
        *self.ids.of_mut(slot) = Id { holder, late: false };
    }

    /// The transaction of an id that is neither committed nor aborted.
    pub fn pending(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.log.iter_mut().find(|entry| entry.slot == slot && entry.fate != Fate::Committed)
    }

    /// The id's open transaction is aborted, unless it is decided.
    pub fn abort(&mut self, slot: Slot) {
        self.log.retain(|entry| entry.slot != slot || entry.fate != Fate::Open);
    }

    /// The marker of the id's decided transaction reaches the changelog.
    pub fn land_marker(&mut self, slot: Slot) {
        if let Some(entry) = self.pending(slot)
            && entry.fate == Fate::Decided
        {
            entry.fate = Fate::Committed;
        }
    }

    /// The log that readers can see: up to the first transaction that is not committed.
    pub fn visible(&self) -> impl Iterator<Item = &Entry> {
        self.log.iter().take_while(|entry| entry.fate == Fate::Committed)
    }

    /// How many entries readers can see.
    #[must_use]
    pub fn end(&self) -> usize {
        self.visible().count()
    }

    /// The id that the first entries of the log name, and their epoch.
    #[must_use]
    pub fn view(&self, entries: usize, release_names: bool) -> (Slot, i8) {
        let mut view = (self.named, 0);
        for entry in self.visible().take(entries) {
            match entry.content {
                Content::Ownership => view = (entry.slot, entry.epoch),
                Content::Release { .. } if release_names => view.0 = entry.slot.other(),
                _ => {}
            }
        }
        view
    }
}
