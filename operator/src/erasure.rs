//! A Tenant that is deleted with all that it has sent: the finalizer that keeps it until that is erased, and what is said meanwhile.
//!
//! Invariants:
//!
//! - **A finalizer only while something must be done.** A Tenant has ours when its policy is `Erase`; it comes and goes with the policy.
//! - **Nothing is let in that could not be erased.** The keys of a Tenant whose policy is `Erase` are published when it has the finalizer, and not before.
//! - **Never back.** Which step an erasure is at stands in `control`: first all shards of action, then all shards of reaction. Whoever leads goes on from there, and a step is followed by the next one or
//!   by nothing, until the Tenant has gone.
//! - **What is erased is the former tenant's.** Keys of one of the same name are published when all that is erased is over: the engine refuses what was received before that.
//! - **Never a deadlock.** With the policy `Retain`, without a pipeline, with one that is itself being deleted, and in a namespace that is, a Tenant goes at once. So does one that cannot be read.
//!
//! Nothing is remembered: all follows from the API server, `control` and `status`.

use crate::controller::Context;
use crate::finalizer;
use crate::reason::Reason;
use crate::tenants::Standing;
use crate::terminating::{Phase, phase};
use crate::trouble::Trouble;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client, Resource, ResourceExt};
use millstream_crds::{IngestionPipeline, Tenant, TenantDeletionPolicy};
use millstream_plan::message::{Erasing, Tenant as Published, Terms};
use millstream_shard::planning::{Erasure, Planning};
use std::collections::{BTreeMap, BTreeSet};

/// Ours.
pub const FINALIZER: &str = "ingestion.millstream.dev/erase";
/// What lets a Tenant go whatever stands in the way.
const WAY_OUT: &str =
    "to let the Tenant go at once, and leave what is not erased yet, set spec.deletionPolicy to Retain";

/// What becomes of a Tenant, and of what it has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// It is there.
    Lives,
    /// It is there, and is to have the finalizer first.
    Unheld,
    /// It goes when all that it has sent is erased.
    Erased,
    /// It goes, and nothing is waited for.
    Goes,
}

impl Course {
    pub(crate) fn of(tenant: &Tenant) -> Course {
        let is_deleted = tenant.metadata.deletion_timestamp.is_some();
        match (is_deleted, is_wanted(tenant), is_held(&tenant.metadata)) {
            (false, true, false) => Course::Unheld,
            (false, ..) => Course::Lives,
            (true, true, true) => Course::Erased,
            (true, ..) => Course::Goes,
        }
    }
}

fn is_wanted(tenant: &Tenant) -> bool {
    tenant.spec.deletion_policy == TenantDeletionPolicy::Erase
}

/// Is the finalizer there?
pub(crate) fn is_held(metadata: &ObjectMeta) -> bool {
    finalizer::is_held(metadata, FINALIZER)
}

/// The terms of a tenant that is erased: the step that was published, or the first one.
pub(crate) fn terms(published: Option<&Published>) -> Terms {
    let step = published.filter(|published| !published.is_deleted).and_then(|published| published.terms.erasing);
    Terms::erasing(step.unwrap_or(Erasing::State))
}

/// May the keys of one that is there be good by now? If not, why.
pub(crate) fn ready(tenant: &Tenant, published: Option<&Published>, now_ms: u64) -> Result<(), (Reason, String)> {
    if Course::of(tenant) == Course::Unheld {
        let message =
            format!("its keys are good when it has the finalizer {FINALIZER}, which its deletionPolicy asks for");
        return Err((Reason::Waiting, message));
    }
    match published.and_then(|published| reaches(published, now_ms)) {
        Some(message) => Err((Reason::Waiting, format!("{message}: its keys are good from then on"))),
        None => Ok(()),
    }
}

/// `what was received before 12:00:01 UTC is erased`, while that is still to come: whoever is let in before sends in vain.
pub fn reaches(published: &Published, now_ms: u64) -> Option<String> {
    if published.erased_ms <= now_ms {
        return None;
    }
    let second = Timestamp::from_second(i64::try_from(published.erased_ms.div_ceil(1_000)).ok()?).ok()?;
    Some(format!("what was received before {} is erased", second.strftime("%H:%M:%S UTC")))
}

/// How far an erasure is, for people.
pub fn progress(erasure: &Erasure) -> String {
    let Erasure { step, stage, unheard, done, shards } = erasure;
    if *unheard > 0 {
        return "not every gateway and shard of unify has heard of it".to_owned();
    }
    let what = match step {
        Erasing::State => "users and devices",
        Erasing::Documents => "documents",
    };
    format!("{what}: {done} of {shards} shards of {stage} have erased them")
}

/// How far an erasure is, and whether anybody goes on with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// None: it is not published yet.
    pub(crate) erasure: Option<Erasure>,
    /// Workers of the stage that is to do it report.
    pub(crate) has_workers: bool,
}

