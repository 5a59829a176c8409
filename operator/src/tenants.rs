//! Who may send, and on which terms: the keys of each `Tenant`, from Secrets, as hashes; its limits, rate and identity rules.
//!
//! What is wanted is computed for a pipeline as a whole ([`wanted`]), because a key must lead to one tenant; the pipeline's thread publishes what has changed ([`crate::plans`]), and says which
//! tenants every gateway knows by now. A tenant whose Secret is missing or holds no key keeps the keys that it had: a Secret that was deleted by mistake must not lock anybody out. Deleting the
//! Tenant does. The rest of its terms follows its spec all the same.
//!
//! A tenant is `Effective` when all who let in or judge its records go by what was published: gateways, workers of unify, and each shard that these own ([`millstream_plan::view::View::judges`]).
//!
//! Status is written when it changes. Of a tenant that is `Effective` it counts nobody: thousands of tenants would be written each time that a gateway restarts. Of one that is waited for it counts who goes
//! by it, and names the first who does not, anew every 10 s at most; how far an erasure is ([`crate::erasure`]) every few seconds at most.

use crate::admin::Name;
use crate::controller::{Context, api, readable, tell_status};
use crate::erasure::{self, Course, Progress};
use crate::reason::Reason;
use crate::trouble::Trouble;
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use millstream_crds::{API_KEYS_LABEL, IngestionPipeline, SecretKey, Tenant, TenantSpec, TenantStatus};
use millstream_plan::message::{Limits, Rate, Rules, Tenant as Published, Terms};
use millstream_plan::view::Judge;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub(crate) type Guarded = DeserializeGuard<Tenant>;

/// So many tenants at once.
const AT_ONCE: u16 = 16;
/// What comes in so short a time is one change.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How often a tenant is looked at that is being erased: how far that is, and whether its pipeline or namespace goes meanwhile.
const WHILE_ERASING: Duration = Duration::from_secs(5);
/// How often it is told how many go by the terms of a tenant that is waited for. Whoever is silent counts for three times as long.
const COUNTED_EVERY_MS: u64 = 10_000;

/// The SHA-256 of an API key.
pub type KeyHash = [u8; 32];

/// The tenants of a pipeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Those whose keys are known, and those that are being erased, which have none.
    pub terms: BTreeMap<String, Terms>,
    /// Those that have a problem with their keys: the rest of their terms.
    pub keyless: BTreeMap<String, Terms>,
    /// The others: a reason, and what to do.
    pub problems: BTreeMap<String, (Reason, String)>,
    /// Of which object, and which generation of it, that is said.
    pub ids: BTreeMap<String, Id>,
}

/// Uid and generation of an object.
pub type Id = (String, i64);

pub(crate) fn id(tenant: &Tenant) -> Id {
    (tenant.uid().unwrap_or_default(), tenant.metadata.generation.unwrap_or_default())
}

