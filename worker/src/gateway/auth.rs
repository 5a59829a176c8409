//! Who sends, and on which terms: API keys, and what they lead to.
//!
//! A process keeps the SHA-256 of each key, not the key. What a sender presents is hashed too; the table finds candidates by the first
//! eight bytes of that hash and compares all of it in constant time. How long the look-up takes can tell something about the hash of what the sender
//! itself sent, and nothing about a stored key.

use super::answer::Failure;
use super::rate::Meter;
use crate::config::{KeyHash, Tenant};
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use millstream_plan::message::{Rate, Tenant as Published};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;

/// How a key was presented; it decides which API `/v1/batch` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// `Authorization: Basic`, the key as user name: Segment's SDKs.
    Basic,
    /// `Authorization: Bearer` or `X-API-Key`.
    Key,
}

/// One who may send, and on which terms.
#[derive(Debug)]
pub(super) struct Sender {
    /// The tenant.
    pub(super) name: Arc<str>,
    /// Bytes of one of its records, where that was published.
    pub(super) max_record_bytes: Option<usize>,
    /// How much it may send here; none: as much as it likes.
    pub(super) meter: Option<Arc<Meter>>,
}

/// As a time until which keys are trusted: nothing was said yet.
const FOR_EVER: u64 = u64::MAX;

/// Who may send now: the tenants of the configuration, and those that were published in `control`. What was published of a tenant goes for both.
#[derive(Debug)]
pub struct Keyring {
    configured: Vec<Tenant>,
    /// So many gateways share a tenant's rate, where nothing else was published.
    gateways: u32,
    began: Instant,
    keys: RwLock<Arc<Keys>>,
    /// By the clock of meters, milliseconds: from then on what is known may be old, unless [`FOR_EVER`].
    trusted_until_ms: AtomicU64,
}

impl Keyring {
    /// With the tenants of the configuration.
    pub fn new(configured: &[Tenant]) -> Keyring {
        let keys = RwLock::default();
        let (began, trusted_until_ms) = (Instant::now(), AtomicU64::new(FOR_EVER));
        let keyring = Keyring { configured: configured.to_vec(), gateways: 1, began, keys, trusted_until_ms };
        keyring.publish(&BTreeMap::new(), None);
        keyring
    }

    /// Of one of so many gateways, as long as nothing else is published.
    pub fn of_gateways(self, gateways: u32) -> Keyring {
        Keyring { gateways, ..self }
    }

    /// From now on these are the published ones, and so many gateways share their rates: requests that come later are judged by them.
    pub fn publish(&self, published: &BTreeMap<String, Published>, gateways: Option<u32>) {
        let before = self.newest();
        let meters = Meters { before: &before, gateways: gateways.unwrap_or(self.gateways), now: self.now() };
        let keys = Arc::new(Keys::new(&self.configured, published, &meters));
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// What is known is trusted until then; nobody is let in later, unless a later time is said: who may send may have changed, and nobody could tell.
    /// An earlier time than was said before says nothing.
    pub fn trust_until(&self, then: Instant) {
        let until = then.saturating_duration_since(self.began);
        let until = u64::try_from(until.as_millis()).unwrap_or(FOR_EVER);
        let later = |before| if before == FOR_EVER { until } else { until.max(before) };
        let _ = self.trusted_until_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| Some(later(before)));
    }

    /// Is nobody let in then, unless a later time is said before?
    pub(crate) fn is_old_at(&self, then: Instant) -> bool {
        let then = then.saturating_duration_since(self.began).as_millis();
        then > u128::from(self.trusted_until_ms.load(Ordering::Relaxed))
    }

    /// Who sends, and how the key was presented.
    ///
    /// # Errors
    /// 401; 503 when it cannot be known.
    pub(super) fn authenticate(&self, headers: &HeaderMap) -> Result<(Arc<Sender>, Scheme), Failure> {
        if self.is_old_at(Instant::now()) {
            let message = "this gateway does not hear any more who may send; repeat the request after Retry-After, with the same ids";
            return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "keys_not_heard", message).retry_after(1));
        }
        self.newest().authenticate(headers)
    }

    /// By the clock of meters.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn newest(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Where meters come from: one that is there goes on.
struct Meters<'a> {
    before: &'a Keys,
    gateways: u32,
    now: Duration,
}

impl Meters<'_> {
    fn of(&self, tenant: &str, rate: Rate) -> Option<Arc<Meter>> {
        if rate == Rate::default() {
            return None;
        }
        let before = self.before.senders.get(tenant).and_then(|sender| sender.meter.clone());
        let Some(meter) = before else { return Some(Arc::new(Meter::new(rate, self.gateways, self.now))) };
        meter.set(rate, self.gateways, self.now);
        Some(meter)
    }
}

