//! One process of a worker's name.
//!
//! A restarted pod has the name of the one before, and for a moment, or after a network split for long, both may run: the older must end.
//! Which is older is the order of their incarnations:
//!
//! ```text
//! start time, ms since 1970, 12 hex digits | '-' | random, 8 hex digits          0199c3a1f2b0-5d01c2ff
//! ```
//! Of fixed width and lower case, so that the order of the text is that of (time, random), in a log, in `sort` and in code alike. The random part
//! decides between two that started in one millisecond.
//!
//! The start time is no plain clock: a pod that comes back on a machine whose clock is behind would be older than its dead predecessor and end
//! itself at once, again and again. A worker therefore reads `status` first and starts one millisecond after the newest of its name, when its clock says
//! less ([`Incarnation::after`]).

use std::fmt;

const TIME_DIGITS: usize = 12;
const RANDOM_DIGITS: usize = 8;
const LATEST_MS: u64 = (1 << (4 * TIME_DIGITS)) - 1;

/// One process of a worker's name; a later one is greater.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(String);

/// A text that is no incarnation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no incarnation: expected 12 hex digits, a dash and 8 hex digits, in lower case")]
pub struct NotAnIncarnation(String);

impl Incarnation {
    /// Of a process that started at `now_ms` (milliseconds since 1970; later than the year 10889 counts as then), with a number that is random.
    pub fn new(now_ms: u64, random: u32) -> Incarnation {
        Incarnation(format!("{:0TIME_DIGITS$x}-{random:0RANDOM_DIGITS$x}", now_ms.min(LATEST_MS)))
    }

    /// As [`Self::new`], but later than `newest`, the newest incarnation of the same name that was seen.
    pub fn after(newest: Option<&Incarnation>, now_ms: u64, random: u32) -> Incarnation {
        let earliest_ms = newest.map_or(0, |newest| newest.started_ms() + 1);
        Incarnation::new(now_ms.max(earliest_ms), random)
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// [`NotAnIncarnation`] when it is not of the fixed form; such a text could sort anywhere.
    pub fn parse(text: &str) -> Result<Incarnation, NotAnIncarnation> {
        let hex = |part: &str, digits| {
            part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        match text.split_once('-') {
            Some((time, random)) if hex(time, TIME_DIGITS) && hex(random, RANDOM_DIGITS) => {
                Ok(Incarnation(text.to_owned()))
            }
            _ => Err(NotAnIncarnation(text.to_owned())),
        }
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// When it started, milliseconds since 1970, as far as its order says.
    pub fn started_ms(&self) -> u64 {
        let digits = self.0.get(..TIME_DIGITS).unwrap_or_default();
        u64::from_str_radix(digits, 16).unwrap_or_default()
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_has_the_documented_form() {
        let incarnation = Incarnation::new(0x199_c3a1_f2b0, 0x5d01_c2ff);
        assert_eq!(incarnation.as_str(), "0199c3a1f2b0-5d01c2ff");
        assert_eq!(Incarnation::parse(incarnation.as_str()).unwrap(), incarnation);
    }

    #[test]
    fn what_could_sort_anywhere_is_refused() {
        for text in
            ["", "19a2-77", "0199C3A1F2B0-5d01c2ff", "0199c3a1f2b0", "0199c3a1f2b0-5d01c2ff0", "0199c3a1f2bx-5d01c2ff"]
        {
            let error = Incarnation::parse(text).unwrap_err().to_string();
            assert!(error.contains("12 hex digits"), "{error}");
        }
    }

    #[test]
    fn a_clock_that_is_behind_makes_a_newer_incarnation_all_the_same() {
        let before = Incarnation::new(5_000, u32::MAX);
        assert!(Incarnation::after(Some(&before), 1_000, 0) > before);
        assert_eq!(Incarnation::after(Some(&before), 9_000, 7), Incarnation::new(9_000, 7));
        assert_eq!(Incarnation::after(None, 9_000, 7), Incarnation::new(9_000, 7));
    }

    proptest! {
        #[test]
        fn text_sorts_as_time_then_random(a: (u64, u32), b: (u64, u32)) {
            let cut = |(time, random): (u64, u32)| (time & LATEST_MS, random);
            let [left, right] = [a, b].map(cut).map(|(time, random)| Incarnation::new(time, random));
            prop_assert_eq!(left.as_str().cmp(right.as_str()), cut(a).cmp(&cut(b)));
        }
    }
}
