//! How old what a pipeline's shards have not processed is, and whether it may be lost: a pure look at what workers report.
//!
//! A shard's owner has looked at the end of its inputs, so that its word counts. Of a shard without one nobody knows whether anything came, but everybody who owned it has said up to which moment
//! everything was processed: what waits is at most as old as the latest of these (`millstream_plan::unread`). So a stage that does not run gets nearer to its retention with every hour, also for an
//! operator that has just started; that it may be nothing that is lost is no reason not to say so.

use crate::fleet::Fleet;
use millstream_plan::plan::ShardId;
use millstream_plan::status::{Role, ShardStatus};
use millstream_plan::unread::{Danger, Kept, Unread, age};
use millstream_plan::view::View;
use std::collections::BTreeMap;

/// What waits in a pipeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    /// How old the oldest of it is at most, milliseconds. `None`: a shard has no owner, or its owner does not know.
    pub oldest_ms: Option<u64>,
    /// Shards that may lose what they have not processed.
    pub at_risk: BTreeMap<ShardId, AtRisk>,
    /// Shards of which nobody can say whether they may.
    pub unknown: Vec<(ShardId, Option<Unread>)>,
    /// All shards.
    pub shards: usize,
}

/// What is said of an age that nobody knows.
pub const UNKNOWN: &str = "unknown";

/// What may be lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtRisk {
    /// The input.
    pub unread: Unread,
    /// How old it is at most, milliseconds.
    pub age_ms: Option<u64>,
    /// Somebody owns the shard.
    pub is_owned: bool,
}

/// What workers say of a shard.
#[derive(Default)]
struct Said<'a> {
    /// Those that have it open.
    open: Vec<(&'a str, &'a ShardStatus)>,
    /// Those that had.
    known: Vec<&'a Unread>,
}

/// What is said of one input of a shard.
struct Input {
    /// By its owner: as it says, and with what others know for good.
    owners: Option<(Unread, Unread)>,
    /// By others. What they say of ages and ends is of another time.
    for_good: Option<Unread>,
}

impl Said<'_> {
    /// What is said of each input: of those of the owner in their order, then of others.
    fn inputs(&self, owners: Option<&ShardStatus>, now_ms: u64) -> Vec<Input> {
        let all: Vec<&Unread> =
            self.open.iter().flat_map(|(_, status)| &status.unread).chain(self.known.iter().copied()).collect();
        let owners = owners.map_or(&[][..], |status| &status.unread);
        let mut topics: Vec<&str> = Vec::new();
        for unread in owners.iter().chain(all.iter().copied()) {
            if !topics.contains(&unread.topic.as_str()) {
                topics.push(&unread.topic);
            }
        }
        let input = |topic: &str| {
            let of_it = all.iter().filter(|unread| unread.topic == topic);
            let for_good = of_it.map(|unread| unread.for_good()).max_by_key(|unread| unread.watermark_ms);
            let owners = owners.iter().find(|unread| unread.topic == topic).map(|unread| {
                let watermark_ms = for_good.as_ref().and_then(|known| known.watermark_ms);
                (unread.clone(), unread.bounded_by(watermark_ms, now_ms))
            });
            Input { owners, for_good }
        };
        topics.into_iter().map(input).collect()
    }
}

impl Input {
    /// What counts, and whether its owner says so.
    fn most(self, now_ms: u64) -> (Option<Unread>, bool) {
        let is_sure = |unread: &Unread| unread.danger(now_ms) != Danger::Unknown;
        let owners = self.owners.map(|(_, bounded)| bounded).filter(is_sure);
        let is_owned = owners.is_some();
        (owners.or(self.for_good), is_owned)
    }
}

/// How old what an owner has not processed is at most, when others know more of its inputs. (One of a former version tells of one input only.)
fn oldest(owners: &ShardStatus, inputs: &[Input]) -> Option<u64> {
    let ages = |which: fn(&(Unread, Unread)) -> Option<u64>| {
        let mut ages = inputs.iter().filter_map(|input| input.owners.as_ref()).map(which);
        ages.try_fold(None, |oldest: Option<u64>, age_ms| Some(oldest.max(Some(age_ms?)))).flatten()
    };
    let is_of_all = ages(|(said, _)| said.age_ms) == owners.unread_ms;
    if is_of_all { ages(|(_, bounded)| bounded.age_ms) } else { owners.unread_ms }
}

