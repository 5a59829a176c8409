//! `kubectl millstream preview`: the objects that a pipeline would become, by the operator's own function, without any cluster.
//!
//! What is not in the file is not known: workers of a stage are those of the resource, and not what a `StageScale` says by now; Secrets are not read, so that the hashes of their contents, in
//! annotations, are of nothing. `kubectl millstream preview -f pipeline.yaml | kubectl diff -f -` shows what would change, and these two beside it.

use crate::Outcome;
use anyhow::{Context, bail};
use millstream_crds::IngestionPipeline;
use millstream_operator::build::build;
use millstream_operator::validate::validate;
use millstream_operator::{Prepared, SecretHashes};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Who owns objects whose pipeline is in no cluster.
const NO_UID: &str = "00000000-0000-0000-0000-000000000000";
/// Of a document store whose connection string is in a Secret.
const MONGODB_PORT: u16 = 27_017;

/// Arguments of `preview`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PreviewArgs {
    /// File with IngestionPipelines, YAML; other kinds in it are passed over; `-`: standard input
    #[arg(long = "filename", short, value_name = "FILE")]
    file: PathBuf,
    /// Namespace of pipelines that name none
    #[arg(long, short, default_value = "default", value_name = "NAMESPACE")]
    namespace: String,
    /// Namespace of the operator, whose Pods may look at workers
    #[arg(long, env = "MILLSTREAM_OPERATOR_NAMESPACE", default_value = "millstream-system", value_name = "NAMESPACE")]
    operator_namespace: String,
}

pub(crate) fn run(args: &PreviewArgs) -> anyhow::Result<Outcome> {
    let pipelines = read(&args.file)?;
    if pipelines.is_empty() {
        bail!("{} has no IngestionPipeline", args.file.display());
    }
    let mut outcome = Outcome::Good;
    for pipeline in pipelines {
        let prepared = prepared(pipeline, args);
        let problems = validate(&prepared);
        for problem in &problems {
            eprintln!("{}: {problem}", prepared.name());
            outcome = Outcome::Bad;
        }
        if problems.is_empty() {
            for object in build(&prepared)?.to_json()? {
                crate::print(format_args!("---\n{}", serde_yaml::to_string(&object)?))?;
            }
        }
    }
    Ok(outcome)
}

fn read(file: &Path) -> anyhow::Result<Vec<IngestionPipeline>> {
    let mut text = String::new();
    match file.to_str() {
        Some("-") => std::io::stdin().read_to_string(&mut text).map(drop).context("reading standard input")?,
        _ => text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
    }
    parse(&text).with_context(|| file.display().to_string())
}

fn parse(text: &str) -> anyhow::Result<Vec<IngestionPipeline>> {
    let mut pipelines = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = serde_yaml::Value::deserialize(document).context("this is not YAML")?;
        if value.get("kind").and_then(serde_yaml::Value::as_str) == Some("IngestionPipeline") {
            pipelines.push(serde_yaml::from_value(value).context("this is no IngestionPipeline")?);
        }
    }
    Ok(pipelines)
}

fn prepared(mut pipeline: IngestionPipeline, args: &PreviewArgs) -> Prepared {
    pipeline.metadata.namespace.get_or_insert_with(|| args.namespace.clone());
    pipeline.metadata.uid.get_or_insert_with(|| NO_UID.to_owned());
    Prepared {
        document_ports: pipeline.spec.document_store.mongodb.iter().map(|_| MONGODB_PORT).collect::<BTreeSet<_>>(),
        pipeline,
        replicas: BTreeMap::new(),
        secrets: SecretHashes::default(),
        operator_namespace: args.operator_namespace.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_other_kinds_is_read() {
        let pipeline = "apiVersion: ingestion.millstream.dev/v1alpha1\nkind: IngestionPipeline\nmetadata: {name: orders}\nspec:\n  image: i\n  kafka: {bootstrapServers: [\"k:1\"]}\n  documentStore: {mongodb: {uri: {name: m, key: uri}}}\n";
        let text = format!("kind: Namespace\nmetadata: {{name: shop}}\n---\n{pipeline}---\n");
        let found = parse(&text).unwrap();
        assert_eq!((found.len(), found[0].spec.image.as_str()), (1, "i"));
        let wrong = parse(&text.replace("image: i", "imagee: i")).unwrap_err();
        assert!(format!("{wrong:#}").contains("imagee"), "{wrong:#}");
    }
}
