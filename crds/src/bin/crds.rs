//! Prints the definition of one kind, by its name, as YAML: `crds ingestionpipelines`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let all = millstream_crds::all();
    let Some(crd) = all.iter().find(|crd| crd.spec.names.plural == wanted) else {
        let known: Vec<&str> = all.iter().map(|crd| crd.spec.names.plural.as_str()).collect();
        eprintln!("no kind `{wanted}`; there are: {}", known.join(", "));
        return ExitCode::FAILURE;
    };
    match serde_yaml::to_string(crd) {
        Ok(text) => {
            print!("# Generated from crds/src by tools/generate; do not edit.\n{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{wanted} cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}
