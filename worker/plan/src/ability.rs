//! Which shards a worker cannot open, by its own judgement.
//!
//! A worker that is *unable* to open a shard is passed over while another is able ([`crate::view::duties`]), and planned nowhere else first ([`crate::planner`]). It judges that itself, and says so in its
//! reports ([`WorkerStatus::unable`](crate::status::WorkerStatus::unable)), so that all who hear it agree, also those who were started later and did not see it fail.
//!
//! | the shard | becomes | when |
//! |---|---|---|
//! | able | unable | it was tried in vain, again and again or for long, for longer than the bound; a moment between two failures in which it looks well is none |
//! | unable | on trial | it had no trouble for as long as the patience: the bound at first, twice as long with each relapse, up to [`LONGEST`] bounds |
//! | on trial | unable | it fails once |
//! | on trial | able | it was owned for as long as the patience, or had no trouble for twice the longest one |
//!
//! To follow a shard proves nothing: a disk may take what a standby writes and not give what an owner reads. Without the trial, and the patience that grows, such a worker would get the shard back every
//! few seconds for ever, and each time nobody has it until it has failed.
//!
//! Time is in milliseconds of a monotonic clock of the process.

use crate::plan::ShardId;
use crate::status::{Role, ShardStatus};
use std::collections::{BTreeMap, BTreeSet};

/// The longest patience, in bounds.
pub const LONGEST: u64 = 32;

/// What a worker knows of the shards that it could not open.
#[derive(Clone, Debug)]
pub struct Ability {
    bound_ms: u64,
    troubles: BTreeMap<ShardId, Trouble>,
}

/// That a worker could not open a shard.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    /// When it was tried in vain first.
    since_ms: u64,
    /// Since when it fares well, if it does.
    well_ms: Option<u64>,
    /// Since when it is owned, if it is.
    owned_ms: Option<u64>,
    /// Since it was unable last: how long it must fare well before it is tried.
    patience_ms: Option<u64>,
    is_unable: bool,
}

impl Ability {
    /// Of a process that has tried nothing yet; who has tried in vain for longer than the bound is unable.
    pub fn new(bound_ms: u64) -> Ability {
        Ability { bound_ms, troubles: BTreeMap::new() }
    }

    /// Takes note of how its shards fare: all that it has open, or tries to open. To be called several times per bound.
    pub fn note(&mut self, shards: &BTreeMap<ShardId, ShardStatus>, now_ms: u64) {
        let bound_ms = self.bound_ms;
        self.troubles.retain(|id, trouble| match shards.get(id) {
            Some(shard) if is_in_vain(shard) => true,
            // It is being opened, and may be about to fail again.
            Some(ShardStatus { role: Role::Opening, .. }) => true,
            shard => {
                trouble.fares_well(shard.is_some_and(|shard| shard.role == Role::Owner), now_ms);
                !trouble.is_over(bound_ms, now_ms)
            }
        });
        for (id, _) in shards.iter().filter(|(_, shard)| is_in_vain(shard)) {
            self.troubles.entry(id.clone()).or_insert(Trouble::new(now_ms)).goes_on(bound_ms, now_ms);
        }
    }

    /// The shards that it cannot open.
    pub fn unable(&self) -> BTreeSet<ShardId> {
        self.troubles.iter().filter(|(_, trouble)| trouble.is_unable).map(|(id, _)| id.clone()).collect()
    }
}

/// It is tried, and what stands in the way is said.
fn is_in_vain(shard: &ShardStatus) -> bool {
    shard.role == Role::Opening && !shard.condition.is_empty()
}

impl Trouble {
    fn new(now_ms: u64) -> Trouble {
        Trouble { since_ms: now_ms, well_ms: None, owned_ms: None, patience_ms: None, is_unable: false }
    }

    fn goes_on(&mut self, bound_ms: u64, now_ms: u64) {
        (self.well_ms, self.owned_ms) = (None, None);
        let is_relapse = self.patience_ms.is_some();
        if !self.is_unable && (is_relapse || now_ms.saturating_sub(self.since_ms) > bound_ms) {
            let doubled = self.patience_ms.map_or(bound_ms, |patience_ms| patience_ms.saturating_mul(2));
            self.patience_ms = Some(doubled.min(longest(bound_ms)));
            self.is_unable = true;
        }
    }

    fn fares_well(&mut self, is_owned: bool, now_ms: u64) {
        let well_ms = *self.well_ms.get_or_insert(now_ms);
        self.owned_ms = is_owned.then(|| self.owned_ms.unwrap_or(now_ms));
        let is_patient = self.patience_ms.is_some_and(|patience_ms| is_longer(patience_ms, well_ms, now_ms));
        self.is_unable &= !is_patient;
    }