impl Progress {
    /// The step that is to be published, if it was begun; nothing after the last one.
    pub(crate) fn next(&self) -> Option<Erasing> {
        self.erasure.as_ref().and_then(Erasure::next)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.erasure.is_some_and(|erasure| erasure.next().is_none())
    }

    /// Is it another thing, and not only another count?
    pub(crate) fn is_news(&self, before: &Progress) -> bool {
        let short = |it: &Progress| (it.erasure.map(|erasure| (erasure.step, erasure.unheard > 0)), it.has_workers);
        short(self) != short(before)
    }

    pub(crate) fn text(&self) -> String {
        let Some(erasure) = &self.erasure else {
            return format!(
                "that it is to be erased is not published yet: nothing is while its pipeline is paused, or Kafka does not answer; {WAY_OUT}"
            );
        };
        let waits = match self.has_workers {
            true => String::new(),
            false => format!("; it waits for workers of {}, of which none reports", erasure.stage),
        };
        format!("{}{waits}; {WAY_OUT}", progress(erasure))
    }
}

/// How far each erasure is that is under way.
pub(crate) fn all(planning: &Planning, now_ms: u64) -> BTreeMap<String, Progress> {
    let under_way = planning.view().tenants().values().filter(|tenant| tenant.terms.erasing.is_some());
    let names: Vec<&String> = under_way.map(|tenant| &tenant.name).collect();
    if names.is_empty() {
        return BTreeMap::new();
    }
    let alive = planning.view().alive(now_ms);
    let stages: BTreeSet<&str> = alive.iter().flat_map(|worker| &worker.stages).map(String::as_str).collect();
    let progress = |name: &String| {
        let erasure = planning.erasure(name, now_ms)?;
        Some(Progress { erasure: Some(erasure), has_workers: stages.contains(erasure.stage) })
    };
    names.into_iter().filter_map(|name| Some((name.clone(), progress(name)?))).collect()
}

/// The finalizer of a Tenant that is there comes and goes with its policy; that of one that is being deleted goes when nothing is to be done any more. Whether the Tenant has gone, as far as we are concerned.
///
/// # Errors
/// [`Trouble`]: it is tried again.
pub(crate) async fn settle(context: &Context, tenant: &Tenant) -> Result<bool, Trouble> {
    let (client, held) = (&context.client, is_held(&tenant.metadata));
    if tenant.metadata.deletion_timestamp.is_none() {
        if held != is_wanted(tenant) {
            finalizer::hold::<Tenant>(client, &tenant.metadata, FINALIZER, is_wanted(tenant)).await?;
        }
        return Ok(false);
    }
    if !held {
        return Ok(true);
    }
    let Some(why) = release(context, tenant).await? else { return Ok(false) };
    finalizer::hold::<Tenant>(client, &tenant.metadata, FINALIZER, false).await?;
    let (namespace, name) = (tenant.namespace().unwrap_or_default(), tenant.name_any());
    tracing::info!(namespace, tenant = name, "a tenant was deleted: {why}");
    Ok(true)
}

/// Why a Tenant that is being deleted may go now, if it may.
async fn release(context: &Context, tenant: &Tenant) -> Result<Option<String>, Trouble> {
    if !is_wanted(tenant) {
        return Ok(Some("with deletionPolicy Retain what it has sent stays".to_owned()));
    }
    if context.standing_of(tenant) == Some(Standing::Erased) {
        return Ok(Some("all that it has sent is erased".to_owned()));
    }
    let (namespace, pipeline) = (tenant.namespace().unwrap_or_default(), &tenant.spec.pipeline_ref.name);
    if is_gone(context, &namespace, pipeline).await? {
        return Ok(Some(format!("IngestionPipeline {pipeline} is gone, or goes, and what is not erased yet stays")));
    }
    let goes = phase(&context.client, &namespace).await? != Phase::Active;
    Ok(goes.then(|| format!("namespace {namespace} is being deleted, and what is not erased yet stays")))
}

/// Is there no pipeline that could erase anything? A watch that has not heard of it yet is not believed.
async fn is_gone(context: &Context, namespace: &str, name: &str) -> Result<bool, Trouble> {
    let goes = |metadata: &ObjectMeta| metadata.deletion_timestamp.is_some();
    if let Some(known) = context.pipelines.get(&ObjectRef::new(name).within(namespace)) {
        return Ok(goes(known.meta()));
    }
    let api: Api<IngestionPipeline> = Api::namespaced(context.client.clone(), namespace);
    let found = api.get_metadata_opt(name).await;
    let found = found.map_err(|error| Trouble::of(format!("get IngestionPipeline {name}"), error))?;
    Ok(found.is_none_or(|found| goes(&found.metadata)))
}

