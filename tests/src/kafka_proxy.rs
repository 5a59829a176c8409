//! A proxy in front of one Kafka broker, which names itself as the only broker there is, or, when it is told to, names none at all: as a broker does that has just come back and is not yet in
//! its own picture of the cluster.
//!
//! It names each request that writes, and does with it what a test says. When a write has *struck*, the broker is away until the proxy is told to go on: the client is about to be killed, and has done
//! nothing else before.
//!
//! Everything else passes as it is. Of Kafka's protocol it knows only where brokers stand in the answer to a `Metadata` request, and where the first topic stands in a `Produce` request (version 9 and
//! later of both, which clients of today use).

use crate::api_proxy::{Fate, Judge};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// API key of `Metadata`.
const METADATA: i16 = 3;
/// API key of `Produce`.
const PRODUCE: i16 = 0;
/// From this version on, lengths are varints and fields have tags: of both.
const FLEXIBLE: i16 = 9;

/// The requests that write, by API key.
const WRITES: [(i16, &str); 15] = [
    (PRODUCE, "Produce"),
    (19, "CreateTopics"),
    (20, "DeleteTopics"),
    (21, "DeleteRecords"),
    (22, "InitProducerId"),
    (24, "AddPartitionsToTxn"),
    (25, "AddOffsetsToTxn"),
    (26, "EndTxn"),
    (28, "TxnOffsetCommit"),
    (30, "CreateAcls"),
    (31, "DeleteAcls"),
    (33, "AlterConfigs"),
    (37, "CreatePartitions"),
    (44, "IncrementalAlterConfigs"),
    (47, "OffsetDelete"),
];

/// The proxy; it ends with the process.
pub struct KafkaProxy {
    /// Its port.
    pub port: u16,
    shared: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    open: Vec<TcpStream>,
    mode: Mode,
    /// Connections that were turned away.
    refused: usize,
    /// Numbers of connections that were told of topics, and of no broker.
    told: BTreeSet<usize>,
    /// Says what becomes of a write; without one, all are done.
    judge: Option<Judge>,
    writes: BTreeSet<String>,
    /// The connection and the request whose answer is kept back.
    awaited: Option<(usize, [u8; 4])>,
    has_struck: bool,
}

impl State {
    /// There are no connections, and new ones are closed at once.
    fn go_away(&mut self) {
        (self.mode, self.refused) = (Mode::IsAway, 0);
        self.open.drain(..).for_each(|client| drop(client.shutdown(Shutdown::Both)));
    }

    /// Whether a request passes.
    fn passes(&mut self, connection: usize, request: &[u8]) -> Result<bool> {
        if self.mode == Mode::IsAway {
            return Ok(false);
        }
        let (Some(judge), Some(name)) = (&mut self.judge, write(request)?) else { return Ok(true) };
        let fate = judge(&name, "");
        self.writes.insert(name);
        match fate {
            Fate::Done => Ok(true),
            Fate::StruckBefore => {
                self.has_struck = true;
                self.go_away();
                Ok(false)
            }
            Fate::StruckAfter => {
                // Nothing else passes any more; what has come before may still be answered.
                self.awaited = Some((connection, array(request, 4)?));
                self.mode = Mode::IsAway;
                Ok(true)
            }
            Fate::Refused(_) | Fate::Unanswered => bail!("{fate:?} is for API servers"),
        }
    }

    /// Whether an answer passes.
    fn answers(&mut self, connection: usize, answer: &[u8]) -> Result<bool> {
        if self.awaited != Some((connection, array(answer, 0)?)) {
            return Ok(true);
        }
        (self.awaited, self.has_struck) = (None, true);
        self.go_away();
        Ok(false)
    }
}

