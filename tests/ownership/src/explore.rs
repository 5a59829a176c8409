//! Visits every state of a model, breadth first: a counter-example is a shortest one.
//!
//! Ours, because the checkers that exist cannot say what we ask ([`Explored::hopeless`]: *from every state some path leads to a goal*), and because states are
//! kept in full, not as hashes: nothing is missed by a collision.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// What is explored.
pub trait Model {
    /// All that there is.
    type State: Clone + Eq + Hash;
    /// What may happen.
    type Step: Clone;
    /// Kinds of steps, to see that each of them happens.
    type Kind: Ord;

    /// Where it begins.
    fn initial(&self) -> Self::State;
    /// What may happen next.
    fn steps(&self, state: &Self::State) -> Vec<(Self::Step, Self::State)>;
    /// The kind of a step.
    fn kind(&self, step: &Self::Step) -> Self::Kind;
    /// One of all states that behave alike.
    fn canonical(&self, state: &Self::State) -> Self::State;
    /// What is wrong with a state, if anything.
    fn violation(&self, state: &Self::State) -> Option<&'static str>;
    /// What must stay within reach.
    fn is_goal(&self, state: &Self::State) -> bool;
}

/// A way to a state: the steps, with the states that they lead to.
pub type Trace<M> = Vec<(<M as Model>::Step, <M as Model>::State)>;

/// What came of it.
pub struct Explored<'a, M: Model> {
    model: &'a M,
    index: HashMap<M::State, u32>,
    parents: Vec<u32>,
    edges: Vec<(u32, u32)>,
    goals: Vec<bool>,
    /// Kinds of steps that were taken.
    pub kinds: BTreeSet<M::Kind>,
    /// Length of the longest shortest way to a state.
    pub depth: usize,
    /// The first thing that went wrong, and the way there.
    pub counterexample: Option<(&'static str, Trace<M>)>,
}

/// Visits everything, or everything up to the first violation. `most`: gives up after so many states.
pub fn explore<M: Model>(model: &M, most: usize) -> Option<Explored<'_, M>> {
    let mut explored = Explored {
        model,
        index: HashMap::new(),
        parents: Vec::new(),
        edges: Vec::new(),
        goals: Vec::new(),
        kinds: BTreeSet::new(),
        depth: 0,
        counterexample: None,
    };
    let initial = model.canonical(&model.initial());
    explored.visit(initial.clone(), 0);
    let mut level = vec![(0, initial)];
    while !level.is_empty() {
        let mut next = Vec::new();
        for (from, state) in level {
            explored.expand(from, &state, &mut next);
            if explored.counterexample.is_some() {
                return Some(explored);
            }
            if explored.states() > most {
                return None;
            }
        }
        explored.depth += usize::from(!next.is_empty());
        level = next;
    }
    Some(explored)
}