    fn is_over(&self, bound_ms: u64, now_ms: u64) -> bool {
        let has_lasted = |since_ms: Option<u64>, ms| since_ms.is_some_and(|since_ms| is_longer(ms, since_ms, now_ms));
        match self.patience_ms {
            None => has_lasted(self.well_ms, bound_ms),
            Some(_) if self.is_unable => false,
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

        /// It fares so, for so long.
        fn fares(&mut self, role: Option<Role>, condition: &str, ms: u64) -> bool {
            let id = ShardId::new("action", 0);
            let status = |role| ShardStatus { role, condition: condition.to_owned(), ..ShardStatus::default() };
            let shards = role.map(|role| (id.clone(), status(role))).into_iter().collect();
            for _ in 0..ms / STEP_MS {
                self.now_ms += STEP_MS;
                self.ability.note(&shards, self.now_ms);
            }
            self.ability.unable().contains(&id)
        }

        fn fails(&mut self, ms: u64) -> bool {
            self.fares(Some(Role::Opening), "the disk is broken", ms)
        }

        fn follows(&mut self, ms: u64) -> bool {
            self.fares(Some(Role::Standby), "", ms)
        }

        fn owns(&mut self, ms: u64) -> bool {
            self.fares(Some(Role::Owner), "a standby has a slow disk", ms)
        }

        /// For how long it is unable from now on while it follows, milliseconds.
        fn is_kept_out(&mut self) -> u64 {
            let since_ms = self.now_ms;
            while self.follows(STEP_MS) {}
            self.now_ms - since_ms
        }
    }

    #[test]
    fn whoever_tries_in_vain_for_longer_than_the_bound_is_unable_until_all_is_well_for_as_long() {
        let mut scene = Scene::new();
        assert!(!scene.fails(BOUND_MS), "what comes and goes may be over yet");
        assert!(scene.fails(2 * STEP_MS));
        assert!(scene.fares(None, "", BOUND_MS), "to have nothing to do with it is no trouble");
        assert!(!scene.fares(None, "", 2 * STEP_MS));
    }

    #[test]
    fn what_fails_again_and_again_is_no_better_for_moments_in_which_it_looks_well() {
        let mut scene = Scene::new();
        for _ in 0..5 {
            scene.fails(5_000);
            assert!(!scene.owns(1_000));
        }
        assert!(scene.fails(1_000));
        // An attempt that says nothing yet proves nothing, however long it takes.
        scene.follows(BOUND_MS);
        assert!(scene.fares(Some(Role::Opening), "", 10 * BOUND_MS) || scene.fails(STEP_MS));
    }

    #[test]
    fn what_was_well_for_longer_than_the_bound_begins_anew() {
        let mut scene = Scene::new();
        scene.fails(BOUND_MS);
        scene.follows(BOUND_MS + 2 * STEP_MS);
        assert!(!scene.fails(BOUND_MS));
    }

    #[test]
    fn a_relapse_keeps_it_out_at_once_and_for_twice_as_long_up_to_a_bound() {
        let mut scene = Scene::new();
        scene.fails(BOUND_MS + 2 * STEP_MS);
        let mut kept_out = vec![scene.is_kept_out()];
        for _ in 0..7 {
            assert!(!scene.owns(5_000), "it is tried");
            assert!(scene.fails(STEP_MS), "once is enough");
            kept_out.push(scene.is_kept_out());
        }
        let bounds: Vec<u64> = kept_out.iter().map(|ms| ms / BOUND_MS).collect();
        assert_eq!(bounds, [1, 2, 4, 8, 16, 32, 32, 32], "{kept_out:?}");
    }

    #[test]
    fn it_is_able_again_once_it_has_owned_for_as_long_as_it_was_kept_out_or_was_well_for_very_long() {
        let after = |recovers: fn(&mut Scene) -> bool| {
            let mut scene = Scene::new();
            scene.fails(BOUND_MS + 2 * STEP_MS);
            scene.is_kept_out();
            assert!(!recovers(&mut scene));
            scene.fails(STEP_MS)
        };
        assert!(after(|scene| scene.owns(BOUND_MS - STEP_MS)));
        assert!(after(|scene| scene.follows(10 * BOUND_MS)), "to follow proves nothing");
        assert!(!after(|scene| scene.owns(BOUND_MS + 2 * STEP_MS)));
        assert!(!after(|scene| scene.follows(2 * LONGEST * BOUND_MS)));
    }
}
