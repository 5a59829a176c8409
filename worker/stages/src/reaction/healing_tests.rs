//! Whatever is lost on the way, documents end as the fold of their mutations, and no document has two writes in flight (I8).
//!
//! One partition with a home, a topic, an exchange and a store, all in memory; a schedule of steps chosen at random, and then whatever is
//! still to be done.

use super::*;
use millstream_model::document::{Document, Fit, fit, is_whole};
use millstream_model::proto::exchange::Body;
use millstream_model::proto::{Exchange, List, Object, Operation, Value, operation::Op};
use proptest::prelude::*;

const ENTITIES: usize = 3;
/// The store refuses whatever sets it.
const BAD: &str = "bad";

#[derive(Clone, Debug)]
enum Step {
    /// A change of an entity's state; its mutation may be lost before it reaches the topic.
    Change {
        entity: usize,
        op: Op,
        path: &'static str,
        lost: bool,
    },
    Tombstone(usize),
    Read,
    Write(usize),
    /// The oldest bulk in flight comes back; what it was told of each write.
    Land(Answer),
    /// A write that timed out takes effect now.
    LandLate,
    /// The requests reach the log or not; when they do, the stage may not hear of it.
    Ask(Answer),
    Answer,
    Record,
    Crash,
    /// The document of an entity is what it was some writes ago.
    Restore {
        entity: usize,
        back: usize,
    },
    Wait(u64),
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    True,
    /// It took effect, but nobody knows.
    Lost,
    /// It has not taken effect yet.
    TimedOut,
}

type Bulk = Vec<(DocumentKey, Mutation)>;

struct World {
    home: Vec<(Document, u64)>,
    topic: Vec<Vec<Mutation>>,
    exchange: VecDeque<Exchange>,
    /// Every state of each document, the present one last.
    store: Vec<Vec<Document>>,
    reaction: Reaction,
    read: usize,
    recorded: usize,
    in_flight: VecDeque<Bulk>,
    late: VecDeque<Mutation>,
    rejected: Vec<Mutation>,
    requests: usize,
    now_ms: u64,
}

fn id(entity: usize) -> String {
    format!("u_0007{entity:032x}")
}

fn entity(id: &str) -> usize {
    (0..ENTITIES).find(|entity| self::id(*entity) == id).unwrap()
}

fn is_refused(mutation: &Mutation) -> bool {
    mutation.operations.iter().any(|operation| match &operation.op {
        Some(Op::Replace(fields)) => fields.get(BAD).is_some(),
        Some(Op::Set(_)) => operation.path == BAD,
        _ => false,
    })
}

impl World {
    fn new() -> World {
        let mut world = World {
            home: vec![(Document::empty(), 0); ENTITIES],
            topic: Vec::new(),
            exchange: VecDeque::new(),
            store: vec![vec![Document::empty()]; ENTITIES],
            reaction: Reaction::starting_at(0),
            read: 0,
            recorded: 0,
            in_flight: VecDeque::new(),
            late: VecDeque::new(),
            rejected: Vec::new(),
            requests: 0,
            now_ms: 0,
        };
        (0..ENTITIES).for_each(|entity| world.emit(entity, Op::Replace(Object::default()), "", false));
        world
    }

    fn emit(&mut self, entity: usize, op: Op, path: &str, lost: bool) {
        let (document, whole) = &mut self.home[entity];
        let mutation = Mutation {
            tenant: "acme".into(),
            collection: "users".into(),
            id: id(entity),
            generation: 1,
            revision: document.revision + 1,
            base: document.revision,
            operations: vec![Operation { path: path.into(), op: Some(op) }],
            ..Mutation::default()
        };
        document.apply(&mutation);
        if is_whole(&mutation) {
            *whole = mutation.revision;
        }
        if !lost {
            self.topic.push(vec![mutation]);
        }
    }

    /// The home's part, as the action stage does it.
    fn answer(&mut self) -> bool {
        let Some(Exchange { body: Some(Body::Replace(replace)), .. }) = self.exchange.pop_front() else { return false };
        let entity = entity(&replace.id);
        let (document, whole) = &self.home[entity];
        if *whole <= replace.revision {
            let op = if document.deleted { Op::Tombstone(true) } else { Op::Replace(document.fields.clone()) };
            self.emit(entity, op, "", false);
        }
        true
    }

