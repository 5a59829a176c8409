//! Which shards a worker cannot open, by its own judgement.
//!
//! A worker that is *unable* to open a shard is passed over while another is able ([`crate::view::duties`]), and planned nowhere else first ([`crate::planner`]). It judges that itself, and says so in its
//! reports ([`WorkerStatus::unable`](crate::status::WorkerStatus::unable)), so that all who hear it agree, also those who were started later and did not see it fail.
//!
//! | the shard | becomes | when |
//! |---|---|---|
//! | able | unable | it was tried in vain, again and again or for long, for longer than the bound; a moment between two failures in which it looks well is none |
//! | unable | able | it had no trouble for as long, and it is not its fault |
//! | unable | on trial | it is its fault, and it had no trouble for as long as the patience: the bound at first, twice as long with each relapse, up to [`LONGEST`] bounds |
//! | on trial | unable | it fails again, by its fault, for longer than a sixth of the bound; or again and again for longer than the bound, as one that is able |
//! | on trial | able | it was owned for as long as the patience, or had no trouble for twice the longest one |
//!
//! *Its fault* is what nobody but itself stood in the way of: its disk, its state, its thread. A server that is away, or a transaction of which nobody knows what became, if only for a moment, is not: until another
//! worker has owned the shard for longer than the bound. Then it is this worker alone that does not reach the server, and it is *blamed*: if it fails on trial, that is its fault whatever it comes of.
//!
//! To follow a shard proves nothing: a disk may take what a standby writes and not give what an owner reads. Without the trial, and the patience that grows, such a worker would get the shard back every
//! few seconds for ever, and each time nobody has it until it has failed.
//!
//! *Cut off*: a worker that does not hear itself tries what it tries without the log. Nothing of that counts: it would come back as one that is unable, behind others that were cut off as well and have only not tried.
//! That time stands still: neither its troubles nor its patience come on.
//!
//! A report of a version before there was this says nothing of it, and its worker is passed over by nobody of this version: one that has a broken disk must be ended before the others are upgraded.
//!
//! Time is in milliseconds of a monotonic clock of the process.

use crate::plan::ShardId;
use crate::status::{Role, ShardStatus};
use std::collections::{BTreeMap, BTreeSet};

/// The longest patience, in bounds.
pub const LONGEST: u64 = 32;

/// Who is on trial is unable again after one in so many parts of the bound.
const RELAPSES_WITHIN: u64 = 6;

/// What a worker knows of the shards that it could not open.
#[derive(Clone, Debug)]
pub struct Ability {
    bound_ms: u64,
    /// When anything was noted last.
    noted_ms: Option<u64>,
    troubles: BTreeMap<ShardId, Trouble>,
}

/// What a worker sees of its shards at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// How all fare that it has open, or tries to open.
    pub shards: &'a BTreeMap<ShardId, ShardStatus>,
    /// Those of them that it, as far as it can tell, is kept from by others: a server is away, or nobody knows what became of a transaction.
    pub kept: &'a BTreeSet<ShardId>,
    /// Those that another worker owns, who is there.
    pub elsewhere: &'a BTreeSet<ShardId>,
}

/// That a worker could not open a shard.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    /// When it was tried in vain first: of all that was never interrupted for as long as the bound.
    since_ms: u64,
    /// The same, of what was never interrupted for as long as it takes for a relapse.
    lately_ms: u64,
    /// Since then it was never somebody else's fault, or another has done meanwhile what it could not.
    is_own: bool,
    /// Another has done once what it could not.
    is_blamed: bool,
    /// Since when another owns it, if one does.
    elsewhere_ms: Option<u64>,
    /// Since when it fares well, if it does.
    well_ms: Option<u64>,
    /// Since when it is owned, if it is.
    owned_ms: Option<u64>,
    /// Once it was unable by its own fault: how long it must fare well before it is tried.
    patience_ms: Option<u64>,
    is_unable: bool,
}

