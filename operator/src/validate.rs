//! What a schema cannot say of a pipeline.

use crate::Prepared;
use crate::build::{BuildError, pods, quantity};
use millstream_crds::{FreeForm, Stage, StageName};
use serde_json::Value;

/// The longest prefix that workers take.
const LONGEST_PREFIX: usize = 63;
/// What a stage's `config` may set; the rest follows from other fields.
const SECTIONS: [&str; 8] = ["tenants", "limits", "gateway", "unify", "action", "batch", "state", "reaction"];
/// Labels that Services, budgets and policies select by.
const SELECTED_BY: &str = "app.kubernetes.io/";

/// Something that is wrong with a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field, as a path such as `spec.kafka.prefix`.
    pub field: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Everything that is wrong; nothing is changed while there is anything.
pub fn validate(prepared: &Prepared) -> Vec<Problem> {
    let mut problems: Vec<Problem> = prefix(&prepared.prefix()).into_iter().collect();
    for stage in StageName::ALL {
        let field = format!("spec.stages.{}", stage.as_str());
        let of_stage = prepared.pipeline.spec.stages.of(stage);
        check_stage(&field, of_stage, &mut problems);
        check_fields(&format!("{field}.podTemplate"), pods::unknown(prepared, stage), &mut problems);
        if stage != StageName::Gateway && of_stage.config.0.contains_key("tenants") {
            let message =
                "belongs to the gateway: elsewhere, records of `Tenant` resources would be rejected".to_owned();
            problems.push(Problem { field: format!("{field}.config.tenants"), message });
        }
    }
    problems
}

/// What is wrong with what the names of topics begin with: without a right one there are no topics.
pub(crate) fn prefix(prefix: &str) -> Option<Problem> {
    let message = || {
        format!(
            "`{prefix}`, which names of topics begin with, has {} characters, and may have {LONGEST_PREFIX}: give a shorter one here",
            prefix.len()
        )
    };
    (prefix.len() > LONGEST_PREFIX).then(|| Problem { field: "spec.kafka.prefix".to_owned(), message: message() })
}

fn check_stage(field: &str, stage: &Stage, problems: &mut Vec<Problem>) {
    for section in stage.config.0.keys().filter(|section| !SECTIONS.contains(&section.as_str())) {
        let message = format!(
            "follows from the rest of the resource, or is unknown; what can be set here is {}",
            SECTIONS.join(", ")
        );
        problems.push(Problem { field: format!("{field}.config.{section}"), message });
    }
    check_keys(&format!("{field}.config.tenants"), stage.config.0.get("tenants"), problems);
    check_template(&format!("{field}.podTemplate"), &stage.pod_template, problems);
    for (kind, quantities) in [("requests", &stage.resources.requests), ("limits", &stage.resources.limits)] {
        for (name, value) in quantities {
            if let Err(why) = quantity::check(value) {
                problems.push(Problem { field: format!("{field}.resources.{kind}.{name}"), message: why });
            }
        }
    }
}

/// Whoever may read a pipeline would read a key that is written out.
fn check_keys(field: &str, tenants: Option<&Value>, problems: &mut Vec<Problem>) {
    for (number, tenant) in tenants.and_then(Value::as_array).into_iter().flatten().enumerate() {
        let keys = tenant.get("api_keys").and_then(Value::as_array).into_iter().flatten();
        if keys.into_iter().any(|key| key.get("plain").is_some()) {
            let message = "a key in the clear can be read by everybody who may read this resource: give its hash, `sha256: $(printf %s KEY | sha256sum)`".to_owned();
            problems.push(Problem { field: format!("{field}[{number}].api_keys"), message });
        }
    }
}

/// What is no field, or does not fit, is said here: it would be dropped before the API server could judge it.
fn check_fields(field: &str, unknown: Result<Vec<String>, BuildError>, problems: &mut Vec<Problem>) {
    match unknown {
        Ok(unknown) => problems.extend(unknown.into_iter().map(|path| {
            let message = "is no field of a Pod's template: correct its name, or its place, or take it away".to_owned();
            Problem { field: format!("{field}.{path}"), message }
        })),
        Err(BuildError::Template { error, .. }) => {
            let message = format!("is no Pod's template with this: {error}");
            problems.push(Problem { field: field.to_owned(), message });
        }
        // No matter of the template: whoever builds says it.
        Err(_) => {}
    }
}

/// What its fields say is for the API server to judge.
fn check_template(field: &str, template: &FreeForm, problems: &mut Vec<Problem>) {
    for part in template.0.keys().filter(|part| !["metadata", "spec"].contains(&part.as_str())) {
        let message = "a Pod's template has `metadata` and `spec`".to_owned();
        problems.push(Problem { field: format!("{field}.{part}"), message });
    }
    let labels = template.0.get("metadata").and_then(|metadata| metadata.get("labels"));
    for label in labels.and_then(|labels| labels.as_object()).into_iter().flat_map(|labels| labels.keys()) {
        if label.starts_with(SELECTED_BY) {
            let message = "Services and budgets select by this label: use another one".to_owned();
            problems.push(Problem { field: format!("{field}.metadata.labels[{label}]"), message });
        }
    }
}
