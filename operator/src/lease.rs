//! One operator leads; others wait until it is gone.
//!
//! As Kubernetes' own components do it: the leader renews a Lease, and whoever has seen the very same Lease for as long as it says takes it. Each write is conditional on the version that was read,
//! so that of two who try one gets it; clocks of two machines are never compared. A leader that could not renew ends its process before others may believe that it is gone. One that ends well
//! gives the Lease away at once.
//!
//! We write this ourselves because the crates at hand compare the leader's clock with ours, and renew without a condition.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use std::time::{Duration, Instant};

/// Whoever has seen the same Lease for so long takes it.
const DURATION: Duration = Duration::from_secs(4);
/// How often it is renewed.
const RENEW: Duration = Duration::from_millis(750);
/// How often others look at it. One that dies may have renewed it just after a look, and its time may be over just after another: in the worst case somebody else leads after [`DURATION`] and two of
/// these, which is well under 5 s.
const LOOK: Duration = Duration::from_millis(200);
/// How long one renewal, or one look, may take.
const TRY: Duration = Duration::from_secs(1);
/// After so long without a renewal a leader ends: well before others believe that it is gone.
const DEADLINE: Duration = Duration::from_millis(2_800);

/// A claim on leading.
pub struct Claim {
    api: Api<Lease>,
    name: String,
    /// Of this process, and no other.
    identity: String,
}

/// Leading, until it is lost.
pub struct Leading {
    claim: Claim,
    lease: Lease,
    /// The identity of the one that had not given it away.
    former: Option<String>,
    /// Before the request that renewed it last was sent.
    renewed: Instant,
}

impl Claim {
    /// On the Lease of this name; `identity` is of this process, and no other.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Claim {
        Claim { api: Api::namespaced(client, namespace), name: name.to_owned(), identity: identity.to_owned() }
    }

    /// Waits until this one leads.
    pub async fn acquire(self) -> Leading {
        let mut watched: Option<(String, Instant)> = None;
        loop {
            let began = Instant::now();
            match tokio::time::timeout(TRY, self.try_acquire(&mut watched)).await {
                Ok(Ok(Some((lease, former)))) => return Leading { claim: self, lease, former, renewed: began },
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::warn!(lease = self.name, %error, "cannot ask for the lease"),
                Err(_) => tracing::warn!(lease = self.name, "cannot ask for the lease: the API server does not answer"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The Lease, and who had it before, if it could be had.
    async fn try_acquire(
        &self,
        watched: &mut Option<(String, Instant)>,
    ) -> Result<Option<(Lease, Option<String>)>, kube::Error> {
        let params = PostParams::default();
        let found = self.api.get_opt(&self.name).await?;
        let former = found.as_ref().and_then(|lease| lease.spec.as_ref()?.holder_identity.clone());
        let written = match found {
            None => self.api.create(&params, &self.taken(Lease::default())).await,
            Some(lease) if is_free(&lease, watched) => self.api.replace(&self.name, &params, &self.taken(lease)).await,
            Some(_) => return Ok(None),
        };
        match written {
            Ok(lease) => Ok(Some((lease, former.filter(|former| !former.is_empty())))),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn taken(&self, lease: Lease) -> Lease {
        let before = lease.spec.unwrap_or_default();
        let now = MicroTime(Timestamp::now());
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(-1).saturating_add(1)),
            ..before
        };
        let metadata = ObjectMeta { name: Some(self.name.clone()), ..lease.metadata };
        Lease { metadata, spec: Some(spec) }
    }
}

/// Nobody has it, or it was seen unchanged for as long as it says.
fn is_free(lease: &Lease, watched: &mut Option<(String, Instant)>) -> bool {
    let spec = lease.spec.clone().unwrap_or_default();
    if spec.holder_identity.as_deref().unwrap_or_default().is_empty() {
        return true;
    }
    let version = lease.metadata.resource_version.clone().unwrap_or_default();
    let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    match watched {
        Some((seen, since)) if *seen == version => since.elapsed() >= duration.unwrap_or(DURATION),
        _ => {
            *watched = Some((version, Instant::now()));
            false
        }
    }
}

impl Leading {
    /// The identity of the one that led before, unless it has given the Lease away.
    pub fn former(&self) -> Option<&str> {
        self.former.as_deref()
    }

    /// Renews it; returns when it is lost, with the reason. Others may lead from soon after on: the process must end.
    pub async fn keep(&mut self) -> String {
        loop {
            tokio::time::sleep(RENEW).await;
            // One connection that swallows what it is sent must not use up all the time there is.
            let left = DEADLINE.saturating_sub(self.renewed.elapsed()).min(TRY);
            let why = match tokio::time::timeout(left, self.renew()).await {
                Ok(Ok(true)) => continue,
                Ok(Ok(false)) => return "somebody else holds the lease".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the API server does not answer".to_owned(),
            };
            if self.renewed.elapsed() >= DEADLINE {
                return format!("the lease could not be renewed for {DEADLINE:?}: {why}");
            }
            tracing::warn!(lease = self.claim.name, why, "the lease was not renewed");
        }
    }

    /// Is it still ours?
    async fn renew(&mut self) -> Result<bool, kube::Error> {
        let began = Instant::now();
        let mut wanted = self.lease.clone();
        wanted.spec.get_or_insert_default().renew_time = Some(MicroTime(Timestamp::now()));
        match self.claim.api.replace(&self.claim.name, &PostParams::default(), &wanted).await {
            Ok(lease) => {
                (self.lease, self.renewed) = (lease, began);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let found = self.claim.api.get(&self.claim.name).await?;
                let holder = found.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
                let is_ours = holder == Some(self.claim.identity.as_str());
                // An annotation by somebody, or a renewal of ours whose answer was lost.
                self.lease = found;
                Ok(is_ours)
            }
            // Somebody has deleted it, and anybody may make it anew.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives it away, so that the next one need not wait.
    pub async fn release(mut self) {
        self.lease.spec.get_or_insert_default().holder_identity = None;
        let released = self.claim.api.replace(&self.claim.name, &PostParams::default(), &self.lease).await;
        if let Err(error) = released {
            tracing::warn!(lease = self.claim.name, %error, "the lease was not given away");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str, seconds: i32) -> Lease {
        Lease {
            metadata: ObjectMeta { resource_version: Some(version.to_owned()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: Some(seconds),
                ..LeaseSpec::default()
            }),
        }
    }

    #[test]
    fn another_one_leads_within_five_seconds_and_never_beside_one_that_has_not_ended() {
        assert!(DURATION + LOOK * 2 < Duration::from_millis(4_500), "half a second is left for the requests");
        assert!(DEADLINE + TRY < DURATION);
    }

    #[test]
    fn a_lease_is_free_when_nobody_has_it_or_it_was_seen_unchanged_for_as_long_as_it_says() {
        let mut watched = None;
        assert!(is_free(&lease("", "1", 4), &mut watched) && is_free(&Lease::default(), &mut watched));
        assert!(!is_free(&lease("a", "1", 0), &mut watched), "it is seen for the first time");
        assert!(is_free(&lease("a", "1", 0), &mut watched));
        assert!(!is_free(&lease("a", "2", 0), &mut watched), "it was renewed");
        assert!(!is_free(&lease("a", "2", 60), &mut watched), "not for so long");
    }
}