impl Ability {
    /// Of a process that has tried nothing yet; who has tried in vain for longer than the bound is unable.
    pub fn new(bound_ms: u64) -> Ability {
        Ability { bound_ms, noted_ms: None, troubles: BTreeMap::new() }
    }

    /// Takes note of how its shards fare. To be called several times per bound.
    pub fn note(&mut self, sight: Sight<'_>, now_ms: u64) {
        self.noted_ms = Some(now_ms);
        let bound_ms = self.bound_ms;
        self.troubles.retain(|id, trouble| {
            trouble.is_owned_elsewhere(sight.elsewhere.contains(id), now_ms);
            match sight.shards.get(id) {
                Some(shard) if is_in_vain(shard) => true,
                // It is being opened, and may be about to fail again.
                Some(ShardStatus { role: Role::Opening, .. }) => true,
                shard => {
                    trouble.fares_well(shard.is_some_and(|shard| shard.role == Role::Owner), bound_ms, now_ms);
                    !trouble.is_over(bound_ms, now_ms)
                }
            }
        });
        for (id, _) in sight.shards.iter().filter(|(_, shard)| is_in_vain(shard)) {
            let trouble = self.troubles.entry(id.clone()).or_insert(Trouble::new(now_ms));
            trouble.goes_on(!sight.kept.contains(id), bound_ms, now_ms);
        }
    }

    /// It does not hear itself: what it tries now says nothing of it, and its time stands still. Whom others kept from a shard is as able as whoever was cut off as well.
    pub fn cut_off(&mut self, now_ms: u64) {
        let gap_ms = now_ms.saturating_sub(self.noted_ms.replace(now_ms).unwrap_or(now_ms));
        self.troubles.retain(|_, trouble| trouble.is_own || trouble.patience_ms.is_some());
        for trouble in self.troubles.values_mut() {
            trouble.stands_still(gap_ms);
            trouble.is_unable &= trouble.is_own;
        }
    }

    /// The shards that it cannot open, and for how long each must fare well before it is tried again, milliseconds.
    pub fn unable(&self) -> BTreeMap<ShardId, u64> {
        let unable = self.troubles.iter().filter(|(_, trouble)| trouble.is_unable);
        unable.map(|(id, trouble)| (id.clone(), trouble.patience_ms(self.bound_ms))).collect()
    }
}

/// It is tried, and what stands in the way is said.
fn is_in_vain(shard: &ShardStatus) -> bool {
    shard.role == Role::Opening && !shard.condition.is_empty()
}

impl Trouble {
    fn new(now_ms: u64) -> Trouble {
        Trouble {
            since_ms: now_ms,
            lately_ms: now_ms,
            is_own: true,
            is_blamed: false,
            elsewhere_ms: None,
            well_ms: None,
            owned_ms: None,
            patience_ms: None,
            is_unable: false,
        }
    }

    fn goes_on(&mut self, is_own: bool, bound_ms: u64, now_ms: u64) {
        let relapse_ms = bound_ms / RELAPSES_WITHIN;
        let well_ms = self.well_ms.take();
        let was_well = |ms| well_ms.is_some_and(|since_ms| is_longer(ms, since_ms, now_ms));
        if was_well(bound_ms) && !self.is_unable {
            (self.since_ms, self.is_own) = (now_ms, true);
        }
        if was_well(relapse_ms) {
            self.lately_ms = now_ms;
        }
        self.owned_ms = None;
        self.is_own &= is_own;
        let is_on_trial = self.patience_ms.is_some() && (self.is_own || self.is_blamed);
        let is_relapse = is_on_trial && is_longer(relapse_ms, self.lately_ms, now_ms);
        if !self.is_unable && (is_relapse || is_longer(bound_ms, self.since_ms, now_ms)) {
            self.is_unable = true;
            if self.is_own {
                self.lengthen(bound_ms);
            }
        }
    }

