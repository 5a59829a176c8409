//! How old what waits for a shard is, and whether the log deletes it before it is processed.
//!
//! Of an input one thing can be said for good: *what was appended before this moment was processed*. That moment, the watermark, never goes back, whoever owns the shard. So a report from which an
//! owner has been silent since, or one who owned the shard before, still bounds the age of what is unread: it is at most as old as the watermark. It may be younger, for nobody knows whether
//! anything came since. An owner knows more: it has looked at the end of its inputs, and what it says counts.
//!
//! Append times are the brokers' (`ingress`) or the writers' (all other topics), ages are reckoned by the clock of whoever tells them: clocks that differ show as ages that differ by as much, never
//! as negative ones.

/// How long a topic keeps what is in it, by the brokers' word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// As long as nobody deletes it by hand.
    ForEver,
    /// So many milliseconds.
    For(u64),
}

/// What a shard has not processed of one input, and how long its topic keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// The input.
    pub topic: String,
    /// What was appended before was processed, milliseconds since 1970. `None`: not known.
    pub watermark_ms: Option<u64>,
    /// An owner: what it has not processed of it was appended at most so many milliseconds ago; 0: nothing is left. `None`: not known, or it is no owner.
    pub age_ms: Option<u64>,
    /// `None`: the brokers did not say.
    pub kept: Option<Kept>,
    /// An owner: what it reads next is among the oldest that the log has, and may be deleted however old it is.
    pub near_start: bool,
}

/// Whether what waits may be deleted before it is processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Danger {
    /// It is far from it.
    None,
    /// Nobody can say.
    Unknown,
    /// It comes near.
    Near,
}

impl Unread {
    /// What of it stays true, whoever owns the shard.
    #[must_use]
    pub fn for_good(&self) -> Unread {
        Unread { age_ms: None, near_start: false, ..self.clone() }
    }

    /// With what somebody else knows for good of the same input: what waits is no older than that.
    #[must_use]
    pub fn bounded_by(&self, watermark_ms: Option<u64>, now_ms: u64) -> Unread {
        let Some(since_ms) = watermark_ms.filter(|since_ms| Some(*since_ms) > self.watermark_ms) else {
            return self.clone();
        };
        let age_ms = self.age_ms.map(|age_ms| age_ms.min(now_ms.saturating_sub(since_ms)));
        Unread { watermark_ms, age_ms, ..self.clone() }
    }

    /// How old it is at most, at a moment (milliseconds since 1970): by the owner's word, else by what is known for good.
    pub fn age_at(&self, now_ms: u64) -> Option<u64> {
        self.age_ms.or_else(|| self.watermark_ms.map(|since_ms| now_ms.saturating_sub(since_ms)))
    }

    /// Half of the time for which a topic keeps what is in it leaves the other half to do something about it.
    pub fn danger(&self, now_ms: u64) -> Danger {
        match (self.kept, self.age_at(now_ms)) {
            _ if self.near_start => Danger::Near,
            (_, Some(0)) | (Some(Kept::ForEver), _) => Danger::None,
            (Some(Kept::For(kept_ms)), Some(age_ms)) if age_ms > kept_ms / 2 => Danger::Near,
            (Some(Kept::For(_)), Some(_)) => Danger::None,
            (None, _) | (_, None) => Danger::Unknown,
        }
    }

    /// Which of several is nearest to losing something: by danger, then by what part of its time is over, in millionths, then by how short that time is.
    pub fn urgency(&self, now_ms: u64) -> (Danger, u64, std::cmp::Reverse<u64>) {
        let age_ms = self.age_at(now_ms).unwrap_or(u64::MAX);
        let (part, kept_ms) = match self.kept {
            Some(Kept::For(kept_ms)) => (age_ms.saturating_mul(1_000_000) / kept_ms.max(1), kept_ms),
            Some(Kept::ForEver) | None => (0, u64::MAX),
        };
        (self.danger(now_ms), part, std::cmp::Reverse(kept_ms))
    }
}

