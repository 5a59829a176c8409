//! Sends records to a gateway: in batches, compressed, in parallel, and again when the outcome is unknown.
//!
//! Order (I3): records that the gateway routes alike take the same lane, and a lane sends one request after the other, so
//! they are acknowledged in the order of the files. Nothing doubles (I1): a request is repeated byte by byte, with the same
//! message ids and the same `Idempotency-Key`, which is made of the prefix and the position of the request's first record.

use super::answer::{self, Problem, Verdict};
use super::input::{self, Line};
use super::request::{self, Request};
use anyhow::{Context, anyhow};
use flate2::{Compression, write::GzEncoder};
use millstream_model::proto::Source;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Records that may wait in front of a lane: enough to fill the next request while one is under way.
const WAITING: usize = 4096;
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a record from standard input waits for others: a person, or a program that writes now and then, sees it sent.
const LINGER: Duration = Duration::from_millis(200);
/// A gateway answers when the log has the records, or says within this time that it does not know.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Where and how to send.
#[derive(Debug, Clone)]
pub struct Target {
    /// Base URL of the gateway's public port.
    pub to: String,
    /// The tenant's API key.
    pub key: String,
    /// The shape of the records.
    pub source: Source,
    /// Records per request.
    pub batch: usize,
    /// Requests at a time.
    pub parallel: usize,
    /// How often a request is sent at most.
    pub attempts: u32,
    /// Begins every `Idempotency-Key`.
    pub prefix: String,
}

/// A record that was refused.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Failure {
    /// The file.
    pub file: String,
    /// The line in it.
    pub line: u64,
    /// What is wrong.
    #[serde(flatten)]
    pub problem: Problem,
}

/// How far it is; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Records that the gateway accepted.
    pub accepted: AtomicU64,
    /// Records that were refused.
    pub refused: AtomicU64,
    /// Bytes of both.
    pub bytes: AtomicU64,
    /// Requests that were sent again.
    pub repeated: AtomicU64,
    failures: Mutex<Vec<Failure>>,
    stop: AtomicBool,
}

impl Progress {
    /// The refused records so far, sorted by file and line.
    pub fn failures(&self) -> Vec<Failure> {
        let mut failures = self.failures.lock().map(|failures| failures.clone()).unwrap_or_default();
        failures.sort_by(|left, right| (&left.file, left.line).cmp(&(&right.file, right.line)));
        failures
    }

    fn accept(&self, line: &Line) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.count_bytes(line);
    }

    /// With the line's end.
    fn count_bytes(&self, line: &Line) {
        self.bytes.fetch_add(line.text.len() as u64 + 1, Ordering::Relaxed);
    }

    fn refuse(&self, line: &Line, problem: Problem) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.count_bytes(line);
        if let Ok(mut failures) = self.failures.lock() {
            failures.push(Failure { file: line.file.to_string(), line: line.number, problem });
        }
    }
}

/// Sends the records of all files.
///
/// # Errors
/// A file cannot be read, or the gateway cannot be reached or refuses every request; what was acknowledged until then is in
/// `progress`. Sending the same files again with the same prefix, batch size and parallelism doubles nothing.
pub fn send(target: &Target, files: &[PathBuf], progress: &Progress) -> anyhow::Result<()> {
    // What is in one request must not depend on time where the same files may be sent again; standard input cannot be.
    let linger = files.iter().any(|file| file.as_os_str() == "-").then_some(LINGER);
    send_from(target, progress, linger, |take| input::read_all(files, take))
}

/// Sends records from memory; `file` is what failures call it.
///
/// # Errors
/// As [`send`].
pub fn send_lines<'a>(
    target: &Target,
    file: &str,
    lines: impl Iterator<Item = &'a str>,
    progress: &Progress,
) -> anyhow::Result<()> {
    let file: Arc<str> = file.into();
    send_from(target, progress, None, |take| {
        for (number, text) in (1..).zip(lines) {
            if !take(Line { file: file.clone(), number, text: text.to_owned() }) {
                break;
            }
        }
        Ok(())
    })
}

