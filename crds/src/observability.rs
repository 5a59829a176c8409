//! Logs, traces and metrics of a pipeline's workers.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Logs, traces and metrics of the workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Observability {
    /// Where spans go by OTLP over HTTP, for example `http://otel-collector:4318` (default: none are exported).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^https?://"))]
    pub otlp_endpoint: Option<String>,

    /// Share of requests without a `traceparent` of their own that are traced, in percent (default 1).
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub sample_percent: i32,

    /// `text` for people, `json` for collectors (default `json`).
    #[serde(default)]
    pub log_format: LogFormat,

    /// Namespaces whose Pods may read the workers' metrics, by name, for example that of Prometheus (default: none but the operator's).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub scrape_namespaces: Vec<String>,

    /// What is logged, in the syntax of `RUST_LOG`, for example `info,millstream::gateway=debug` (default `info`).
    #[serde(default = "info")]
    #[schemars(length(min = 1, max = 1024))]
    pub log_filter: String,
}

impl Default for Observability {
    fn default() -> Observability {
        Observability {
            otlp_endpoint: None,
            sample_percent: one(),
            log_format: LogFormat::default(),
            scrape_namespaces: Vec::new(),
            log_filter: info(),
        }
    }
}

fn one() -> i32 {
    1
}

fn info() -> String {
    "info".to_owned()
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    #[default]
    Json,
}
