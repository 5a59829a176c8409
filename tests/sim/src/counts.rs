//! What was hit: every fault, and every step of the protocol. One that no seed hits is tested by none.

macro_rules! names {
    ($(#[$about:meta])* $type:ident { $($(#[$doc:meta])* $variant:ident,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(usize)]
        pub enum $type { $($(#[$doc])* $variant,)* }

        impl $type {
            /// All of them.
            pub const ALL: &[$type] = &[$($type::$variant),*];

            /// What it is called.
            pub fn name(self) -> &'static str {
                match self { $($type::$variant => stringify!($variant)),* }
            }
        }
    };
}

names! {
    /// What can go wrong.
    Fault {
        /// A process is killed before one of its calls.
        CrashBeforeACall,
        /// A process is killed after one of its calls, which has taken effect and has not returned.
        CrashAfterACall,
        /// A process stands still beyond every bound, and comes back.
        ProcessPaused,
        /// A second process of a name is started.
        TwinStarted,
        /// A clock jumps.
        ClockJumped,
        /// A commit takes hold, its client is not told.
        CommitUnknownHappened,
        /// A commit does not take hold, its client is not told.
        CommitUnknownLost,
        /// A commit whose client was not told takes hold later, if nobody initialises the id before.
        CommitUnknownLater,
        /// A transaction was decided and forgotten: not every partition gets a marker, perhaps none.
        TransactionForgotten,
        /// It was forgotten when some partitions had theirs.
        TransactionForgottenInPart,
        /// A commit is repeated on the way; the repetition commits whatever transaction of that client is open then.
        CommitRepeatedLater,
        /// A repetition, or a late commit, found an open transaction of its client.
        LateCommitHit,
        /// A late commit found its client fenced.
        LateCommitFenced,
        /// An init times out, having fenced.
        InitUnknownHappened,
        /// An init times out without having done anything.
        InitUnknownLost,
        /// An init times out, and fences later.
        InitUnknownLater,
        /// An init takes long, as when the coordinator has moved.
        InitSlow,
        /// A call finds the log away.
        LogUnavailable,
        /// A poll comes back with nothing although there is something.
        PollEmpty,
        /// A send into a transaction fails.
        SendFailed,
        /// A message of a plain producer is there, its sender is not told.
        SendUnknownHappened,
        /// A message of a plain producer is not there, its sender is not told.
        SendUnknownLost,
        /// A message of a plain producer comes after its sender was told that nothing is known.
        SendUnknownLater,
        /// A transaction is visible in one partition before another.
        MarkerLate,
        /// A transaction is aborted because it took too long.
        TransactionTimedOut,
        /// A transactional id was forgotten.
        IdExpired,
        /// A broker's clock is behind: append times go back.
        AppendTimeBack,
        /// What was read and processed is deleted from an input.
        InputTrimmed,
        /// A report comes late, perhaps after newer ones.
        GossipDelayed,
        /// A report comes twice.
        GossipRepeated,
        /// A report is lost.
        GossipLost,
        /// A plan comes late for some of its readers.
        PlanDelayed,
        /// A plan comes once more, perhaps after newer ones.
        PlanRepeated,
        /// A plan is compacted away before one of its readers has read it.
        PlanLost,
        /// A crash loses the newest writes of a local store.
        WritesLost,
        /// A crash loses nothing that a local store was given.
        WritesKept,
        /// A crash leaves a store's files damaged.
        FilesTorn,
        /// A disk is lost.
        DiskLost,
        /// A local store fails, once.
        DiskFailed,
        /// A disk breaks for good: nothing is read or written any more.
        DiskBroken,
        /// A disk breaks for good: what it has cannot be read.
        DiskUnreadable,
        /// A call of the object store fails.
        ObjectsUnavailable,
        /// An object is written, its writer is not told.
        PutUnknownHappened,
        /// An object is written after its writer was told that nothing is known.
        PutUnknownLater,
        /// Objects are deleted after it was told that nothing is known.
        DeleteLater,
        /// A list shows what was there a while ago.
        ListStale,
        /// A bit changes on the way from the object store.
        BitFlipped,
        /// A record is sent again although it was acknowledged.
        RecordRepeated,
    }
}

names! {
    /// What the protocol can do.
    Protocol {
        /// A shard's first record.
        Genesis,
        /// An ownership record.
        Owned,
        /// A takeover could not see yet whether the batch before was committed.
        Undecided,
        /// A shard was taken over from another process.
        TakenOver,
        /// A client was prepared.
        Prepared,
        /// A prepared client was thrown away.
        PreparedDiscarded,
        /// An owner's last transaction.
        Released,
        /// A prepared client went on after a release.
        Received,
        /// An unknown outcome turned out to be a commit.
        UnknownCommitted,
        /// An unknown outcome turned out to be nothing.
        UnknownLost,
        /// A batch.
        Batch,
        /// A batch in several messages.
        SplitBatch,
        /// Frames for another shard went that had waited.
        WaitingSent,
        /// No inputs were read, because too much waited for other shards.
        InputsHeld,
        /// A flush to the local store.
        Flushed,
        /// A local store was followed from its position.
        Replayed,
        /// A changelog was read from its beginning, though it was long.
        ReadFromTheBeginning,
        /// Local state was given up.
        LocalStateDiscarded,
        /// A store was found damaged.
        CorruptFound,
        /// A standby was opened.
        StandbyOpened,
        /// A plan was adopted.
        PlanAdopted,
        /// A process found a newer one of its name and ended.
        TwinEnded,
        /// A process that leaves gave its shards away and ended.
        Left,
        /// A worker said that it cannot open a shard.
        Unable,
        /// An open transaction was aborted by the next client of its id.
        OpenTransactionFenced,
        /// A takeover ended a transaction in a partition in which it had been forgotten.
        ForgottenEnded,
        /// A takeover copied a message of a batch that had been forgotten where it was.
        ForgottenCopied,
        /// A client was told that it is fenced.
        ClientFenced,
        /// A checkpoint was taken.
        CheckpointTaken,
        /// A checkpoint shares files with one before.
        FilesShared,
        /// The changelog was trimmed.
        ChangelogTrimmed,
        /// A shard began with a checkpoint.
        CheckpointRestored,
        /// A shard began with a checkpoint, where nothing else would have done.
        CheckpointNeeded,
        /// A pointer was not replaced, because somebody else had.
        PutRefused,
        /// An object was deleted.
        ObjectDeleted,
        /// A shard was cut for a savepoint.
        Cut,
        /// It was cut for a newer one before.
        CutOutOfOrder,
        /// Every shard was cut for a savepoint.
        SavepointComplete,
        /// A savepoint was given up, or complete.
        SavepointEnded,
        /// Between a receiver's cut and a sender's marker was something.
        ChannelFilled,
        /// A shard stopped (I6).
        Stopped,
        /// A user became part of another.
        Merged,
        /// A user was deleted.
        Deleted,
        /// A record was a duplicate.
        Duplicate,
        /// A record was rejected.
        Rejected,
    }
}

/// How often each was hit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By [`Fault`].
    pub faults: Vector<{ Fault::ALL.len() }>,
    /// By [`Protocol`].
    pub steps: Vector<{ Protocol::ALL.len() }>,
}

/// Counters of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vector<const N: usize>([u64; N]);

impl<const N: usize> Default for Vector<N> {
    fn default() -> Vector<N> {
        Vector([0; N])
    }
}

impl<const N: usize> std::ops::Index<usize> for Vector<N> {
    type Output = u64;
    fn index(&self, index: usize) -> &u64 {
        &self.0[index]
    }
}

impl<const N: usize> std::ops::IndexMut<usize> for Vector<N> {
    fn index_mut(&mut self, index: usize) -> &mut u64 {
        &mut self.0[index]
    }
}

impl Counts {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Counts) {
        for (sum, one) in self.faults.0.iter_mut().zip(other.faults.0) {
            *sum += one;
        }
        for (sum, one) in self.steps.0.iter_mut().zip(other.steps.0) {
            *sum += one;
        }
    }

    /// Each name with its count.
    pub fn all(&self) -> Vec<(&'static str, u64)> {
        let faults = Fault::ALL.iter().map(|fault| (fault.name(), self.faults[*fault as usize]));
        let steps = Protocol::ALL.iter().map(|step| (step.name(), self.steps[*step as usize]));
        faults.chain(steps).collect()
    }

    /// Those that were never hit.
    pub fn missing(&self) -> Vec<&'static str> {
        self.all().into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name).collect()
    }

    /// Two columns, for people.
    pub fn table(&self) -> String {
        self.all().iter().map(|(name, count)| format!("{name:<24} {count:>10}\n")).collect()
    }

    /// As text that [`Counts::parse`] reads: how worker processes of a run tell the first one.
    pub fn line(&self) -> String {
        self.all().iter().map(|(_, count)| count.to_string()).collect::<Vec<_>>().join(" ")
    }

    /// Reads [`Counts::line`].
    pub fn parse(line: &str) -> Option<Counts> {
        let mut counts = Counts::default();
        let mut numbers = line.split(' ').map(str::parse::<u64>);
        for place in counts.faults.0.iter_mut().chain(&mut counts.steps.0) {
            *place = numbers.next()?.ok()?;
        }
        Some(counts)
    }
}