impl Freshness {
    /// At a moment, milliseconds since 1970.
    pub fn of(view: &View, fleet: &Fleet, now_ms: u64) -> Freshness {
        let mut of_shards: BTreeMap<&ShardId, Said<'_>> = BTreeMap::new();
        let Some(plan) = view.plan() else { return Freshness::default() };
        for (report, _) in view.reports().filter(|(report, _)| report.generation == plan.generation) {
            for (id, status) in &report.shards {
                of_shards.entry(id).or_default().open.push((&report.worker, status));
            }
            for (id, unread) in &report.known {
                of_shards.entry(id).or_default().known.extend(unread);
            }
        }
        let mut found = Freshness { oldest_ms: Some(0), shards: plan.placements.len(), ..Freshness::default() };
        for id in plan.placements.keys() {
            let owner = fleet.shards.get(id).and_then(|shard| shard.owner.as_deref());
            found.add(id, owner, &of_shards.remove(id).unwrap_or_default(), now_ms);
        }
        found.oldest_ms = found.oldest_ms.filter(|_| found.shards > 0);
        found
    }

    fn add(&mut self, id: &ShardId, owner: Option<&str>, said: &Said<'_>, now_ms: u64) {
        let is_owners = |(worker, status): &&(&str, &ShardStatus)| Some(*worker) == owner && status.role == Role::Owner;
        let owners = said.open.iter().find(is_owners).map(|(_, status)| *status);
        let inputs = said.inputs(owners, now_ms);
        self.oldest_ms = self.oldest_ms.and_then(|oldest_ms| Some(oldest_ms.max(oldest(owners?, &inputs)?)));
        let found = inputs.into_iter().map(|input| input.most(now_ms));
        // Of several that are as near to it the first, which others write to as well: `actions`, not the exchange.
        let worst = found.rev().max_by_key(|(unread, _)| {
            let urgency = |unread: &Unread| unread.urgency(now_ms);
            unread.as_ref().map_or((Danger::Unknown, 0, std::cmp::Reverse(u64::MAX)), urgency)
        });
        match worst {
            Some((Some(unread), _)) if unread.danger(now_ms) == Danger::None => {}
            Some((Some(unread), is_owned)) if unread.danger(now_ms) == Danger::Near => {
                let age_ms = unread.age_at(now_ms);
                self.at_risk.insert(id.clone(), AtRisk { unread, age_ms, is_owned });
            }
            unread => self.unknown.push((id.clone(), unread.and_then(|(unread, _)| unread))),
        }
    }

    /// The oldest age, for people, or [`UNKNOWN`].
    pub fn text(&self) -> String {
        self.oldest_ms.map_or_else(|| UNKNOWN.to_owned(), age)
    }
}