    fn fares_well(&mut self, is_owned: bool, bound_ms: u64, now_ms: u64) {
        let well_ms = *self.well_ms.get_or_insert(now_ms);
        self.owned_ms = is_owned.then(|| self.owned_ms.unwrap_or(now_ms));
        if self.is_unable && !self.is_own && self.elsewhere_ms.is_some_and(|ms| is_longer(bound_ms, ms, now_ms)) {
            (self.is_own, self.is_blamed) = (true, true);
            self.lengthen(bound_ms);
        }
        // As long as somebody tries what it could not, whose fault that was is not known yet.
        let is_judged = self.is_own || self.elsewhere_ms.is_none();
        self.is_unable &= !(is_judged && is_longer(self.patience_ms(bound_ms), well_ms, now_ms));
    }

    fn is_owned_elsewhere(&mut self, is_owned: bool, now_ms: u64) {
        self.elsewhere_ms = is_owned.then(|| self.elsewhere_ms.unwrap_or(now_ms));
    }

    fn lengthen(&mut self, bound_ms: u64) {
        let doubled = self.patience_ms.map_or(bound_ms, |patience_ms| patience_ms.saturating_mul(2));
        self.patience_ms = Some(doubled.min(longest(bound_ms)));
    }

    fn stands_still(&mut self, gap_ms: u64) {
        let times = [&mut self.since_ms, &mut self.lately_ms].into_iter();
        let later = [&mut self.well_ms, &mut self.owned_ms, &mut self.elsewhere_ms].into_iter().flatten();
        times.chain(later).for_each(|ms| *ms += gap_ms);
    }

    fn patience_ms(&self, bound_ms: u64) -> u64 {
        self.patience_ms.filter(|_| self.is_own).unwrap_or(bound_ms)
    }

    fn is_over(&self, bound_ms: u64, now_ms: u64) -> bool {
        let has_lasted = |since_ms: Option<u64>, ms| since_ms.is_some_and(|since_ms| is_longer(ms, since_ms, now_ms));
        match self.patience_ms {
            _ if self.is_unable => false,
            None => has_lasted(self.well_ms, bound_ms),
            Some(patience_ms) => {
                has_lasted(self.owned_ms, patience_ms) || has_lasted(self.well_ms, 2 * longest(bound_ms))
            }
        }
    }
}

fn longest(bound_ms: u64) -> u64 {
    bound_ms.saturating_mul(LONGEST)
}

