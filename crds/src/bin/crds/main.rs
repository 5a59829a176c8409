//! Prints the definition of one kind, by its name, as YAML: `crds ingestionpipelines`; or the reference of all of them, as Markdown: `crds reference`.

mod reference;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use std::process::ExitCode;

fn main() -> ExitCode {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let all = millstream_crds::all();
    match text(&wanted, &all) {
        Some(Ok(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Some(Err(error)) => {
            eprintln!("{wanted} cannot be written: {error}");
            ExitCode::FAILURE
        }
        None => {
            let known: Vec<&str> = all.iter().map(|crd| crd.spec.names.plural.as_str()).collect();
            eprintln!("no kind `{wanted}`; there are: {}; `reference` describes all", known.join(", "));
            ExitCode::FAILURE
        }
    }
}

/// What was asked for, if it is known.
fn text(wanted: &str, all: &[CustomResourceDefinition]) -> Option<Result<String, String>> {
    if wanted == "reference" {
        return Some(reference::page(all).map_err(|error| error.to_string()));
    }
    let crd = all.iter().find(|crd| crd.spec.names.plural == wanted)?;
    let yaml = serde_yaml::to_string(crd).map_err(|error| error.to_string());
    Some(yaml.map(|text| format!("# Generated from crds/src by tools/generate; do not edit.\n{text}")))
}
