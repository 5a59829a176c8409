//! The savepoints that a shard was cut for.
//!
//! Ids grow, but savepoints that overlap may reach a shard in any order: so it is ids that are remembered, and not the highest one. Of many the newest are: one that is older than all of them counts as
//! cut for. (Whoever takes that one finds no cut, and gives it up.)

/// So many: far more than overlap.
const REMEMBERED: usize = 16;

/// Was a shard with these cuts cut for this savepoint, or can it not be any more?
pub(crate) fn has(cuts: &[u64], savepoint: u64) -> bool {
    let is_forgotten = cuts.len() >= REMEMBERED && cuts.first().is_some_and(|oldest| savepoint < *oldest);
    is_forgotten || cuts.contains(&savepoint)
}

/// Adds new ones.
pub(crate) fn add(cuts: &mut Vec<u64>, new: &[u64]) {
    if new.is_empty() {
        return;
    }
    cuts.extend_from_slice(new);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.drain(..cuts.len().saturating_sub(REMEMBERED));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_come_in_any_order_and_the_newest_are_remembered() {
        let mut cuts = Vec::new();
        add(&mut cuts, &[7]);
        add(&mut cuts, &[5, 7]);
        assert_eq!(cuts, [5, 7]);
        assert!(has(&cuts, 5) && has(&cuts, 7) && !has(&cuts, 6) && !has(&cuts, 1) && !has(&cuts, 8));
        add(&mut cuts, &(10..40).collect::<Vec<u64>>());
        assert_eq!(cuts, (24..40).collect::<Vec<u64>>());
        assert!(has(&cuts, 7) && has(&cuts, 23), "forgotten, and not to be done again");
        assert!(has(&cuts, 39) && !has(&cuts, 40));
    }
}