fn is_longer(ms: u64, since_ms: u64, now_ms: u64) -> bool {
    now_ms.saturating_sub(since_ms) > ms
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND_MS: u64 = 30_000;
    const STEP_MS: u64 = 500;

    /// One shard of a worker, noted twice a second.
    struct Scene {
        ability: Ability,
        now_ms: u64,
    }

    impl Scene {
        fn new() -> Scene {
            Scene { ability: Ability::new(BOUND_MS), now_ms: 0 }
        }

        /// It fares so, for so long; is it unable then?
        fn fares(&mut self, role: Option<Role>, condition: &str, whose: Whose, ms: u64) -> bool {
            let id = ShardId::new("action", 0);
            let status = |role| ShardStatus { role, condition: condition.to_owned(), ..ShardStatus::default() };
            let shards = role.map(|role| (id.clone(), status(role))).into_iter().collect();
            let only_if = |is_so: bool| if is_so { [id.clone()].into() } else { BTreeSet::new() };
            let (kept, elsewhere) = (only_if(whose == Whose::Servers), only_if(whose == Whose::Others));
            for _ in 0..ms / STEP_MS {
                self.now_ms += STEP_MS;
                let sight = Sight { shards: &shards, kept: &kept, elsewhere: &elsewhere };
                self.ability.note(sight, self.now_ms);
            }
            self.ability.unable().contains_key(&id)
        }

        fn fails(&mut self, ms: u64) -> bool {
            self.fares(Some(Role::Opening), "the disk is broken", Whose::Own, ms)
        }

        fn is_kept_from_it(&mut self, ms: u64) -> bool {
            self.fares(Some(Role::Opening), "the log is away", Whose::Servers, ms)
        }

        fn opens(&mut self, ms: u64) -> bool {
            self.fares(Some(Role::Opening), "", Whose::Own, ms)
        }

        fn follows(&mut self, ms: u64) -> bool {
            self.fares(Some(Role::Standby), "", Whose::Own, ms)
        }

        fn sees_another_own_it(&mut self, ms: u64) -> bool {
            self.fares(Some(Role::Standby), "", Whose::Others, ms)
        }

        fn owns(&mut self, ms: u64) -> bool {
            self.fares(Some(Role::Owner), "a standby has a slow disk", Whose::Own, ms)
        }

        fn is_cut_off(&mut self, ms: u64) -> bool {
            self.now_ms += ms;
            self.ability.cut_off(self.now_ms);
            !self.ability.unable().is_empty()
        }

        /// For how long it is unable from now on while it follows, milliseconds.
        fn is_kept_out(&mut self) -> u64 {
            self.is_kept_out_while(Scene::follows)
        }

        fn is_kept_out_while(&mut self, fares: fn(&mut Scene, u64) -> bool) -> u64 {
            let since_ms = self.now_ms;
            while fares(self, STEP_MS) {}
            self.now_ms - since_ms
        }
    }

    /// What is to be said of whose fault it is.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Whose {
        Own,
        Servers,
        /// Others own it.
        Others,
    }

    /// Longer than the bound.
    const LONG_MS: u64 = BOUND_MS + 2 * STEP_MS;
    /// Enough for a relapse.
    const RELAPSE_MS: u64 = BOUND_MS / RELAPSES_WITHIN + 2 * STEP_MS;

    #[test]
    fn whoever_tries_in_vain_for_longer_than_the_bound_is_unable_until_all_is_well_for_as_long() {
        let mut scene = Scene::new();
        assert!(!scene.fails(BOUND_MS), "what comes and goes may be over yet");
        assert!(scene.fails(2 * STEP_MS));
        assert!(scene.fares(None, "", Whose::Own, BOUND_MS), "to have nothing to do with it is no trouble");
        assert!(!scene.fares(None, "", Whose::Own, 2 * STEP_MS));
    }

    #[test]
    fn what_fails_again_and_again_is_no_better_for_moments_in_which_it_looks_well() {
        let mut scene = Scene::new();
        for _ in 0..5 {
            scene.fails(5_000);
            assert!(!scene.owns(1_000));
        }
        assert!(scene.fails(1_000));
        assert!(scene.opens(10 * BOUND_MS), "an attempt that says nothing yet proves nothing, however long it takes");
    }

    #[test]
    fn what_was_well_for_longer_than_the_bound_begins_anew() {
        let mut scene = Scene::new();
        scene.fails(BOUND_MS);
        scene.follows(LONG_MS);
        assert!(!scene.fails(BOUND_MS));
    }

    #[test]
    fn a_relapse_keeps_it_out_soon_and_for_twice_as_long_up_to_a_bound() {
        let mut scene = Scene::new();
        scene.fails(LONG_MS);
        let mut kept_out = vec![scene.is_kept_out()];
        for _ in 0..7 {
            assert!(!scene.owns(6_000), "it is tried");
            assert!(!scene.fails(1_000), "a moment may be an election of a broker");
            assert!(scene.fails(RELAPSE_MS));
            kept_out.push(scene.is_kept_out());
        }
        let bounds: Vec<u64> = kept_out.iter().map(|ms| ms / BOUND_MS).collect();
        assert_eq!(bounds, [1, 2, 4, 8, 16, 32, 32, 32], "{kept_out:?}");
    }

    #[test]
    fn moments_of_trouble_far_from_each_other_are_no_relapse_and_those_that_are_not_are_as_ever() {
        let mut scene = Scene::new();
        scene.fails(LONG_MS);
        scene.is_kept_out();
        for _ in 0..20 {
            assert!(!scene.fails(2_000));
            assert!(!scene.follows(LONG_MS));
        }
        // A block that only some keys meet.
        for _ in 0..3 {
            assert!(!scene.fails(1_000));
            assert!(!scene.owns(9_000));
        }
        assert!(scene.fails(1_500));
    }

    #[test]
    fn it_is_able_again_once_it_has_owned_for_as_long_as_it_was_kept_out_or_was_well_for_very_long() {
        let after = |recovers: fn(&mut Scene) -> bool| {
            let mut scene = Scene::new();
            scene.fails(LONG_MS);
            scene.is_kept_out();
            assert!(!recovers(&mut scene));
            scene.fails(RELAPSE_MS)
        };
        assert!(after(|scene| scene.owns(BOUND_MS - STEP_MS)));
        assert!(after(|scene| scene.follows(10 * BOUND_MS)), "to follow proves nothing");
        assert!(!after(|scene| scene.owns(LONG_MS)));
        assert!(!after(|scene| scene.follows(2 * LONGEST * BOUND_MS)));
    }

    #[test]
    fn whom_a_server_keeps_from_it_is_not_on_trial_after_that_however_often() {
        let mut scene = Scene::new();
        for _ in 0..5 {
            assert!(scene.is_kept_from_it(LONG_MS), "others may reach it");
            assert!(scene.fails(LONG_MS), "what else goes wrong meanwhile may come of it");
            assert_eq!(scene.is_kept_out() / BOUND_MS, 1);
        }
        assert!(!scene.fails(RELAPSE_MS));
    }

    #[test]
    fn who_alone_does_not_reach_a_server_is_kept_out_as_for_a_fault_of_its_own() {
        let mut scene = Scene::new();
        scene.is_kept_from_it(LONG_MS);
        let mut kept_out = vec![scene.is_kept_out_while(Scene::sees_another_own_it)];
        for _ in 0..5 {
            assert!(!scene.is_kept_from_it(1_000), "it is tried");
            assert!(scene.is_kept_from_it(RELAPSE_MS), "others have shown that it is no outage");
            kept_out.push(scene.is_kept_out_while(Scene::sees_another_own_it));
        }
        let bounds: Vec<u64> = kept_out.iter().map(|ms| ms / BOUND_MS).collect();
        assert_eq!(bounds, [1, 2, 4, 8, 16, 32], "{kept_out:?}");
        scene.owns(LONGEST * BOUND_MS + STEP_MS);
        assert!(!scene.is_kept_from_it(BOUND_MS), "it reaches it again: an outage is one as ever");
    }

    #[test]
    fn an_outage_in_which_others_own_it_for_moments_only_is_nobodys_fault() {
        let mut scene = Scene::new();
        for _ in 0..5 {
            assert!(scene.is_kept_from_it(LONG_MS));
            assert!(scene.sees_another_own_it(BOUND_MS));
            assert!(!scene.follows(LONG_MS), "nobody has it");
        }
        assert!(!scene.is_kept_from_it(RELAPSE_MS));
    }

    #[test]
    fn what_whoever_is_cut_off_tries_says_nothing_of_it() {
        let mut scene = Scene::new();
        scene.fails(BOUND_MS / 2);
        assert!(!scene.is_cut_off(BOUND_MS));
        assert!(!scene.fails(BOUND_MS / 2), "what it tried meanwhile does not count");
        assert!(scene.fails(2 * STEP_MS));
        // Who was unable before stays so, and does not become able meanwhile; nor is one on trial unable for what it tried.
        scene.follows(BOUND_MS - 5 * STEP_MS);
        assert!(scene.is_cut_off(10 * BOUND_MS));
        assert!(scene.follows(STEP_MS));
        assert!(!scene.follows(6 * STEP_MS), "what it had of its patience before is not lost");
        scene.fails(STEP_MS);
        scene.is_cut_off(10 * BOUND_MS);
        assert!(!scene.fails(STEP_MS));
        // Nor is whom a server kept from it, before it was cut off as well.
        assert!(scene.is_kept_from_it(LONG_MS + BOUND_MS));
        assert!(!scene.is_cut_off(STEP_MS));
    }
}
