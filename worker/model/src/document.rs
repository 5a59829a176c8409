//! Documents: what a fold of mutations amounts to (I8).
//!
//! A document store applies [`Operation`]s in its own way; this is the reference that the embedded store uses and that tests compare
//! real ones with. Paths are dotted; a segment that contains a dot, a dollar sign or a percent sign is escaped
//! ([`escape`]), because document stores give those characters a meaning.

use crate::proto::{List, Mutation, Object, Operation, Value, operation::Op};
use crate::value;

/// A document with its guard.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Generation of the newest mutation in it.
    pub generation: u32,
    /// Revision of the newest mutation in it.
    pub revision: u64,
    /// No data any more; only the guard is left.
    pub deleted: bool,
    /// Its fields.
    pub fields: Object,
}

impl Document {
    /// The document before any mutation.
    pub fn empty() -> Document {
        Document { generation: 0, revision: 0, deleted: false, fields: Object::default() }
    }

    /// Applies a mutation if it is newer; tells whether it was. What it builds on is for [`fit`] to say.
    pub fn apply(&mut self, mutation: &Mutation) -> bool {
        if (mutation.generation, mutation.revision) <= (self.generation, self.revision) {
            return false;
        }
        // Where nothing is stored there is no content to keep: the guard alone is a tombstone.
        self.deleted |= mutation.operations.is_empty() && self.revision == 0;
        (self.generation, self.revision) = (mutation.generation, mutation.revision);
        for operation in &mutation.operations {
            self.operate(operation);
        }
        true
    }

    fn operate(&mut self, operation: &Operation) {
        match &operation.op {
            Some(Op::Replace(fields)) => {
                self.deleted = false;
                self.fields = fields.clone();
            }
            Some(Op::Tombstone(_)) => {
                self.deleted = true;
                self.fields = Object::default();
            }
            Some(op) => {
                if std::mem::take(&mut self.deleted) {
                    self.fields = Object::default();
                }
                let path: Vec<&str> = operation.path.split('.').collect();
                change(&mut self.fields, &path, op);
            }
            None => {}
        }
    }
}

/// How a mutation fits what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It is newer, and what it builds on is there: apply it.
    Next,
    /// It is there already, or something newer.
    Stale,
    /// It is newer, but what it builds on is not there: applied, it would hide that something is missing.
    Gap,
}

/// How a mutation fits a document with this (generation, revision); (0, 0) where there is none.
pub fn fit(stored: (u32, u64), mutation: &Mutation) -> Fit {
    if stored >= (mutation.generation, mutation.revision) {
        return Fit::Stale;
    }
    let has_base = needed_base(mutation).is_none_or(|base| stored >= (mutation.generation, base));
    if has_base { Fit::Next } else { Fit::Gap }
}

/// The revision of its own generation that a document must have for a mutation to be applied. `None`: any lower one will do, also none.
pub fn needed_base(mutation: &Mutation) -> Option<u64> {
    (mutation.base > 0 && !is_whole(mutation)).then_some(mutation.base)
}

/// Does a mutation say all of the document, whatever was there: a replacement or a tombstone?
pub fn is_whole(mutation: &Mutation) -> bool {
    matches!(mutation.operations.as_slice(), [Operation { op: Some(Op::Replace(_) | Op::Tombstone(_)), .. }])
}

fn change(fields: &mut Object, path: &[&str], op: &Op) {
    let Some((name, rest)) = path.split_first() else { return };
    let old = fields.take(name);
    let new = if rest.is_empty() {
        changed(old, op)
    } else {
        let mut inner = old.as_ref().and_then(Value::as_object).cloned().unwrap_or_default();
        if matches!(op, Op::Unset(_) | Op::RemoveFromSet(_)) && old.is_none() {
            return;
        }
        change(&mut inner, rest, op);
        Some(Value::object(inner.into_pairs()))
    };
    if let Some(new) = new {
        let members = std::mem::take(fields).into_pairs();
        *fields = value::object(members.chain([((*name).to_owned(), new)]));
    }
}

fn changed(old: Option<Value>, op: &Op) -> Option<Value> {
    match op {
        Op::Set(value) => Some(value.clone()),
        Op::AddToSet(List { items }) => {
            let mut list = old.as_ref().and_then(Value::as_list).map(<[Value]>::to_vec).unwrap_or_default();
            for item in items {
                if !list.contains(item) {
                    list.push(item.clone());
                }
            }
            Some(Value::list(list))
        }
        Op::RemoveFromSet(List { items }) => {
            let old = old?;
            let Some(list) = old.as_list() else { return Some(old) };
            Some(Value::list(list.iter().filter(|item| !items.contains(item)).cloned().collect()))
        }
        Op::Unset(_) | Op::Replace(_) | Op::Tombstone(_) => None,
    }
}

