//! Durations and sizes as people write them: `50ms`, `10s`, `7d`; `512B`, `256KiB`, `5MB`.

use super::text::{from_text, to_text};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const DURATION_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZE_UNITS: [(&str, u64); 7] = [
    ("B", 1),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// A duration in whole milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

impl Millis {
    /// As the standard library's duration.
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl FromStr for Millis {
    type Err = String;

    fn from_str(text: &str) -> Result<Millis, String> {
        let known = "a whole number with ms, s, m, h or d, for example 50ms";
        parse(text, &DURATION_UNITS).map(Millis).ok_or_else(|| format!("`{text}` is not a duration: write {known}"))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(self.0, &DURATION_UNITS, f)
    }
}

/// A number of bytes. `KB`, `MB`, `GB` are powers of 1,000; `KiB`, `MiB`, `GiB` are powers of 1,024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// As a number that memory is measured in.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let known = "a whole number with B, KB, MB, GB, KiB, MiB or GiB, for example 5MB";
        parse(text, &SIZE_UNITS).map(Size).ok_or_else(|| format!("`{text}` is not a size: write {known}"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(self.0, &SIZE_UNITS, f)
    }
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// In the largest unit that divides it.
fn display(number: u64, units: &[(&str, u64)], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let fitting = units
        .iter()
        .filter(|(_, factor)| number > 0 && number.is_multiple_of(*factor))
        .max_by_key(|(_, factor)| *factor);
    match fitting.or(units.first()) {
        Some((unit, factor)) => write!(f, "{}{unit}", number / factor),
        None => write!(f, "{number}"),
    }
}

from_text!(Millis, "a duration such as 50ms");
to_text!(Millis);
from_text!(Size, "a size such as 5MB");
to_text!(Size);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_and_print() {
        for (text, ms) in
            [("50ms", 50), ("10s", 10_000), ("90s", 90_000), ("2m", 120_000), ("1h", 3_600_000), ("7d", 604_800_000)]
        {
            assert_eq!(text.parse::<Millis>(), Ok(Millis(ms)));
            assert_eq!(Millis(ms).to_string(), text);
        }
        for (text, bytes) in [("12B", 12), ("5MB", 5_000_000), ("256KiB", 262_144), ("1GiB", 1 << 30)] {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)));
            assert_eq!(Size(bytes).to_string(), text);
        }
        assert_eq!(Millis(0).to_string(), "0ms");
    }

    #[test]
    fn what_has_no_unit_is_refused_with_the_units() {
        for text in ["50", "", "ms", "-5s", "1.5s", "5 fortnights", "99999999999999999999s", "300000000000d"] {
            assert!(text.parse::<Millis>().unwrap_err().contains("ms, s, m, h or d"), "{text}");
        }
        assert!("5mb".parse::<Size>().unwrap_err().contains("KiB"));
    }
}
