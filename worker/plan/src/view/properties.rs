//! What holds for every history of messages.

use super::scene::report;
use super::*;
use crate::plan::{Placement, Version};
use crate::status::ShardStatus;
use proptest::prelude::*;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const SHARDS: u32 = 3;

#[derive(Clone, Debug)]
enum Message {
    Control(Control),
    Status(WorkerStatus),
}

impl View {
    fn hear(&mut self, message: Message, now_ms: u64) {
        match message {
            Message::Control(control) => self.control(control, now_ms),
            Message::Status(status) => self.status(status, now_ms),
        }
    }
}

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(NAMES.map(str::to_owned).to_vec())
}

fn placement() -> impl Strategy<Value = Placement> {
    let order = Just(NAMES.to_vec()).prop_shuffle();
    (order, 1_usize..5, 0_u32..3).prop_map(|(order, count, warm)| {
        let mut names = order.into_iter().map(str::to_owned);
        let owner = names.next().unwrap();
        Placement { owner, successors: names.take(count).collect(), warm, moving_to: None }
    })
}

fn plan() -> impl Strategy<Value = Plan> {
    let placements = prop::collection::vec(placement(), SHARDS as usize);
    (1_u64..3, 1_u64..4, placements).prop_map(|(term, number, placements)| Plan {
        version: Version { term, number },
        generation: 1,
        placements: (0..).map(|shard| ShardId::new("action", shard)).zip(placements).collect(),
    })
}

fn shard_status() -> impl Strategy<Value = ShardStatus> {
    let role = prop::sample::select(vec![Role::Owner, Role::Standby, Role::Opening]);
    (role, 1_u64..4, prop::option::of(0_u8..3)).prop_map(|(role, epoch, client)| {
        let prepared = client.map(|client| format!("client {client}"));
        ShardStatus { role, epoch, prepared, ..ShardStatus::default() }
    })
}

fn status() -> impl Strategy<Value = WorkerStatus> {
    let shards = prop::collection::btree_map(0..SHARDS, shard_status(), 0..3);
    let unable = prop::collection::btree_set(0..SHARDS, 0..2);
    let order = (0_u32..3, 0_u64..4);
    (name(), order, prop::bool::weighted(0.2), 1_u32..3, shards, unable).prop_map(
        |(worker, order, leaving, generation, shards, unable)| WorkerStatus {
            incarnation: Incarnation::new(1, order.0),
            leaving,
            generation,
            shards: shards.into_iter().map(|(shard, status)| (ShardId::new("action", shard), status)).collect(),
            unable: unable.into_iter().map(|shard| ShardId::new("action", shard)).collect(),
            ..report(&worker, order.1)
        },
    )
}

fn tenant() -> impl Strategy<Value = Tenant> {
    // One version says one thing.
    (prop_oneof!["acme", "globex"], 1_u64..5).prop_map(|(name, version)| Tenant {
        name,
        version,
        terms: Terms { api_keys: [[version as u8; 32]].into(), ..Terms::default() },
        is_deleted: version % 2 == 0,
        erased_ms: 0,
    })
}

fn savepoint() -> impl Strategy<Value = Savepoint> {
    let of = |(id, has_ended, generation)| Savepoint { id, has_ended, generation };
    (0_u64..3, prop::bool::ANY, 1_u32..3).prop_map(of)
}

fn message() -> impl Strategy<Value = Message> {
    let level = |(generation, level)| Control::FormatLevel(FormatLevel { generation, level });
    prop_oneof![
        2 => plan().prop_map(Control::Plan).prop_map(Message::Control),
        1 => (0_u32..3, 0_u32..4).prop_map(level).prop_map(Message::Control),
        2 => tenant().prop_map(Control::Tenant).prop_map(Message::Control),
        1 => (1_u64..5).prop_map(|version| Control::Gateways(Gateways { version, count: 1 })).prop_map(Message::Control),
        1 => savepoint().prop_map(Control::Savepoint).prop_map(Message::Control),
        9 => status().prop_map(Message::Status),
    ]
}

/// Messages with the moments at which they come.
fn history() -> impl Strategy<Value = Vec<(u64, Message)>> {
    let pause = prop_oneof![4 => 0_u64..3_000, 1 => 0_u64..20_000];
    prop::collection::vec((pause, message()), 1..40).prop_map(|pauses| {
        let mut now_ms = 0;
        let at = |(pause, message)| {
            now_ms += pause;
            (now_ms, message)
        };
        pauses.into_iter().map(at).collect()
    })
}

