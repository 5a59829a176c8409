//! Limits of names and values: what is too large is cut or dropped, and that is reported; the rest of the record goes on.

use super::config::RecordLimits;
use crate::source::times;
use millstream_model::proto::{Member, Object, Value, value::Kind};
use millstream_model::reject::{Reason, Refusal};

/// Brings values within the limits.
pub(super) struct Cleaner<'a> {
    limits: &'a RecordLimits,
    /// Do date strings become timestamps? They do in attributes; an event's properties stay as they were sent.
    dates: bool,
    /// What was cut or dropped.
    pub(super) reports: Vec<Refusal>,
}

impl<'a> Cleaner<'a> {
    /// For attributes of users and devices.
    pub(super) fn attributes(limits: &'a RecordLimits) -> Cleaner<'a> {
        Cleaner { limits, dates: true, reports: Vec::new() }
    }

    /// For the properties of an event.
    pub(super) fn properties(limits: &'a RecordLimits) -> Cleaner<'a> {
        Cleaner { limits, dates: false, reports: Vec::new() }
    }

    fn report(&mut self, reason: Reason, field: &str, message: String) {
        self.reports.push(Refusal::field(reason, field, message));
    }

    /// An attribute's or property's name: is it allowed?
    pub(super) fn name(&mut self, parent: &str, name: &str) -> bool {
        if name.trim().is_empty() || name.chars().any(char::is_control) {
            let message = "a name must not be blank or contain control characters; the field was dropped";
            self.report(Reason::InvalidValue, parent, message.to_owned());
            return false;
        }
        if name.chars().count() > self.limits.max_name_chars {
            let start: String = name.chars().take(40).collect();
            let message = format!(
                "a name has at most {} characters, `{start}…` has more; the field was dropped",
                self.limits.max_name_chars
            );
            self.report(Reason::TooLarge, parent, message);
            return false;
        }
        true
    }

    /// An object's members within the limits, at most `most` of them.
    pub(super) fn members(&mut self, parent: &str, object: Object, most: usize) -> Vec<(String, Value)> {
        let mut kept = Vec::new();
        let mut over = 0;
        for (name, value) in object.into_pairs() {
            if !self.name(parent, &name) {
                continue;
            }
            if kept.len() >= most {
                over += 1;
                continue;
            }
            kept.extend(self.value(&super::fields::path(parent, &name), value).map(|value| (name, value)));
        }
        if over > 0 {
            let message = format!("at most {most} fields are allowed, {over} more were dropped");
            self.report(Reason::TooLarge, parent, message);
        }
        kept
    }

    /// As [`Cleaner::members`], for an event.
    pub(super) fn event_properties(&mut self, parent: &str, properties: Object) -> Vec<Member> {
        let most = self.limits.max_properties;
        let members = self.members(parent, properties, most).into_iter();
        members.map(|(name, value)| Member { name, value: Some(value) }).collect()
    }

    /// A value within the limits; `None` when it had to be dropped.
    pub(super) fn value(&mut self, field: &str, value: Value) -> Option<Value> {
        if value.depth() > self.limits.max_object_levels {
            let message =
                format!("nested more than {} levels deep; the field was dropped", self.limits.max_object_levels);
            self.report(Reason::TooDeep, field, message);
            return None;
        }
        self.any(field, value)
    }

    fn any(&mut self, field: &str, value: Value) -> Option<Value> {
        match value.kind {
            Some(Kind::String(text)) => self.string(field, text),
            Some(Kind::List(list)) => Some(self.list(field, list.items)),
            Some(Kind::Object(object)) => self.object(field, object),
            kind => Some(Value { kind }),
        }
    }

    fn string(&mut self, field: &str, text: String) -> Option<Value> {
        if self.dates
            && let Some(ms) = times::iso(&text)
        {
            return Some(Value::timestamp(ms));
        }
        // Counting characters is only needed for strings that have more bytes than the limit has characters.
        let is_url = text.starts_with("http://") || text.starts_with("https://");
        let most = if is_url { self.limits.max_url_chars } else { self.limits.max_string_chars };
        if text.len() <= most {
            return Some(Value::string(text));
        }
        let Some((end, _)) = text.char_indices().nth(most) else { return Some(Value::string(text)) };
        if is_url {
            self.report(Reason::TooLarge, field, format!("a URL has at most {most} characters; the field was dropped"));
            return None;
        }
        self.report(Reason::TooLarge, field, format!("a string has at most {most} characters; the rest was cut off"));
        Some(Value::string(text.get(..end).unwrap_or_default()))
    }

    fn list(&mut self, field: &str, mut items: Vec<Value>) -> Value {
        let most = self.limits.max_list_elements;
        if items.len() > most {
            let over = items.len() - most;
            items.drain(..over);
            self.report(
                Reason::TooLarge,
                field,
                format!("a list has at most {most} elements; the first {over} were dropped"),
            );
        }
        Value::list(items.into_iter().filter_map(|item| self.any(field, item)).collect())
    }

    fn object(&mut self, field: &str, object: Object) -> Option<Value> {
        if object.members.len() > self.limits.max_object_members {
            let message =
                format!("an object has at most {} members; the field was dropped", self.limits.max_object_members);
            self.report(Reason::TooLarge, field, message);
            return None;
        }
        if json_bytes(&object) > self.limits.max_object_bytes {
            let message =
                format!("an object has at most {} bytes; the field was dropped", self.limits.max_object_bytes);
            self.report(Reason::TooLarge, field, message);
            return None;
        }
        let most = self.limits.max_object_members;
        Some(Value::object(self.members(field, object, most)))
    }
}

fn json_bytes(object: &Object) -> usize {
    struct Counter(usize);
    impl std::io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // Neither the counter nor these values can fail; if they did, the object counts as too large.
    serde_json::to_writer(&mut counter, object).map_or(usize::MAX, |()| counter.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(json: &str) -> (String, Vec<(Reason, String)>) {
        let limits = RecordLimits::default();
        let mut cleaner = Cleaner::attributes(&limits);
        let value: Value = serde_json::from_str(json).unwrap();
        let members = cleaner.members("set", value.as_object().unwrap().clone(), 3);
        let reports = cleaner.reports.into_iter().map(|report| (report.reason, report.field.unwrap())).collect();
        (serde_json::to_string(&Value::object(members)).unwrap(), reports)
    }

    #[test]
    fn what_fits_stays() {
        let json = r#"{"a":"x","b":[1,2],"c":{"d":{"e":[true]}}}"#;
        assert_eq!(clean(json), (json.to_owned(), vec![]));
    }

    #[test]
    fn strings_are_cut_at_characters_and_urls_are_not_cut() {
        let (kept, reports) = clean(&format!(r#"{{"a":"{}","b":"http://{}"}}"#, "ö".repeat(513), "x".repeat(2042)));
        assert_eq!(kept, format!(r#"{{"a":"{}"}}"#, "ö".repeat(512)));
        assert_eq!(reports, [(Reason::TooLarge, "set.a".into()), (Reason::TooLarge, "set.b".into())]);
        let url = format!(r#"{{"a":"https://{}"}}"#, "x".repeat(2040));
        assert_eq!(clean(&url), (url.clone(), vec![]));
    }

    #[test]
    fn the_first_elements_of_a_long_list_go() {
        let items: Vec<String> = (0..203).map(|item| item.to_string()).collect();
        let (kept, reports) = clean(&format!(r#"{{"a":[{}]}}"#, items.join(",")));
        assert_eq!(kept, format!(r#"{{"a":[{}]}}"#, items[3..].join(",")));
        assert_eq!(reports.len(), 1);
    }

    #[test]
    fn an_object_beyond_its_limits_is_dropped_and_the_rest_kept() {
        let members: Vec<String> = (0..101).map(|member| format!(r#""m{member}":1"#)).collect();
        assert_eq!(clean(&format!(r#"{{"a":{{{}}},"b":1}}"#, members.join(","))).0, r#"{"b":1}"#);
        let texts: Vec<String> = (0..60).map(|member| format!(r#""m{member}":"{}""#, "x".repeat(500))).collect();
        assert_eq!(clean(&format!(r#"{{"a":{{{}}},"b":1}}"#, texts.join(","))).0, r#"{"b":1}"#);
        let (kept, reports) = clean(r#"{"a":{"x":{"y":{"z":[1]}}},"b":1}"#);
        assert_eq!((kept.as_str(), reports), (r#"{"b":1}"#, vec![(Reason::TooDeep, "set.a".into())]));
    }

    #[test]
    fn names_have_limits_too() {
        let (kept, reports) = clean(&format!(r#"{{"{}":1,"":2," ":3,"ok":4}}"#, "n".repeat(201)));
        assert_eq!(kept, r#"{"ok":4}"#);
        assert_eq!(reports.len(), 3);
        let (kept, reports) = clean(r#"{"a":1,"b":2,"c":3,"d":4,"e":5}"#);
        assert_eq!(kept, r#"{"a":1,"b":2,"c":3}"#);
        assert_eq!(reports, [(Reason::TooLarge, "set".into())]);
    }

    #[test]
    fn dates_become_timestamps_in_attributes_only() {
        let limits = RecordLimits::default();
        let value = || Value::string("2023-11-14");
        let date = Value::timestamp(1_699_920_000_000);
        assert_eq!(Cleaner::attributes(&limits).value("a", value()), Some(date.clone()));
        assert_eq!(Cleaner::attributes(&limits).value("a", Value::list(vec![value()])), Some(Value::list(vec![date])));
        assert_eq!(Cleaner::properties(&limits).value("a", value()), Some(value()));
        let impossible = Value::string("2023-02-30");
        assert_eq!(Cleaner::attributes(&limits).value("a", impossible.clone()), Some(impossible));
    }
}
