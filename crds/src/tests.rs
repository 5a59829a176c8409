//! What must be so of every kind's schema.
use super::*;
use serde_json::Value;

fn schemas() -> Vec<(String, Value)> {
    all()
        .into_iter()
        .map(|crd| {
            let name = crd.spec.names.kind.clone();
            let version = serde_json::to_value(&crd.spec.versions[0]).unwrap();
            (name, version["schema"]["openAPIV3Schema"].clone())
        })
        .collect()
}

/// Every schema below this one, with its path.
fn walk(path: &str, schema: &Value, each: &mut dyn FnMut(&str, &Value)) {
    each(path, schema);
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            walk(&format!("{path}.{name}"), property, each);
        }
    }
    for (inner, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[inner].is_object() {
            walk(&format!("{path}{mark}"), &schema[inner], each);
        }
    }
}

fn problems(of: impl Fn(&str, &Value) -> Option<&'static str>) -> Vec<String> {
    let mut found = Vec::new();
    for (kind, schema) in schemas() {
        walk(&kind, &schema, &mut |path, schema| {
            found.extend(of(path, schema).map(|problem| format!("{path}: {problem}")))
        });
    }
    found
}

#[test]
fn every_field_is_described() {
    let of = |path: &str, schema: &Value| {
        let is_root = !path.contains('.') || path.ends_with(".metadata");
        let is_inner = path.ends_with("[]") || path.ends_with("{}");
        let text = schema["description"].as_str().unwrap_or_default();
        (!is_root && !is_inner && text.is_empty()).then_some("no description")
    };
    assert_eq!(problems(of), Vec::<String>::new());
}

#[test]
fn whatever_may_be_left_out_says_what_it_is_then() {
    let mut found = Vec::new();
    for (kind, schema) in schemas() {
        walk(&kind, &schema["properties"]["spec"], &mut |path, schema| {
            let required = schema["required"].as_array();
            let is_required = |name: &String| required.is_some_and(|names| names.iter().any(|it| it == name));
            let optional =
                schema["properties"].as_object().into_iter().flatten().filter(|(name, _)| !is_required(name));
            // Of a group each of its members says it.
            let says = |schema: &Value| {
                let text = schema["description"].as_str().unwrap_or_default();
                schema["properties"].is_object() || text.contains("default")
            };
            found.extend(optional.filter(|(_, schema)| !says(schema)).map(|(name, _)| format!("{path}.{name}")));
        });
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn every_string_list_and_map_is_bounded() {
    let of = |path: &str, schema: &Value| {
        // Of the condition's type, which is Kubernetes' own, and of the object's head.
        if path.contains(".conditions[]")
            || path.ends_with(".metadata")
            || path.ends_with(".apiVersion")
            || path.ends_with(".kind")
        {
            return None;
        }
        if schema["x-kubernetes-int-or-string"] == true && schema["maxLength"].is_null() {
            return Some("a number or string without a bound");
        }
        match schema["type"].as_str() {
            Some("string") if schema["maxLength"].is_null() && schema["enum"].is_null() => {
                Some("a string without a bound")
            }
            Some("array") if schema["maxItems"].is_null() => Some("a list without a bound"),
            Some("object") if !schema["additionalProperties"].is_null() && schema["maxProperties"].is_null() => {
                Some("a map without a bound")
            }
            _ => None,
        }
    };
    assert_eq!(problems(of), Vec::<String>::new());
}

#[test]
fn every_rule_says_what_to_do() {
    let of = |_: &str, schema: &Value| {
        let rules = schema["x-kubernetes-validations"].as_array()?;
        rules
            .iter()
            .any(|rule| rule["message"].as_str().is_none_or(|text| text.len() < 20))
            .then_some("a rule without a message")
    };
    assert_eq!(problems(of), Vec::<String>::new());
}

#[test]
fn every_list_says_how_it_is_merged() {
    let of = |_: &str, schema: &Value| {
        (schema["type"] == "array" && schema["x-kubernetes-list-type"].is_null()).then_some("no list type")
    };
    assert_eq!(problems(of), Vec::<String>::new());
}

#[test]
fn every_kind_can_be_installed_with_plain_kubectl_apply() {
    for crd in all() {
        let text = serde_yaml::to_string(&crd).unwrap();
        // `kubectl apply` keeps the whole object in an annotation, which may have 262,144 bytes.
        assert!(text.len() < 200_000, "{} has {} bytes", crd.spec.names.kind, text.len());
        assert_eq!((crd.spec.group.as_str(), crd.spec.versions[0].name.as_str()), (GROUP, VERSION));
        assert_eq!(crd.spec.names.categories.as_deref(), Some(&["millstream".to_owned()][..]));
    }
}

/// The API server drops what says nothing, and who compares what it has with what was applied finds a difference for ever.
#[test]
fn no_definition_says_something_empty() {
    fn empty(path: &str, value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Array(list) if list.is_empty() => found.push(path.to_owned()),
            Value::Array(list) => list.iter().for_each(|item| empty(&format!("{path}[]"), item, found)),
            Value::Object(fields) => {
                fields.iter().for_each(|(name, field)| empty(&format!("{path}.{name}"), field, found))
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    for crd in all() {
        empty(&crd.spec.names.kind, &serde_json::to_value(&crd).unwrap(), &mut found);
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn the_smallest_pipeline_has_all_defaults() {
    let text = "
image: registry.example.com/millstream:0.1.0
kafka: {bootstrapServers: ['kafka:9092']}
documentStore: {mongodb: {uri: {name: mongodb, key: uri}}}
";
    let spec: IngestionPipelineSpec = serde_yaml::from_str(text).unwrap();
    assert_eq!((spec.shards, spec.standbys, spec.kafka.replication, spec.stages.action.replicas), (8, 1, 3, 2));
    assert_eq!((spec.suspend, spec.paused, spec.topic_deletion_policy), (false, false, DeletionPolicy::Retain));
    let again: IngestionPipelineSpec = serde_json::from_value(serde_json::to_value(&spec).unwrap()).unwrap();
    assert_eq!(again, spec);
}

#[test]
fn an_unknown_field_is_named() {
    let text = "
image: x
kafka: {bootstrapServer: ['kafka:9092']}
documentStore: {}
";
    let error = serde_yaml::from_str::<IngestionPipelineSpec>(text).unwrap_err().to_string();
    assert!(error.contains("bootstrapServer") && error.contains("bootstrapServers"), "{error}");
}

#[test]
fn a_duration_is_a_number_of_milliseconds() {
    let cases =
        [("7d", Some(604_800_000)), ("50ms", Some(50)), ("2m", Some(120_000)), ("d", None), ("7w", None), ("7", None)];
    for (text, expected) in cases {
        assert_eq!(HumanDuration::from(text).millis(), expected, "{text}");
    }
    assert_eq!(HumanDuration::from("99999999999999999d").millis(), None);
}
