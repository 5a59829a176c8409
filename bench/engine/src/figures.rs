//! The figures, their aims, and the file that they are written to. Nobody edits that file; the table in the documents is made from it
//! (`tools/engine-figures`).

use crate::cost::{Cost, machine};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One figure.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Figure {
    figure: String,
    value: f64,
    unit: String,
    /// What it is compared with, measured in the same run.
    peer: Option<String>,
    peer_value: Option<f64>,
    /// peer_value / value: 1 when we cost as little as the peer.
    ratio: Option<f64>,
    aim: Option<f64>,
    met: Option<bool>,
    /// The aim is a lower bound.
    #[serde(default)]
    at_least: bool,
    /// How it was measured; those of failover and handoff, which another program (`bench/failover`) puts behind ours, name that program.
    #[serde(default)]
    run: Option<serde_json::Value>,
}

impl Figure {
    fn is_of_another(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.get("program").is_some())
    }
}

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Aim {
    AtMost(f64),
    AtLeast(f64),
}

impl Aim {
    fn is_met(self, value: f64) -> bool {
        match self {
            Aim::AtMost(most) => value <= most,
            Aim::AtLeast(least) => value >= least,
        }
    }

    fn bound(self) -> f64 {
        match self {
            Aim::AtMost(bound) | Aim::AtLeast(bound) => bound,
        }
    }
}

/// Figures as the measurements bring them.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<Figure>);

impl Figures {
    /// A figure that stands alone.
    pub(crate) fn add(&mut self, figure: &str, value: f64, unit: &str, aim: Option<Aim>, run: serde_json::Value) {
        self.0.push(Figure {
            figure: figure.to_owned(),
            value: rounded(value),
            unit: unit.to_owned(),
            peer: None,
            peer_value: None,
            ratio: None,
            aim: aim.map(Aim::bound),
            met: aim.map(|aim| aim.is_met(value)),
            at_least: matches!(aim, Some(Aim::AtLeast(_))),
            run: Some(run),
        });
    }

    /// Processor time per million records, beside librdkafka alone.
    pub(crate) fn add_cpu(&mut self, figure: &str, ours: &Cost, raw: Option<&Cost>, aim: Option<Aim>) -> Result<()> {
        self.add(figure, ours.cpu_per_million(), "CPU s per million records", aim, run_of(ours, raw)?);
        if let (Some(last), Some(raw)) = (self.0.last_mut(), raw) {
            last.peer = Some("raw librdkafka".to_owned());
            last.peer_value = Some(rounded(raw.cpu_per_million()));
            last.ratio = Some(rounded(raw.cpu_per_million() / ours.cpu_per_million()));
        }
        Ok(())
    }

    /// Writes them, each in place of the one of its name, and keeps what was not measured this time: by this program, or by the other one.
    pub(crate) fn write(self, path: &Path) -> Result<()> {
        let folder = path.parent().context("the file needs a folder")?;
        std::fs::create_dir_all(folder)?;
        let mut all: Vec<Figure> = Vec::new();
        if path.exists() {
            let text = std::fs::read_to_string(path)?;
            all =
                serde_json::from_str(&text).with_context(|| format!("{} is not a list of figures", path.display()))?;
        }
        for figure in self.0 {
            let others = all.iter().position(Figure::is_of_another).unwrap_or(all.len());
            match all.iter_mut().find(|it| it.figure == figure.figure) {
                Some(it) => *it = figure,
                None => all.insert(others, figure),
            }
        }
        let text = serde_json::to_string_pretty(&all)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for Figure { figure, value, unit, peer_value, aim, met, .. } in &self.0 {
            write!(f, "{figure}: {value} {unit}")?;
            if let Some(raw) = peer_value {
                write!(f, " (raw {raw})")?;
            }
            match (aim, met) {
                (Some(aim), Some(true)) => writeln!(f, ", aim {aim}: met")?,
                (Some(aim), _) => writeln!(f, ", aim {aim}: NOT MET")?,
                (None, _) => writeln!(f)?,
            }
        }
        Ok(())
    }
}

/// How a figure came about.
pub(crate) fn run_of(ours: &Cost, raw: Option<&Cost>) -> Result<serde_json::Value> {
    Ok(serde_json::json!({
        "machine": machine()?,
        "records_per_second": ours.rate().round(),
        "seconds": rounded(ours.seconds),
        "broker_cpu_s_per_million": rounded(ours.broker_cpu_per_million()),
        "resident_mb": ours.resident >> 20,
        "load": ours.load,
        "peer_records_per_second": raw.map(|raw| raw.rate().round()),
        "peer_broker_cpu_s_per_million": raw.map(|raw| rounded(raw.broker_cpu_per_million())),
    }))
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(cpu: f64) -> Cost {
        Cost {
            records: 2_000_000,
            seconds: 10.0,
            cpu,
            broker_cpu: 4.0,
            resident: 5 << 20,
            batch_p99_ms: 0,
            batch_longest_ms: 0,
            load: 2.0,
        }
    }

    #[test]
    fn a_figure_says_whether_its_aim_is_met_and_what_it_is_of_the_peer() {
        let mut figures = Figures::default();
        figures.add_cpu("a", &cost(10.0), Some(&cost(4.0)), Some(Aim::AtMost(5.0))).unwrap();
        figures.add_cpu("b", &cost(10.02), None, Some(Aim::AtMost(5.0))).unwrap();
        figures.add("c", 69.9, "%", Some(Aim::AtLeast(70.0)), serde_json::Value::Null);
        let [a, b, c] = &figures.0[..] else { panic!("{figures:?}") };
        assert_eq!((a.value, a.peer_value, a.ratio, a.met), (5.0, Some(2.0), Some(0.4), Some(true)));
        assert_eq!((b.value, b.peer_value, b.ratio, b.met), (5.01, None, None, Some(false)));
        assert_eq!((c.aim, c.at_least, c.met), (Some(70.0), true, Some(false)));
    }

    #[test]
    fn what_was_not_measured_this_time_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.json");
        let other = r#"[{"figure":"memory","value":300.0,"unit":"MB","run":{"load":1.0}},{"figure":"large","value":7.0,"unit":"s","run":{"load":1.0}},{"figure":"failover","value":1.5,"unit":"s","peer":null,"peer_value":null,"ratio":null,"aim":2.0,"met":true,"run":{"program":"bench-failover"}}]"#;
        std::fs::write(&path, other).unwrap();
        let mut figures = Figures::default();
        figures.add("memory", 200.0, "MB", None, serde_json::json!({"load": 2.0}));
        figures.add("new", 1.0, "MB", None, serde_json::json!({"load": 2.0}));
        figures.write(&path).unwrap();
        let read: Vec<Figure> = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let values: Vec<(&str, f64)> = read.iter().map(|figure| (figure.figure.as_str(), figure.value)).collect();
        assert_eq!(values, [("memory", 200.0), ("large", 7.0), ("new", 1.0), ("failover", 1.5)]);
    }
}