/// The tenants of a pipeline, from all that there are, `now_ms` milliseconds after 1970 began. A key that two have stays with the one that was published with it, and is the first one's, by name, otherwise.
/// An erasure is at the step that was published.
pub fn wanted<'a>(
    namespace: &str,
    pipeline: &str,
    tenants: impl Iterator<Item = &'a Tenant>,
    secret: impl Fn(&str) -> Option<Arc<Secret>>,
    published: &BTreeMap<String, Published>,
    now_ms: u64,
) -> Wanted {
    let is_its = |tenant: &&Tenant| {
        tenant.metadata.namespace.as_deref() == Some(namespace)
            && tenant.spec.pipeline_ref.name == pipeline
            && Course::of(tenant) != Course::Goes
    };
    let (mut wanted, mut taken) = (Wanted::default(), HashMap::<KeyHash, String>::new());
    let mut all = BTreeMap::new();
    for tenant in tenants.filter(is_its) {
        let name = tenant.name_any();
        wanted.ids.insert(name.clone(), id(tenant));
        let before = published.get(&name);
        if Course::of(tenant) == Course::Erased {
            wanted.terms.insert(name, erasure::terms(before));
            continue;
        }
        let hashes = tenant.spec.api_keys.iter().map(|key| hash(key, &secret)).collect::<Result<BTreeSet<_>, _>>();
        let hashes = hashes.and_then(|hashes| erasure::ready(tenant, before, now_ms).map(|()| hashes));
        if let Some(published) = before.filter(|published| !published.is_deleted) {
            // Whoever has a problem keeps what it has.
            let stays = |key: &&KeyHash| hashes.as_ref().map_or(true, |hashes| hashes.contains(*key));
            taken.extend(published.terms.api_keys.iter().filter(stays).map(|key| (*key, name.clone())));
        }
        all.insert(name, (hashes, terms(&tenant.spec)));
    }
    for (name, (hashes, terms)) in all {
        let others = |hash: &KeyHash| taken.get(hash).filter(|other| **other != name).cloned();
        match hashes.map(|hashes| (hashes.iter().find_map(others), hashes)) {
            Err(problem) => {
                wanted.problems.insert(name.clone(), problem);
                wanted.keyless.insert(name, terms);
            }
            Ok((Some(other), _)) => {
                let message = format!("one of its keys is tenant {other}'s, too: give it another one");
                wanted.problems.insert(name.clone(), (Reason::KeyTaken, message));
                wanted.keyless.insert(name, terms);
            }
            Ok((None, hashes)) => {
                taken.extend(hashes.iter().map(|hash| (*hash, name.clone())));
                wanted.terms.insert(name, Terms { api_keys: hashes, ..terms });
            }
        }
    }
    wanted
}

/// All terms but the keys. What the schema does not allow counts as left out.
fn terms(spec: &TenantSpec) -> Terms {
    let small = |number: Option<i32>| number.and_then(|number| u64::try_from(number).ok());
    let large = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
    let limits = spec.limits.clone().unwrap_or_default();
    let limits = Limits {
        max_record_bytes: small(limits.max_record_bytes),
        max_properties: small(limits.max_properties),
        max_string_chars: small(limits.max_string_chars),
        max_identifiers: small(limits.max_identifiers),
        max_actions: small(limits.max_actions),
    };
    let rate = spec.rate.clone().unwrap_or_default();
    let rate = Rate { records: large(rate.records_per_second), bytes: large(rate.bytes_per_second) };
    let forbidden_values =
        spec.identity.iter().flat_map(|identity| identity.forbidden_values.iter().cloned()).collect();
    Terms { api_keys: BTreeSet::new(), rules: Rules { limits, forbidden_values }, rate, erasing: None }
}

/// The hash of a key in a Secret.
fn hash(key: &SecretKey, secret: impl Fn(&str) -> Option<Arc<Secret>>) -> Result<KeyHash, (Reason, String)> {
    let SecretKey { name, key } = key;
    let Some(secret) = secret(name) else {
        let message = format!("Secret {name} is not there, or has no label `{API_KEYS_LABEL}: \"true\"`");
        return Err((Reason::SecretMissing, message));
    };
    let bytes = secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice()).unwrap_or_default();
    // An editor's last line end is none of the key.
    let text = std::str::from_utf8(bytes).unwrap_or("\u{0}").trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err((Reason::SecretMissing, format!("Secret {name} has nothing under `{key}`")));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = format!(
            "what Secret {name} has under `{key}` cannot be sent in a header: use printable ASCII without blanks"
        );
        return Err((Reason::InvalidKey, message));
    }
    if text.contains(':') {
        let message = format!(
            "what Secret {name} has under `{key}` has a colon, which ends the user name of `Authorization: Basic`: take another key"
        );
        return Err((Reason::InvalidKey, message));
    }
    Ok(Sha256::digest(text.as_bytes()).into())
}

fn pipeline_of(tenant: &Tenant) -> Name {
    Name { name: tenant.spec.pipeline_ref.name.clone(), ..Name::of(tenant) }
}

fn says_that_it_is_missing(tenant: &Tenant) -> bool {
    let mut said = tenant.status.iter().flat_map(|status| &status.conditions);
    said.any(|it| it.type_ == EFFECTIVE && it.reason == Reason::PipelineMissing.as_str())
}