/// A record on its way to its lane, with its position in all that is sent.
type Waiting = (u64, millstream_stages::source::Endpoint, Line);

fn send_from(
    target: &Target,
    progress: &Progress,
    linger: Option<Duration>,
    read: impl FnOnce(&mut dyn FnMut(Line) -> bool) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let client = reqwest::blocking::Client::builder().timeout(TIMEOUT).build().context("cannot set up HTTP")?;
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..target.parallel.max(1))
            .map(|_| {
                let (sender, receiver) = sync_channel(WAITING);
                let lane = Lane { target, client: client.clone(), progress, linger };
                (sender, scope.spawn(move || lane.run(&receiver)))
            })
            .collect();
        let senders: Vec<SyncSender<Waiting>> = lanes.iter().map(|(sender, _)| sender.clone()).collect();
        let mut position = 0;
        let read = read(&mut |line| {
            position += 1;
            dispatch(target, progress, &senders, position, line)
        });
        drop(senders);
        let mut outcome = read;
        for (sender, lane) in lanes {
            drop(sender);
            let ended = lane.join().unwrap_or_else(|_| Err(anyhow!("a sender crashed; please report it")));
            outcome = outcome.and(ended);
        }
        outcome
    })
}

/// Gives a record to its lane; `false` when there is no use in going on.
fn dispatch(target: &Target, progress: &Progress, lanes: &[SyncSender<Waiting>], position: u64, line: Line) -> bool {
    if progress.stop.load(Ordering::Relaxed) {
        return false;
    }
    match request::endpoint(target.source, &line.text) {
        Err(message) => {
            progress.refuse(&line, Problem { reason: "malformed_json".into(), field: None, message });
            true
        }
        Ok(endpoint) => {
            let lane = lanes.get(request::lane(endpoint, &line, lanes.len()));
            lane.is_some_and(|lane| lane.send((position, endpoint, line)).is_ok())
        }
    }
}

struct Lane<'a> {
    target: &'a Target,
    client: reqwest::blocking::Client,
    progress: &'a Progress,
    /// How long a record waits for others at most; none: until there are enough, or no more.
    linger: Option<Duration>,
}

/// A request that is being filled, with the position of its first record and when that came.
type Filling = (u64, Instant, Request);

