//! The generator's own randomness: SplitMix64, seeded, the same on every machine and in every version of its dependencies.

/// A seeded generator of numbers. Streams forked by label are independent, so that one more user changes no other user.
#[derive(Debug, Clone)]
pub(super) struct Rng(u64);

impl Rng {
    /// The stream of a seed.
    pub(super) fn new(seed: u64) -> Rng {
        Rng(seed ^ 0x6d69_6c6c_7374_7265)
    }

    /// A stream of its own, a function of this stream's seed and the labels only.
    pub(super) fn fork(&self, labels: &[u64]) -> Rng {
        let mut fork = self.clone();
        for label in labels {
            fork = Rng(fork.next() ^ label.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        fork.next();
        fork
    }

    /// The next 64 bits.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from `low` up to and without `high`; `low` when the range is empty.
    pub(super) fn between(&mut self, low: i64, high: i64) -> i64 {
        let width = u64::try_from(high.saturating_sub(low)).unwrap_or(0);
        low.saturating_add(i64::try_from(self.below(width)).unwrap_or(0))
    }

    /// True with this probability.
    pub(super) fn chance(&mut self, share: f64) -> bool {
        ((self.next() >> 11) as f64) < share * (1u64 << 53) as f64
    }

    /// One of the words.
    pub(super) fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        let index = self.below(words.len() as u64) as usize;
        words.get(index).copied().unwrap_or_default()
    }

    /// 32 hexadecimal digits in the groups of a UUID.
    pub(super) fn uuid(&mut self) -> String {
        let (high, low) = (self.next(), self.next());
        let (a, b, c) = (high >> 32, high >> 16 & 0xffff, high & 0x0fff);
        format!("{a:08x}-{b:04x}-4{c:03x}-{:04x}-{:012x}", low >> 48 & 0x3fff | 0x8000, low & 0xffff_ffff_ffff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_pinned() {
        let mut rng = Rng::new(7);
        let first: Vec<u64> = (0..3).map(|_| rng.next()).collect();
        assert_eq!(first, PINNED);
    }

    const PINNED: [u64; 3] = [0x05210c29b45f2923, 0x21d35f20c43e82fb, 0xdf634ce4bc4c5ce3];

    #[test]
    fn forks_depend_on_labels_only() {
        let root = Rng::new(1);
        assert_eq!(root.fork(&[1, 2]).next(), root.fork(&[1, 2]).next());
        assert_ne!(root.fork(&[1, 2]).next(), root.fork(&[2, 1]).next());
    }

    #[test]
    fn ranges_are_kept() {
        let mut rng = Rng::new(3);
        assert!((0..1000).all(|_| (5..9).contains(&rng.between(5, 9))));
        assert_eq!((rng.below(0), rng.between(4, 4), rng.pick(&[])), (0, 4, ""));
        assert!((0..100).all(|_| !rng.chance(0.0) && rng.chance(1.0)));
    }

    #[test]
    fn a_uuid_is_well_formed() {
        let uuid = Rng::new(9).uuid();
        assert_eq!(uuid.len(), 36);
        assert_eq!(uuid.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
    }
}
