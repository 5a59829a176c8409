//! The endpoints, as one table: the router and the OpenAPI document are both made from it, so that neither knows one that the other lacks.

use super::answer::Family;
use super::auth::Scheme;
use millstream_stages::source::{DataApiKind as D, Endpoint, SegmentKind as S};

/// What is behind a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// One endpoint.
    Only(Endpoint),
    /// `/v1/batch`, which two APIs claim: `Authorization: Basic` means Segment's, any other way to send the key means the native one.
    BatchByScheme,
}

/// A path and what it is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub(super) path: &'static str,
    pub(super) target: Target,
    pub(super) summary: &'static str,
}

impl Target {
    /// The endpoint, once it is known how the key was presented.
    pub(super) fn endpoint(self, scheme: Scheme) -> Endpoint {
        match (self, scheme) {
            (Target::Only(endpoint), _) => endpoint,
            (Target::BatchByScheme, Scheme::Basic) => Endpoint::Segment(S::Batch),
            (Target::BatchByScheme, Scheme::Key) => Endpoint::NativeBatch,
        }
    }

    /// Whose conventions errors follow before that is known.
    pub(super) fn family(self) -> Family {
        match self {
            Target::Only(endpoint) => family(endpoint),
            Target::BatchByScheme => Family::Native,
        }
    }
}

/// Whose conventions an endpoint follows.
pub(super) fn family(endpoint: Endpoint) -> Family {
    match endpoint {
        Endpoint::NativeBatch => Family::Native,
        Endpoint::DataApi(_) => Family::DataApi,
        Endpoint::Segment(_) => Family::Segment,
    }
}

/// As spans call it.
pub(super) fn name(endpoint: Endpoint) -> &'static str {
    endpoint.kind().unwrap_or(match endpoint {
        Endpoint::DataApi(_) => "transition",
        Endpoint::NativeBatch | Endpoint::Segment(_) => "batch",
    })
}

const fn only(path: &'static str, endpoint: Endpoint, summary: &'static str) -> Route {
    Route { path, target: Target::Only(endpoint), summary }
}

const fn data_api(path: &'static str, kind: D) -> Route {
    let summary = match kind {
        D::Customer => "Create or update a customer",
        D::Event => "Events of one customer, in `actions`",
        D::Device => "Create or update a device",
        D::Transition => "Many customers, events and devices, in `elements`; answered per element",
        D::Merge => "Merge users, in `merge_data`",
        D::Delete => "Delete a user",
    };
    only(path, Endpoint::DataApi(kind), summary)
}

const fn segment(path: &'static str, kind: S) -> Route {
    let summary = match kind {
        S::Identify => "Segment identify: who the user is",
        S::Track => "Segment track: what the user did",
        S::Page => "Segment page: a page view",
        S::Screen => "Segment screen: a screen view",
        S::Group => "Segment group: which account the user belongs to",
        S::Alias => "Segment alias: two ids of one user",
        S::Batch => "Segment batch: many calls, in `batch`",
    };
    only(path, Endpoint::Segment(kind), summary)
}

const NATIVE: &str = "Native batch: JSON with `batch`, or NDJSON with one record per line";

/// Every endpoint of the public port that takes records.
pub(super) const ROUTES: [Route; 29] = [
    Route {
        path: "/v1/batch",
        target: Target::BatchByScheme,
        summary: "Batch: Segment's with `Authorization: Basic`, the native one with `Authorization: Bearer` or `X-API-Key`",
    },
    only("/native/v1/batch", Endpoint::NativeBatch, NATIVE),
    data_api("/v1/customer", D::Customer),
    data_api("/v1/event", D::Event),
    data_api("/v1/device", D::Device),
    data_api("/v1/transition", D::Transition),
    data_api("/v1/merge", D::Merge),
    data_api("/v1/delete", D::Delete),
    data_api("/data-api/v1/customer", D::Customer),
    data_api("/data-api/v1/event", D::Event),
    data_api("/data-api/v1/device", D::Device),
    data_api("/data-api/v1/transition", D::Transition),
    data_api("/data-api/v1/merge", D::Merge),
    data_api("/data-api/v1/delete", D::Delete),
    segment("/v1/identify", S::Identify),
    segment("/v1/track", S::Track),
    segment("/v1/page", S::Page),
    segment("/v1/screen", S::Screen),
    segment("/v1/group", S::Group),
    segment("/v1/alias", S::Alias),
    segment("/v1/b", S::Batch),
    segment("/segment/v1/identify", S::Identify),
    segment("/segment/v1/track", S::Track),
    segment("/segment/v1/page", S::Page),
    segment("/segment/v1/screen", S::Screen),
    segment("/segment/v1/group", S::Group),
    segment("/segment/v1/alias", S::Alias),
    segment("/segment/v1/batch", S::Batch),
    segment("/segment/v1/b", S::Batch),
];
