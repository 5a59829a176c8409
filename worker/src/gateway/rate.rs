//! How much a tenant may send: token buckets for records and for bytes.
//!
//! A tenant's rate is one for all gateways together, and each gateway takes its share of it, rate / gateways, without asking the others: what one refuses, another may have taken. A bucket holds
//! [`BURST_S`] seconds' worth of the share, so much may come at once after a pause. A request is let in when every bucket has *something* in it, and takes its whole cost, also more than there is:
//! then the bucket is in debt, and nothing is let in until what flows in has paid it. So one that is larger than a bucket gets in, too, and over a long time no tenant sends more than its rate.
//!
//! Invariant: nothing of a request that is refused is written, so that it can be sent again as it is.
//!
//! Time comes in as a value, on a clock that never goes back.

use millstream_plan::message::Rate;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A pause is worth so many seconds of the rate: an SDK that gathers for some seconds, and sends then, is not refused; a log that is sized for the rates of its tenants bears it.
const BURST_S: f64 = 10.0;

/// That a tenant sends too much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limited {
    /// `records` or `bytes`.
    pub(super) what: &'static str,
    /// Of the tenant, at all gateways.
    pub(super) per_second: u64,
    /// After so many seconds something may be let in, at least 1.
    pub(super) retry_after_s: u32,
}

