//! How long a worker is given to end.

use millstream_crds::StageName;

/// Beside the handoffs: a gateway lets requests in flight end (15 s), and everybody stores what changed.
const REST_S: i64 = 20;

/// Seconds that a worker may take to give its shards away, and seconds until it is killed. A handoff takes some tens of milliseconds, and a successor that has to prepare for it first, a second or
/// two; they run side by side, but not all at once. Reckoned as if a worker held half of all shards, whatever the number of workers is: else each scaling would change every Pod.
pub(super) fn of(stage: StageName, shards: i32) -> (i64, i64) {
    let held = if stage == StageName::Gateway { 0 } else { i64::from(shards) / 2 };
    let release = (20 + held / 2).min(300);
    (release, release + REST_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_more_gets_longer_within_bounds() {
        assert_eq!(of(StageName::Gateway, 4096), (20, 40));
        assert_eq!(of(StageName::Action, 8), (22, 42));
        assert_eq!(of(StageName::Action, 4096), (300, 320));
    }
}