/// An attribute name as one path segment.
pub fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for character in name.chars() {
        match character {
            '%' => escaped.push_str("%25"),
            '.' => escaped.push_str("%2E"),
            '$' => escaped.push_str("%24"),
            '\0' => escaped.push_str("%00"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// The reverse of [`escape`].
pub fn unescape(segment: &str) -> String {
    segment.replace("%2E", ".").replace("%24", "$").replace("%00", "\0").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutation(revision: u64, operations: Vec<(&str, Op)>) -> Mutation {
        let operations =
            operations.into_iter().map(|(path, op)| Operation { path: path.into(), op: Some(op) }).collect();
        Mutation { generation: 1, revision, operations, ..Mutation::default() }
    }

    fn json(document: &Document) -> String {
        serde_json::to_string(&document.fields).unwrap()
    }

    #[test]
    fn operations_fold() {
        let mut document = Document::empty();
        let list = |items: &[&str]| List { items: items.iter().map(|item| Value::string(*item)).collect() };
        document.apply(&mutation(
            1,
            vec![("attributes.plan", Op::Set(Value::string("free"))), ("tags", Op::AddToSet(list(&["a", "b", "a"])))],
        ));
        assert_eq!(json(&document), r#"{"attributes":{"plan":"free"},"tags":["a","b"]}"#);
        document
            .apply(&mutation(2, vec![("attributes.plan", Op::Unset(true)), ("tags", Op::RemoveFromSet(list(&["a"])))]));
        assert_eq!(json(&document), r#"{"attributes":{},"tags":["b"]}"#);
        document.apply(&mutation(3, vec![("", Op::Tombstone(true))]));
        assert!(document.deleted);
        document.apply(&mutation(4, vec![("x", Op::Set(Value::integer(1)))]));
        assert_eq!((document.deleted, json(&document)), (false, r#"{"x":1}"#.to_owned()));
    }

    #[test]
    fn an_older_mutation_changes_nothing() {
        let mut document = Document::empty();
        assert!(document.apply(&mutation(5, vec![("x", Op::Set(Value::integer(5)))])));
        assert!(!document.apply(&mutation(5, vec![("x", Op::Set(Value::integer(0)))])));
        assert!(!document.apply(&mutation(4, vec![("", Op::Tombstone(true))])));
        assert_eq!(json(&document), r#"{"x":5}"#);
    }

    #[test]
    fn a_mutation_fits_where_what_it_builds_on_is_there() {
        let set = |base| Mutation { generation: 2, base, ..mutation(5, vec![("x", Op::Set(Value::null()))]) };
        let stored = [(0, 0), (1, 9), (2, 2), (2, 3), (2, 4), (2, 5), (2, 6), (3, 1)];
        let fits = |mutation: &Mutation| stored.map(|stored| fit(stored, mutation));
        use Fit::{Gap, Next, Stale};
        assert_eq!(fits(&set(3)), [Gap, Gap, Gap, Next, Next, Stale, Stale, Stale]);
        let any = [Next, Next, Next, Next, Next, Stale, Stale, Stale];
        assert_eq!(fits(&set(0)), any, "it builds on nothing");
        for whole in [Op::Replace(Object::default()), Op::Tombstone(true)] {
            let operations = vec![Operation { path: String::new(), op: Some(whole) }];
            assert_eq!(fits(&Mutation { operations, ..set(4) }), any);
        }
    }

    #[test]
    fn without_operations_only_the_guard_moves() {
        let mut document = Document::empty();
        assert!(document.apply(&mutation(1, vec![])));
        assert_eq!((document.revision, document.deleted), (1, true), "there is nothing to show");
        document.apply(&mutation(2, vec![("x", Op::Set(Value::integer(1)))]));
        document.apply(&mutation(3, vec![]));
        assert_eq!((document.revision, document.deleted, json(&document).as_str()), (3, false, r#"{"x":1}"#));
    }

    #[test]
    fn any_name_is_one_segment() {
        for name in ["a.b", "$set", "100%", "%2E", "plain", "x.$.%"] {
            assert!(!escape(name).contains(['.', '$']), "{name}");
            assert_eq!(unescape(&escape(name)), name);
        }
    }
}