/// All tenants and their Secrets, as the API server has them.
pub(crate) struct Registry {
    tenants: Store<Guarded>,
    secrets: Store<Secret>,
    /// All of both were heard once.
    is_ready: AtomicBool,
    /// Grows with each change of any of them.
    changes: AtomicU64,
}

impl Registry {
    /// Grows with each change; what was computed before may be another thing by now.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The tenants of a pipeline, once all are known: before that, nobody must be taken for gone.
    pub(crate) fn wanted(
        &self,
        pipeline: &IngestionPipeline,
        published: &BTreeMap<String, Published>,
        now_ms: u64,
    ) -> Option<Wanted> {
        if !self.is_ready.load(Ordering::Acquire) {
            return None;
        }
        let (namespace, name) = (pipeline.namespace().unwrap_or_default(), pipeline.name_any());
        let all = self.tenants.state();
        let tenants = all.iter().filter_map(|guarded| guarded.0.as_ref().ok());
        let secret = |name: &str| self.secrets.get(&ObjectRef::new(name).within(&namespace));
        let mut wanted = wanted(&namespace, &name, tenants, secret, published, now_ms);
        // One that cannot be read (written by a newer version, say) is not gone: it keeps what it has.
        for invalid in all.iter().filter_map(|guarded| guarded.0.as_ref().err()) {
            if invalid.metadata.namespace.as_deref() == Some(&namespace) {
                let name = invalid.metadata.name.clone().unwrap_or_default();
                wanted.problems.entry(name).or_insert_with(|| (Reason::Unreadable, invalid.error.clone()));
            }
        }
        Some(wanted)
    }

    /// Tenants whose pipelines are not there, and that do not say so yet.
    pub(crate) fn orphans(&self, is_there: impl Fn(&Name) -> bool) -> Vec<Name> {
        let all = self.tenants.state();
        let tenants = all.iter().filter_map(|guarded| guarded.0.as_ref().ok());
        tenants
            .filter(|tenant| !says_that_it_is_missing(tenant) && !is_there(&pipeline_of(tenant)))
            .map(Name::of)
            .collect()
    }

    fn note(&self, error: Option<&watcher::Error>) {
        match error {
            None => drop(self.changes.fetch_add(1, Ordering::AcqRel)),
            Some(error) => tracing::warn!(%error, "watching tenants"),
        }
    }
}

/// Watches the tenants of a namespace, or of all, and the Secrets that may hold their keys; returns when these are known. Tenants come with the stream.
///
/// # Errors
/// When a watch ends before everything was heard.
pub(crate) async fn watch(
    client: &Client,
    watched: Option<&str>,
) -> anyhow::Result<(Arc<Registry>, impl Stream<Item = Result<Guarded, watcher::Error>> + Send + use<>)> {
    let (tenants, tenant_writer) = reflector::store();
    let (secrets, secret_writer) = reflector::store();
    let registry = Arc::new(Registry {
        tenants,
        secrets: secrets.clone(),
        is_ready: AtomicBool::new(false),
        changes: AtomicU64::new(0),
    });
    let noted = Arc::clone(&registry);
    let of_secrets = watcher::Config::default().labels(&format!("{API_KEYS_LABEL}=true"));
    let heads = watcher(api::<Secret>(client, watched), of_secrets)
        .default_backoff()
        .modify(|secret| secret.metadata.managed_fields = None)
        .reflect(secret_writer)
        .for_each(move |event| {
            noted.note(event.as_ref().err());
            std::future::ready(())
        });
    tokio::spawn(heads);
    let noted = Arc::clone(&registry);
    let stream = watcher(api::<Guarded>(client, watched), watcher::Config::default())
        .default_backoff()
        .reflect(tenant_writer)
        .inspect(move |event| {
            if matches!(event, Ok(watcher::Event::InitDone)) {
                noted.is_ready.store(true, Ordering::Release);
            }
            noted.note(event.as_ref().err());
        })
        .touched_objects();
    secrets.wait_until_ready().await?;
    Ok((registry, stream))
}

