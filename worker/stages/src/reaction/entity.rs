//! What the reaction stage knows of one document: the write in flight, what waits behind it, and whether it has a gap.

use super::{Decided, fold};
use millstream_model::document::is_whole;
use millstream_model::proto::Mutation;
use std::collections::VecDeque;

/// The most mutations in one fold: bounds what a split has to repeat.
const MAX_FOLD: usize = 200;

/// A mutation that is not decided.
#[derive(Debug)]
pub(super) struct Part {
    /// Of the frame that it came in.
    pub(super) offset: u64,
    /// Encoded: what it counts for in the backlog.
    pub(super) bytes: usize,
    pub(super) mutation: Mutation,
}

/// A write.
#[derive(Debug)]
pub(super) struct Work {
    /// What to write: all of `parts` in one.
    pub(super) folded: Mutation,
    /// The mutations in it, in order.
    pub(super) parts: Vec<Part>,
    /// A fold was refused: write each part alone from now on.
    split: bool,
    /// The store refused it and says why; only its revision is written.
    pub(super) refused: Option<String>,
}

/// Something that a document should hold is missing, and its home is to send the whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Gap {
    /// When to ask (again).
    pub(super) due_ms: u64,
    /// How often that was done.
    pub(super) requests: u32,
    /// The log has a request, so the whole document will come, behind all that has been read and is still read until then.
    pub(super) is_asked: bool,
    /// Of the newest mutation that was read.
    pub(super) revision: u64,
}

#[derive(Debug, Default)]
pub(super) struct Entity {
    pub(super) waiting: VecDeque<Work>,
    pub(super) in_flight: Option<Work>,
    pub(super) attempts: u32,
    pub(super) not_before_ms: u64,
    pub(super) gap: Option<Gap>,
}

impl Work {
    fn of(part: Part) -> Work {
        Work { folded: part.mutation.clone(), parts: vec![part], split: false, refused: None }
    }

    /// Becomes the write that moves the guard to the revision and changes nothing else. Without it the next mutation, which builds on
    /// the refused one, would find a gap.
    pub(super) fn skip(&mut self, message: String) {
        self.folded.operations.clear();
        self.folded.base = 0;
        (self.split, self.refused) = (true, Some(message));
    }

    /// What its parts come to when it is stored.
    pub(super) fn fate(&self, mutation: Mutation) -> Decided {
        match &self.refused {
            None => Decided::Stored(mutation),
            Some(message) => Decided::Rejected(mutation, message.clone()),
        }
    }
}

impl Entity {
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_none()
    }

    pub(super) fn enqueue(&mut self, part: Part) {
        if let Some(last) = self.waiting.back_mut()
            && !last.split
            && last.parts.len() < MAX_FOLD
            && let Some(folded) = fold(&last.folded, &part.mutation)
        {
            last.folded = folded;
            last.parts.push(part);
            return;
        }
        self.waiting.push_back(Work::of(part));
    }

    /// What must be tried again goes out with what has come behind it in the meantime, when both fold.
    pub(super) fn put_back(&mut self, work: Work) {
        if let Some(next) = self.waiting.front_mut()
            && !work.split
            && !next.split
            && work.parts.len() + next.parts.len() <= MAX_FOLD
            && let Some(folded) = fold(&work.folded, &next.folded)
        {
            next.folded = folded;
            next.parts.splice(0..0, work.parts);
            return;
        }
        self.waiting.push_front(work);
    }

    pub(super) fn split(&mut self, work: Work) {
        for part in work.parts.into_iter().rev() {
            self.waiting.push_front(Work { split: true, ..Work::of(part) });
        }
    }

    /// Gives what waits before the newest whole document that waits: it is decided by that one. `None`: none waits.
    pub(super) fn covered(&mut self) -> Option<Vec<Work>> {
        let whole = self.waiting.iter().rposition(|work| is_whole(&work.folded))?;
        Some(self.waiting.drain(..whole).collect())
    }

    /// Revision of the newest mutation that waits.
    pub(super) fn newest(&self) -> u64 {
        self.waiting.back().map_or(0, |work| work.folded.revision)
    }
}
