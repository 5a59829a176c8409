//! Deliberate bugs, each of which the simulation must find (`tests/sim`): whoever finds none proves nothing.
//!
//! Without the feature `mutants`, which no product has, [`is`] is the constant `false` and the compiler removes what stands behind it.

/// A deliberate bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Rule 4: the named id is initialised and used on.
    NamedIdUsedOn,
    /// Rule 4: only the idle id is initialised, so that the former owner is not fenced.
    NamedIdNotFenced,
    /// Rule 4: the named id is initialised first.
    InitsSwapped,
    /// Rule 4: the log is not read again after the inits.
    NotReadAgain,
    /// What an owner has stored counts without a look whether the log has it.
    LocalUnproven,
    /// A transaction that its coordinator has forgotten is left open.
    HangingIgnored,
    /// Such a transaction is aborted, whatever it was elsewhere.
    HangingAborted,
    /// What is owed is forgotten when a takeover fails before its first batch.
    OwedOnce,
    /// A takeover waits for what others hide, and touches nothing.
    HiddenWaitedFor,
    /// That a batch is undecided is forgotten before it is decided.
    UndecidedForgotten,
    /// An owner that may have lost a commit looks at its changelog only.
    DoubtOfChangelogOnly,
    /// Rule 2: a client counts as prepared without a look at the log.
    PreparedUnchecked,
    /// Rule 3: the owner goes on after its release.
    ReleaseIgnored,
    /// Rule 5: any plan will do.
    OldPlanFollowed,
    /// Rule 6: after an error the transaction is aborted, and the client used on.
    ClientKept,
    /// State and position move, and are stored, before the log has committed the batch.
    ApplyBeforeCommit,
    /// What a batch that was given up has changed stays for the next one.
    OverlayLeaks,
    /// The position is one further than what was read.
    OffsetOffByOne,
    /// Of a large frame only the first half is processed.
    HalfFrame,
    /// A batch's digest does not cover the one before.
    DigestNotChained,
    /// Each part of a batch is followed as if it were a batch.
    HalfBatchFollowed,
    /// A flush writes newer values than its position says.
    FlushNewerThanPosition,
    /// What is read from the store replaces what is newer in memory.
    LateReadWins,
    /// Of the frames that wait for another shard, the newest goes first.
    WaitingOvertaken,
    /// A process goes on although a newer one of its name runs.
    TwinNotDetected,
    /// A worker that cannot open a shard does not say so.
    UnableUnsaid,
    /// A checkpoint's pointer is written whatever is there.
    PointerUnconditional,
    /// Files of a checkpoint that is dropped go, though others refer to them.
    ReferredCollected,
    /// An owner deletes what one of a higher epoch has written, too.
    NewerCollected,
    /// The changelog is trimmed up to the newest checkpoint.
    TrimmedToNewest,
    /// A checkpoint that somebody is restoring is dropped like others.
    LeaseIgnored,
    /// An owner of a lower epoch than the pointer's goes on with checkpoints.
    SupersededGoesOn,
    /// A file of the local store is taken for the one of that name in a checkpoint of another opening.
    NamesTrusted,
    /// A checkpoint is taken up without a look whether the log has its batch.
    CheckpointUnproven,
    /// A file that was downloaded is not compared with what was uploaded.
    FilesUnchecked,
    /// What waits for other shards goes in the transaction of a cut, behind its markers.
    WaitingBehindMarker,
    /// Markers go in a transaction of their own, behind that of the cut's record.
    MarkerApart,
    /// A shard is cut although it owes its outputs something of batches before.
    CutBeforeOwed,
    /// Whoever follows a changelog does not know for which savepoints the shard was cut.
    CutForgotten,
    /// A shard reads on behind the marker of another one of its stage.
    PeersIgnored,
    /// What is held back behind a marker counts as processed.
    HeldPassed,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 41] = [
        Mutant::NamedIdUsedOn,
        Mutant::NamedIdNotFenced,
        Mutant::InitsSwapped,
        Mutant::NotReadAgain,
        Mutant::LocalUnproven,
        Mutant::HangingIgnored,
        Mutant::HangingAborted,
        Mutant::OwedOnce,
        Mutant::HiddenWaitedFor,
        Mutant::UndecidedForgotten,
        Mutant::DoubtOfChangelogOnly,
        Mutant::PreparedUnchecked,
        Mutant::ReleaseIgnored,
        Mutant::OldPlanFollowed,
        Mutant::ClientKept,
        Mutant::ApplyBeforeCommit,
        Mutant::OverlayLeaks,
        Mutant::OffsetOffByOne,
        Mutant::HalfFrame,
        Mutant::DigestNotChained,
        Mutant::HalfBatchFollowed,
        Mutant::FlushNewerThanPosition,
        Mutant::LateReadWins,
        Mutant::WaitingOvertaken,
        Mutant::TwinNotDetected,
        Mutant::UnableUnsaid,
        Mutant::PointerUnconditional,
        Mutant::ReferredCollected,
        Mutant::NewerCollected,
        Mutant::TrimmedToNewest,
        Mutant::LeaseIgnored,
        Mutant::SupersededGoesOn,
        Mutant::NamesTrusted,
        Mutant::CheckpointUnproven,
        Mutant::FilesUnchecked,
        Mutant::WaitingBehindMarker,
        Mutant::MarkerApart,
        Mutant::CutBeforeOwed,
        Mutant::CutForgotten,
        Mutant::PeersIgnored,
        Mutant::HeldPassed,
    ];
}

#[cfg(feature = "mutants")]
mod switch {
    use super::Mutant;
    use std::cell::Cell;

    thread_local! {
        static CURRENT: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Switches one on, or all off, for this thread.
    pub fn set(mutant: Option<Mutant>) {
        CURRENT.set(mutant);
    }

    /// Is this one on?
    pub fn is(mutant: Mutant) -> bool {
        CURRENT.get() == Some(mutant)
    }
}

#[cfg(feature = "mutants")]
pub use switch::{is, set};

/// Is this one on? Never, in a product.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is(_: Mutant) -> bool {
    false
}