/// The name of a request that writes.
fn write(request: &[u8]) -> Result<Option<String>> {
    let key = i16::from_be_bytes(array(request, 0)?);
    let Some((_, name)) = WRITES.iter().find(|(known, _)| *known == key) else { return Ok(None) };
    if key != PRODUCE {
        return Ok(Some((*name).to_owned()));
    }
    let version = i16::from_be_bytes(array(request, 2)?);
    if version < FLEXIBLE {
        bail!("a client produces in version {version}, and this proxy knows {FLEXIBLE} and later");
    }
    // Client id, tags of the header; transactional id, acks, timeout; then the topics, each with its name first.
    let client_id = usize::try_from(i16::from_be_bytes(array(request, 8)?).max(0))?;
    let at = string(request, 10 + client_id + 1)? + 2 + 4;
    let (_, at) = varint(request, at)?;
    let (_, begins) = varint(request, at)?;
    let topic = request.get(begins..string(request, at)?).context("a short request")?;
    Ok(Some(format!("{name} {}", String::from_utf8_lossy(topic))))
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    NamesItself,
    NamesNobody,
    IsAway,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KafkaProxy {
    /// Starts one in front of a broker on loopback, without TLS.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(upstream: u16) -> Result<KafkaProxy> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Mutex::new(State::default()));
        let state = shared.clone();
        std::thread::spawn(move || {
            for (number, client) in listener.incoming().flatten().enumerate() {
                let state = state.clone();
                let mut now = lock(&state);
                if now.mode == Mode::IsAway {
                    now.refused += 1;
                    continue;
                }
                now.open.extend(client.try_clone());
                drop(now);
                std::thread::spawn(move || {
                    let passed = pass(&client, (upstream, port), number, &state);
                    let _ = client.shutdown(Shutdown::Both);
                    passed
                });
            }
        });
        Ok(KafkaProxy { port, shared })
    }

    /// From now on it is away: there are no connections, and new ones are closed at once.
    pub fn go_away(&self) {
        lock(&self.shared).go_away();
    }

    /// From now on it is there, and this one judges writes, by their names (`EndTxn`, `Produce TOPIC`); the names of the writes until now. Connections of before are closed.
    pub fn go_on(&self, judge: impl FnMut(&str, &str) -> Fate + Send + 'static) -> BTreeSet<String> {
        let mut state = lock(&self.shared);
        state.go_away();
        let judge: Judge = Box::new(judge);
        (state.judge, state.awaited, state.has_struck) = (Some(judge), None, false);
        state.mode = Mode::NamesItself;
        std::mem::take(&mut state.writes)
    }

    /// Has a write struck, and is it done, if it is to be?
    pub fn has_struck(&self) -> bool {
        lock(&self.shared).has_struck
    }

    /// How many connections were closed at once.
    pub fn refused(&self) -> usize {
        lock(&self.shared).refused
    }

    /// From now on it names no broker.
    pub fn name_nobody(&self) {
        let mut state = lock(&self.shared);
        (state.mode, state.told) = (Mode::NamesNobody, BTreeSet::new());
    }

    /// From now on it names itself again.
    pub fn name_itself(&self) {
        lock(&self.shared).mode = Mode::NamesItself;
    }

    /// How many connections were told of topics, and of no broker.
    pub fn told(&self) -> usize {
        lock(&self.shared).told.len()
    }
}

/// A message with its length in front.
fn message(from: &mut impl Read) -> Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut bytes = vec![0; u32::from_be_bytes(length).try_into()?];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn send(to: &mut impl Write, message: &[u8]) -> Result<()> {
    to.write_all(&[&u32::try_from(message.len())?.to_be_bytes(), message].concat())?;
    Ok(())
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).context("a message of Kafka ends too early")
}

