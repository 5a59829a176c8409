//! Mutations as people read them: JSON of what is Protobuf in the topic.

use millstream_model::id::hex;
use millstream_model::proto::{List, Mutation, Operation, operation::Op};
use millstream_model::trace;
use serde_json::{Map, Value, json};

/// A mutation as one JSON object. Each operation names its path: `{"path": "attributes.plan", "set": "pro"}`.
pub fn mutation_json(mutation: &Mutation) -> Value {
    let operations: Vec<Value> = mutation.operations.iter().map(operation).collect();
    let mut json = json!({
        "tenant": mutation.tenant,
        "collection": mutation.collection,
        "id": mutation.id,
        "generation": mutation.generation,
        "revision": mutation.revision,
        "base": mutation.base,
        "operations": operations,
        "accepted_ms": mutation.accepted_ms,
        "record_id": hex(&mutation.record_id),
    });
    if let (Some(context), Some(members)) = (&mutation.trace, json.as_object_mut()) {
        members.extend(trace::headers(context).map(|(name, value)| (name.to_owned(), Value::from(value))));
    }
    json
}

fn operation(operation: &Operation) -> Value {
    let (name, value) = match &operation.op {
        Some(Op::Set(value)) => ("set", to_json(value)),
        Some(Op::Unset(_)) => ("unset", Value::Bool(true)),
        Some(Op::AddToSet(list)) => ("add_to_set", items(list)),
        Some(Op::RemoveFromSet(list)) => ("remove_from_set", items(list)),
        Some(Op::Replace(object)) => ("replace", to_json(object)),
        Some(Op::Tombstone(_)) => ("tombstone", Value::Bool(true)),
        None => ("unknown", Value::Null),
    };
    let mut members = Map::new();
    if !operation.path.is_empty() {
        members.insert("path".to_owned(), Value::from(operation.path.as_str()));
    }
    members.insert(name.to_owned(), value);
    Value::Object(members)
}

fn items(list: &List) -> Value {
    Value::Array(list.items.iter().map(to_json).collect())
}

fn to_json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_model::proto;

    #[test]
    fn every_operation_is_shown() {
        let op = |path: &str, op| Operation { path: path.to_owned(), op: Some(op) };
        let list = List { items: vec![proto::Value::string("a")] };
        let mutation = Mutation {
            tenant: "acme".to_owned(),
            collection: "users".to_owned(),
            id: "u1".to_owned(),
            generation: 1,
            revision: 3,
            base: 2,
            operations: vec![
                op("a.plan", Op::Set(proto::Value::string("pro"))),
                op("a.old", Op::Unset(true)),
                op("a.tags", Op::AddToSet(list.clone())),
                op("a.tags", Op::RemoveFromSet(list)),
                op("", Op::Tombstone(true)),
            ],
            record_id: vec![1, 255],
            ..Mutation::default()
        };
        let json = mutation_json(&mutation);
        let operations = json!([
            {"path": "a.plan", "set": "pro"}, {"path": "a.old", "unset": true}, {"path": "a.tags", "add_to_set": ["a"]},
            {"path": "a.tags", "remove_from_set": ["a"]}, {"tombstone": true}
        ]);
        assert_eq!(json["operations"], operations);
        assert_eq!((&json["revision"], &json["base"], &json["record_id"]), (&json!(3), &json!(2), &json!("01ff")));
    }
}
