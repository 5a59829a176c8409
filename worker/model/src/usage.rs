//! Sums of tenants: adding them up.

use crate::proto::Usage;
use std::ops::AddAssign;

impl AddAssign<&Usage> for Usage {
    fn add_assign(&mut self, other: &Usage) {
        self.accepted += other.accepted;
        self.duplicates += other.duplicates;
        self.rejects += other.rejects;
        self.effects += other.effects;
        self.mutations += other.mutations;
        self.events += other.events;
    }
}

impl<'a> std::iter::Sum<&'a Usage> for Usage {
    fn sum<I: Iterator<Item = &'a Usage>>(all: I) -> Usage {
        all.fold(Usage::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}
