//! Times as sources write them: ISO 8601, or seconds or milliseconds since 1970.

use millstream_model::proto::{Value, value::Kind};
use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime};

const DATE: &[BorrowedFormatItem<'static>] = format_description!("[year]-[month]-[day]");
const BARE: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second][optional [.[subsecond]]]");

/// Numbers from here on are milliseconds, below they are seconds: 1973 in one reading, the year 5138 in the other.
const FIRST_MILLISECONDS: f64 = 1e11;
/// Years 0001 to 9999, the range of RFC 3339.
const RANGE_MS: std::ops::RangeInclusive<i64> = -62_135_596_800_000..=253_402_300_799_999;

/// The moment that a value means, milliseconds since 1970; `None` when it means none.
pub(crate) fn instant(value: &Value) -> Option<i64> {
    let ms = match &value.kind {
        Some(Kind::Timestamp(ms)) => *ms,
        Some(Kind::String(text)) => of_text(text.trim())?,
        Some(Kind::Integer(number)) => epoch(*number as f64)?,
        Some(Kind::Float(number)) => epoch(*number)?,
        _ => return None,
    };
    RANGE_MS.contains(&ms).then_some(ms)
}

fn of_text(text: &str) -> Option<i64> {
    if let Some(ms) = iso(text) {
        return Some(ms);
    }
    if let Ok(bare) = PrimitiveDateTime::parse(&text.replacen(' ', "T", 1), BARE) {
        return milliseconds(bare.assume_utc());
    }
    // Digits in a string: what form posts and CSV make of epoch times.
    text.parse::<i64>().ok().and_then(|number| epoch(number as f64))
}

/// The moment of ISO 8601 text that says its zone, or of a date; this is what makes an attribute a timestamp.
pub(crate) fn iso(text: &str) -> Option<i64> {
    let starts_as_date = matches!(text.as_bytes(), [y1, y2, y3, y4, b'-', ..] if [y1, y2, y3, y4].iter().all(|digit| digit.is_ascii_digit()));
    if !starts_as_date || text.len() > 40 {
        return None;
    }
    if text.len() == 10 {
        return milliseconds(Date::parse(text, DATE).ok()?.midnight().assume_utc());
    }
    // Some SDKs write the offset without its colon: +0200.
    let colon = text.len().checked_sub(5).filter(|at| matches!(text.as_bytes().get(*at), Some(b'+' | b'-')));
    let padded = colon.and_then(|at| Some(format!("{}:{}", text.get(..at + 3)?, text.get(at + 3..)?)));
    milliseconds(OffsetDateTime::parse(padded.as_deref().unwrap_or(text), &Rfc3339).ok()?)
}

fn milliseconds(time: OffsetDateTime) -> Option<i64> {
    i64::try_from(time.unix_timestamp_nanos().div_euclid(1_000_000)).ok().filter(|ms| RANGE_MS.contains(ms))
}

fn epoch(number: f64) -> Option<i64> {
    if number <= 0.0 {
        return None;
    }
    let ms = if number < FIRST_MILLISECONDS { number * 1000.0 } else { number };
    (ms <= *RANGE_MS.end() as f64).then_some(ms as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: i64 = 1_700_000_000_000;

    #[test]
    fn all_spellings_of_one_moment() {
        for text in [
            "2023-11-14T22:13:20Z",
            "2023-11-14T22:13:20.000Z",
            "2023-11-14T23:13:20+01:00",
            "2023-11-14T23:13:20+0100",
            "2023-11-14T22:13:20",
            "2023-11-14 22:13:20.000",
            " 1700000000 ",
            "1700000000000",
        ] {
            assert_eq!(instant(&Value::string(text)), Some(MOMENT), "{text}");
        }
        assert_eq!(instant(&Value::integer(1_700_000_000)), Some(MOMENT));
        assert_eq!(instant(&Value::integer(MOMENT)), Some(MOMENT));
        assert_eq!(instant(&Value::float(1_700_000_000.5)), Some(MOMENT + 500));
    }

    #[test]
    fn what_is_no_moment() {
        for text in [
            "",
            "yesterday",
            "2023-02-30",
            "2023-02-30T00:00:00Z",
            "2023-13-01T00:00:00Z",
            "99999-01-01",
            "é023-01-01+0100",
        ] {
            assert_eq!(instant(&Value::string(text)), None, "{text}");
        }
        assert_eq!(instant(&Value::integer(0)), None);
        assert_eq!(instant(&Value::integer(i64::MAX)), None);
        assert_eq!(instant(&Value::float(f64::MAX)), None);
        assert_eq!(instant(&Value::boolean(true)), None);
    }

    #[test]
    fn only_dates_and_zoned_times_make_an_attribute_a_timestamp() {
        assert_eq!(iso("2023-11-14"), Some(1_699_920_000_000));
        for text in ["2023-11-14T22:13:20", "1700000000", "2023-11-1", "2023-1114T22", "2023-02-29"] {
            assert_eq!(iso(text), None, "{text}");
        }
    }
}
