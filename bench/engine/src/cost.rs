//! What a stretch of work costs: processor time of this process and of the broker, wall time, memory, and how busy the machine was.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Readings at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    at: Instant,
    cpu: f64,
    broker_cpu: f64,
    records: u64,
}

/// What was measured between two marks.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Cost {
    pub(crate) records: u64,
    pub(crate) seconds: f64,
    /// Processor seconds of the measured process, all threads, user and system.
    pub(crate) cpu: f64,
    /// Processor seconds of the broker.
    pub(crate) broker_cpu: f64,
    /// Resident memory of the measured process at the end, bytes.
    pub(crate) resident: u64,
    /// A batch, from its first record to its commit, milliseconds: what one in a hundred takes at least, and the longest; 0: there are none.
    #[serde(default)]
    pub(crate) batch_p99_ms: u64,
    /// See `batch_p99_ms`.
    #[serde(default)]
    pub(crate) batch_longest_ms: u64,
    /// Runnable threads of the whole machine, averaged over the last minute, at the end.
    pub(crate) load: f64,
}

impl Mark {
    /// Now, after so many records.
    pub(crate) fn now(records: u64, broker: i32) -> Result<Mark> {
        let own = i32::try_from(std::process::id())?;
        Ok(Mark { at: Instant::now(), cpu: cpu_of(own)?, broker_cpu: cpu_of(broker)?, records })
    }

    /// What has been spent since.
    pub(crate) fn until_now(self, records: u64, broker: i32) -> Result<Cost> {
        let end = Mark::now(records, broker)?;
        Ok(Cost {
            records: end.records.saturating_sub(self.records),
            seconds: end.at.duration_since(self.at).as_secs_f64(),
            cpu: end.cpu - self.cpu,
            broker_cpu: end.broker_cpu - self.broker_cpu,
            resident: resident()?,
            batch_p99_ms: 0,
            batch_longest_ms: 0,
            load: load()?,
        })
    }
}

impl Cost {
    /// With how long each batch took, milliseconds.
    pub(crate) fn with_batches(self, took_ms: &mut [u64]) -> Cost {
        took_ms.sort_unstable();
        let at = |place: usize| took_ms.get(place).copied().unwrap_or_default();
        let last = took_ms.len().saturating_sub(1);
        Cost { batch_p99_ms: at(last * 99 / 100), batch_longest_ms: at(last), ..self }
    }

    pub(crate) fn cpu_per_million(&self) -> f64 {
        self.cpu * 1e6 / self.records.max(1) as f64
    }

    pub(crate) fn broker_cpu_per_million(&self) -> f64 {
        self.broker_cpu * 1e6 / self.records.max(1) as f64
    }

    pub(crate) fn rate(&self) -> f64 {
        self.records as f64 / self.seconds
    }

    /// Several measurements as one.
    pub(crate) fn sum(costs: &[Cost]) -> Option<Cost> {
        costs.iter().copied().reduce(|a, b| Cost {
            records: a.records + b.records,
            seconds: a.seconds + b.seconds,
            cpu: a.cpu + b.cpu,
            broker_cpu: a.broker_cpu + b.broker_cpu,
            resident: a.resident.max(b.resident),
            batch_p99_ms: a.batch_p99_ms.max(b.batch_p99_ms),
            batch_longest_ms: a.batch_longest_ms.max(b.batch_longest_ms),
            load: a.load.max(b.load),
        })
    }
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.0}k records/s, {:.2} CPU s per million (broker {:.2}), {} MB, batch p99 {} ms, longest {} ms, {:.0} s, load {:.1}",
            self.rate() / 1000.0,
            self.cpu_per_million(),
            self.broker_cpu_per_million(),
            self.resident >> 20,
            self.batch_p99_ms,
            self.batch_longest_ms,
            self.seconds,
            self.load
        )
    }
}

/// Processor seconds of a process so far, of all its threads, those that have ended too: what getrusage says, in hundredths.
fn cpu_of(process: i32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).context("cannot read a process's CPU time")?;
    let after_name = stat.rsplit(')').next().context("no name in stat")?;
    let ticks = |field: usize| -> Result<f64> {
        Ok(after_name.split_whitespace().nth(field).context("stat is short")?.parse()?)
    };
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in status")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes << 10)
}

fn load() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_whitespace().next().context("empty loadavg")?.parse()?)
}

/// The machine, in words.
pub(crate) fn machine() -> Result<String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown processor");
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let kilobytes = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or("0 kB");
    let kilobytes: f64 = kilobytes.trim().trim_end_matches(" kB").parse()?;
    let cores = std::thread::available_parallelism()?;
    Ok(format!(
        "{cores} cores, {}, {:.0} GiB",
        model.trim_start_matches([' ', '\t', ':']),
        kilobytes / f64::from(1 << 20)
    ))
}