/// An age for people, rounded down so that it is still at rest: `<1s`, `12s`, `4m`, `5h`, `3d`.
pub fn age(milliseconds: u64) -> String {
    let seconds = milliseconds / 1_000;
    match seconds {
        0 => "<1s".to_owned(),
        1..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        // Below two days, hours say more than days.
        3_600..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 86_400_000;

    fn unread(age_ms: Option<u64>, watermark_ms: Option<u64>, kept: Option<Kept>) -> Unread {
        Unread { topic: "t".into(), watermark_ms, age_ms, kept, near_start: false }
    }

    #[test]
    fn an_age_is_rounded_down_to_its_largest_unit() {
        let table = [
            (0, "<1s"),
            (999, "<1s"),
            (1_000, "1s"),
            (12_345, "12s"),
            (59_999, "59s"),
            (60_000, "1m"),
            (299_999, "4m"),
            (3_599_999, "59m"),
            (3_600_000, "1h"),
            (47 * 3_600_000 + 3_599_999, "47h"),
            (2 * DAY_MS, "2d"),
            (100 * DAY_MS, "100d"),
        ];
        for (milliseconds, text) in table {
            assert_eq!(age(milliseconds), text, "{milliseconds}");
        }
        assert!(age(u64::MAX).len() < 32, "{}", age(u64::MAX));
    }

    #[test]
    fn an_age_never_shrinks_while_time_goes_on_and_changes_ever_less_often() {
        let seconds = |text: &str| {
            let (number, unit) = text.split_at(text.len() - 1);
            let unit = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)].iter().find(|(name, _)| *name == unit);
            number.parse::<u64>().unwrap_or(0) * unit.unwrap().1
        };
        let (mut before, mut changes) = (String::new(), 0);
        // A week, in steps of a little less than a second.
        for milliseconds in (0..7 * DAY_MS).step_by(997) {
            let text = age(milliseconds);
            assert!(before.is_empty() || seconds(&before) <= seconds(&text), "{before} -> {text}");
            let rounded = seconds(&text) * 1_000;
            assert!(rounded <= milliseconds && milliseconds < (rounded * 2).max(1_000), "{milliseconds} -> {text}");
            changes += usize::from(before != text);
            before = text;
        }
        assert_eq!(changes, 60 + 59 + 47 + 5, "seconds, minutes, hours, days");
    }

    #[test]
    fn half_of_the_retention_is_near_and_what_is_read_is_never() {
        let of = |age_ms| unread(Some(age_ms), Some(0), Some(Kept::For(1_000))).danger(u64::MAX);
        assert_eq!([0, 500, 501, 5_000].map(of), [Danger::None, Danger::None, Danger::Near, Danger::Near]);
        let kept = |kept| unread(Some(10), Some(0), kept).danger(0);
        assert_eq!(kept(Some(Kept::ForEver)), Danger::None);
        assert_eq!(kept(None), Danger::Unknown);
        assert_eq!(unread(Some(0), None, None).danger(0), Danger::None, "nothing is left to lose");
        assert_eq!(unread(None, None, Some(Kept::For(1_000))).danger(0), Danger::Unknown);
        let near = Unread { near_start: true, ..unread(Some(10), None, Some(Kept::ForEver)) };
        assert_eq!(near.danger(0), Danger::Near, "it goes by size");
    }

    #[test]
    fn what_nobody_owns_gets_older_from_what_is_known_for_good() {
        let silent = unread(None, Some(10_000), Some(Kept::For(8_000)));
        assert_eq!([9_000, 10_000, 14_000].map(|now_ms| silent.age_at(now_ms)), [Some(0), Some(0), Some(4_000)]);
        assert_eq!([14_000, 14_001].map(|now_ms| silent.danger(now_ms)), [Danger::None, Danger::Near]);
        assert_eq!(unread(Some(3), Some(10_000), None).age_at(99_999), Some(3), "an owner knows better");
    }

    #[test]
    fn the_most_urgent_input_is_the_one_nearest_to_its_end() {
        let most = |inputs: &[(&str, Unread)]| {
            let most = inputs.iter().max_by_key(|(_, unread)| unread.urgency(10_000));
            most.unwrap().0.to_owned()
        };
        let of = |age_ms, kept_ms| unread(Some(age_ms), Some(1), Some(Kept::For(kept_ms)));
        assert_eq!(most(&[("old", of(100, 10_000)), ("soon", of(50, 1_000))]), "soon");
        assert_eq!(most(&[("long", of(0, 10_000)), ("short", of(0, 1_000))]), "short", "both are read");
        let unknown = || unread(None, None, Some(Kept::For(1_000)));
        assert_eq!(most(&[("unknown", unknown()), ("read", of(0, 1))]), "unknown");
        assert_eq!(most(&[("unknown", unknown()), ("near", of(501, 1_000))]), "near");
    }
}
