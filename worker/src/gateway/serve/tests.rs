//! Peers that are of no use, over real connections.

use super::*;
use axum::routing::{get, post};
use futures::stream;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;
use tokio::runtime::Runtime;

/// A test that waits longer than this has failed.
const DEADLINE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(3600);
/// As an HTTP/2 client begins: its preface and empty SETTINGS.
const H2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// GET / on stream 1, with the headers' indexed forms of HPACK: method, scheme, path; END_HEADERS and END_STREAM.
const H2_GET: &[u8] = b"\0\0\x03\x01\x05\0\0\0\x01\x82\x86\x84";

struct Port {
    address: SocketAddr,
    stop: CancellationToken,
    runtime: Runtime,
}

impl Port {
    fn open(connections: usize, patience: Patience) -> Port {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let endless = || async { Body::from_stream(stream::repeat(Ok::<_, Infallible>(vec![b'x'; 100_000]))) };
        let quiet = || async { Body::from_stream(stream::pending::<Result<Vec<u8>, Infallible>>()) };
        let router = Router::new()
            .route("/", get(|| async { "hello" }))
            .route("/endless", get(endless))
            .route("/quiet", get(quiet))
            .route("/", post(|body: axum::body::Bytes| async move { body }));
        let serving = Serving { connections, patience, drain: SHORT };
        runtime.spawn(serve(listener, router, stop.clone(), serving));
        Port { address, stop, runtime }
    }

    fn connect(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    }
}

/// What comes until the other side closes; fails when it does not.
fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return all,
            Ok(read) => all.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return all,
            Err(error) => panic!("not closed: {error}"),
        }
    }
}

fn patience(first: Duration, idle: Duration, stuck: Duration) -> Patience {
    Patience { first, idle, stuck }
}

#[test]
fn a_peer_that_brings_no_request_is_let_go_and_makes_room() {
    let port = Port::open(1, patience(SHORT, LONG, LONG));
    for bytes in ["", "P", "PRI * HTT", "GET / HTTP/1.1\r\nhost: t\r\n", "POST"] {
        let mut silent = port.connect(bytes.as_bytes());
        assert_eq!(until_closed(&mut silent), b"", "{bytes:?}");
    }
    let mut silent = port.connect(H2);
    until_closed(&mut silent);
    let mut useful = port.connect(b"GET / HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n");
    assert!(until_closed(&mut useful).ends_with(b"hello"));
}

#[test]
fn a_peer_that_only_keeps_its_connection_is_let_go() {
    let port = Port::open(1, patience(LONG, SHORT, SHORT));
    let mut idle = port.connect(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n");
    assert!(until_closed(&mut idle).ends_with(b"hello"));
    let mut idle = port.connect(&[H2, H2_GET].concat());
    let answer = until_closed(&mut idle);
    assert!(answer.windows(5).any(|part| part == b"hello"), "{answer:?}");
    // GOAWAY is type 7: the peer is told before it is let go.
    assert!(answer.windows(9).any(|frame| frame[..2] == [0, 0] && frame[3] == 7 && frame[5..] == [0; 4]), "{answer:?}");
}

#[test]
fn a_peer_that_does_not_take_its_answer_is_let_go() {
    let port = Port::open(1, patience(LONG, LONG, SHORT));
    let mut deaf = port.connect(b"GET /endless HTTP/1.1\r\nhost: t\r\n\r\n");
    // There is room for one: this answer comes only when the other peer is gone.
    let mut useful = port.connect(b"GET / HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n");
    assert!(until_closed(&mut useful).ends_with(b"hello"));
    until_closed(&mut deaf);
}

#[test]
fn waiting_for_us_is_not_held_against_a_peer() {
    let port = Port::open(1, patience(SHORT, SHORT, SHORT));
    let mut waiting = port.connect(b"GET /quiet HTTP/1.1\r\nhost: t\r\n\r\n");
    waiting.set_read_timeout(Some(SHORT * 4)).unwrap();
    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
    let ended = loop {
        match waiting.read(&mut buffer) {
            Ok(read) if read > 0 => head.extend_from_slice(&buffer[..read]),
            ended => break ended,
        }
    };
    assert!(head.starts_with(b"HTTP/1.1 200"), "{head:?}");
    assert!(ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
}

#[test]
fn what_takes_longer_than_the_drain_is_cut() {
    let port = Port::open(1, patience(LONG, LONG, LONG));
    let mut waiting = port.connect(b"GET /quiet HTTP/1.1\r\nhost: t\r\n\r\n");
    let mut first = [0; 8];
    waiting.read_exact(&mut first).unwrap();
    let begin = Instant::now();
    port.stop.cancel();
    until_closed(&mut waiting);
    assert!(begin.elapsed() >= SHORT);
    drop(port.runtime);
}
