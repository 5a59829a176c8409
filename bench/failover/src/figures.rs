//! The figures of kills and handoffs, behind those of the engine in one file.

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// One worker that was killed.
pub(crate) struct Kill {
    /// Until each of its shards had a successor that knew of it.
    pub(crate) detection: Duration,
    /// The longest gap of any shard's effects.
    pub(crate) gap: Duration,
}

/// One figure, as the engine's.
#[derive(Serialize)]
struct Figure {
    figure: &'static str,
    value: f64,
    unit: &'static str,
    peer: Option<&'static str>,
    peer_value: Option<f64>,
    ratio: Option<f64>,
    aim: f64,
    met: bool,
    at_least: bool,
    run: Value,
}

/// What tells figures of this program from those of the engine.
const PROGRAM: &str = "bench-failover";

/// The figures in a file that the engine's program has measured.
///
/// # Errors
/// When the file is none of figures.
pub(crate) fn of_others(file: &Path) -> Result<Vec<Value>> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    let mut list: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(file)?)
        .with_context(|| format!("{} is not a list of figures", file.display()))?;
    list.retain(|figure| figure.get("run").and_then(Value::as_object).is_some_and(|run| !run.contains_key("program")));
    Ok(list)
}

/// Writes the figures behind the others, and prints them. Of handoffs: by how much the longest gap of each was longer than at rest.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(file: &Path, mut list: Vec<Value>, handoffs: &[Duration], kills: &[Kill]) -> Result<()> {
    let (handed, killed) = (run(handoffs.len()), run(kills.len()));
    let figure = |name: &'static str, value: Duration, aim: f64, run: &Value| {
        let value = milliseconds(value);
        let (peer, peer_value, ratio) = (None, None, None);
        let (met, run) = (value <= aim, run.clone());
        Figure { figure: name, value, unit: "ms", peer, peer_value, ratio, aim, met, at_least: false, run }
    };
    let detections: Vec<Duration> = kills.iter().map(|kill| kill.detection).collect();
    let after: Vec<Duration> = kills.iter().map(|kill| kill.gap.saturating_sub(kill.detection)).collect();
    let gaps: Vec<Duration> = kills.iter().map(|kill| kill.gap).collect();
    let figures = [
        figure(
            "kill -9 of a worker: detection, until the last of its shards has a successor that knows: longest",
            percentile(&detections, 1.0),
            3_000.0,
            &killed,
        ),
        figure(
            "kill -9 of a worker: from detection to the first new effect of the worst shard of all: longest",
            percentile(&after, 1.0),
            2_000.0,
            &killed,
        ),
        figure("kill -9: the same, median", percentile(&after, 0.5), 2_000.0, &killed),
        figure(
            "kill -9 of a worker to the first new effect of the worst shard of all, detection included: longest",
            percentile(&gaps, 1.0),
            5_000.0,
            &killed,
        ),
        figure(
            "planned handoff: longest gap of any shard beyond the interval between batches at rest: p99",
            percentile(handoffs, 0.99),
            150.0,
            &handed,
        ),
        figure("planned handoff: the same, median", percentile(handoffs, 0.5), 150.0, &handed),
    ];
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    for figure in &figures {
        println!("{}: {} {}", figure.figure, figure.value, figure.unit);
        list.push(serde_json::to_value(figure)?);
    }
    std::fs::write(file, serde_json::to_string_pretty(&list)? + "\n")?;
    println!("{} handoffs, {} kills; written to {}", handoffs.len(), kills.len(), file.display());
    Ok(())
}

fn run(rounds: usize) -> Value {
    json!({"program": PROGRAM, "rounds": rounds})
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}

/// The longest of none is nothing.
fn percentile(values: &[Duration], share: f64) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}