    fn read(&mut self) -> bool {
        let Some(frame) = self.topic.get(self.read).cloned() else { return false };
        let decided = self.reaction.offer(self.read as u64, frame);
        self.note(decided);
        self.read += 1;
        true
    }

    fn write(&mut self, max: usize) -> bool {
        let bulk = self.reaction.take(max, self.now_ms);
        for (index, (key, _)) in bulk.iter().enumerate() {
            let others = self.in_flight.iter().flatten().chain(&bulk[..index]);
            assert!(others.into_iter().all(|(other, _)| other != key), "two writes of {key:?} in flight");
        }
        let some = !bulk.is_empty();
        self.in_flight.extend(some.then_some(bulk));
        some
    }

    /// What the document store does.
    fn store(&mut self, mutation: &Mutation) -> Written {
        if is_refused(mutation) {
            return Written::Refused("bad".into());
        }
        let states = &mut self.store[entity(&mutation.id)];
        let mut document = states.last().unwrap().clone();
        match fit((document.generation, document.revision), mutation) {
            Fit::Stale => Written::Done,
            Fit::Gap => Written::Gap,
            Fit::Next => {
                document.apply(mutation);
                states.push(document);
                Written::Done
            }
        }
    }

    fn land(&mut self, answer: Answer) -> bool {
        let Some(bulk) = self.in_flight.pop_front() else { return false };
        for (key, mutation) in bulk {
            let written = match answer {
                Answer::True => self.store(&mutation),
                Answer::Lost => {
                    self.store(&mutation);
                    Written::Retry("no answer".into())
                }
                Answer::TimedOut => {
                    self.late.push_back(mutation);
                    Written::Retry("time-out".into())
                }
            };
            let decided = self.reaction.complete(&key, written, self.now_ms);
            self.note(decided);
        }
        true
    }

    fn ask(&mut self, answer: Answer) -> bool {
        let requests = self.reaction.requests(2, self.now_ms);
        self.requests += requests.len();
        if !matches!(answer, Answer::TimedOut) {
            self.exchange.extend(requests.iter().map(|(_, message)| message.clone()));
        }
        if matches!(answer, Answer::True) {
            let decided = self.reaction.asked(requests.iter().map(|(key, _)| key));
            self.note(decided);
        }
        !requests.is_empty()
    }

    fn note(&mut self, decided: Vec<Decided>) {
        for one in decided {
            match one {
                Decided::Stored(_) => {}
                Decided::Covered(mutation) => assert!(self.is_answered(&mutation), "nobody was asked: {mutation:?}"),
                Decided::Rejected(mutation, _) => self.rejected.push(mutation),
            }
        }
    }

    /// Does the whole document come behind this mutation, whatever happens to the stage?
    fn is_answered(&self, mutation: &Mutation) -> bool {
        let comes = |later: &Mutation| later.id == mutation.id && later.revision > mutation.revision && is_whole(later);
        let is_asked =
            |message: &Exchange| matches!(&message.body, Some(Body::Replace(asked)) if asked.id == mutation.id);
        self.topic.iter().flatten().any(comes) || self.exchange.iter().any(is_asked)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Change { entity, op, path, lost } => self.emit(entity, op, path, lost),
            Step::Tombstone(entity) => self.emit(entity, Op::Tombstone(true), "", false),
            Step::Read => _ = self.read(),
            Step::Write(max) => _ = self.write(max),
            Step::Land(answer) => _ = self.land(answer),
            Step::LandLate => {
                if let Some(mutation) = self.late.pop_front() {
                    self.store(&mutation);
                }
            }
            Step::Ask(answer) => _ = self.ask(answer),
            Step::Answer => _ = self.answer(),
            Step::Record => self.recorded = self.reaction.position() as usize,
            Step::Crash => {
                self.late.extend(self.in_flight.drain(..).flatten().map(|(_, mutation)| mutation));
                self.reaction = Reaction::starting_at(self.recorded as u64);
                self.read = self.recorded;
            }
            Step::Restore { entity, back } => {
                let states = &mut self.store[entity];
                let kept = states.len().saturating_sub(back).max(1);
                states.truncate(kept);
            }
            Step::Wait(milliseconds) => self.now_ms += milliseconds,
        }
    }

    /// Each entity changes once more, and everything comes to rest.
    fn finish(&mut self) {
        while let Some(mutation) = self.late.pop_front() {
            self.store(&mutation);
        }
        (0..ENTITIES).for_each(|entity| self.emit(entity, Op::Set(Value::integer(-1)), "last", false));
        for _ in 0..10_000 {
            let active = [self.read(), self.write(2), self.land(Answer::True), self.ask(Answer::True), self.answer()]
                .contains(&true);
            let is_at_rest = self.reaction.entities.is_empty() && self.reaction.position() as usize == self.topic.len();
            if !active && is_at_rest {
                return;
            }
            self.now_ms += 1000;
        }
        panic!("does not come to rest: {:?}", self.reaction);
    }

    fn run(steps: Vec<Step>) -> World {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
        let reaction = &world.reaction;
        assert_eq!((reaction.backlog, reaction.backlog_bytes, reaction.undecided.len()), (0, 0, 0));
        assert!(reaction.ready.is_empty() && reaction.paused.is_empty() && reaction.asking.is_empty());
        world
    }

    fn stored(&self, entity: usize) -> &Document {
        self.store[entity].last().unwrap()
    }
}

