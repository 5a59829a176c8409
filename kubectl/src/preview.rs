//! `kubectl millstream preview`: the objects that a pipeline would become, by the operator's own function, without any cluster.
//!
//! What is not in the file is not known: workers of a stage are those of the resource, and not what a `StageScale` says by now; Secrets are not read, so that the hashes of their contents, in
//! annotations, are of nothing. `kubectl millstream preview -f pipeline.yaml | kubectl diff -f -` shows what would change, and these two beside it.
//!
//! With `--against FILE`, what the resources are now, it says instead what the change leads to, stage by stage ([`millstream_operator::change`]).

use crate::Outcome;
use anyhow::{Context, bail};
use kube::ResourceExt;
use millstream_crds::{IngestionPipeline, Tenant};
use millstream_operator::build::build;
use millstream_operator::change::{self, Change, Effect};
use millstream_operator::validate::validate;
use millstream_operator::{Prepared, SecretHashes};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
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
    /// Say what it leads to when what is in this file becomes what is in the other (which Pods are replaced, in which order) instead of printing objects; `kubectl get mip,mtn -o yaml` writes such a
    /// file, and `-` is standard input
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Namespace of pipelines that name none
    #[arg(long, short, default_value = "default", value_name = "NAMESPACE")]
    namespace: String,
    /// Namespace of the operator, whose Pods may look at workers
    #[arg(long, env = "MILLSTREAM_OPERATOR_NAMESPACE", default_value = "millstream-system", value_name = "NAMESPACE")]
    operator_namespace: String,
}

