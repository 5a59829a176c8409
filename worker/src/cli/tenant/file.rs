//! Reads a file of `Tenant` and `Secret` resources, as `kubectl apply -f` takes it.
//!
//! Invariants:
//!
//! - **A file that works here works in Kubernetes, and means the same there.** Which key becomes which hash, and what the terms are, is decided by the operator's function ([`wanted`]); names, counts, bounds and labels are held to
//!   what the API server and the operator ask for; fields that nobody knows are refused.
//! - **All or nothing.** A file with a mistake gives all of its mistakes, each with the resource and what to do, and no tenants.
//! - **No key is ever told**, not even a part of one in an error. So Secrets are read by hand, and not by a decoder whose messages quote what they do not like.

use crate::config::Name;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use millstream_crds::{API_KEYS_LABEL, Tenant, TenantDeletionPolicy};
use millstream_operator::tenants::wanted;
use millstream_plan::message::Terms;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The terms of each tenant.
pub(super) type Senders = BTreeMap<String, Terms>;

const TENANT_VERSION: &str = "ingestion.millstream.dev/v1alpha1";
/// Without any, as kubectl has it where nothing else is configured.
const NAMESPACE: &str = "default";
/// The one pipeline that a file is about.
const PIPELINE: &str = "pipeline";
/// What may stand in `metadata`: what people write, and what `kubectl get -o yaml` prints beside it.
const METADATA: [&str; 11] = [
    "name",
    "namespace",
    "labels",
    "annotations",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "managedFields",
    "finalizers",
    "ownerReferences",
];

/// What a file holds of one namespace.
#[derive(Default)]
struct Resources {
    tenants: BTreeMap<String, Tenant>,
    secrets: BTreeMap<String, Arc<Secret>>,
    /// The namespace, and the first resource that names it.
    namespace: Option<(String, String)>,
    problems: Vec<String>,
}

/// The tenants of a file; `is_pipeline` knows the name of the pipeline by which they must be called in it.
///
/// # Errors
/// All that is wrong with it, one line each.
pub(super) fn read(text: &str, pipeline: impl Fn(&str) -> Result<(), String>) -> Result<Senders, Vec<String>> {
    let mut resources = Resources::default();
    for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let place = format!("document {}", index + 1);
        match Value::deserialize(document) {
            Ok(Value::Null) => {}
            Ok(value) => resources.take(&place, value),
            // Behind what is not YAML no document begins.
            Err(error) => {
                resources.problems.push(format!("{place}: not YAML: {error}"));
                break;
            }
        }
    }
    resources.senders(pipeline)
}