/// What is known of one tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Every gateway, worker of unify and shard of theirs goes by its terms.
    Effective,
    /// Not every one does, or they are not published yet.
    Waiting(Waits),
    /// There is none.
    NoGateways,
    /// It is deleted, and what it has sent is being erased.
    Erasing(Progress),
    /// All of that is erased.
    Erased,
    /// A reason, and what to do.
    Problem(Reason, String),
}

/// What a tenant waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waits {
    /// None: its terms are not published yet.
    pub(crate) behind: Option<Behind>,
    /// When they were counted.
    pub(crate) at_ms: u64,
}

/// Of those who let in or judge records, how many go by what was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Behind {
    pub(crate) done: usize,
    pub(crate) all: usize,
    /// The first that does not.
    pub(crate) first: String,
}

impl Behind {
    /// Nobody is behind: nothing.
    pub(crate) fn of(judges: &[Judge<'_>], goes_by: impl Fn(&Judge<'_>) -> bool) -> Option<Behind> {
        let mut behind = judges.iter().filter(|judge| !goes_by(judge));
        let first = behind.next()?.to_string();
        Some(Behind { done: judges.len() - 1 - behind.count(), all: judges.len(), first })
    }
}

impl Waits {
    /// Another count may be told.
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.at_ms) >= COUNTED_EVERY_MS
    }

    fn text(&self) -> String {
        match &self.behind {
            None => {
                "it is not published yet: nothing is while the pipeline is paused, or Kafka does not answer".to_owned()
            }
            Some(Behind { done, all, first }) => format!(
                "{done} of {all} gateways, workers of unify and shards of theirs go by it; the first that does not: {first}"
            ),
        }
    }
}

impl Standing {
    /// Is it to be told at once?
    pub(crate) fn is_news(&self, before: Option<&Standing>) -> bool {
        match (self, before) {
            (Standing::Erasing(now), Some(Standing::Erasing(before))) => now.is_news(before),
            (Standing::Waiting(now), Some(Standing::Waiting(before))) => now.behind != before.behind,
            (now, before) => Some(now) != before,
        }
    }

    /// What is noted after this: who is counted stays as counted for a while, because each other count is a write.
    pub(crate) fn after(self, before: Option<&Standing>) -> Standing {
        match (&self, before) {
            (Standing::Waiting(now), Some(Standing::Waiting(before)))
                if now.behind.is_some() && before.behind.is_some() && !before.is_due(now.at_ms) =>
            {
                Standing::Waiting(before.clone())
            }
            _ => self,
        }
    }

    /// Who is waited for is to be counted again.
    pub(crate) fn is_due(&self, now_ms: u64) -> bool {
        matches!(self, Standing::Waiting(waits) if waits.behind.is_some() && waits.is_due(now_ms))
    }
}

/// Tells each tenant's status, until `stop`.
pub(crate) async fn run(
    context: Arc<Context>,
    stream: impl Stream<Item = Result<Guarded, watcher::Error>> + Send + 'static,
    asked: impl Stream<Item = ObjectRef<Guarded>> + Send + 'static,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) {
    // Before that, no pipeline is there.
    if context.pipelines.wait_until_ready().await.is_err() {
        return;
    }
    let store = context.tenants.tenants.clone();
    let patience = |_: Arc<Guarded>, trouble: &Trouble, _: Arc<Context>| Action::requeue(trouble.pause(0));
    Controller::for_stream(stream, store)
        .with_config(Config::default().debounce(DEBOUNCE).concurrency(AT_ONCE))
        .reconcile_on(asked)
        .graceful_shutdown_on(stop)
        .run(reconcile, patience, context)
        .for_each(|result| async move {
            if let Err(error) = result {
                tracing::warn!(%error, "a tenant is not told of");
            }
        })
        .await;
}

