//! Laying what users write over a Pod's template.
//!
//! Objects are laid over each other member by member, and lists of objects element by element where both sides' elements have the key by which Kubernetes tells them apart (`name`, of containers,
//! volumes, variables; `mountPath`, of mounts; `containerPort`, of ports). Every other list, and everything else, is replaced; `null` takes away.

use serde_json::Value;

/// The keys of elements, the most specific first.
const KEYS: [&str; 4] = ["mountPath", "containerPort", "topologyKey", "name"];

/// Puts the second over the first.
pub(super) fn lay_over(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (name, value) in over {
                if value.is_null() {
                    under.remove(name);
                } else {
                    lay_over(under.entry(name.as_str()).or_insert(Value::Null), value);
                }
            }
        }
        (Value::Array(under), Value::Array(over)) if key_of(under, over).is_some() => {
            let Some(key) = key_of(under, over) else { return };
            for element in over {
                match under.iter_mut().find(|it| it.get(key) == element.get(key)) {
                    Some(it) => lay_over(it, element),
                    None => under.push(element.clone()),
                }
            }
        }
        (under, over) => *under = over.clone(),
    }
}

/// Paths of what is in the first and not in the second, which was made from it. `null` is nothing.
pub(super) fn find_dropped(path: &str, given: Option<&Value>, kept: Option<&Value>, dropped: &mut Vec<String>) {
    match (given, kept) {
        (None | Some(Value::Null), _) => {}
        (Some(_), None) => dropped.push(path.to_owned()),
        (Some(Value::Object(given)), Some(kept)) => {
            for (name, value) in given {
                find_dropped(&format!("{path}.{name}"), Some(value), kept.get(name), dropped);
            }
        }
        (Some(Value::Array(given)), Some(kept)) => {
            for (number, value) in given.iter().enumerate() {
                let name = value.get("name").and_then(Value::as_str).map_or(number.to_string(), str::to_owned);
                find_dropped(&format!("{path}[{name}]"), Some(value), kept.get(number), dropped);
            }
        }
        (Some(_), Some(_)) => {}
    }
}

/// The key that every element of both has.
fn key_of(under: &[Value], over: &[Value]) -> Option<&'static str> {
    let all_have =
        |key: &&str| !under.is_empty() && under.iter().chain(over).all(|element| element.get(*key).is_some());
    KEYS.iter().find(|key| all_have(key)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_are_merged_by_the_key_of_their_elements() {
        let mut under = json!({"spec": {
            "containers": [{"name": "millstream", "image": "a", "args": ["worker"], "env": [{"name": "A", "value": "1"}], "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "terminationGracePeriodSeconds": 40,
        }});
        let over = json!({"metadata": {"labels": {"team": "data"}}, "spec": {
            "containers": [
                {"name": "millstream", "args": ["other"], "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "3"}], "volumeMounts": [{"name": "data", "mountPath": "/more"}]},
                {"name": "sidecar", "image": "b"},
            ],
            "nodeSelector": {"pool": "fast"},
            "terminationGracePeriodSeconds": null,
        }});
        lay_over(&mut under, &over);
        let expected = json!({"metadata": {"labels": {"team": "data"}}, "spec": {
            "containers": [
                {"name": "millstream", "image": "a", "args": ["other"], "env": [{"name": "A", "value": "3"}, {"name": "B", "value": "2"}],
                 "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "data", "mountPath": "/more"}]},
                {"name": "sidecar", "image": "b"},
            ],
            "nodeSelector": {"pool": "fast"},
        }});
        assert_eq!(under, expected);
    }
}
