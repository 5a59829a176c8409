//! A gateway on loopback over a log in memory, and an HTTP client that can misbehave.
#![allow(dead_code, unreachable_pub)]

use millstream::config::{ApiKey, Config, Millis, Shards, Tenant};
use millstream::gateway::{GatewayState, Keyring, MAX_CONNECTIONS, Serving, router, serve};
use millstream::telemetry::{Metrics, SpanExporter};
use millstream_model::frame::{Content, read};
use millstream_model::proto::Envelope;
use millstream_shard::log::{Acknowledge, LogError, Outgoing, Producer};
use prost::Message;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// A test that waits longer than this has failed.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// What the log does with a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Takes and acknowledges it.
    #[default]
    Acknowledge,
    /// Takes it, and the acknowledgement is lost.
    LoseAcknowledgement,
    /// Takes it and answers only when told to ([`MemoryLog::release`]).
    Hold,
    /// Panics.
    Panic,
}

/// A log in memory.
#[derive(Clone, Default)]
pub struct MemoryLog(Arc<Shared>);

#[derive(Default)]
struct Shared {
    mode: Mutex<Mode>,
    frames: Mutex<Vec<(u32, Vec<Envelope>)>>,
    held: Mutex<Vec<Acknowledge>>,
    changed: Condvar,
}

impl MemoryLog {
    pub fn set(&self, mode: Mode) {
        *self.0.mode.lock().unwrap() = mode;
    }

    /// Frames in the order in which they came, with their partitions.
    pub fn frames(&self) -> Vec<(u32, Vec<Envelope>)> {
        self.0.frames.lock().unwrap().clone()
    }

    /// All records, frame by frame.
    pub fn envelopes(&self) -> Vec<Envelope> {
        self.frames().into_iter().flat_map(|(_, envelopes)| envelopes).collect()
    }

    pub fn clear(&self) {
        self.0.frames.lock().unwrap().clear();
    }

    /// Acknowledges what is held, and from now on everything.
    pub fn release(&self) {
        self.set(Mode::Acknowledge);
        let held = std::mem::take(&mut *self.0.held.lock().unwrap());
        held.into_iter().for_each(|acknowledge| acknowledge(Ok(0)));
    }

    /// Waits until `done`; asks again with each frame, and now and then, because `done` may look at something else.
    pub fn wait_for(&self, done: impl Fn(&MemoryLog) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            assert!(Instant::now() < deadline, "waited too long; the log has {:?}", self.frames());
            let frames = self.0.frames.lock().unwrap();
            drop(self.0.changed.wait_timeout(frames, Duration::from_millis(10)).unwrap());
        }
    }
}

impl Producer for MemoryLog {
    fn send(&self, message: Outgoing<'_>, acknowledge: Acknowledge) {
        let records = read(message.payload, Content::Envelope).unwrap();
        let envelopes = records.map(|record| Envelope::decode(record.unwrap()).unwrap()).collect();
        // The mode stays as it is until the frame is there and its acknowledgement is held: whoever has seen the frame can release it.
        let mode = self.0.mode.lock().unwrap();
        if *mode == Mode::Panic {
            // Before the panic, so that the lock is not poisoned.
            drop(mode);
            panic!("told to panic");
        }
        assert_eq!(message.topic, "millstream.ingress");
        let at_once = match *mode {
            Mode::Acknowledge | Mode::Panic => Some((acknowledge, Ok(0))),
            Mode::LoseAcknowledgement => Some((acknowledge, Err(LogError::Unknown("the connection broke".into())))),
            Mode::Hold => {
                self.0.held.lock().unwrap().push(acknowledge);
                None
            }
        };
        self.0.frames.lock().unwrap().push((message.partition, envelopes));
        self.0.changed.notify_all();
        drop(mode);
        if let Some((acknowledge, result)) = at_once {
            acknowledge(result);
        }
    }
}

/// A running gateway.
pub struct Gateway {
    pub address: SocketAddr,
    pub log: MemoryLog,
    pub metrics: Arc<Metrics>,
    pub stop: CancellationToken,
    pub served: tokio::task::JoinHandle<()>,
    pub runtime: Runtime,
}

/// Tenants acme (key `key-acme`) and globex (key `key-globex`), four shards, everything sampled.
pub fn config() -> Config {
    let tenant =
        |name: &str| Tenant { name: name.parse().unwrap(), api_keys: vec![ApiKey::plain(&format!("key-{name}"))] };
    let mut config = Config { shards: Shards(4), tenants: vec![tenant("acme"), tenant("globex")], ..Config::default() };
    config.telemetry.sample_ratio = "0".parse().unwrap();
    config.gateway.acknowledge_timeout = Millis(30_000);
    config
}

impl Gateway {
    pub fn start(config: &Config) -> Gateway {
        Gateway::exporting(config, SpanExporter::disabled())
    }

    /// With an exporter of spans.
    pub fn exporting(config: &Config, spans: SpanExporter) -> Gateway {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (log, stop) = (MemoryLog::default(), CancellationToken::new());
        let metrics = Metrics::new(config.tenants.iter().map(|tenant| tenant.name.as_str()));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (producer, counted, stopped) = (Box::new(log.clone()), metrics.clone(), stop.clone());
        let serving = Serving::new(MAX_CONNECTIONS, config.gateway.drain_timeout.duration());
        let config = config.clone();
        let served = runtime.spawn(async move {
            let state = GatewayState::new(&config, Arc::new(Keyring::new(&config.tenants)), producer, counted, spans);
            serve(listener, router(state), stopped, serving).await.unwrap();
        });
        Gateway { address, log, metrics, stop, served, runtime }
    }

    /// Sends a request, with acme's key unless `headers` name one, and as JSON unless they say otherwise.
    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Answer {
        let mut all = vec![];
        let has = |name: &str| headers.iter().any(|(header, _)| header.eq_ignore_ascii_case(name));
        if !has("authorization") && !has("x-api-key") {
            all.push(("authorization", "Bearer key-acme"));
        }
        if !has("content-type") {
            all.push(("content-type", "application/json"));
        }
        all.extend(headers.iter().filter(|(_, value)| !value.is_empty()));
        self.request("POST", path, &all, body)
    }

    /// Sends exactly these headers (besides Host, Connection and, unless chunked, Content-Length).
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Answer {
        let body = body.as_ref();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let own_length = |(name, _): &(&str, &str)| {
            name.eq_ignore_ascii_case("content-length") || name.eq_ignore_ascii_case("transfer-encoding")
        };
        if !headers.iter().any(own_length) {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        self.raw(&[head.as_bytes(), b"\r\n", body])
    }

    /// Sends bytes as they are, and reads what comes until the end.
    pub fn raw(&self, pieces: &[&[u8]]) -> Answer {
        let mut stream = self.connect();
        for piece in pieces {
            // The gateway may answer, and close, before it has read everything.
            if stream.write_all(piece).is_err() {
                break;
            }
        }
        Answer::read(&mut stream)
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub body: serde_json::Value,
}

impl Answer {
    pub fn read(stream: &mut TcpStream) -> Answer {
        let mut bytes = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => bytes.extend_from_slice(&buffer[..read]),
                // Closed with bytes of ours unread: what was answered has come.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                Err(error) => panic!("no answer: {error}"),
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("not an answer: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = serde_json::from_str(body).unwrap_or_else(|_| serde_json::Value::from(body));
        Answer { status, headers: head.to_lowercase(), body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))
    }
}
