//! Who sends: API keys.
//!
//! A process keeps the SHA-256 of each key, not the key. What a sender presents is hashed too; the table finds candidates by the first
//! eight bytes of that hash and compares all of it in constant time. How long the look-up takes can tell something about the hash of what the sender
//! itself sent, and nothing about a stored key.

use super::answer::Failure;
use crate::config::{KeyHash, Tenant};
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use millstream_plan::message::Tenant as Published;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use subtle::ConstantTimeEq;

/// How a key was presented; it decides which API `/v1/batch` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// `Authorization: Basic`, the key as user name: Segment's SDKs.
    Basic,
    /// `Authorization: Bearer` or `X-API-Key`.
    Key,
}

/// Who may send now: the tenants of the configuration, and those that were published in `control`.
#[derive(Debug, Default)]
pub struct Keyring {
    configured: Vec<Tenant>,
    keys: RwLock<Arc<Keys>>,
}

impl Keyring {
    /// With the tenants of the configuration.
    pub fn new(configured: &[Tenant]) -> Keyring {
        let keys = RwLock::new(Arc::new(Keys::new(configured, &BTreeMap::new())));
        Keyring { configured: configured.to_vec(), keys }
    }

    /// From now on these are the published ones: requests that come later are judged by them.
    pub fn publish(&self, published: &BTreeMap<String, Published>) {
        let keys = Arc::new(Keys::new(&self.configured, published));
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// The tenant that sends, and how it presented its key.
    ///
    /// # Errors
    /// 401.
    pub(super) fn authenticate(&self, headers: &HeaderMap) -> Result<(Arc<str>, Scheme), Failure> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        keys.authenticate(headers)
    }
}

/// The API keys of all tenants.
#[derive(Debug, Default)]
struct Keys {
    by_prefix: HashMap<[u8; 8], Vec<(KeyHash, Arc<str>)>>,
}

impl Keys {
    fn new(configured: &[Tenant], published: &BTreeMap<String, Published>) -> Keys {
        let mut keys = Keys::default();
        for tenant in configured {
            keys.add(tenant.name.as_str(), tenant.api_keys.iter().filter_map(crate::config::ApiKey::hash));
        }
        for tenant in published.values().filter(|tenant| !tenant.is_deleted) {
            keys.add(&tenant.name, tenant.api_keys.iter().copied().map(KeyHash));
        }
        keys
    }

    fn add(&mut self, tenant: &str, hashes: impl Iterator<Item = KeyHash>) {
        let name: Arc<str> = Arc::from(tenant);
        for hash in hashes {
            self.by_prefix.entry(prefix(&hash)).or_default().push((hash, name.clone()));
        }
    }

    fn authenticate(&self, headers: &HeaderMap) -> Result<(Arc<str>, Scheme), Failure> {
        let (key, scheme) = presented(headers)?;
        let hash = KeyHash::of(&key);
        let candidates = self.by_prefix.get(&prefix(&hash)).map(Vec::as_slice).unwrap_or_default();
        let found = candidates.iter().find(|(stored, _)| stored.0.ct_eq(&hash.0).into());
        let unknown = || {
            refused("unknown_key", "the API key is not known; check that it is complete and belongs to this pipeline")
        };
        found.map(|(_, tenant)| (tenant.clone(), scheme)).ok_or_else(unknown)
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

    fn keys() -> Keyring {
        let tenant = |name: &str, keys: &[&str]| Tenant {
            name: name.parse().unwrap(),
            api_keys: keys.iter().map(|key| ApiKey::plain(key)).collect(),
        };
        Keyring::new(&[tenant("acme", &["k1", "k2"]), tenant("globex", &["k3"])])
    }

    fn authenticate(name: &'static str, value: &str) -> Result<(String, Scheme), &'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        let result = keys().authenticate(&headers);
        result.map(|(tenant, scheme)| (tenant.to_string(), scheme)).map_err(|failure| failure.reason)
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
            keys.authenticate(&headers).map(|(tenant, _)| tenant.to_string()).map_err(|failure| failure.reason)
        };
        let published = |name: &str, of: &[&str], is_deleted| {
            let api_keys = of.iter().map(|key| KeyHash::of(key).0).collect();
            (name.to_owned(), Published { name: name.to_owned(), version: 1, api_keys, is_deleted })
        };
        keys.publish(&[published("initech", &["k4", "k5"], false), published("gone", &["k6"], true)].into());
        assert_eq!((tenant_of("k4"), tenant_of("k5")), (Ok("initech".into()), Ok("initech".into())));
        assert_eq!((tenant_of("k1"), tenant_of("k6")), (Ok("acme".into()), Err("unknown_key")));
        keys.publish(&[published("initech", &["k5"], false)].into());
        assert_eq!((tenant_of("k4"), tenant_of("k5")), (Err("unknown_key"), Ok("initech".into())));
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