/// The API keys of all tenants.
#[derive(Debug, Default)]
struct Keys {
    by_prefix: HashMap<[u8; 8], Vec<(KeyHash, Arc<Sender>)>>,
    senders: HashMap<Arc<str>, Arc<Sender>>,
}

impl Keys {
    fn new(configured: &[Tenant], published: &BTreeMap<String, Published>, meters: &Meters<'_>) -> Keys {
        let mut keys = Keys::default();
        for tenant in published.values().filter(|tenant| !tenant.is_deleted) {
            let name: Arc<str> = Arc::from(tenant.name.as_str());
            let terms = &tenant.terms;
            let max_record_bytes = terms.rules.limits.max_record_bytes;
            let max_record_bytes = max_record_bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
            let meter = meters.of(&name, terms.rate);
            let sender = Arc::new(Sender { name: name.clone(), max_record_bytes, meter });
            keys.senders.insert(name, sender.clone());
            keys.add(&sender, terms.api_keys.iter().copied().map(KeyHash));
        }
        for tenant in configured {
            let name: Arc<str> = Arc::from(tenant.name.as_str());
            let plain = || Arc::new(Sender { name: name.clone(), max_record_bytes: None, meter: None });
            let sender = keys.senders.entry(name.clone()).or_insert_with(plain).clone();
            keys.add(&sender, tenant.api_keys.iter().filter_map(crate::config::ApiKey::hash));
        }
        keys
    }

    fn add(&mut self, sender: &Arc<Sender>, hashes: impl Iterator<Item = KeyHash>) {
        for hash in hashes {
            self.by_prefix.entry(prefix(&hash)).or_default().push((hash, sender.clone()));
        }
    }

    fn authenticate(&self, headers: &HeaderMap) -> Result<(Arc<Sender>, Scheme), Failure> {
        let (key, scheme) = presented(headers)?;
        let hash = KeyHash::of(&key);
        let candidates = self.by_prefix.get(&prefix(&hash)).map(Vec::as_slice).unwrap_or_default();
        let found = candidates.iter().find(|(stored, _)| stored.0.ct_eq(&hash.0).into());
        let unknown = || {
            refused("unknown_key", "the API key is not known; check that it is complete and belongs to this pipeline")
        };
        found.map(|(_, sender)| (sender.clone(), scheme)).ok_or_else(unknown)
    }
}

fn prefix(hash: &KeyHash) -> [u8; 8] {
    hash.0.first_chunk().copied().unwrap_or_default()
}

const HOW: &str = "send `Authorization: Bearer KEY` or `X-API-Key: KEY`; Segment's SDKs send the key as user name of `Authorization: Basic`";

fn presented(headers: &HeaderMap) -> Result<(String, Scheme), Failure> {
    if let Some(value) = headers.get("x-api-key") {
        return Ok((text(value)?.trim().to_owned(), Scheme::Key));
    }
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Err(refused("missing_key", format!("the request has no API key: {HOW}")));
    };
    let value = text(value)?.trim();
    let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok((rest.to_owned(), Scheme::Key));
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let decoded = STANDARD.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let Some(pair) = decoded else {
            return Err(refused(
                "malformed_authorization",
                "`Authorization: Basic` must be followed by base64 of `KEY:`",
            ));
        };
        let user = pair.split(':').next().unwrap_or_default();
        return Ok((user.to_owned(), Scheme::Basic));
    }
    Err(refused("malformed_authorization", format!("this Authorization scheme is not known: {HOW}")))
}

fn text(value: &axum::http::HeaderValue) -> Result<&str, Failure> {
    value.to_str().map_err(|_| refused("malformed_authorization", "the API key has bytes that are not printable ASCII"))
}

