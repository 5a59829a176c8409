//! How many shards of a stage each worker should have.

use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A worker that may be given shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share<'a> {
    pub(super) name: &'a str,
    pub(super) capacity: u32,
    /// Shards of the stage that it has, or that are moving to it.
    pub(super) owned: usize,
    /// Shards of other stages that it is to have.
    pub(super) elsewhere: usize,
}

/// Each worker's share of `shards` by capacity, rounded down or up, adding up to `shards` (nothing when there is nobody).
///
/// Those whose share is cut most are rounded up first. Between equals, those that have more already, because what they have need not move; then those
/// with less of other stages.
pub(super) fn quotas<'a>(shares: &[Share<'a>], shards: usize) -> BTreeMap<&'a str, usize> {
    let capacity = |share: &Share<'_>| u128::from(share.capacity);
    let known = shares.iter().any(|share| share.capacity > 0);
    // Nobody said how much it can take: all alike.
    let capacity = |share: &Share<'_>| if known { capacity(share) } else { 1 };
    let total: u128 = shares.iter().map(capacity).sum();
    if total == 0 {
        return BTreeMap::new();
    }
    let exact = |share: &Share<'_>| shards as u128 * capacity(share);
    let mut quotas: BTreeMap<&str, usize> =
        shares.iter().map(|share| (share.name, (exact(share) / total) as usize)).collect();
    let rest = shards.saturating_sub(quotas.values().sum());
    let mut order: Vec<&Share<'_>> = shares.iter().collect();
    order.sort_by_key(|share| (Reverse(exact(share) % total), Reverse(share.owned), share.elsewhere, share.name));
    for share in order.into_iter().take(rest) {
        *quotas.entry(share.name).or_default() += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share(name: &str, capacity: u32, owned: usize, elsewhere: usize) -> Share<'_> {
        Share { name, capacity, owned, elsewhere }
    }

    fn counts(shares: &[Share<'_>], shards: usize) -> Vec<usize> {
        quotas(shares, shards).into_values().collect()
    }

    #[test]
    fn shares_follow_capacity() {
        assert_eq!(counts(&[share("a", 1, 0, 0), share("b", 3, 0, 0)], 8), [2, 6]);
        assert_eq!(counts(&[share("a", 0, 0, 0), share("b", 3, 0, 0)], 8), [0, 8]);
        assert_eq!(counts(&[share("a", 0, 0, 0), share("b", 0, 0, 0)], 8), [4, 4]);
        assert_eq!(counts(&[], 8), Vec::<usize>::new());
    }

    #[test]
    fn the_rest_goes_to_who_has_more_then_to_who_has_less_elsewhere() {
        assert_eq!(counts(&[share("a", 1, 2, 0), share("b", 1, 3, 9)], 5), [2, 3]);
        assert_eq!(counts(&[share("a", 1, 2, 4), share("b", 1, 2, 3)], 5), [2, 3]);
        assert_eq!(counts(&[share("a", 1, 2, 3), share("b", 1, 2, 3)], 5), [3, 2]);
    }

    proptest! {
        #[test]
        fn quotas_add_up_and_are_shares_rounded(
            workers in prop::collection::vec((0_u32..5, 0_usize..9), 1..7), shards in 0_usize..50,
        ) {
            let names: Vec<String> = (0..workers.len()).map(|index| format!("w{index}")).collect();
            let shares: Vec<Share<'_>> = names.iter().zip(&workers)
                .map(|(name, (capacity, owned))| share(name, *capacity, *owned, 0)).collect();
            let quotas = quotas(&shares, shards);
            prop_assert_eq!(quotas.values().sum::<usize>(), shards);
            let total: u32 = workers.iter().map(|(capacity, _)| capacity).sum();
            for share in shares.iter().filter(|_| total > 0) {
                let exact = shards * share.capacity as usize;
                let quota = quotas[share.name] * total as usize;
                prop_assert!(quota.abs_diff(exact) < total as usize);
            }
        }
    }
}