impl AtRisk {
    /// In words.
    pub fn describe(&self) -> String {
        let AtRisk { unread: Unread { topic, kept, near_start, .. }, age_ms, is_owned } = self;
        let old = age_ms.map_or_else(String::new, |age_ms| format!(" up to {} old", age(age_ms)));
        let nobody = if *is_owned { "" } else { ", if anything came since it had an owner" };
        let goes = match kept {
            _ if *near_start => "it is among the oldest that the topic still has".to_owned(),
            Some(Kept::For(kept_ms)) => format!("the topic deletes what is older than {}", age(*kept_ms)),
            Some(Kept::ForEver) | None => "the topic deletes by size".to_owned(),
        };
        format!("what it has not processed of {topic} is{old}{nobody}, and {goes}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Shard;
    use millstream_plan::incarnation::Incarnation;
    use millstream_plan::message::Control;
    use millstream_plan::plan::{Placement, Plan, Version};
    use millstream_plan::status::WorkerStatus;
    use millstream_plan::view::Bounds;
    use std::collections::BTreeSet;

    const HOUR_MS: u64 = 3_600_000;
    /// A topic keeps what is in it for ten hours.
    const KEPT: Option<Kept> = Some(Kept::For(10 * HOUR_MS));

    fn id() -> ShardId {
        ShardId::new("action", 3)
    }

    fn unread(watermark_ms: Option<u64>, age_ms: Option<u64>) -> Vec<Unread> {
        vec![Unread { topic: "orders.g1.actions".into(), watermark_ms, age_ms, kept: KEPT, near_start: false }]
    }

    fn exchange(watermark_ms: Option<u64>, age_ms: Option<u64>) -> Unread {
        Unread { topic: "orders.g1.exchange".into(), watermark_ms, age_ms, kept: KEPT, near_start: false }
    }

    fn owner(unread_ms: Option<u64>, unread: Vec<Unread>) -> ShardStatus {
        ShardStatus { role: Role::Owner, unread_ms, unread, ..ShardStatus::default() }
    }

    /// Of one shard that `a` owns, or nobody, when workers say this of it.
    fn of(is_owned: bool, says: &[(&str, ShardStatus)], now_ms: u64) -> Freshness {
        let mut view = View::new(1, Bounds::default());
        let plan = Plan {
            version: Version { term: 1, number: 1 },
            generation: 1,
            placements: [(id(), Placement { owner: "a".into(), ..Placement::default() })].into(),
        };
        view.control(Control::Plan(plan), 0);
        for (worker, status) in says {
            view.status(report(worker, status), 0);
        }
        let shard = Shard { owner: is_owned.then(|| "a".to_owned()), ..Shard::default() };
        let fleet = Fleet { shards: [(id(), shard)].into(), ..Fleet::default() };
        Freshness::of(&view, &fleet, now_ms)
    }

    fn report(worker: &str, status: &ShardStatus) -> WorkerStatus {
        WorkerStatus {
            worker: worker.to_owned(),
            incarnation: Incarnation::new(1, 1),
            sequence: 1,
            generation: 1,
            zone: String::new(),
            node: String::new(),
            started_ms: 0,
            capacity: 1,
            leaving: false,
            stages: BTreeSet::new(),
            shards: [(id(), status.clone())].into(),
            control_offset: 0,
            version: String::new(),
            known: BTreeMap::new(),
            unable: BTreeSet::new(),
            knows_markers: true,
        }
    }

    #[test]
    fn what_an_owner_remembers_from_long_ago_counts_less_than_what_others_have_said_since() {
        let remembers = owner(Some(9 * HOUR_MS), unread(Some(HOUR_MS), Some(9 * HOUR_MS)));
        let later = ShardStatus { unread: unread(Some(9 * HOUR_MS), None), ..ShardStatus::default() };
        let alone = of(true, &[("a", remembers.clone())], 10 * HOUR_MS);
        assert_eq!((alone.text().as_str(), alone.at_risk.len()), ("9h", 1));
        let both = of(true, &[("a", remembers), ("b", later)], 10 * HOUR_MS);
        assert_eq!((both.text().as_str(), both.at_risk.len()), ("1h", 0));
    }

    #[test]
    fn what_one_who_left_knew_stays_known() {
        let mut view = View::new(1, Bounds::default());
        let placements = [(id(), Placement { owner: "a".into(), ..Placement::default() })].into();
        view.control(Control::Plan(Plan { version: Version::default(), generation: 1, placements }), 0);
        let left = WorkerStatus {
            leaving: true,
            shards: BTreeMap::new(),
            known: [(id(), unread(Some(1), None))].into(),
            ..report("a", &ShardStatus::default())
        };
        view.status(left, 0);
        let fleet = Fleet { shards: [(id(), Shard::default())].into(), ..Fleet::default() };
        assert_eq!(Freshness::of(&view, &fleet, 6 * HOUR_MS).at_risk.len(), 1);
    }

    #[test]
    fn an_owners_word_counts() {
        let all_read = of(true, &[("a", owner(Some(0), unread(Some(1), Some(0))))], 20 * HOUR_MS);
        assert_eq!((all_read.text().as_str(), all_read.at_risk.len(), all_read.unknown.len()), ("<1s", 0, 0));
        let is_old = |age_ms| of(true, &[("a", owner(Some(age_ms), unread(Some(1), Some(age_ms))))], 0);
        assert_eq!((is_old(5 * HOUR_MS).text().as_str(), is_old(5 * HOUR_MS).at_risk.len()), ("5h", 0));
        let late = is_old(6 * HOUR_MS);
        let expected = "what it has not processed of orders.g1.actions is up to 6h old, and the topic deletes what is older than 10h";
        assert_eq!(late.at_risk[&id()].describe(), expected);
    }

    #[test]
    fn a_shard_that_nobody_owns_is_as_old_as_anybody_knows() {
        let standby = ShardStatus { unread: unread(Some(HOUR_MS), None), ..ShardStatus::default() };
        // What a said when it died is of another time.
        let dead = owner(Some(0), unread(Some(4 * HOUR_MS), Some(0)));
        let at = |now_ms| of(false, &[("a", dead.clone()), ("b", standby.clone())], now_ms);
        assert_eq!((at(9 * HOUR_MS).text().as_str(), at(9 * HOUR_MS).at_risk.len()), ("unknown", 0));
        let late = at(9 * HOUR_MS + 1);
        assert!(late.at_risk[&id()].describe().contains("is up to 5h old, if anything came since it had an owner"));
        assert_eq!(of(false, &[], 0).unknown, [(id(), None)], "nobody has ever said anything");
    }

    #[test]
    fn an_owner_that_does_not_know_yet_is_helped_by_whoever_knew() {
        let opened = ("a", owner(None, unread(None, None)));
        assert_eq!(of(true, std::slice::from_ref(&opened), 0).unknown.len(), 1);
        let before = ShardStatus { unread: unread(Some(HOUR_MS), None), ..ShardStatus::default() };
        let helped = of(true, &[opened, ("b", before)], 2 * HOUR_MS);
        assert_eq!((helped.text().as_str(), helped.unknown.len(), helped.at_risk.len()), ("unknown", 0, 0));
    }

    #[test]
    fn each_input_counts_for_itself() {
        // The exchange was read an hour ago, and says nothing about actions.
        let both = |actions_ms, exchange_ms| {
            [unread(Some(actions_ms), None), vec![exchange(Some(exchange_ms), None)]].concat()
        };
        let left = ShardStatus { unread: both(HOUR_MS, 9 * HOUR_MS), ..ShardStatus::default() };
        let late = of(false, &[("a", left)], 10 * HOUR_MS);
        assert!(late.at_risk[&id()].describe().contains("orders.g1.actions is up to 9h old"), "{late:?}");
        // What one knows of an input, and another of the other one.
        let first = ShardStatus { unread: both(9 * HOUR_MS, HOUR_MS), ..ShardStatus::default() };
        let second = ShardStatus { unread: both(HOUR_MS, 9 * HOUR_MS), ..ShardStatus::default() };
        assert_eq!(of(false, &[("a", first), ("b", second)], 10 * HOUR_MS).at_risk.len(), 0);
        // An owner is as late as the latest of its inputs, and is helped with each.
        let opened = [unread(None, Some(0)), vec![exchange(Some(HOUR_MS), Some(7 * HOUR_MS))]].concat();
        let opened = ("a", owner(Some(7 * HOUR_MS), opened));
        let alone = of(true, std::slice::from_ref(&opened), 8 * HOUR_MS);
        assert_eq!((alone.text().as_str(), alone.at_risk.len()), ("7h", 1));
        let knows = ShardStatus { unread: vec![exchange(Some(6 * HOUR_MS), None)], ..ShardStatus::default() };
        let helped = of(true, &[opened, ("b", knows)], 8 * HOUR_MS);
        assert_eq!((helped.text().as_str(), helped.at_risk.len()), ("2h", 0));
        // One of a former version tells of one input only, but how old all of it is.
        let former = ("a", owner(Some(3 * HOUR_MS), vec![exchange(Some(HOUR_MS), Some(0))]));
        assert_eq!(of(true, &[former], 8 * HOUR_MS).text(), "3h");
    }

    #[test]
    fn a_generation_of_before_says_nothing() {
        let mut old = report("a", &owner(Some(0), unread(Some(1), Some(0))));
        old.generation = 0;
        let mut view = View::new(1, Bounds::default());
        let placements = [(id(), Placement::default())].into();
        view.control(Control::Plan(Plan { version: Version::default(), generation: 1, placements }), 0);
        view.status(old, 0);
        assert_eq!(Freshness::of(&view, &Fleet::default(), 0).unknown.len(), 1);
        let none = Freshness::of(&View::new(1, Bounds::default()), &Fleet::default(), 0);
        assert_eq!((none.text().as_str(), none.shards), ("unknown", 0), "there is no plan");
    }
}