impl Resources {
    fn take(&mut self, place: &str, value: Value) {
        let Value::Object(mut object) = value else {
            self.problems.push(format!("{place}: not a resource: it needs apiVersion, kind and metadata.name"));
            return;
        };
        let of = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind) = (of("apiVersion"), of("kind"));
        match (version.as_str(), kind.as_str()) {
            ("v1", "List") => {
                let Some(Value::Array(items)) = object.remove("items") else { return };
                for (index, item) in items.into_iter().enumerate() {
                    self.take(&format!("{place}, items[{index}]"), item);
                }
            }
            (TENANT_VERSION, "Tenant") => self.tenant(place, object),
            ("v1", "Secret") => self.secret(place, &object),
            _ => self.problems.push(format!(
                "{place}: apiVersion `{version}`, kind `{kind}` is not known here: take apiVersion `{TENANT_VERSION}`, kind `Tenant`, or apiVersion `v1`, kind `Secret`"
            )),
        }
    }

    /// `Tenant acme`; none without a good name, which is a problem then.
    fn identify(&mut self, place: &str, kind: &str, object: &Map<String, Value>, known: &[&str]) -> Option<String> {
        let empty = Map::new();
        let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
        let Some(name) = metadata.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()) else {
            self.problems.push(format!("{place}: a {kind} without metadata.name"));
            return None;
        };
        let what = format!("{kind} {name}");
        let is_unknown = |field: &&String| !known.contains(&field.as_str());
        for field in object.keys().filter(is_unknown) {
            self.problems.push(format!("{what}: unknown field `{field}`, expected one of {}", known.join(", ")));
        }
        for field in metadata.keys().filter(|field| !METADATA.contains(&field.as_str())) {
            self.problems.push(format!("{what}: unknown field `metadata.{field}`"));
        }
        let namespace = match metadata.get("namespace") {
            None => NAMESPACE,
            Some(Value::String(namespace)) => namespace,
            Some(_) => {
                self.problems.push(format!("{what}: metadata.namespace must be text"));
                return None;
            }
        };
        let (first, of) = self.namespace.get_or_insert_with(|| (namespace.to_owned(), what.clone()));
        if first != namespace {
            self.problems.push(format!(
                "{what}: is in namespace `{namespace}`, and {of} in `{first}`: a pipeline, its tenants and their Secrets are in one, so make it a file of its own"
            ));
        }
        Some(name.to_owned())
    }

    fn tenant(&mut self, place: &str, object: Map<String, Value>) {
        let known = ["apiVersion", "kind", "metadata", "spec", "status"];
        let Some(name) = self.identify(place, "Tenant", &object, &known) else { return };
        let before = self.problems.len();
        if let Err(why) = name.parse::<Name>() {
            self.problems.push(format!("Tenant {name}: {why}"));
        }
        let keys = object.get("spec").and_then(|spec| spec.get("apiKeys")).and_then(Value::as_array);
        let is_reference = |key: &Value| key.is_object();
        for (index, _) in keys.into_iter().flatten().enumerate().filter(|(_, key)| !is_reference(key)) {
            self.problems.push(format!(
                "Tenant {name}: spec.apiKeys[{index}] must name a Secret and a key in it, such as {{name: {name}, key: first}}: API keys themselves are only in Secrets"
            ));
        }
        if self.problems.len() > before {
            return;
        }
        // Status is the operator's, and says nothing here.
        let mut object = object;
        object.remove("status");
        if !object.contains_key("spec") {
            self.problems.push(format!("Tenant {name}: spec is missing"));
            return;
        }
        let tenant = match serde_json::from_value::<Tenant>(Value::Object(object)) {
            Ok(tenant) => tenant,
            Err(error) => {
                self.problems.push(format!("Tenant {name}: {error}"));
                return;
            }
        };
        let count = tenant.spec.api_keys.len();
        if !(1..=2).contains(&count) {
            self.problems.push(format!(
                "Tenant {name}: spec.apiKeys names {count} keys: name one, or two while one is replaced by the other"
            ));
        }
        self.problems.extend(tenant.spec.problems().into_iter().map(|problem| format!("Tenant {name}: {problem}")));
        if self.tenants.insert(name.clone(), tenant).is_some() {
            self.problems.push(format!("Tenant {name}: is there twice"));
        }
    }

    fn secret(&mut self, place: &str, object: &Map<String, Value>) {
        let known = ["apiVersion", "kind", "metadata", "type", "immutable", "data", "stringData"];
        let Some(name) = self.identify(place, "Secret", object, &known) else { return };
        let mut data = BTreeMap::new();
        // What is in both is `stringData`'s, as in Kubernetes.
        for field in ["data", "stringData"] {
            let entries = match object.get(field) {
                None | Some(Value::Null) => continue,
                Some(Value::Object(entries)) => entries,
                Some(_) => {
                    self.problems.push(format!("Secret {name}: {field} must be a map of names to texts"));
                    continue;
                }
            };
            for (key, value) in entries {
                let text = value.as_str();
                let bytes = if field == "data" {
                    text.map(|text| STANDARD.decode(text.split_whitespace().collect::<String>()).ok())
                } else {
                    text.map(|text| Some(text.as_bytes().to_vec()))
                };
                match bytes {
                    Some(Some(bytes)) => drop(data.insert(key.clone(), ByteString(bytes))),
                    Some(None) => self.problems.push(format!(
                        "Secret {name}: data.{key} is not base64: encode it, or write it as it is under stringData"
                    )),
                    None => {
                        self.problems.push(format!("Secret {name}: {field}.{key} must be text: put it in quotes"));
                    }
                }
            }
        }
        let labels = object.get("metadata").and_then(|metadata| metadata.get("labels"));
        let is_labelled = labels.and_then(|labels| labels.get(API_KEYS_LABEL)).and_then(Value::as_str) == Some("true");
        let secret = Secret { data: Some(data), ..Secret::default() };
        // The operator does not see one without the label.
        let before = if is_labelled { self.secrets.insert(name.clone(), Arc::new(secret)) } else { None };
        if before.is_some() {
            self.problems.push(format!("Secret {name}: is there twice"));
        }
    }

    fn senders(mut self, pipeline: impl Fn(&str) -> Result<(), String>) -> Result<Senders, Vec<String>> {
        let namespace = self.namespace.take().map_or_else(|| NAMESPACE.to_owned(), |(namespace, _)| namespace);
        for (name, tenant) in &mut self.tenants {
            if let Err(why) = pipeline(&tenant.spec.pipeline_ref.name) {
                self.problems.push(format!("Tenant {name}: {why}"));
            }
            // However it is called: it is one, and its tenants share no key.
            PIPELINE.clone_into(&mut tenant.spec.pipeline_ref.name);
            tenant.metadata.namespace = Some(namespace.clone());
            // There is no finalizer to wait for: whoever deletes it says what becomes of what it has sent.
            tenant.spec.deletion_policy = TenantDeletionPolicy::Retain;
        }
        let secret = |name: &str| self.secrets.get(name).cloned();
        let wanted = wanted(&namespace, PIPELINE, self.tenants.values(), secret, &BTreeMap::new(), 0);
        self.problems.extend(wanted.problems.into_iter().map(|(name, (_, why))| format!("Tenant {name}: {why}")));
        if self.tenants.is_empty() && self.problems.is_empty() {
            self.problems.push("no Tenant is in it".to_owned());
        }
        if self.problems.is_empty() { Ok(wanted.terms) } else { Err(self.problems) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KeyHash as Hash;

    fn read_for_orders(text: &str) -> Result<Senders, Vec<String>> {
        read(text, |name| if name == "orders" { Ok(()) } else { Err(format!("not `{name}`")) })
    }

    fn tenant(name: &str, keys: &str) -> String {
        format!(
            "apiVersion: ingestion.millstream.dev/v1alpha1\nkind: Tenant\nmetadata: {{name: {name}}}\nspec:\n  pipelineRef: {{name: orders}}\n  apiKeys: {keys}\n---\n"
        )
    }

    fn secret(name: &str, data: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, labels: {{{API_KEYS_LABEL}: \"true\"}}}}\n{data}\n---\n"
        )
    }

    fn hashes(of: &[&str]) -> Terms {
        Terms { api_keys: of.iter().map(|key| Hash::of(key).0).collect(), ..Terms::default() }
    }

    #[test]
    fn tenants_have_the_keys_of_their_secrets() {
        // The second is what an editor or `base64` makes of it; `stringData` goes before `data`; what is not asked for is not looked at.
        let text = [
            "# a comment alone\n---\n".to_owned(),
            tenant("acme", "[{name: keys, key: old}, {name: keys, key: new}]"),
            secret("keys", "data: {old: azEK, new: eA==, other: AP8=}\nstringData: {new: k2}"),
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: ingestion.millstream.dev/v1alpha1, kind: Tenant, metadata: {name: globex, uid: u, namespace: default}, spec: {pipelineRef: {name: orders}, apiKeys: [{name: keys, key: third}], deletionPolicy: Erase}, status: {conditions: []}}\n".to_owned(),
        ];
        let third = text.concat().replace("new: k2}", "new: k2, third: k3}");
        let expected = [("acme".to_owned(), hashes(&["k1", "k2"])), ("globex".to_owned(), hashes(&["k3"]))];
        assert_eq!(read_for_orders(&third), Ok(expected.into()));
    }

    #[test]
    fn every_mistake_is_told_with_its_resource_and_no_key_is() {
        let text = [
            tenant("acme", "[{name: keys, key: blank}]"),
            tenant("colon", "[{name: keys, key: colon}]"),
            tenant("missing", "[{name: nobody, key: a}]"),
            tenant("unlabelled", "[{name: plain, key: a}]"),
            tenant("first", "[{name: keys, key: same}]"),
            tenant("second", "[{name: keys, key: also}]"),
            tenant("none", "[]"),
            tenant("written", "[sesame]"),
            tenant("field", "[{name: keys, key: same, more: 1}]"),
            tenant(&"x".repeat(64), "[{name: keys, key: same}]"),
            tenant("acme", "[{name: keys, key: fine}]"),
            tenant("limits", "[{name: keys, key: fine}]\n  limits: {maxActions: 0}"),
            tenant("elsewhere", "[{name: keys, key: fine}]").replace("orders", "returns"),
            tenant("top", "[{name: keys, key: fine}]\nextra: 1"),
            secret(
                "keys",
                "stringData: {blank: ses ame, colon: \"sesame:x\", same: sesame1, also: sesame1, fine: sesame2, number: 5}\ndata: {bad: sesame!}",
            ),
            "apiVersion: v1\nkind: Secret\nmetadata: {name: plain}\nstringData: {a: sesame3}\n---\n".to_owned(),
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n---\n".to_owned(),
            "apiVersion: v1\nkind: Secret\n---\njust text\n---\n".to_owned(),
            "apiVersion: v1\nkind: Secret\nmetadata: {name: far, namespace: shop, owner: me}\n".to_owned(),
        ];
        let problems = read_for_orders(&text.concat()).unwrap_err();
        let long = format!("Tenant {0}: `{0}` is not a name: use 1 to 63 lower-case letters", "x".repeat(64));
        let expected = [
            "Tenant acme: is there twice",
            "Tenant colon: what Secret keys has under `colon` has a colon",
            "Tenant missing: Secret nobody is not there, or has no label `ingestion.millstream.dev/api-keys: \"true\"`",
            "Tenant unlabelled: Secret plain is not there, or has no label",
            "Tenant second: one of its keys is tenant first's, too: give it another one",
            "Tenant none: spec.apiKeys names 0 keys: name one, or two while one is replaced by the other",
            "Tenant written: spec.apiKeys[0] must name a Secret and a key in it, such as {name: written, key: first}",
            "Tenant field: unknown field `more`, expected `name` or `key`",
            &long,
            "Tenant limits: spec.limits.maxActions is 0: take a number from 1 to 1000",
            "Tenant elsewhere: not `returns`",
            "Tenant top: unknown field `extra`, expected one of apiVersion, kind, metadata, spec, status",
            "Secret keys: stringData.number must be text: put it in quotes",
            "Secret keys: data.bad is not base64: encode it, or write it as it is under stringData",
            "document 17: apiVersion `v1`, kind `ConfigMap` is not known here: take apiVersion `ingestion",
            "document 18: a Secret without metadata.name",
            "document 19: not a resource: it needs apiVersion, kind and metadata.name",
            "Secret far: unknown field `metadata.owner`",
            "Secret far: is in namespace `shop`, and Tenant acme in `default`",
        ];
        for expected in expected {
            assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{expected} is not in {problems:#?}");
        }
        assert!(!problems.concat().contains("sesame"), "a key is told: {problems:#?}");
        let blank = tenant("acme", "[{name: keys, key: blank}]") + &secret("keys", "stringData: {blank: ses ame}");
        let problems = read_for_orders(&blank).unwrap_err();
        let why = "Tenant acme: what Secret keys has under `blank` cannot be sent in a header: use printable ASCII without blanks";
        assert_eq!(problems, [why]);
    }

    #[test]
    fn a_file_without_tenants_or_without_yaml_is_refused() {
        assert_eq!(read_for_orders("").unwrap_err(), ["no Tenant is in it"]);
        assert_eq!(read_for_orders(&secret("keys", "")).unwrap_err(), ["no Tenant is in it"]);
        let problems = read_for_orders("kind: [Tenant\n").unwrap_err();
        assert!(problems.len() == 1 && problems[0].starts_with("document 1: not YAML: "), "{problems:?}");
    }
}
