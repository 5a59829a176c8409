//! That it is each of its writes: by the permissions that the chart gives, which are all that it can write, and by what each test was killed at.

use std::collections::{BTreeMap, BTreeSet};

/// In each test, the writes that an operator has died before and after. Applying something that is not there creates it.
const KILLED: [(&str, &[&str]); 10] = [
    (
        "a pipeline comes and goes",
        &[
            "DELETE statefulsets",
            "PATCH ingestionpipelines",
            "PATCH ingestionpipelines/status",
            "PATCH networkpolicies",
            "PATCH poddisruptionbudgets",
            "PATCH serviceaccounts",
            "PATCH services",
            "PATCH stagescales/status",
            "PATCH statefulsets",
            "POST configmaps",
            "POST events",
            "POST stagescales",
        ],
    ),
    ("a tenant is held, let go and erased", &["PATCH tenants", "PATCH tenants/status"]),
    ("Pods get another template", &["DELETE configmaps", "PATCH statefulsets", "POST configmaps"]),
    ("what is not built any more goes", &["DELETE networkpolicies", "DELETE poddisruptionbudgets", "DELETE services"]),
    ("an Event repeats itself", &["PATCH events"]),
    ("a Pod that Kubernetes does not replace", &["DELETE pods"]),
    ("a Pod whose node is lost", &["DELETE persistentvolumeclaims", "DELETE pods"]),
    ("the Lease", &["POST leases", "PUT leases"]),
    ("the label of the one that leads", &["PATCH pods"]),
    ("topics that Strimzi makes", &["DELETE kafkatopics", "POST kafkatopics"]),
];

/// `PATCH tenants/status` of `PATCH tenants/acme/status (a step)`.
fn class(write: &str) -> String {
    let words: Vec<&str> = write.split_whitespace().collect();
    let path: Vec<&str> = words[1].split('/').collect();
    let subresource = path.get(2).map(|name| format!("/{name}")).unwrap_or_default();
    format!("{} {}{subresource}", words[0], path[0])
}

/// The writes that a test was killed at are those that are said of it.
pub(super) fn is_killed_at(test: &str, died: &BTreeSet<String>) {
    let of_test = KILLED.iter().find(|(name, _)| *name == test).unwrap_or_else(|| panic!("{test} is not known")).1;
    let found: BTreeSet<String> = died.iter().map(|write| class(write)).collect();
    assert_eq!(found, of_test.iter().map(ToString::to_string).collect(), "{test}");
}

/// What a rule of a chart says, `[a, b]`.
fn listed<'a>(line: &'a str, field: &str) -> Option<Vec<&'a str>> {
    let list = line.trim().trim_start_matches("- ").strip_prefix(field)?.strip_prefix(": [")?.strip_suffix(']')?;
    Some(list.split(", ").collect())
}

#[test]
fn an_operator_was_killed_at_each_write_that_the_chart_allows() {
    let chart = |name: &str| {
        let path = format!("{}/../../charts/millstream/templates/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    };
    let (helpers, rbac) = (chart("_helpers.tpl"), chart("rbac.yaml"));
    let (mut allowed, mut resources) = (BTreeMap::<String, BTreeSet<String>>::new(), Vec::new());
    for line in helpers.lines().chain(rbac.lines()) {
        if let Some(named) = listed(line, "resources") {
            resources = named;
        }
        for verb in listed(line, "verbs").unwrap_or_default() {
            for resource in &resources {
                allowed.entry((*resource).to_owned()).or_default().insert(verb.to_owned());
            }
        }
    }
    let mut writes = BTreeSet::new();
    for (resource, verbs) in &allowed {
        for verb in verbs {
            let method = match verb.as_str() {
                "get" | "list" | "watch" => continue,
                // Whoever may patch what it creates applies it.
                "create" if verbs.contains("patch") && resource != "events" => "PATCH",
                "create" => "POST",
                "patch" => "PATCH",
                "update" => "PUT",
                "delete" => "DELETE",
                other => panic!("{other} of {resource} is no verb that is known here"),
            };
            writes.insert(format!("{method} {resource}"));
        }
    }
    assert!(writes.len() > 20, "{writes:?}");
    let killed: BTreeSet<String> = KILLED.iter().flat_map(|(_, writes)| *writes).map(ToString::to_string).collect();
    assert_eq!(killed, writes);
    assert_eq!(class("PATCH tenants/acme/status documents"), "PATCH tenants/status");
    assert_eq!(class("POST stagescales"), "POST stagescales");
}
