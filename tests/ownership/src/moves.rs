//! Collects what may happen next.

use crate::rules::{Mutant, Rules};
use crate::state::{Slot, State, Worker, WorkerId};
use crate::step::{Act, Step};
use crate::{acquire, coordinate, write};

/// The steps out of one state.
pub(crate) struct Moves<'a> {
    pub(crate) rules: &'a Rules,
    pub(crate) from: &'a State,
    /// Entries that the log may hold.
    pub(crate) longest: usize,
    pub(crate) found: Vec<(Step, State)>,
}

impl<'a> Moves<'a> {
    /// All of them.
    pub(crate) fn all(rules: &'a Rules, from: &'a State, longest: usize) -> Vec<(Step, State)> {
        let mut moves = Moves { rules, from, longest, found: Vec::new() };
        for (who, worker) in (0..).zip(&from.workers) {
            moves.of_worker(who, *worker);
        }
        coordinate::moves(&mut moves);
        moves.found
    }

    fn of_worker(&mut self, who: WorkerId, worker: Worker) {
        match worker {
            Worker::Gone => return,
            Worker::Idle => acquire::begin(self, who),
            Worker::Preparing(slot) => acquire::check_prepared(self, who, slot),
            Worker::Prepared(slot) => acquire::use_prepared(self, who, slot),
            Worker::Taking(takeover) => acquire::take(self, who, takeover),
            Worker::Again(slot) => acquire::check_again(self, who, slot),
            Worker::Owner(lease) => write::begin(self, who, lease),
            Worker::Writing(lease) => write::end(self, who, lease),
        }
        self.die(who, worker);
    }

    /// It may crash at any time, and may never come back, as long as there is another one.
    fn die(&mut self, who: WorkerId, worker: Worker) {
        if worker != Worker::Idle {
            self.step(Some(who), Act::Crash, None, |state| state.discard(who, Worker::Idle));
        }
        if self.from.workers.iter().filter(|other| **other != Worker::Gone).count() > 1 {
            self.step(Some(who), Act::Die, None, |state| state.discard(who, Worker::Gone));
        }
    }

    /// One thing that may happen, and what it changes.
    pub(crate) fn step(
        &mut self,
        who: Option<WorkerId>,
        act: Act,
        slot: impl Into<Option<Slot>>,
        change: impl FnOnce(&mut State),
    ) {
        let mut to = self.from.clone();
        change(&mut to);
        self.found.push((Step { who, act, slot: slot.into() }, to));
    }

    pub(crate) fn broken(&self, mutant: Mutant) -> bool {
        self.rules.broken(mutant)
    }

    /// What the first entries of the log say: the id that they name, and their epoch.
    pub(crate) fn view(&self, entries: usize) -> (Slot, i8) {
        self.from.view(entries, self.rules.release_names)
    }

    /// Ends of the log that a worker may be given when it asks for the newest: rule 1 leaves one.
    pub(crate) fn ends(&self) -> Vec<usize> {
        let end = self.from.end();
        if self.broken(Mutant::EndOfFollower) { (0..=end).rev().collect() } else { vec![end] }
    }
}

/// Entries are few: see `Bounds::longest`.
pub(crate) fn count(entries: usize) -> i8 {
    i8::try_from(entries).unwrap_or(i8::MAX)
}
