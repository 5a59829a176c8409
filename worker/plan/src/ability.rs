//! Which shards a worker cannot open, by its own judgement.
//!
//! A worker that is *unable* to open a shard is passed over while another is able ([`crate::view::duties`]), and planned nowhere else first ([`crate::planner`]). It judges that itself, and says so in its
//! reports ([`WorkerStatus::unable`](crate::status::WorkerStatus::unable)), so that all who hear it agree, also those who were started later and did not see it fail.
//!
//! | the shard | becomes | when |
//! |---|---|---|
//! | able | unable | it was tried in vain, again and again or for long, for longer than the bound; a moment between two failures in which it looks well is none |
//! | unable | able | it had no trouble for as long, and it was not its fault alone: a server was away, if only for a moment |
//! | unable | on trial | it was its fault alone (its disk, its state, its thread), and it had no trouble for as long as the patience: the bound at first, twice as long with each relapse, up to [`LONGEST`] bounds |
//! | on trial | unable | it fails again by its own fault alone, for longer than a sixth of the bound; or again and again for longer than the bound, as one that is able |
//! | on trial | able | it was owned for as long as the patience, or had no trouble for twice the longest one |
//!
//! To follow a shard proves nothing: a disk may take what a standby writes and not give what an owner reads. Without the trial, and the patience that grows, such a worker would get the shard back every
//! few seconds for ever, and each time nobody has it until it has failed.
//!
//! *Cut off*: a worker that does not hear itself tries what it tries without the log. Nothing of that counts: it would come back as one that is unable, behind others that were cut off as well and have only not tried.
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
    troubles: BTreeMap<ShardId, Trouble>,
}

/// That a worker could not open a shard.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    /// When it was tried in vain first: of all that was never interrupted for as long as the bound.
    since_ms: u64,
    /// The same, of what was never interrupted for as long as it takes for a relapse.
    lately_ms: u64,
    /// Since then it was never somebody else's fault.
    is_own: bool,
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
        Ability { bound_ms, troubles: BTreeMap::new() }
    }

    /// Takes note of how its shards fare: all that it has open, or tries to open; `away`: those of them that a server keeps it from. To be called several times per bound.
    pub fn note(&mut self, shards: &BTreeMap<ShardId, ShardStatus>, away: &BTreeSet<ShardId>, now_ms: u64) {
        let bound_ms = self.bound_ms;
        self.troubles.retain(|id, trouble| match shards.get(id) {
            Some(shard) if is_in_vain(shard) => true,
            // It is being opened, and may be about to fail again.
            Some(ShardStatus { role: Role::Opening, .. }) => true,
            shard => {
                trouble.fares_well(shard.is_some_and(|shard| shard.role == Role::Owner), bound_ms, now_ms);
                !trouble.is_over(bound_ms, now_ms)
            }
        });
        for (id, _) in shards.iter().filter(|(_, shard)| is_in_vain(shard)) {
            let trouble = self.troubles.entry(id.clone()).or_insert(Trouble::new(now_ms));
            trouble.goes_on(!away.contains(id), bound_ms, now_ms);
        }
    }

    /// It does not hear itself: what it tries now says nothing of it, and what began before begins anew. Whom a server kept from it is as able as whoever was cut off as well.
    pub fn cut_off(&mut self, now_ms: u64) {
        self.troubles.retain(|_, trouble| trouble.patience_ms.is_some());
        for trouble in self.troubles.values_mut() {
            (trouble.well_ms, trouble.owned_ms) = (None, None);
            (trouble.since_ms, trouble.lately_ms) = (now_ms, now_ms);
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
        let (well_ms, owned_ms, patience_ms) = (None, None, None);
        Trouble { since_ms: now_ms, lately_ms: now_ms, is_own: true, well_ms, owned_ms, patience_ms, is_unable: false }
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
        let is_relapse = self.patience_ms.is_some() && self.is_own && is_longer(relapse_ms, self.lately_ms, now_ms);
        if !self.is_unable && (is_relapse || is_longer(bound_ms, self.since_ms, now_ms)) {
            self.is_unable = true;
            if self.is_own {
                let doubled = self.patience_ms.map_or(bound_ms, |patience_ms| patience_ms.saturating_mul(2));
                self.patience_ms = Some(doubled.min(longest(bound_ms)));
            }
        }
    }

    fn fares_well(&mut self, is_owned: bool, bound_ms: u64, now_ms: u64) {
        let well_ms = *self.well_ms.get_or_insert(now_ms);
        self.owned_ms = is_owned.then(|| self.owned_ms.unwrap_or(now_ms));
        self.is_unable &= !is_longer(self.patience_ms(bound_ms), well_ms, now_ms);
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
        fn fares(&mut self, role: Option<Role>, condition: &str, is_away: bool, ms: u64) -> bool {
            let id = ShardId::new("action", 0);
            let status = |role| ShardStatus { role, condition: condition.to_owned(), ..ShardStatus::default() };
            let shards = role.map(|role| (id.clone(), status(role))).into_iter().collect();
            let away = if is_away { [id.clone()].into() } else { BTreeSet::new() };
            for _ in 0..ms / STEP_MS {
                self.now_ms += STEP_MS;
                self.ability.note(&shards, &away, self.now_ms);
            }
            self.ability.unable().contains_key(&id)
        }

        fn fails(&mut self, ms: u64) -> bool {
            self.fares(Some(Role::Opening), "the disk is broken", false, ms)
        }

        fn is_kept_from_it(&mut self, ms: u64) -> bool {
            self.fares(Some(Role::Opening), "the log is away", true, ms)
        }

        fn opens(&mut self, ms: u64) -> bool {
            self.fares(Some(Role::Opening), "", false, ms)
        }

        fn follows(&mut self, ms: u64) -> bool {
            self.fares(Some(Role::Standby), "", false, ms)
        }

        fn owns(&mut self, ms: u64) -> bool {
            self.fares(Some(Role::Owner), "a standby has a slow disk", false, ms)
        }

        fn is_cut_off(&mut self, ms: u64) -> bool {
            self.now_ms += ms;
            self.ability.cut_off(self.now_ms);
            !self.ability.unable().is_empty()
        }

        /// For how long it is unable from now on while it follows, milliseconds.
        fn is_kept_out(&mut self) -> u64 {
            let since_ms = self.now_ms;
            while self.follows(STEP_MS) {}
            self.now_ms - since_ms
        }
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
        assert!(scene.fares(None, "", false, BOUND_MS), "to have nothing to do with it is no trouble");
        assert!(!scene.fares(None, "", false, 2 * STEP_MS));
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
    fn what_whoever_is_cut_off_tries_says_nothing_of_it() {
        let mut scene = Scene::new();
        scene.fails(BOUND_MS);
        assert!(!scene.is_cut_off(BOUND_MS));
        assert!(!scene.fails(BOUND_MS), "it is counted from when it hears itself again");
        assert!(scene.fails(2 * STEP_MS));
        // Who was unable before stays so, and does not become able meanwhile; nor is one on trial unable for what it tried.
        scene.follows(BOUND_MS - STEP_MS);
        assert!(scene.is_cut_off(10 * BOUND_MS));
        assert!(scene.follows(BOUND_MS));
        assert!(!scene.follows(2 * STEP_MS));
        scene.fails(STEP_MS);
        scene.is_cut_off(10 * BOUND_MS);
        assert!(!scene.fails(STEP_MS));
        // Nor is whom a server kept from it, before it was cut off as well.
        assert!(scene.is_kept_from_it(LONG_MS + BOUND_MS));
        assert!(!scene.is_cut_off(STEP_MS));
    }
}