pub(crate) fn run(args: &PreviewArgs) -> anyhow::Result<Outcome> {
    let found = read(&args.file)?;
    if found.pipelines.is_empty() && (args.against.is_none() || found.tenants.is_empty()) {
        bail!("{} has no IngestionPipeline", args.file.display());
    }
    if let Some(against) = &args.against {
        let (text, outcome) = compared(&read(against)?, &found, args)?;
        crate::print(format_args!("{text}"))?;
        return Ok(outcome);
    }
    let mut outcome = Outcome::Good;
    for pipeline in found.pipelines {
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

/// What it leads to when what was found before becomes what was found now, as text. What is in one of both alone is not compared: a file need not have everything.
fn compared(before: &Found, after: &Found, args: &PreviewArgs) -> anyhow::Result<(String, Outcome)> {
    let (mut text, mut outcome) = (String::new(), Outcome::Good);
    let before_it: Vec<Prepared> = before.pipelines.iter().map(|it| prepared(it.clone(), args)).collect();
    for pipeline in &after.pipelines {
        let now = prepared(pipeline.clone(), args);
        let problems = validate(&now);
        problems.iter().for_each(|problem| writeln!(text, "{}: {problem}", now.name()).unwrap_or_default());
        if !problems.is_empty() {
            outcome = Outcome::Bad;
            continue;
        }
        let is_it = |it: &&Prepared| (it.namespace(), it.name()) == (now.namespace(), now.name());
        let Some(was) = before_it.iter().find(is_it) else {
            writeln!(text, "{}: is new", now.name())?;
            continue;
        };
        let Effect { stages, around } = change::classify(was, &now)?;
        writeln!(text, "{}:", now.name())?;
        for (stage, change) in &stages {
            outcome = if matches!(change, Change::Recreate(_)) { Outcome::Bad } else { outcome };
            writeln!(text, "  {:<9} {change}", stage.as_str())?;
        }
        writeln!(text, "  {:<9} {around}", "around")?;
    }
    if !after.tenants.is_empty() {
        writeln!(text, "tenants:\n  {}", change::tenants(&before.tenants_of(&after.tenants), &after.tenants))?;
    }
    Ok((text, outcome))
}

/// What is in a file.
#[derive(Debug, Default)]
struct Found {
    pipelines: Vec<IngestionPipeline>,
    tenants: Vec<Tenant>,
}

impl Found {
    /// Those of the names of these.
    fn tenants_of(&self, others: &[Tenant]) -> Vec<Tenant> {
        let is_there = |tenant: &&Tenant| others.iter().any(|other| other.name_any() == tenant.name_any());
        self.tenants.iter().filter(is_there).cloned().collect()
    }

    fn add(&mut self, value: serde_yaml::Value) -> anyhow::Result<()> {
        match value.get("kind").and_then(serde_yaml::Value::as_str) {
            Some("IngestionPipeline") => {
                self.pipelines.push(serde_yaml::from_value(value).context("this is no IngestionPipeline")?);
            }
            Some("Tenant") => self.tenants.push(serde_yaml::from_value(value).context("this is no Tenant")?),
            // As `kubectl get` prints several.
            Some("List") => {
                let items = value.get("items").and_then(serde_yaml::Value::as_sequence).cloned().unwrap_or_default();
                items.into_iter().try_for_each(|item| self.add(item))?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn read(file: &Path) -> anyhow::Result<Found> {
    let mut text = String::new();
    match file.to_str() {
        Some("-") => std::io::stdin().read_to_string(&mut text).map(drop).context("reading standard input")?,
        _ => text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
    }
    parse(&text).with_context(|| file.display().to_string())
}

fn parse(text: &str) -> anyhow::Result<Found> {
    let mut found = Found::default();
    for document in serde_yaml::Deserializer::from_str(text) {
        found.add(serde_yaml::Value::deserialize(document).context("this is not YAML")?)?;
    }
    Ok(found)
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
        let found = parse(&text).unwrap().pipelines;
        assert_eq!((found.len(), found[0].spec.image.as_str()), (1, "i"));
        let items: Vec<serde_yaml::Value> =
            vec![serde_yaml::from_str(pipeline).unwrap(), serde_yaml::from_str("kind: ConfigMap").unwrap()];
        let list = serde_yaml::to_string(&serde_json::json!({"kind": "List", "items": items})).unwrap();
        assert_eq!(parse(&list).unwrap().pipelines.len(), 1, "as kubectl prints several");
        let wrong = parse(&text.replace("image: i", "imagee: i")).unwrap_err();
        assert!(format!("{wrong:#}").contains("imagee"), "{wrong:#}");
    }
    #[test]
    fn what_a_change_leads_to_is_said_by_stage() {
        let args = PreviewArgs {
            file: PathBuf::new(),
            against: None,
            namespace: "shop".to_owned(),
            operator_namespace: "millstream-system".to_owned(),
        };
        let pipeline = |more: &str| {
            let text = format!(
                "apiVersion: ingestion.millstream.dev/v1alpha1\nkind: IngestionPipeline\nmetadata: {{name: orders}}\nspec:\n  image: i\n  kafka: {{bootstrapServers: [\"k:1\"]}}\n  documentStore: {{mongodb: {{uri: {{name: m, key: uri}}}}}}\n{more}"
            );
            parse(&text).unwrap()
        };
        let said = |before: &Found, more: &str| compared(before, &pipeline(more), &args).unwrap();
        let before = pipeline("");
        let (text, outcome) = said(&before, "  stages: {action: {config: {batch: {max_time: 20ms}}}}\n");
        let expected = "orders:\n  reaction  none\n  action    rolling    orders-action-1, orders-action-0: one at a time, after their shards have left\n  unify     none\n  gateway   none\n  around    none\n";
        assert_eq!((text.as_str(), outcome), (expected, Outcome::Good));
        let (text, outcome) = said(&before, "  shards: 16\n");
        assert!(text.contains("  action    recreate   spec.shards: fixed") && outcome == Outcome::Bad, "{text}");
        let (text, outcome) = said(&before, "  stages: {action: {config: {listen: x}}}\n");
        assert!(text.contains("orders: spec.stages.action.config.listen: ") && outcome == Outcome::Bad, "{text}");
        assert_eq!(said(&Found::default(), "").0, "orders: is new\n");
    }
}
