//! Changes of attributes: at most one operation per attribute and record, because all have the record's one stamp.

use super::config::RecordLimits;
use super::fields;
use super::values::Cleaner;
use crate::pattern::{Name, Pattern};
use millstream_model::proto::r#match::Kind as MatchKind;
use millstream_model::proto::{Change, List, Match, Object, Value, change::Op, value::Kind};
use millstream_model::reject::{Reason, Refusal};

/// Collects the changes that one record makes to one entity.
pub(super) struct Changes<'a> {
    limits: &'a RecordLimits,
    cleaner: Cleaner<'a>,
    changes: Vec<Change>,
}

impl<'a> Changes<'a> {
    /// No change yet.
    pub(super) fn new(limits: &'a RecordLimits) -> Changes<'a> {
        Changes { limits, cleaner: Cleaner::attributes(limits), changes: Vec::new() }
    }

    /// Sets each member.
    pub(super) fn set(&mut self, parent: &str, members: Object) {
        let most = self.limits.max_attributes;
        for (name, value) in self.cleaner.members(parent, members, most) {
            self.changes.push(Change { name, op: Some(Op::Set(value)) });
        }
    }

    /// Sets one attribute to a value that needs no cleaning.
    pub(super) fn set_one(&mut self, name: impl Into<String>, value: Value) {
        self.changes.push(Change { name: name.into(), op: Some(Op::Set(value)) });
    }

    /// Unsets each attribute of a list of names.
    pub(super) fn unset(&mut self, parent: &str, names: Vec<Value>) -> Result<(), Refusal> {
        for (index, name) in names.into_iter().enumerate() {
            let Some(name) = name.as_str() else {
                let field = format!("{parent}[{index}]");
                let message = format!("`{field}` must be the name of an attribute, a string");
                return Err(Refusal::field(Reason::WrongType, field, message));
            };
            if self.cleaner.name(parent, name) {
                self.changes.push(Change { name: name.to_owned(), op: Some(Op::Unset(true)) });
            }
        }
        Ok(())
    }

    /// Unsets every attribute whose name matches.
    pub(super) fn unset_matching(&mut self, kind: MatchKind, pattern: &str, case_sensitive: bool) {
        let (name, op) = if kind == MatchKind::Equals && case_sensitive {
            (pattern.to_owned(), Op::Unset(true))
        } else {
            let pattern = pattern.to_owned();
            (String::new(), Op::UnsetMatching(Match { kind: kind.into(), pattern, case_sensitive }))
        };
        self.changes.push(Change { name, op: Some(op) });
    }

    /// Adds the elements of each member, a list, to the attribute of its name.
    pub(super) fn add(&mut self, parent: &str, members: Object) -> Result<(), Refusal> {
        self.elements(parent, members, |items| Op::Add(List { items }))
    }

    /// Removes the elements of each member, a list, from the attribute of its name.
    pub(super) fn remove(&mut self, parent: &str, members: Object) -> Result<(), Refusal> {
        self.elements(parent, members, |items| Op::Remove(List { items }))
    }

    fn elements(&mut self, parent: &str, members: Object, op: impl Fn(Vec<Value>) -> Op) -> Result<(), Refusal> {
        for (name, value) in members.into_pairs() {
            let field = fields::path(parent, &name);
            if !matches!(value.kind, Some(Kind::List(_))) {
                let message = format!("`{field}` must be a list of elements, it is of type {}", value.type_name());
                return Err(Refusal::field(Reason::WrongType, field, message));
            }
            if !self.cleaner.name(parent, &name) {
                continue;
            }
            if let Some(Value { kind: Some(Kind::List(list)) }) = self.cleaner.value(&field, value)
                && !list.items.is_empty()
            {
                self.changes.push(Change { name, op: Some(op(distinct(list.items))) });
            }
        }
        Ok(())
    }

    /// The changes in the order of their names, patterns first, and what was cut or dropped.
    ///
    /// # Errors
    /// Two of them contradict each other.
    pub(super) fn finish(mut self, parent: &str) -> Result<(Vec<Change>, Vec<Refusal>), Refusal> {
        self.changes.sort_by(|left, right| (&left.name, rank(left)).cmp(&(&right.name, rank(right))));
        self.changes.dedup();
        for pair in self.changes.array_windows::<2>() {
            let [left, right] = pair;
            if left.name == right.name && !left.name.is_empty() {
                contradiction(parent, left, right)?;
            }
        }
        let most = self.limits.max_attributes;
        if self.changes.len() > most {
            let message =
                format!("a record changes at most {most} attributes; {} were dropped", self.changes.len() - most);
            self.changes.truncate(most);
            self.cleaner.reports.push(Refusal::field(Reason::TooLarge, parent, message));
        }
        // Last: only what is left, a bounded number of changes, is compared with each pattern.
        self.check_matches(parent)?;
        Ok((self.changes, self.cleaner.reports))
    }

    fn check_matches(&self, parent: &str) -> Result<(), Refusal> {
        let patterns: Vec<Pattern> = self.changes.iter().filter_map(pattern).map(Pattern::new).collect();
        if patterns.is_empty() {
            return Ok(());
        }
        let unset = |change: &&Change| matches!(change.op, Some(Op::Unset(_)));
        for change in self.changes.iter().filter(|change| !change.name.is_empty() && !unset(change)) {
            let name = Name::new(&change.name);
            if patterns.iter().any(|pattern| pattern.matches(&name)) {
                return Err(conflict(parent, &change.name, verb(change), "unset"));
            }
        }
        Ok(())
    }
}

fn pattern(change: &Change) -> Option<&Match> {
    match &change.op {
        Some(Op::UnsetMatching(pattern)) => Some(pattern),
        _ => None,
    }
}

fn distinct(items: Vec<Value>) -> Vec<Value> {
    let mut kept: Vec<Value> = Vec::with_capacity(items.len());
    for item in items {
        if !kept.contains(&item) {
            kept.push(item);
        }
    }
    kept
}

fn rank(change: &Change) -> u8 {
    match &change.op {
        Some(Op::UnsetMatching(_)) | None => 0,
        Some(Op::Add(_)) => 1,
        Some(Op::Remove(_)) => 2,
        Some(Op::Set(_)) => 3,
        Some(Op::Unset(_)) => 4,
    }
}

fn verb(change: &Change) -> &'static str {
    match &change.op {
        Some(Op::Add(_)) => "add to",
        Some(Op::Remove(_)) => "remove from",
        Some(Op::Set(_)) => "set",
        Some(Op::Unset(_) | Op::UnsetMatching(_)) | None => "unset",
    }
}