/// Passes a connection on, in both directions, until one end closes.
fn pass(client: &TcpStream, (upstream, port): (u16, u16), number: usize, state: &Arc<Mutex<State>>) -> Result<()> {
    let server = TcpStream::connect(("127.0.0.1", upstream))?;
    let asked: Arc<Mutex<HashMap<[u8; 4], i16>>> = Arc::default();
    let (mut requests, mut to_server, known) = (client.try_clone()?, server.try_clone()?, asked.clone());
    let judging = state.clone();
    std::thread::spawn(move || {
        let passed = pass_requests(&mut requests, &mut to_server, &known, (number, &judging));
        let _ = to_server.shutdown(Shutdown::Both);
        passed
    });
    let (mut answers, mut to_client) = (server, client.try_clone()?);
    loop {
        let mut answer = message(&mut answers)?;
        if !lock(state).answers(number, &answer)? {
            return Ok(());
        }
        let version = asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&array::<4>(&answer, 0)?);
        if let Some(version) = version {
            let names_nobody = lock(state).mode == Mode::NamesNobody;
            let (rewritten, topics) = rewrite(&answer, version, (!names_nobody).then_some(port))?;
            answer = rewritten;
            if names_nobody && topics > 0 {
                lock(state).told.insert(number);
            }
        }
        send(&mut to_client, &answer)?;
    }
}

/// Notes which answers will be about metadata, and of which version.
fn pass_requests(
    from: &mut TcpStream,
    to: &mut TcpStream,
    asked: &Mutex<HashMap<[u8; 4], i16>>,
    (number, state): (usize, &Mutex<State>),
) -> Result<()> {
    loop {
        let request = message(from)?;
        if !lock(state).passes(number, &request)? {
            continue;
        }
        let key = i16::from_be_bytes(array(&request, 0)?);
        if key == METADATA {
            let version = i16::from_be_bytes(array(&request, 2)?);
            asked.lock().unwrap_or_else(PoisonError::into_inner).insert(array(&request, 4)?, version);
        }
        send(to, &request)?;
    }
}

/// The same answer with this broker on loopback as the only one, or with none; and how many topics it is about.
fn rewrite(answer: &[u8], version: i16, port: Option<u16>) -> Result<(Vec<u8>, u64)> {
    if version < FLEXIBLE {
        bail!("a client asks for metadata in version {version}, and this proxy knows {FLEXIBLE} and later");
    }
    // Correlation id, tags of the header, throttle time; then the brokers.
    let mut at = 4 + 1 + 4;
    let (brokers, after) = varint(answer, at)?;
    at = after;
    let mut rewritten = answer.get(..9).context("a short answer")?.to_vec();
    rewritten.push(u8::try_from(if port.is_some() { brokers } else { 1 })?);
    for _ in 1..brokers {
        let node = array::<4>(answer, at)?;
        at = string(answer, at + 4)? + 4;
        at = string(answer, at)?;
        at = varint(answer, at)?.1;
        if let Some(port) = port {
            rewritten.extend(node);
            rewritten.extend([10]);
            rewritten.extend(b"127.0.0.1");
            rewritten.extend(u32::from(port).to_be_bytes());
            // No rack, no tags.
            rewritten.extend([0, 0]);
        }
    }
    rewritten.extend(answer.get(at..).context("a short answer")?);
    // Cluster id and controller stand before the topics.
    let (topics, _) = varint(answer, string(answer, at)? + 4)?;
    Ok((rewritten, topics.saturating_sub(1)))
}

/// A number, and where it ends.
fn varint(bytes: &[u8], mut at: usize) -> Result<(u64, usize)> {
    let (mut value, mut shift) = (0, 0);
    loop {
        let [byte] = array::<1>(bytes, at)?;
        value |= u64::from(byte & 0x7f) << shift;
        (at, shift) = (at + 1, shift + 7);
        if byte & 0x80 == 0 {
            return Ok((value, at));
        }
    }
}

/// Where a string ends, whose length is there, plus one; none has the length 0.
fn string(bytes: &[u8], at: usize) -> Result<usize> {
    let (length, at) = varint(bytes, at)?;
    Ok(at + usize::try_from(length.saturating_sub(1))?)
}
