//! What is said of tenants, on its way from `control` to the shards: rules to those of unify, erasures to those of unify, action and reaction.
//!
//! Whoever hears `control` publishes here what was heard ([`Rulebook::publish`]); what follows from it and the configuration is worked out once, for all shards. A shard's thread takes the newest edition
//! before each step, which is between two batches, so that nothing is locked while records are processed; and it reports how far in `control` that edition goes, after the step that went by it.
//!
//! Why no boundary between former and new rules is recorded: [`millstream_stages::unify`].

use millstream_plan::message::{self, Erasing, Tenant};
use millstream_stages::action::Erasures;
use millstream_stages::unify::{PublishedRules, Rules, TenantLimits, UnifyConfig};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The newest rules.
pub struct Rulebook {
    config: UnifyConfig,
    inner: Mutex<Inner>,
}

struct Inner {
    edition: Edition,
    /// What it was made of.
    published: BTreeMap<String, PublishedRules>,
}

/// Rules, and up to where of `control` they go.
#[derive(Clone, Debug)]
pub struct Edition {
    /// What goes for each tenant.
    pub rules: Arc<Rules>,
    /// What is erased.
    pub erasures: Arc<Erasures>,
    /// Tenants whose users and devices are erased, and whose documents are to go: what was received up to then, milliseconds since 1970.
    pub without_documents: Arc<BTreeMap<String, u64>>,
    /// They follow from `control` up to here, exclusive; 0: from the configuration alone.
    pub control_offset: u64,
}

impl Rulebook {
    /// Those of the configuration, until something is published.
    pub fn new(config: UnifyConfig) -> Rulebook {
        let published = BTreeMap::new();
        let rules = Arc::new(Rules::new(&config, &published));
        let (erasures, without_documents) = (Arc::default(), Arc::default());
        let edition = Edition { rules, erasures, without_documents, control_offset: 0 };
        Rulebook { config, inner: Mutex::new(Inner { edition, published }) }
    }

    /// `control` was heard up to here, and this is what it says of tenants.
    pub fn publish(&self, tenants: &BTreeMap<String, Tenant>, control_offset: u64) {
        let with_rules = tenants.values().filter(|tenant| !tenant.is_deleted && !tenant.terms.rules.is_empty());
        let published: BTreeMap<String, PublishedRules> =
            with_rules.map(|tenant| (tenant.name.clone(), of_stage(&tenant.terms.rules))).collect();
        let erased = tenants.values().filter(|tenant| tenant.erased_ms > 0);
        let until_ms = erased.map(|tenant| (tenant.name.clone(), tenant.erased_ms)).collect();
        let erasures = Erasures { until_ms, under_way: Arc::new(at(tenants, Erasing::State)) };
        let without_documents = at(tenants, Erasing::Documents);
        // Most of what is heard concerns neither.
        let changed = {
            let inner = self.lock();
            inner.published != published || *inner.edition.erasures != erasures
        };
        // While it is under way, nothing of the tenant is taken.
        let under_way = erasures.under_way.keys().map(|name| (name.clone(), u64::MAX));
        let erased_ms = || erasures.until_ms.clone().into_iter().chain(under_way).collect();
        let rules = changed.then(|| Arc::new(Rules::new(&self.config, &published).erased(erased_ms())));
        let mut inner = self.lock();
        if let Some(rules) = rules {
            inner.edition.rules = rules;
            inner.published = published;
        }
        if *inner.edition.erasures != erasures {
            inner.edition.erasures = Arc::new(erasures);
        }
        if *inner.edition.without_documents != without_documents {
            inner.edition.without_documents = Arc::new(without_documents);
        }
        inner.edition.control_offset = control_offset;
    }

