//! Documents as BSON and back.
//!
//! A document is stored as `{_id: "<tenant>/<id>", _tenant, _gen, _rev, …fields}`; a tombstone as its guard and `_deleted: true`. Integers
//! are 64 bits wide, timestamps are dates. Names are stored as they are: path segments come escaped, members of values are free.

use bson::{Bson, Document as BsonDocument, doc};
use millstream_model::document::Document;
use millstream_model::proto::{List, Object, Value, value::Kind};

/// Key.
pub(super) const ID: &str = "_id";
/// Tenant, for people who query.
pub(super) const TENANT: &str = "_tenant";
/// Generation of the newest mutation.
pub(super) const GENERATION: &str = "_gen";
/// Revision of the newest mutation.
pub(super) const REVISION: &str = "_rev";
/// Present and true in a tombstone.
pub(super) const DELETED: &str = "_deleted";

/// Top-level names that the store keeps for itself.
pub(super) const RESERVED: [&str; 5] = [ID, TENANT, GENERATION, REVISION, DELETED];

/// What every `_id` of a tenant starts with. A slash in the tenant's name would make two tenants' ids collide, so it is escaped.
pub(super) fn prefix(tenant: &str) -> String {
    format!("{}/", tenant.replace('%', "%25").replace('/', "%2F"))
}

/// A document's `_id`.
pub(super) fn key(tenant: &str, id: &str) -> String {
    prefix(tenant) + id
}

/// A value as BSON.
pub(super) fn to_bson(value: &Value) -> Bson {
    match &value.kind {
        None | Some(Kind::Null(_)) => Bson::Null,
        Some(Kind::Boolean(value)) => Bson::Boolean(*value),
        Some(Kind::Integer(number)) => Bson::Int64(*number),
        Some(Kind::Float(number)) => Bson::Double(*number),
        Some(Kind::String(text)) => Bson::String(text.clone()),
        Some(Kind::Timestamp(ms)) => Bson::DateTime(bson::DateTime::from_millis(*ms)),
        Some(Kind::List(list)) => Bson::Array(items(list)),
        Some(Kind::Object(object)) => Bson::Document(members(object)),
    }
}

/// A list's items as BSON.
pub(super) fn items(list: &List) -> Vec<Bson> {
    list.items.iter().map(to_bson).collect()
}

/// An object's members as BSON.
pub(super) fn members(object: &Object) -> BsonDocument {
    object.pairs().map(|(name, value)| (name.to_owned(), to_bson(value))).collect()
}

/// BSON as a value. What another program wrote and we have no kind for is shown as text.
pub(super) fn from_bson(bson: Bson) -> Value {
    match bson {
        Bson::Null | Bson::Undefined => Value::null(),
        Bson::Boolean(value) => Value::boolean(value),
        Bson::Int32(number) => Value::integer(i64::from(number)),
        Bson::Int64(number) => Value::integer(number),
        Bson::Double(number) => Value::float(number),
        Bson::String(text) | Bson::Symbol(text) => Value::string(text),
        Bson::DateTime(time) => Value::timestamp(time.timestamp_millis()),
        Bson::Array(items) => Value::list(items.into_iter().map(from_bson).collect()),
        Bson::Document(members) => Value::object(members.into_iter().map(|(name, value)| (name, from_bson(value)))),
        other => Value::string(other.to_string()),
    }
}

/// A whole document as it is stored.
pub(super) fn stored(tenant: &str, key: &str, document: &Document) -> Option<BsonDocument> {
    let mut stored = doc! {
        ID: key,
        TENANT: tenant,
        GENERATION: i64::from(document.generation),
        REVISION: i64::try_from(document.revision).ok()?,
    };
    if document.deleted {
        stored.insert(DELETED, true);
    }
    stored.extend(members(&document.fields));
    Some(stored)
}

/// The guard in a stored document: its (generation, revision). A document that something else wrote has none: (0, 0).
pub(super) fn guard(stored: &BsonDocument) -> (u32, u64) {
    let number = |name| match stored.get(name) {
        Some(Bson::Int64(number)) => *number,
        Some(Bson::Int32(number)) => i64::from(*number),
        _ => 0,
    };
    (u32::try_from(number(GENERATION)).unwrap_or(0), u64::try_from(number(REVISION)).unwrap_or(0))
}

/// A stored document as a [`Document`].
pub(super) fn loaded(mut stored: BsonDocument) -> Document {
    let (generation, revision) = guard(&stored);
    let deleted = stored.get_bool(DELETED).unwrap_or(false);
    for name in RESERVED {
        stored.remove(name);
    }
    let fields = millstream_model::value::object(stored.into_iter().map(|(name, value)| (name, from_bson(value))));
    Document { generation, revision, deleted, fields }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_back() {
        let object = Value::object([
            ("null".to_owned(), Value::null()),
            ("bool".to_owned(), Value::boolean(true)),
            ("int".to_owned(), Value::integer(i64::MIN)),
            ("float".to_owned(), Value::float(1.0)),
            ("text".to_owned(), Value::string("é")),
            ("time".to_owned(), Value::timestamp(-1)),
            ("list".to_owned(), Value::list(vec![Value::integer(1), Value::list(vec![])])),
            ("a.b$%".to_owned(), Value::object([("$x".to_owned(), Value::integer(2))])),
        ]);
        let fields = object.as_object().unwrap().clone();
        let document = Document { generation: 3, revision: 7, deleted: false, fields };
        assert_eq!(loaded(stored("t", "t/1", &document).unwrap()), document);
    }

    #[test]
    fn tombstones_come_back() {
        let document = Document { generation: 1, revision: 2, deleted: true, fields: Object::default() };
        assert_eq!(loaded(stored("t", "t/1", &document).unwrap()), document);
    }

    #[test]
    fn tenants_with_slashes_do_not_collide() {
        assert_ne!(key("a", "b/c"), key("a/b", "c"));
        assert_ne!(key("a/b", "c"), key("a%2Fb", "c"));
    }
}