/// Adding one element and removing another is fine; everything else that two operations do to one attribute is not.
fn contradiction(parent: &str, left: &Change, right: &Change) -> Result<(), Refusal> {
    let (Some(Op::Add(added)), Some(Op::Remove(removed))) = (&left.op, &right.op) else {
        return Err(conflict(parent, &left.name, verb(left), verb(right)));
    };
    let Some(both) = added.items.iter().find(|item| removed.items.contains(item)) else { return Ok(()) };
    let shown = serde_json::to_string(both).unwrap_or_default();
    let shown: String = shown.trim_matches('"').chars().take(60).collect();
    let message = format!("cannot add and remove '{shown}' at the same time; send two records");
    Err(Refusal::field(Reason::InvalidValue, fields::path(parent, &left.name), message))
}

fn conflict(parent: &str, name: &str, left: &str, right: &str) -> Refusal {
    let message = format!("cannot {left} and {right} '{name}' at the same time; send two records");
    Refusal::field(Reason::InvalidValue, fields::path(parent, name), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str) -> Object {
        serde_json::from_str::<Value>(json).unwrap().as_object().unwrap().clone()
    }

    fn finish(build: impl Fn(&mut Changes<'_>)) -> Result<Vec<String>, String> {
        let limits = RecordLimits::default();
        let mut changes = Changes::new(&limits);
        build(&mut changes);
        let (changes, _) = changes.finish("attributes").map_err(|refusal| refusal.message)?;
        Ok(changes.iter().map(|change| format!("{} {}", verb(change), change.name)).collect())
    }

    #[test]
    fn changes_come_sorted() {
        let changes = finish(|changes| {
            changes.set("set", object(r#"{"b":1,"a":2}"#));
            changes.unset("unset", vec![Value::string("0")]).unwrap();
            changes.add("add", object(r#"{"tags":["x","x","y"],"empty":[]}"#)).unwrap();
            changes.remove("remove", object(r#"{"tags":["z"]}"#)).unwrap();
        });
        assert_eq!(changes.unwrap(), ["unset 0", "set a", "set b", "add to tags", "remove from tags"]);
    }

    #[test]
    fn contradictions_are_refused() {
        let both = finish(|changes| {
            changes.add("add", object(r#"{"tags":["x","y"]}"#)).unwrap();
            changes.remove("remove", object(r#"{"tags":["y"]}"#)).unwrap();
        });
        assert_eq!(both.unwrap_err(), "cannot add and remove 'y' at the same time; send two records");
        let both = finish(|changes| {
            changes.set("set", object(r#"{"a":1}"#));
            changes.unset("unset", vec![Value::string("a")]).unwrap();
        });
        assert!(both.unwrap_err().contains("set and unset 'a'"));
        let both = finish(|changes| {
            changes.set("set", object(r#"{"Plan_name":1}"#));
            changes.unset_matching(MatchKind::Prefix, "plan_", false);
        });
        assert!(both.unwrap_err().contains("set and unset 'Plan_name'"));
    }

    #[test]
    fn what_is_dropped_is_compared_with_no_pattern() {
        let limits = RecordLimits { max_attributes: 3, ..RecordLimits::default() };
        let mut changes = Changes::new(&limits);
        changes.set("set", object(r#"{"a":1,"b":2}"#));
        changes.add("add", object(r#"{"tmp_c":["x"],"tmp_d":["x"]}"#)).unwrap();
        changes.unset_matching(MatchKind::Prefix, "TMP_", false);
        let (changes, reports) = changes.finish("attributes").unwrap();
        assert_eq!(changes.iter().map(|change| change.name.as_str()).collect::<Vec<_>>(), ["", "a", "b"]);
        assert!(reports[0].message.contains("2 were dropped"), "{reports:?}");
    }

    #[test]
    fn a_pattern_that_hits_nothing_set_is_kept() {
        let changes = finish(|changes| {
            changes.set("set", object(r#"{"Plan_name":1}"#));
            changes.unset_matching(MatchKind::Prefix, "plan_", true);
            changes.unset_matching(MatchKind::Equals, "old", true);
        });
        assert_eq!(changes.unwrap(), ["unset ", "set Plan_name", "unset old"]);
    }
}