/// One message per (incarnation, sequence) of a worker: a worker does not say two things under one number.
fn distinct(messages: Vec<Message>) -> Vec<Message> {
    let mut seen = BTreeSet::new();
    let is_new = |message: &Message| match message {
        Message::Status(status) => seen.insert((status.worker.clone(), status.incarnation.clone(), status.sequence)),
        Message::Control(_) => true,
    };
    messages.into_iter().filter(is_new).collect()
}

fn heard(messages: &[Message]) -> View {
    let mut view = View::new(1, Bounds::default());
    messages.iter().for_each(|message| view.hear(message.clone(), 0));
    view
}

/// What each worker decides, all with this view.
fn decisions(view: &View, now_ms: u64) -> Vec<(&'static str, BTreeMap<ShardId, Duty>)> {
    let of = |worker| {
        let report = view.workers.get(worker).and_then(|heard| heard.report.as_ref());
        let incarnation = report.map_or(Incarnation::new(1, 0), |report| report.incarnation.clone());
        let leaving = report.is_some_and(|report| report.leaving);
        (worker, view.duties(&Me { worker, incarnation: &incarnation, leaving }, now_ms))
    };
    NAMES.into_iter().map(of).collect()
}

fn check(view: &View, now_ms: u64) -> Result<(), TestCaseError> {
    let (decisions, holders) = (decisions(view, now_ms), view.holders(&view.presence(now_ms)));
    for shard in 0..SHARDS {
        let id = ShardId::new("action", shard);
        let holder = holders.get(&id).map(|(_, holder)| *holder);
        let duties: Vec<(&str, &Duty)> =
            decisions.iter().filter_map(|(worker, duties)| Some((*worker, duties.get(&id)?))).collect();
        let that =
            |wanted: &dyn Fn(&str, &Duty) -> bool| duties.iter().filter(|(worker, duty)| wanted(worker, duty)).count();
        let acquires =
            |worker: &str, duty: &Duty| *duty == Duty::TakeOver || (*duty == Duty::Own && holder != Some(worker));
        prop_assert!(that(&|_, duty| *duty == Duty::TakeOver) <= 1, "two take {id} over: {duties:?}");
        prop_assert!(that(&acquires) <= 1, "two acquire {id}: {duties:?}");
        prop_assert!(
            that(&|_, duty| matches!(duty, Duty::Standby { prepare: true, .. })) <= 1,
            "two prepare {id}: {duties:?}"
        );
        for (worker, duty) in &duties {
            let Duty::Release { to: Some(heir) } = duty else { continue };
            prop_assert!(heir.worker != *worker && holder == Some(worker), "{id}: {worker} releases to {heir:?}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn with_the_same_view_at_most_one_takes_over_and_at_most_one_prepares(history in history(), later in 0_u64..40_000) {
        let mut view = View::new(1, Bounds::default());
        for (now_ms, message) in &history {
            view.hear(message.clone(), *now_ms);
            check(&view, *now_ms)?;
        }
        check(&view, history.last().map_or(0, |(now_ms, _)| now_ms + later))?;
    }

    #[test]
    fn late_repeated_and_reordered_messages_make_the_same_view(
        (messages, others) in prop::collection::vec(message(), 1..25).prop_map(distinct).prop_flat_map(|messages| {
            let twice = messages.iter().chain(&messages).cloned().collect::<Vec<_>>();
            (Just(messages), Just(twice).prop_shuffle())
        }),
    ) {
        prop_assert_eq!(heard(&messages), heard(&others));
    }

    #[test]
    fn a_message_that_is_repeated_later_is_no_sign_of_life(messages in prop::collection::vec(message(), 1..25).prop_map(distinct)) {
        let before = heard(&messages);
        let mut after = before.clone();
        messages.iter().for_each(|message| after.hear(message.clone(), 9_999));
        prop_assert_eq!(before, after);
    }

    #[test]
    fn in_the_end_somebody_takes_the_shard_of_a_dead_owner(plan in plan(), alive in prop::sample::subsequence(NAMES.to_vec(), 1..5)) {
        let mut view = View::new(1, Bounds::default());
        view.control(Control::Plan(plan.clone()), 0);
        NAMES.iter().for_each(|name| view.status(report(name, 1), 0));
        let mut now_ms = 0;
        while now_ms <= 30_500 {
            now_ms += 500;
            alive.iter().for_each(|name| view.status(report(name, now_ms), now_ms));
        }
        for (id, placement) in &plan.placements {
            let acting = decisions(&view, now_ms).into_iter().filter(|(worker, duties)| {
                alive.contains(worker) && matches!(duties[id], Duty::Own | Duty::TakeOver)
            });
            let expected = placement.claimants().find(|name| alive.contains(name));
            prop_assert_eq!(acting.map(|(worker, _)| worker).collect::<Vec<_>>(), Vec::from_iter(expected));
        }
    }
}