/// A Tenant that cannot be read may go: what is to become of what it has sent cannot be known.
///
/// # Errors
/// [`Trouble`].
pub(crate) async fn let_go_unread(client: &Client, metadata: &ObjectMeta) -> Result<(), Trouble> {
    if metadata.deletion_timestamp.is_none() || !is_held(metadata) {
        return Ok(());
    }
    finalizer::hold::<Tenant>(client, metadata, FINALIZER, false).await?;
    let name = metadata.name.as_deref().unwrap_or_default();
    tracing::warn!(
        tenant = name,
        "a Tenant that cannot be read was deleted; what it has sent and is not erased yet stays"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tenant(policy: &str, is_deleted: bool, finalizers: &[&str]) -> Tenant {
        let mut tenant: Tenant = serde_json::from_value(json!({
            "apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "Tenant",
            "metadata": {"name": "acme", "namespace": "shop", "finalizers": finalizers},
            "spec": {"pipelineRef": {"name": "orders"}, "apiKeys": [], "deletionPolicy": policy},
        }))
        .unwrap();
        if is_deleted {
            tenant.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        }
        tenant
    }

    fn published(erasing: Option<Erasing>, is_deleted: bool, erased_ms: u64) -> Published {
        let terms = Terms { erasing, ..Terms::default() };
        Published { name: "acme".to_owned(), version: 1, terms, is_deleted, erased_ms }
    }

    #[test]
    fn nobody_is_held_whose_data_stay() {
        let of = |policy, is_deleted, finalizers: &[&str]| Course::of(&tenant(policy, is_deleted, finalizers));
        for (finalizers, alive, deleted) in [
            (&[][..], Course::Unheld, Course::Goes),
            (&[FINALIZER, "example.com/mine"], Course::Lives, Course::Erased),
            (&["example.com/mine"], Course::Unheld, Course::Goes),
        ] {
            assert_eq!((of("Erase", false, finalizers), of("Erase", true, finalizers)), (alive, deleted));
            assert_eq!(
                (of("Retain", false, finalizers), of("Retain", true, finalizers)),
                (Course::Lives, Course::Goes)
            );
        }
    }

    #[test]
    fn an_erasure_goes_on_where_it_is_and_one_after_it_begins_anew() {
        let step = |published: Option<Published>| terms(published.as_ref()).erasing;
        assert_eq!(step(None), Some(Erasing::State));
        assert_eq!(step(Some(published(None, false, 0))), Some(Erasing::State));
        assert_eq!(step(Some(published(Some(Erasing::State), false, 9))), Some(Erasing::State));
        assert_eq!(step(Some(published(Some(Erasing::Documents), false, 9))), Some(Erasing::Documents));
        assert_eq!(step(Some(published(None, true, 9))), Some(Erasing::State));
    }

    #[test]
    fn keys_are_good_when_what_is_erased_is_over_and_the_finalizer_is_there() {
        let (held, unheld) = (tenant("Erase", false, &[FINALIZER]), tenant("Erase", false, &[]));
        let before = published(None, true, 3_600_001);
        assert_eq!(ready(&held, None, 0), Ok(()));
        assert_eq!(ready(&held, Some(&before), 3_600_001), Ok(()));
        let (reason, message) = ready(&held, Some(&before), 3_600_000).unwrap_err();
        let expected = "what was received before 01:00:01 UTC is erased: its keys are good from then on";
        assert_eq!((reason, message.as_str()), (Reason::Waiting, expected));
        let (reason, message) = ready(&unheld, None, 0).unwrap_err();
        assert!(reason == Reason::Waiting && message.contains(FINALIZER), "{message}");
    }

    #[test]
    fn how_far_an_erasure_is_is_said() {
        let of = |step, stage, unheard, done| Erasure { step, stage, unheard, done, shards: 8 };
        let said = |erasure, has_workers| Progress { erasure, has_workers }.text();
        let end = "; to let the Tenant go at once, and leave what is not erased yet, set spec.deletionPolicy to Retain";
        let state = of(Erasing::State, "action", 0, 3);
        assert_eq!(
            said(Some(state), true),
            format!("users and devices: 3 of 8 shards of action have erased them{end}")
        );
        assert_eq!(
            said(Some(of(Erasing::Documents, "reaction", 0, 0)), false),
            format!(
                "documents: 0 of 8 shards of reaction have erased them; it waits for workers of reaction, of which none reports{end}"
            )
        );
        let unheard = of(Erasing::State, "action", 2, 8);
        assert_eq!(said(Some(unheard), true), format!("not every gateway and shard of unify has heard of it{end}"));
        assert!(said(None, true).starts_with("that it is to be erased is not published yet"));
        let progress = |erasure, has_workers| Progress { erasure: Some(erasure), has_workers };
        let more = progress(of(Erasing::State, "action", 0, 4), true);
        assert!(!more.is_news(&progress(state, true)), "only a count");
        assert!(more.is_news(&progress(state, false)) && more.is_news(&progress(unheard, true)));
        assert!(more.is_news(&Progress::default()));
    }
}