fn refused(reason: &'static str, message: impl Into<String>) -> Failure {
    Failure::new(StatusCode::UNAUTHORIZED, reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ApiKey;
    use millstream_plan::message::Terms;

    #[test]
    fn nobody_is_let_in_when_what_is_known_may_be_old() {
        let (keys, headers) = (keys(), HeaderMap::new());
        let reason = || keys.authenticate(&headers).unwrap_err().reason;
        assert_eq!(reason(), "missing_key");
        keys.trust_until(Instant::now());
        while reason() == "missing_key" {
            std::thread::yield_now();
        }
        let failure = keys.authenticate(&headers).unwrap_err();
        assert_eq!((failure.status, failure.reason), (StatusCode::SERVICE_UNAVAILABLE, "keys_not_heard"));
        keys.trust_until(Instant::now() + Duration::from_secs(60));
        assert_eq!(reason(), "missing_key");
    }

    fn keys() -> Keyring {
        let tenant = |name: &str, keys: &[&str]| Tenant {
            name: name.parse().unwrap(),
            api_keys: keys.iter().map(|key| ApiKey::plain(key)).collect(),
        };
        Keyring::new(&[tenant("acme", &["k1", "k2"]), tenant("globex", &["k3"])])
    }

    fn published(name: &str, of: &[&str], rate: Rate, is_deleted: bool) -> Published {
        let api_keys = of.iter().map(|key| KeyHash::of(key).0).collect();
        let terms = Terms { api_keys, rate, ..Terms::default() };
        Published { name: name.to_owned(), version: 1, terms, is_deleted, erased_ms: 0 }
    }

    fn authenticate(name: &'static str, value: &str) -> Result<(String, Scheme), &'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        let result = keys().authenticate(&headers);
        result.map(|(sender, scheme)| (sender.name.to_string(), scheme)).map_err(|failure| failure.reason)
    }

    #[test]
    fn every_key_leads_to_its_tenant() {
        assert_eq!(authenticate("authorization", "Bearer k2"), Ok(("acme".into(), Scheme::Key)));
        assert_eq!(authenticate("x-api-key", "k3"), Ok(("globex".into(), Scheme::Key)));
        let basic = format!("basic {}", STANDARD.encode("k1:"));
        assert_eq!(authenticate("authorization", &basic), Ok(("acme".into(), Scheme::Basic)));
    }

    #[test]
    fn published_tenants_come_and_go_beside_the_configured_ones() {
        let keys = keys();
        let tenant_of = |key: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-api-key", key.parse().unwrap());
            keys.authenticate(&headers).map(|(sender, _)| sender.name.to_string()).map_err(|failure| failure.reason)
        };
        let published =
            |name: &str, of: &[&str], is_deleted| (name.to_owned(), published(name, of, Rate::default(), is_deleted));
        keys.publish(&[published("initech", &["k4", "k5"], false), published("gone", &["k6"], true)].into(), None);
        assert_eq!((tenant_of("k4"), tenant_of("k5")), (Ok("initech".into()), Ok("initech".into())));
        assert_eq!((tenant_of("k1"), tenant_of("k6")), (Ok("acme".into()), Err("unknown_key")));
        keys.publish(&[published("initech", &["k5"], false)].into(), None);
        assert_eq!((tenant_of("k4"), tenant_of("k5")), (Err("unknown_key"), Ok("initech".into())));
    }

    #[test]
    fn what_is_published_of_a_tenant_goes_for_its_configured_keys_and_what_it_owes_stays() {
        let keys = keys().of_gateways(2);
        let sender = |key: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-api-key", key.parse().unwrap());
            keys.authenticate(&headers).unwrap().0
        };
        let limited = |key: &str, records| {
            let taken = sender(key).meter.as_ref().unwrap().take(records, 0, keys.now());
            taken.err().map(|limited| limited.per_second)
        };
        let publish = |rate: Option<u64>, gateways| {
            let mut acme = published("acme", &["k7"], Rate { records: rate, bytes: None }, false);
            acme.terms.rules.limits.max_record_bytes = rate;
            keys.publish(&[("acme".to_owned(), acme)].into(), gateways);
        };
        assert!(sender("k1").meter.is_none() && sender("k1").max_record_bytes.is_none());
        publish(Some(1_000), None);
        assert_eq!((limited("k1", 6_000), limited("k7", 1), limited("k2", 1)), (None, Some(1_000), Some(1_000)));
        assert_eq!(sender("k2").max_record_bytes, Some(1_000));
        assert!(sender("k3").meter.is_none(), "somebody else");
        publish(Some(900), Some(1));
        assert_eq!(limited("k1", 1), Some(900), "the meter goes on, and owes what it owed");
        publish(None, Some(1));
        assert!(sender("k1").meter.is_none());
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for value in ["Bearer k4", "Bearer", "Bearer ", "Bearer K1"] {
            assert_eq!(authenticate("authorization", value), Err("unknown_key"), "{value}");
        }
        for value in ["Basic !!", "Digest abc", "k1"] {
            assert_eq!(authenticate("authorization", value), Err("malformed_authorization"), "{value}");
        }
        assert_eq!(keys().authenticate(&HeaderMap::new()).unwrap_err().reason, "missing_key");
    }
}