/// What one tenant may send to this gateway.
#[derive(Debug)]
pub(super) struct Meter(Mutex<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    records: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Meter {
    /// Full buckets.
    pub(super) fn new(rate: Rate, gateways: u32, now: Duration) -> Meter {
        let meter = Meter(Mutex::default());
        meter.set(rate, gateways, now);
        meter
    }

    /// From now on this is the rate, and so many gateways share it. What was owed stays owed.
    pub(super) fn set(&self, rate: Rate, gateways: u32, now: Duration) {
        let mut buckets = self.lock();
        let Buckets { records, bytes } = &mut *buckets;
        for (bucket, per_second) in [(records, rate.records), (bytes, rate.bytes)] {
            let level = bucket.take().map(|mut bucket| {
                bucket.refill(now);
                bucket.level
            });
            *bucket = per_second.map(|per_second| Bucket::new(per_second, gateways, level, now));
        }
    }

    /// Lets a request in, or nothing of it.
    pub(super) fn take(&self, records: usize, bytes: usize, now: Duration) -> Result<(), Limited> {
        let mut buckets = self.lock();
        let Buckets { records: of_records, bytes: of_bytes } = &mut *buckets;
        let costs = [("records", of_records.as_mut(), records), ("bytes", of_bytes.as_mut(), bytes)];
        let mut costs: Vec<_> =
            costs.into_iter().filter_map(|(what, bucket, cost)| Some((what, bucket?, cost))).collect();
        let limited = costs.iter_mut().filter_map(|(what, bucket, _)| {
            bucket.refill(now);
            let retry_after_s = bucket.wait_s()?;
            Some(Limited { what, per_second: bucket.of_tenant, retry_after_s })
        });
        if let Some(longest) = limited.max_by_key(|limited| limited.retry_after_s) {
            return Err(longest);
        }
        costs.into_iter().for_each(|(_, bucket, cost)| bucket.level -= cost as f64);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Buckets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Bucket {
    /// Of the tenant, at all gateways.
    of_tenant: u64,
    /// What flows in here in a second.
    share: f64,
    /// What is in it; below 0 what is owed.
    level: f64,
    /// When that was so.
    at: Duration,
}

impl Bucket {
    fn new(of_tenant: u64, gateways: u32, level: Option<f64>, now: Duration) -> Bucket {
        let share = of_tenant as f64 / f64::from(gateways.max(1));
        let full = share * BURST_S;
        Bucket { of_tenant, share, level: level.map_or(full, |level| level.min(full)), at: now }
    }

    fn refill(&mut self, now: Duration) {
        let flows = now.saturating_sub(self.at).as_secs_f64() * self.share;
        self.level = (self.level + flows).min(self.share * BURST_S);
        self.at = self.at.max(now);
    }

    /// After how many seconds something is in it; none: now.
    fn wait_s(&self) -> Option<u32> {
        // A float that is too large becomes the largest number.
        (self.level <= 0.0).then(|| ((-self.level / self.share).floor() as u32).saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn rate(records: Option<u64>, bytes: Option<u64>) -> Rate {
        Rate { records, bytes }
    }

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn limited(what: &'static str, per_second: u64, retry_after_s: u32) -> Result<(), Limited> {
        Err(Limited { what, per_second, retry_after_s })
    }

    #[test]
    fn after_a_burst_so_much_gets_in_as_flows_in() {
        let meter = Meter::new(rate(Some(5), None), 1, at(100.0));
        assert_eq!(meter.take(50, 1_000_000, at(100.0)), Ok(()), "ten seconds' worth at once; bytes are free");
        assert_eq!(meter.take(1, 0, at(100.0)), limited("records", 5, 1));
        assert_eq!(meter.take(1, 0, at(100.1)), Ok(()));
        let let_in =
            |from: f64| (0..100).filter(|step| meter.take(1, 0, at(from + f64::from(*step) / 10.0)).is_ok()).count();
        assert_eq!(let_in(100.2), 50, "within ten seconds");
        assert_eq!(meter.take(0, 0, at(1_000.0)), Ok(()));
        assert_eq!(
            (0..60).filter(|_| meter.take(1, 0, at(1_000.0)).is_ok()).count(),
            50,
            "a long pause is worth no more"
        );
    }

    #[test]
    fn a_request_larger_than_the_bucket_gets_in_and_is_paid_for() {
        let meter = Meter::new(rate(None, Some(1_000)), 1, at(0.0));
        assert_eq!(meter.take(1, 9_999, at(0.0)), Ok(()));
        assert_eq!(meter.take(1, 25_001, at(0.0)), Ok(()), "something is in the bucket");
        assert_eq!(meter.take(1, 1, at(0.0)), limited("bytes", 1_000, 26));
        assert_eq!(meter.take(1, 1, at(24.5)), limited("bytes", 1_000, 1));
        assert_eq!(meter.take(1, 1, at(25.0)), limited("bytes", 1_000, 1), "paid, and nothing in it");
        assert_eq!(meter.take(1, 40_000, at(26.0)), Ok(()), "as the answer has promised");
    }

    #[test]
    fn what_is_refused_for_one_takes_nothing_of_the_other() {
        let meter = Meter::new(rate(Some(1), Some(10)), 1, at(0.0));
        assert_eq!(meter.take(10, 50, at(0.0)), Ok(()));
        for _ in 0..100 {
            assert_eq!(meter.take(1, 40, at(0.0)), limited("records", 1, 1));
        }
        assert_eq!(meter.take(1, 59, at(1.0)), Ok(()), "60 bytes are left");
        assert_eq!(meter.take(1, 1, at(1.0)), limited("records", 1, 1));
        assert_eq!(meter.take(21, 1, at(2.0)), Ok(()));
        assert_eq!(meter.take(1, 1, at(2.0)), limited("records", 1, 21), "the longer of two waits");
    }

    #[test]
    fn each_gateway_takes_its_share() {
        let shares = |gateways| {
            let meter = Meter::new(rate(Some(12), None), gateways, at(0.0));
            (0..200).filter(|_| meter.take(1, 0, at(0.0)).is_ok()).count()
        };
        assert_eq!([1, 3, 4].map(shares), [120, 40, 30]);
        assert_eq!(shares(0), 120, "whoever takes something in is one");
    }

    #[test]
    fn another_rate_goes_on_with_what_is_there_and_owed() {
        let meter = Meter::new(rate(Some(1), None), 1, at(0.0));
        assert_eq!(meter.take(110, 0, at(0.0)), Ok(()));
        meter.set(rate(Some(1), None), 2, at(0.0));
        assert_eq!(meter.take(1, 0, at(0.0)), limited("records", 1, 201), "half the share");
        meter.set(rate(Some(1_000), None), 1, at(0.0));
        assert_eq!(meter.take(1, 0, at(0.2)), Ok(()), "raised: the debt is paid soon");
        meter.set(rate(Some(1), None), 1, at(100.0));
        assert_eq!((0..60).filter(|_| meter.take(1, 0, at(100.0)).is_ok()).count(), 10, "lowered: a smaller bucket");
        meter.set(rate(None, None), 1, at(100.0));
        assert_eq!(meter.take(1_000_000, 0, at(100.0)), Ok(()));
    }

    #[test]
    fn a_wait_that_is_too_long_for_a_number_is_the_longest_and_time_does_not_go_back() {
        let meter = Meter::new(rate(None, Some(1)), u32::MAX, at(10.0));
        assert_eq!(meter.take(0, usize::MAX, at(10.0)), Ok(()));
        assert_eq!(meter.take(0, 1, at(3.0)), limited("bytes", 1, u32::MAX));
    }
}