impl<M: Model> Explored<'_, M> {
    /// How many states there are.
    #[must_use]
    pub fn states(&self) -> usize {
        self.parents.len()
    }

    /// How many steps there are between them.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.edges.len()
    }

    /// All states, in the order in which they were found.
    pub fn all(&self) -> impl Iterator<Item = &M::State> {
        let mut states: Vec<_> = self.index.iter().collect();
        states.sort_unstable_by_key(|(_, number)| **number);
        states.into_iter().map(|(state, _)| state)
    }

    /// True when such a state was visited.
    pub fn has(&self, state: &M::State) -> bool {
        self.index.contains_key(&self.model.canonical(state))
    }

    fn visit(&mut self, state: M::State, parent: u32) -> (u32, bool) {
        let number = u32::try_from(self.parents.len()).unwrap_or(u32::MAX);
        let goal = self.model.is_goal(&state);
        let known = *self.index.entry(state).or_insert(number);
        if known == number {
            self.parents.push(parent);
            self.goals.push(goal);
        }
        (known, known == number)
    }

    fn expand(&mut self, from: u32, state: &M::State, next: &mut Vec<(u32, M::State)>) {
        for (step, to) in self.model.steps(state) {
            if let Some(what) = self.model.violation(&to) {
                let mut trace = self.way_to(from);
                trace.extend(self.follow(&trace, &self.model.canonical(&to)));
                self.counterexample = Some((what, trace));
                return;
            }
            self.kinds.insert(self.model.kind(&step));
            let canonical = self.model.canonical(&to);
            let (number, new) = self.visit(canonical.clone(), from);
            self.edges.push((from, number));
            if new {
                next.push((number, canonical));
            }
        }
    }

    /// A state from which no way leads to a goal, with the way to it.
    #[must_use]
    pub fn hopeless(&self) -> Option<Trace<M>> {
        let mut hopeful = self.goals.clone();
        // Backwards along the steps until nothing changes. Steps were found breadth first, so going from the last to the first needs few rounds.
        let mut changed = true;
        while changed {
            changed = false;
            for (from, to) in self.edges.iter().rev() {
                if hopeful.get(*to as usize) == Some(&true)
                    && let Some(hope) = hopeful.get_mut(*from as usize)
                    && !*hope
                {
                    (*hope, changed) = (true, true);
                }
            }
        }
        let lost = hopeful.iter().position(|hope| !hope)?;
        Some(self.way_to(u32::try_from(lost).ok()?))
    }

    /// A shortest way to a state that was visited.
    pub fn way(&self, state: &M::State) -> Option<Trace<M>> {
        self.index.get(&self.model.canonical(state)).map(|number| self.way_to(*number))
    }

    /// The way to a state, replayed with its own names and numbers and nothing folded away, so that people can read it.
    fn way_to(&self, number: u32) -> Trace<M> {
        let numbers: HashMap<u32, &M::State> = self.index.iter().map(|(state, number)| (*number, state)).collect();
        let mut path = Vec::new();
        let mut at = number;
        while at != 0 {
            path.extend(numbers.get(&at).copied());
            at = self.parents.get(at as usize).copied().unwrap_or(0);
        }
        path.iter().rev().fold(Vec::new(), |mut trace, state| {
            trace.extend(self.follow(&trace, state));
            trace
        })
    }

    /// The step behind a trace that leads to a state like the given one. Before it there may be one that leads to a state like the last: folded away,
    /// it did not count.
    fn follow(&self, trace: &Trace<M>, wanted: &M::State) -> Trace<M> {
        let at = trace.last().map_or_else(|| self.model.initial(), |(_, state)| state.clone());
        let to = |from: &M::State, wanted: &M::State| {
            let mut steps = self.model.steps(from);
            steps.retain(|(_, to)| self.model.canonical(to) == *wanted);
            steps
        };
        if let Some(step) = to(&at, wanted).into_iter().next() {
            return vec![step];
        }
        let unseen = to(&at, &self.model.canonical(&at)).into_iter();
        let both =
            |first: (M::Step, M::State)| to(&first.1, wanted).into_iter().next().map(|second| vec![first, second]);
        unseen.filter_map(both).next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two jugs of three and five litres: fill, empty, pour. `lid`: once closed, the larger one is never opened again.
    struct Jugs {
        lid: bool,
    }

    impl Model for Jugs {
        type State = (u8, u8, bool);
        type Step = &'static str;
        type Kind = &'static str;

        fn initial(&self) -> Self::State {
            (0, 0, false)
        }
        fn steps(&self, &(small, large, closed): &Self::State) -> Vec<(&'static str, Self::State)> {
            let (right, left) = (small.min(5 - large), large.min(3 - small));
            let mut steps = vec![("fill small", (3, large, closed)), ("empty small", (0, large, closed))];
            if !closed {
                steps.extend([("fill large", (small, 5, closed)), ("empty large", (small, 0, closed))]);
                steps.extend([
                    ("pour right", (small - right, large + right, closed)),
                    ("pour left", (small + left, large - left, closed)),
                ]);
            }
            if self.lid {
                steps.push(("close", (small, large, true)));
            }
            steps
        }
        fn kind(&self, step: &&'static str) -> &'static str {
            step
        }
        fn canonical(&self, state: &Self::State) -> Self::State {
            *state
        }
        fn violation(&self, &(_, large, _): &Self::State) -> Option<&'static str> {
            (!self.lid && large == 4).then_some("four litres")
        }
        fn is_goal(&self, &(_, large, _): &Self::State) -> bool {
            large == 2
        }
    }

    #[test]
    fn a_counterexample_is_a_shortest_one() {
        let explored = explore(&Jugs { lid: false }, 100).unwrap();
        let (what, trace) = explored.counterexample.as_ref().unwrap();
        let steps: Vec<_> = trace.iter().map(|(step, _)| *step).collect();
        assert_eq!(*what, "four litres");
        assert_eq!(steps, ["fill large", "pour left", "empty small", "pour left", "fill large", "pour left"]);
    }

    #[test]
    fn every_state_is_visited_and_a_dead_end_found() {
        let explored = explore(&Jugs { lid: true }, 100).unwrap();
        // Open, one jug is always full or empty: 16 states. Closed, the small one keeps its content, or is full or empty.
        assert_eq!(explored.all().filter(|(.., closed)| !closed).count(), 16);
        let trace = explored.hopeless().unwrap();
        assert_eq!(trace.iter().map(|(step, _)| *step).collect::<Vec<_>>(), ["close"]);
    }

    #[test]
    fn gives_up_at_the_bound() {
        assert!(explore(&Jugs { lid: true }, 10).is_none());
    }
}