fn change(lost: bool) -> impl Strategy<Value = Step> {
    let list = |items: Vec<i64>| List { items: items.into_iter().map(Value::integer).collect() };
    let items = || proptest::collection::vec(0..4i64, 1..3);
    let change = prop_oneof![
        (0..9i64).prop_map(|number| ("x", Op::Set(Value::integer(number)))),
        Just(("x", Op::Unset(true))),
        items().prop_map(move |items| ("set", Op::AddToSet(list(items)))),
        items().prop_map(move |items| ("set", Op::RemoveFromSet(list(items)))),
    ];
    let is_lost = if lost { prop_oneof![3 => Just(false), 1 => Just(true)].boxed() } else { Just(false).boxed() };
    (0..ENTITIES, change, is_lost).prop_map(|(entity, (path, op), lost)| Step::Change { entity, op, path, lost })
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![4 => Just(Answer::True), 1 => Just(Answer::Lost), 1 => Just(Answer::TimedOut)]
}

fn work() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Read),
        6 => (1..4usize).prop_map(Step::Write),
        6 => answer().prop_map(Step::Land),
        1 => Just(Step::LandLate),
        2 => answer().prop_map(Step::Ask),
        2 => Just(Step::Answer),
        1 => Just(Step::Record),
        1 => Just(Step::Crash),
        1 => (1..7_000u64).prop_map(Step::Wait),
    ]
}

fn losses() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => change(true),
        1 => (0..ENTITIES).prop_map(Step::Tombstone),
        1 => (0..ENTITIES, 1..6usize).prop_map(|(entity, back)| Step::Restore { entity, back }),
        16 => work(),
    ]
}

fn refusals() -> impl Strategy<Value = Step> {
    let bad = |entity| Step::Change { entity, op: Op::Set(Value::null()), path: BAD, lost: false };
    prop_oneof![4 => change(false), 1 => (0..ENTITIES).prop_map(bad), 12 => work()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Mutations that never reach the topic, documents that go back to an earlier state, writes that land late, crashes.
    #[test]
    fn what_is_lost_is_healed(steps in proptest::collection::vec(losses(), 0..120)) {
        let world = World::run(steps);
        prop_assert_eq!(&world.rejected, &[]);
        for (entity, (document, _)) in world.home.iter().enumerate() {
            prop_assert_eq!(world.stored(entity), document);
        }
    }

    /// Without losses nobody is asked, whatever the store refuses: a document is the fold less the rejects.
    #[test]
    fn a_reject_leaves_no_gap(steps in proptest::collection::vec(refusals(), 0..120)) {
        let world = World::run(steps);
        prop_assert_eq!(world.requests, 0);
        for entity in 0..ENTITIES {
            let mut expected = Document::empty();
            let mutations = world.topic.iter().flatten().filter(|mutation| mutation.id == id(entity));
            for mutation in mutations.filter(|mutation| !is_refused(mutation)) {
                expected.apply(mutation);
            }
            prop_assert_eq!(world.stored(entity), &expected);
            let refused = world.topic.iter().flatten().filter(|mutation| is_refused(mutation));
            prop_assert!(refused.into_iter().all(|mutation| world.rejected.contains(mutation)), "each is rejected");
        }
    }
}
