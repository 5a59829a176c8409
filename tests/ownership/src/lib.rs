//! An exhaustive check of who may write for a shard (I4).
//!
//! All that workers, transaction coordinator, and network can do to one shard is a graph of states. It is visited whole: see [`explore`]. The rules are
//! those of `worker/shard/src/ownership.rs` and of the book's page *Ownership*; each of them, broken ([`rules::Mutant`]), must lead to a
//! log that [`properties`] refuse.

mod acquire;
mod canonical;
mod coordinate;
pub mod explore;
mod moves;
pub mod properties;
pub mod rules;
pub mod state;
pub mod step;
mod write;

use explore::Model;
use rules::Rules;
use state::State;
use step::{Act, Step};

/// One shard and some workers, under rules.
#[derive(Clone, Debug)]
pub struct Shard {
    /// The rules.
    pub rules: Rules,
    /// How many processes there are. A restarted one is one of them again, so it may be the twin of one that still runs.
    pub workers: usize,
    /// How many entries the log may hold; `None`: any number, because what makes no difference any more is folded away, if the
    /// rules allow that.
    pub longest: Option<usize>,
    /// Also judge what rule 2 promises: [`properties::useless_preparation`].
    pub judge_prepared: bool,
}

/// Folding leaves one entry at most; only a trace, which is not folded, is as long as it takes. Numbers are counted in `i8`.
const LONGEST: usize = 100;

impl Shard {
    /// The rules as they are, any number of batches, inits and crashes.
    #[must_use]
    pub fn unbounded(workers: usize) -> Shard {
        Shard { rules: Rules::default(), workers, longest: None, judge_prepared: true }
    }

    /// Other rules, up to so many entries. What rule 2 promises is not judged.
    #[must_use]
    pub fn bounded(rules: Rules, workers: usize, longest: usize) -> Shard {
        Shard { rules, workers, longest: Some(longest), judge_prepared: false }
    }
}

impl Model for Shard {
    type State = State;
    type Step = Step;
    type Kind = Act;

    fn initial(&self) -> State {
        State::genesis(self.workers)
    }

    fn steps(&self, state: &State) -> Vec<(Step, State)> {
        moves::Moves::all(&self.rules, state, self.longest.unwrap_or(LONGEST))
    }

    fn kind(&self, step: &Step) -> Act {
        step.act
    }

    fn canonical(&self, state: &State) -> State {
        if self.longest.is_none() && self.rules.only_the_end_matters() {
            canonical::sorted(&canonical::folded(&self.rules, state))
        } else {
            canonical::sorted(state)
        }
    }

    fn violation(&self, state: &State) -> Option<&'static str> {
        let useless = if self.judge_prepared { properties::useless_preparation(state) } else { None };
        properties::violation(state).or(useless)
    }

    fn is_goal(&self, state: &State) -> bool {
        properties::has_owner(state)
    }
}