    /// The newest ones.
    pub fn edition(&self) -> Edition {
        self.lock().edition.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tenants at this step of an erasure.
fn at(tenants: &BTreeMap<String, Tenant>, step: Erasing) -> BTreeMap<String, u64> {
    let erasing = tenants.values().filter(|tenant| tenant.terms.erasing == Some(step));
    erasing.map(|tenant| (tenant.name.clone(), tenant.erased_ms)).collect()
}

/// As the stage takes them.
fn of_stage(rules: &message::Rules) -> PublishedRules {
    let size = |limit: Option<u64>| limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let message::Limits { max_record_bytes, max_properties, max_string_chars, max_identifiers, max_actions } =
        rules.limits;
    PublishedRules {
        limits: TenantLimits {
            max_record_bytes: size(max_record_bytes),
            max_properties: size(max_properties),
            max_string_chars: size(max_string_chars),
            max_identifiers: size(max_identifiers),
            max_actions: size(max_actions),
        },
        forbidden_values: rules.forbidden_values.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_plan::message::{Limits, Terms};

    fn tenant(name: &str, max_properties: Option<u64>, forbidden: &[&str], is_deleted: bool) -> (String, Tenant) {
        let limits = Limits { max_properties, max_actions: Some(4), max_record_bytes: Some(1), ..Limits::default() };
        let limits = if max_properties.is_some() { limits } else { Limits::default() };
        let forbidden_values = forbidden.iter().map(|value| (*value).to_owned()).collect();
        let terms = Terms { rules: message::Rules { limits, forbidden_values }, ..Terms::default() };
        (name.to_owned(), Tenant { name: name.to_owned(), version: 1, terms, is_deleted, erased_ms: 0 })
    }

    #[test]
    fn what_is_heard_becomes_rules_and_what_says_nothing_new_changes_none() {
        let book = Rulebook::new(UnifyConfig::default());
        let first = book.edition();
        assert_eq!(first.control_offset, 0);
        book.publish(&[tenant("keys-only", None, &[], false), tenant("gone", Some(1), &["x"], true)].into(), 5);
        let second = book.edition();
        assert!(Arc::ptr_eq(&first.rules, &second.rules), "nobody's rules have changed");
        assert_eq!(second.control_offset, 5);
        book.publish(&[tenant("acme", Some(2), &["x"], false)].into(), 9);
        let third = book.edition();
        let limits = TenantLimits {
            max_properties: Some(2),
            max_actions: Some(4),
            max_record_bytes: Some(1),
            ..TenantLimits::default()
        };
        let published = PublishedRules { limits, forbidden_values: ["x".to_owned()].into() };
        let expected = Rules::new(&UnifyConfig::default(), &[("acme".to_owned(), published)].into());
        assert_eq!((&*third.rules, third.control_offset), (&expected, 9));
        book.publish(&[tenant("acme", Some(2), &["x"], true)].into(), 10);
        assert_eq!(*book.edition().rules, *first.rules, "a tenant that is gone has none");
    }

    #[test]
    fn an_erasure_reaches_each_stage_at_its_step_and_what_was_erased_stays_refused() {
        let book = Rulebook::new(UnifyConfig::default());
        let said = |erasing, erased_ms| {
            let terms = Terms { erasing, ..Terms::default() };
            let name = "acme".to_owned();
            book.publish(&[(name.clone(), Tenant { name, terms, erased_ms, ..Tenant::default() })].into(), 1);
            let Edition { erasures, without_documents, .. } = book.edition();
            (erasures.until_ms.get("acme").copied(), erasures.under_way.len(), without_documents.len())
        };
        assert_eq!(said(None, 0), (None, 0, 0));
        let before = book.edition();
        assert_eq!(said(Some(Erasing::State), 7), (Some(7), 1, 0));
        let state = book.edition();
        assert_eq!(
            *state.rules,
            Rules::new(&UnifyConfig::default(), &BTreeMap::new()).erased([("acme".into(), u64::MAX)].into())
        );
        assert_ne!(state.rules, before.rules);
        assert_eq!(said(Some(Erasing::State), 7), (Some(7), 1, 0));
        assert!(Arc::ptr_eq(&state.erasures, &book.edition().erasures), "nothing new");
        assert_eq!(said(Some(Erasing::Documents), 7), (Some(7), 0, 1));
        assert_eq!(said(None, 7), (Some(7), 0, 0));
    }
}