impl Lane<'_> {
    fn run(&self, waiting: &Receiver<Waiting>) -> anyhow::Result<()> {
        let result = self.send_all(waiting);
        if result.is_err() {
            self.progress.stop.store(true, Ordering::Relaxed);
        }
        result
    }

    fn send_all(&self, waiting: &Receiver<Waiting>) -> anyhow::Result<()> {
        let mut filling: Option<Filling> = None;
        loop {
            match self.next(waiting, filling.as_ref()) {
                Ok((position, endpoint, line)) => {
                    let is_full =
                        |(.., request): &mut Filling| !request.takes(endpoint, line.text.len(), self.target.batch);
                    self.deliver_filled(filling.take_if(is_full))?;
                    let empty = || (position, Instant::now(), Request::new(endpoint));
                    filling.get_or_insert_with(empty).2.push(line);
                }
                Err(RecvTimeoutError::Timeout) => self.deliver_filled(filling.take())?,
                Err(RecvTimeoutError::Disconnected) => return self.deliver_filled(filling),
            }
        }
    }

    fn next(&self, waiting: &Receiver<Waiting>, filling: Option<&Filling>) -> Result<Waiting, RecvTimeoutError> {
        match (self.linger, filling) {
            (Some(linger), Some((_, since, _))) => waiting.recv_timeout(linger.saturating_sub(since.elapsed())),
            _ => waiting.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn deliver_filled(&self, filled: Option<Filling>) -> anyhow::Result<()> {
        let Some((first, _, request)) = filled else { return Ok(()) };
        self.deliver(request, &first.to_string())
    }

    /// Sends a request until its outcome is known; `place` is no other request's.
    fn deliver(&self, request: Request, place: &str) -> anyhow::Result<()> {
        let body = compress(&request.body(&now()))?;
        let key = format!("{}:{place}", self.target.prefix);
        let mut attempt = 1;
        loop {
            let (why, after) = match self.post(&request, &body, &key) {
                Ok(Verdict::Records(fates)) => return self.record(&request, fates),
                Ok(Verdict::TooLarge(problem)) => return self.deliver_halves(request, place, &problem),
                Ok(Verdict::Refused(why)) if attempt == 1 => return Err(self.refused(&request, &why)),
                Ok(Verdict::Refused(why) | Verdict::Hopeless(why)) => return Err(self.lost(&request, &why)),
                Ok(Verdict::Again(why, after)) => (why, after),
                Err(error) => (format!("{:#}", anyhow::Error::from(error)), None),
            };
            if attempt >= self.target.attempts || self.progress.stop.load(Ordering::Relaxed) {
                return Err(self.lost(&request, &format!("{why} ({attempt} attempts)")));
            }
            std::thread::sleep(after.unwrap_or_else(|| pause(attempt)).min(LONGEST_PAUSE));
            self.progress.repeated.fetch_add(1, Ordering::Relaxed);
            attempt += 1;
        }
    }

    fn post(&self, request: &Request, body: &[u8], key: &str) -> Result<Verdict, reqwest::Error> {
        let url = format!("{}{}", self.target.to.trim_end_matches('/'), request.path());
        let answer = self
            .client
            .post(url)
            .header("authorization", request.authorization(&self.target.key))
            .header("content-type", request.content_type())
            .header("content-encoding", "gzip")
            .header("idempotency-key", key)
            .body(body.to_vec())
            .send()?;
        let status = answer.status().as_u16();
        let retry_after = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(answer::read(status, retry_after.as_deref(), &answer.text()?, request.lines.len()))
    }

    fn record(&self, request: &Request, fates: Vec<Result<(), Problem>>) -> anyhow::Result<()> {
        for (line, fate) in request.lines.iter().zip(fates) {
            match fate {
                Ok(()) => self.progress.accept(line),
                Err(problem) => self.progress.refuse(line, problem),
            }
        }
        Ok(())
    }

    fn deliver_halves(&self, request: Request, place: &str, problem: &Problem) -> anyhow::Result<()> {
        let only = request.lines.first().cloned();
        match (request.halves(), only) {
            (Some((one, two)), _) => {
                self.deliver(one, &format!("{place}a"))?;
                self.deliver(two, &format!("{place}b"))
            }
            (None, only) => {
                only.iter().for_each(|line| self.progress.refuse(line, problem.clone()));
                Ok(())
            }
        }
    }

    fn refused(&self, request: &Request, why: &str) -> anyhow::Error {
        let (to, path) = (&self.target.to, request.path());
        anyhow!(
            "{to}{path}: {why}. The request was refused as a whole; none of its {} records was taken",
            request.lines.len()
        )
    }

    fn lost(&self, request: &Request, why: &str) -> anyhow::Error {
        let at = |line: Option<&Line>| line.map(|line| format!("{}:{}", line.file, line.number)).unwrap_or_default();
        anyhow!(
            "{}{}: {why}. Nothing is known of {} records from {} to {}; send the same files again with \
             --idempotency-key-prefix {} and the same --batch and --parallel: nothing will double",
            self.target.to,
            request.path(),
            request.lines.len(),
            at(request.lines.first()),
            at(request.lines.last()),
            self.target.prefix,
        )
    }
}

/// Doubles from 100 ms, less up to half at random, so that senders that failed together do not come back together.
fn pause(attempt: u32) -> Duration {
    let longest = Duration::from_millis(100).saturating_mul(1 << attempt.min(6)).min(LONGEST_PAUSE);
    longest.mul_f64(StdRng::from_os_rng().random_range(0.5..1.0))
}

fn compress(body: &str) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder.write_all(body.as_bytes())?;
    encoder.finish()
}

fn now() -> String {
    millstream_model::value::format_time(super::generate::now_ms())
}

#[cfg(test)]
mod tests;