async fn reconcile(guarded: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Trouble> {
    let Some(tenant) = readable(&guarded) else {
        erasure::let_go_unread(&context.client, guarded.meta()).await?;
        return Ok(Action::await_change());
    };
    let began = Instant::now();
    let (standing, failed) = match erasure::settle(&context, tenant).await {
        Ok(true) => return Ok(Action::await_change()),
        Ok(false) => (context.standing_of(tenant), None),
        // A person has to mend it.
        Err(trouble @ (Trouble::Forbidden { .. } | Trouble::Refused { .. })) => {
            (Some(Standing::Problem(trouble.reason(), trouble.to_string())), Some(trouble))
        }
        Err(trouble) => return Err(trouble),
    };
    let is_told = |it: &Condition| it.type_ == EFFECTIVE && it.observed_generation == tenant.metadata.generation;
    // An operator that has just started knows nothing yet: what was said stays said.
    let stays = standing.is_none() && tenant.status.iter().flat_map(|status| &status.conditions).any(is_told);
    let is_deleted = tenant.metadata.deletion_timestamp.is_some();
    let standing = match standing {
        None | Some(Standing::Waiting(_) | Standing::NoGateways | Standing::Effective) if is_deleted => {
            Some(Standing::Erasing(Progress::default()))
        }
        standing => standing,
    };
    let said = status(tenant, standing.as_ref(), &Time(k8s_openapi::jiff::Timestamp::now()));
    if !stays && tenant.status.as_ref() != Some(&said) {
        let told = tell_status(&context.client, tenant, &said).await;
        let reason = failed.as_ref().or(told.as_ref().err()).map(Trouble::reason);
        context.metrics.reconciled("Tenant", began.elapsed(), reason);
        told?;
    }
    match failed {
        Some(trouble) => Err(trouble),
        None if is_deleted => Ok(Action::requeue(WHILE_ERASING)),
        None => Ok(Action::await_change()),
    }
}

/// What is to be said now.
fn status(tenant: &Tenant, standing: Option<&Standing>, now: &Time) -> TenantStatus {
    let (status, reason, message) = match standing {
        None => ("Unknown", Reason::NotObserved, "its pipeline is not followed yet".to_owned()),
        Some(Standing::Effective) => {
            ("True", Reason::Known, "every gateway, and every shard of unify, goes by it".to_owned())
        }
        Some(Standing::NoGateways) => ("False", Reason::NoGateways, "no gateway of the pipeline reports".to_owned()),
        Some(Standing::Waiting(waits)) => ("False", Reason::Waiting, waits.text()),
        Some(Standing::Erasing(progress)) => ("False", Reason::Erasing, progress.text()),
        Some(Standing::Erased) => ("False", Reason::Erasing, "all that it has sent is erased".to_owned()),
        Some(Standing::Problem(reason, message)) => ("False", *reason, message.clone()),
    };
    let before = tenant.status.iter().flat_map(|status| &status.conditions);
    let same = before.into_iter().find(|it| it.type_ == EFFECTIVE && it.status == status);
    let condition = Condition {
        type_: EFFECTIVE.to_owned(),
        status: status.to_owned(),
        reason: reason.to_string(),
        message,
        observed_generation: tenant.metadata.generation,
        last_transition_time: same.map_or_else(|| now.clone(), |it| it.last_transition_time.clone()),
    };
    TenantStatus { observed_generation: tenant.metadata.generation, conditions: vec![condition] }
}

const EFFECTIVE: &str = "Effective";

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use millstream_crds::TenantDeletionPolicy;
    use millstream_plan::message::Erasing;
    use serde_json::json;

    fn tenant(name: &str, pipeline: &str, keys: &[(&str, &str)]) -> Tenant {
        let keys: Vec<_> = keys.iter().map(|(name, key)| json!({"name": name, "key": key})).collect();
        serde_json::from_value(json!({
            "apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "Tenant",
            "metadata": {"name": name, "namespace": "shop", "generation": 2},
            "spec": {"pipelineRef": {"name": pipeline}, "apiKeys": keys},
        }))
        .unwrap()
    }

    /// Secrets by name, each with these keys.
    fn secrets(of: &[(&str, &[(&str, &str)])]) -> HashMap<String, Arc<Secret>> {
        let secret = |data: &[(&str, &str)]| {
            let data = data.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
            Arc::new(Secret { data: Some(data.collect()), ..Secret::default() })
        };
        of.iter().map(|(name, data)| ((*name).to_owned(), secret(data))).collect()
    }

    fn hash_of(key: &str) -> KeyHash {
        Sha256::digest(key).into()
    }

    #[test]
    fn the_tenants_of_a_pipeline_have_the_keys_of_their_secrets() {
        let secrets = secrets(&[("acme", &[("one", "k1\n"), ("two", "k2")]), ("globex", &[("key", "k3")])]);
        let mut going = tenant("going", "orders", &[("globex", "key")]);
        going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let mut elsewhere = tenant("elsewhere", "orders", &[("globex", "key")]);
        elsewhere.metadata.namespace = Some("other".to_owned());
        let all = [
            tenant("acme", "orders", &[("acme", "one"), ("acme", "two")]),
            tenant("globex", "orders", &[("globex", "key")]),
            tenant("initech", "returns", &[("globex", "key")]),
            going,
            elsewhere,
        ];
        let wanted = wanted("shop", "orders", all.iter(), |name| secrets.get(name).cloned(), &BTreeMap::new(), 0);
        let expected = [("acme", vec!["k1", "k2"]), ("globex", vec!["k3"])];
        let expected: BTreeMap<String, BTreeSet<KeyHash>> = expected
            .into_iter()
            .map(|(name, keys)| (name.to_owned(), keys.into_iter().map(hash_of).collect()))
            .collect();
        let keys: BTreeMap<_, _> = wanted.terms.into_iter().map(|(name, terms)| (name, terms.api_keys)).collect();
        assert_eq!((keys, wanted.problems.len()), (expected, 0));
    }

    #[test]
    fn what_is_wrong_with_a_key_is_said() {
        let secrets =
            secrets(&[("s", &[("empty", "\n"), ("blank", "a b"), ("same", "k1"), ("also", "k1"), ("colon", "a:b")])]);
        let all = [
            tenant("a", "orders", &[("s", "same")]),
            tenant("b", "orders", &[("s", "also")]),
            tenant("c", "orders", &[("s", "empty")]),
            tenant("d", "orders", &[("s", "blank")]),
            tenant("e", "orders", &[("none", "x")]),
            tenant("f", "orders", &[("s", "nothing")]),
            tenant("g", "orders", &[("s", "colon")]),
        ];
        let wanted = wanted("shop", "orders", all.iter(), |name| secrets.get(name).cloned(), &BTreeMap::new(), 0);
        assert_eq!(wanted.terms.keys().collect::<Vec<_>>(), ["a"]);
        let expected = [
            ("b", "KeyTaken", "tenant a's"),
            ("c", "SecretMissing", "nothing under `empty`"),
            ("d", "InvalidKey", "printable ASCII"),
            ("g", "InvalidKey", "colon"),
            ("e", "SecretMissing", "Secret none is not there, or has no label"),
            ("f", "SecretMissing", "nothing under `nothing`"),
        ];
        for (name, reason, words) in expected {
            let (said, why) = &wanted.problems[name];
            assert!(said.as_str() == reason && why.contains(words), "{name}: {said}: {why}");
        }
        assert!(!format!("{:?}", wanted.problems).contains("a b"), "a key is told: {:?}", wanted.problems);
    }

    #[test]
    fn the_terms_of_a_tenant_are_its_specs_also_while_its_keys_have_a_problem() {
        let secrets = secrets(&[("s", &[("one", "k1")])]);
        let of = |secret: &str| {
            let mut tenant = tenant("acme", "orders", &[(secret, "one")]);
            let more = json!({
                "limits": {"maxRecordBytes": 2048, "maxProperties": 2, "maxStringChars": 16, "maxIdentifiers": 3, "maxActions": 4},
                "rate": {"recordsPerSecond": 5, "bytesPerSecond": 6000},
                "identity": {"forbiddenValues": ["test", "none"]},
            });
            let mut spec = serde_json::to_value(&tenant.spec).unwrap();
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            tenant.spec = serde_json::from_value(spec).unwrap();
            wanted("shop", "orders", [tenant].iter(), |name| secrets.get(name).cloned(), &BTreeMap::new(), 0)
        };
        let limits = Limits {
            max_record_bytes: Some(2048),
            max_properties: Some(2),
            max_string_chars: Some(16),
            max_identifiers: Some(3),
            max_actions: Some(4),
        };
        let rules = Rules { limits, forbidden_values: ["none".to_owned(), "test".to_owned()].into() };
        let rate = Rate { records: Some(5), bytes: Some(6000) };
        let expected = Terms { api_keys: [hash_of("k1")].into(), rules, rate, erasing: None };
        assert_eq!(of("s").terms["acme"], expected);
        let without = of("missing");
        assert!(without.terms.is_empty());
        assert_eq!(without.keyless["acme"], Terms { api_keys: BTreeSet::new(), ..expected });
    }

    #[test]
    fn a_key_stays_with_whom_it_was_published_for() {
        let secrets = secrets(&[("s", &[("one", "k1"), ("two", "k2")])]);
        let published = |name: &str, key: &str| {
            let terms = Terms { api_keys: [hash_of(key)].into(), ..Terms::default() };
            (name.to_owned(), Published { name: name.to_owned(), version: 1, terms, is_deleted: false, erased_ms: 0 })
        };
        let secret = |name: &str| secrets.get(name).cloned();
        // A copy under a name that comes first.
        let all = [tenant("acme", "orders", &[("s", "one")]), tenant("old", "orders", &[("s", "one")])];
        let of = wanted("shop", "orders", all.iter(), secret, &[published("old", "k1")].into(), 0);
        assert_eq!(of.terms.keys().collect::<Vec<_>>(), ["old"]);
        assert_eq!(of.problems["acme"].0, Reason::KeyTaken);
        // One whose Secret is missing keeps its key; one that has another by now does not.
        let all = [tenant("a", "orders", &[("none", "x")]), tenant("b", "orders", &[("s", "one")])];
        let of = wanted("shop", "orders", all.iter(), secret, &[published("a", "k1")].into(), 0);
        assert_eq!((of.problems["a"].0, of.problems["b"].0), (Reason::SecretMissing, Reason::KeyTaken));
        let all = [tenant("a", "orders", &[("s", "two")]), tenant("b", "orders", &[("s", "one")])];
        let of = wanted("shop", "orders", all.iter(), secret, &[published("a", "k1")].into(), 0);
        assert_eq!(of.terms.keys().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_tenant_that_is_erased_has_no_keys_and_one_of_its_name_gets_them_later() {
        let secrets = secrets(&[("s", &[("one", "k1")])]);
        let of = |erased: Tenant, published: Option<Published>, now_ms| {
            let others = tenant("other", "orders", &[("s", "one")]);
            let published = published.map(|published| (published.name.clone(), published)).into_iter().collect();
            let secret = |name: &str| secrets.get(name).cloned();
            wanted("shop", "orders", [erased, others].iter(), secret, &published, now_ms)
        };
        let mut acme = tenant("acme", "orders", &[("s", "one")]);
        acme.spec.deletion_policy = TenantDeletionPolicy::Erase;
        let unheld = of(acme.clone(), None, 0);
        assert_eq!((unheld.problems["acme"].0, unheld.keyless.contains_key("acme")), (Reason::Waiting, true));
        acme.metadata.finalizers = Some(vec![erasure::FINALIZER.to_owned()]);
        let lives = of(acme.clone(), None, 0);
        assert_eq!((lives.terms["acme"].api_keys.len(), lives.problems["other"].0), (1, Reason::KeyTaken));
        let gone = Published {
            name: "acme".to_owned(),
            version: 1,
            terms: Terms::default(),
            is_deleted: true,
            erased_ms: 1_000,
        };
        let early = of(acme.clone(), Some(gone.clone()), 999);
        assert!(early.problems["acme"].1.starts_with("what was received before 00:00:01 UTC is erased"), "{early:?}");
        assert_eq!(of(acme.clone(), Some(gone.clone()), 1_000).terms["acme"], lives.terms["acme"]);
        // Its key may be another one's at once.
        acme.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        for (step, published) in [
            (Erasing::State, Terms { api_keys: [hash_of("k1")].into(), ..Terms::default() }),
            (Erasing::State, Terms::erasing(Erasing::State)),
            (Erasing::Documents, Terms::erasing(Erasing::Documents)),
        ] {
            let published = Published { terms: published, is_deleted: false, ..gone.clone() };
            let goes = of(acme.clone(), Some(published), 0);
            assert_eq!((&goes.terms["acme"], goes.problems.len()), (&Terms::erasing(step), 0));
            assert_eq!((goes.terms["other"].api_keys.len(), goes.ids.len()), (1, 2));
        }
        acme.spec.deletion_policy = TenantDeletionPolicy::Retain;
        assert_eq!(of(acme, None, 0).ids.keys().collect::<Vec<_>>(), ["other"]);
    }

    #[test]
    fn who_is_waited_for_is_counted_and_the_first_is_named_every_ten_seconds_at_most() {
        let judge = |worker, control_offset, is_unify, shard| Judge { worker, control_offset, is_unify, shard };
        let judges = [
            judge("g-0", 9, false, None),
            judge("u-0", 9, true, None),
            judge("u-0", 3, true, Some(4)),
            judge("u-0", 4, true, Some(5)),
        ];
        let waits = |offset: u64, at_ms| {
            let behind = Behind::of(&judges, |judge| offset < judge.control_offset);
            Standing::Waiting(Waits { behind, at_ms })
        };
        let tenant = tenant("a", "orders", &[("s", "x")]);
        let said = |standing: &Standing| {
            let now = Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
            status(&tenant, Some(standing), &now).conditions[0].message.clone()
        };
        let counted = "gateways, workers of unify and shards of theirs go by it; the first that does not:";
        assert_eq!(said(&waits(4, 0)), format!("2 of 4 {counted} shard unify/4 of u-0"));
        assert_eq!(said(&waits(9, 0)), format!("0 of 4 {counted} gateway g-0"));
        assert_eq!(Behind::of(&judges, |_| true), None);
        // Another count waits; another thing does not.
        let first = waits(9, 1_000);
        assert_eq!(waits(4, 10_999).after(Some(&first)), first);
        assert!(!first.is_due(10_999) && first.is_due(11_000));
        let next = waits(4, 11_000).after(Some(&first));
        assert!(next == waits(4, 11_000) && next.is_news(Some(&first)));
        assert!(!waits(4, 21_000).is_news(Some(&next)), "the same count is written once");
        let unpublished = Standing::Waiting(Waits { behind: None, at_ms: 1_000 });
        assert_eq!(first.clone().after(Some(&unpublished)), first);
        assert!(first.is_news(Some(&unpublished)) && !unpublished.is_due(60_000));
        assert_eq!(Standing::Effective.after(Some(&first)), Standing::Effective);
    }

    #[test]
    fn a_status_that_says_the_same_is_the_same() {
        let at = |second: i64| Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap());
        let mut tenant = tenant("a", "orders", &[("s", "x")]);
        let short = |said: &TenantStatus| {
            let it = &said.conditions[0];
            format!("{} {} {} {}", it.type_, it.status, it.reason, it.message)
        };
        let waiting = status(&tenant, Some(&Standing::Waiting(Waits::default())), &at(1));
        assert!(short(&waiting).starts_with("Effective False Waiting it is not published yet: "), "{waiting:?}");
        let none = status(&tenant, Some(&Standing::NoGateways), &at(1));
        assert_eq!(short(&none), "Effective False NoGateways no gateway of the pipeline reports");
        assert_eq!(status(&tenant, None, &at(1)).conditions[0].status, "Unknown");
        let erasing = status(&tenant, Some(&Standing::Erasing(Progress::default())), &at(1));
        assert!(short(&erasing).starts_with("Effective False Erasing that it is to be erased"), "{erasing:?}");
        let said = status(&tenant, Some(&Standing::Effective), &at(2));
        tenant.status = Some(said.clone());
        assert_eq!(status(&tenant, Some(&Standing::Effective), &at(3)), said);
        let problem = status(&tenant, Some(&Standing::Problem(Reason::KeyTaken, "why".to_owned())), &at(4));
        assert_eq!(
            (short(&problem).as_str(), &problem.conditions[0].last_transition_time),
            ("Effective False KeyTaken why", &at(4))
        );
    }
}
