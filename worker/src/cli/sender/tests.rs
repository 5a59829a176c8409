use super::*;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    path: String,
    headers: Vec<String>,
    body: String,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        let line = self.headers.iter().find(|line| line.to_lowercase().starts_with(&format!("{name}:")));
        line.map_or("", |line| line.split_once(':').unwrap().1.trim())
    }

    fn lines(&self) -> Vec<&str> {
        self.body.lines().collect()
    }
}

/// A gateway that answers what it is told, then accepts everything. A record with `bad` in it is refused.
struct Gateway {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Gateway {
    fn start(answers: &[(u16, &'static str)]) -> Gateway {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(Mutex::new(answers.iter().copied().collect::<VecDeque<_>>()));
        let requests = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (requests, answers) = (requests.clone(), answers.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &requests, &answers));
            }
        });
        Gateway { url, seen }
    }

    fn target(&self, batch: usize, parallel: usize) -> Target {
        Target {
            to: self.url.clone(),
            key: "k".into(),
            source: Source::Native,
            batch,
            parallel,
            attempts: 3,
            prefix: "p".into(),
        }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, requests: &Mutex<Vec<Seen>>, answers: &Mutex<VecDeque<(u16, &'static str)>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(seen) = receive(&mut reader) {
        let told = answers.lock().unwrap().pop_front();
        let (status, body) = match told {
            Some((status, body)) => (status, body.to_owned()),
            None => (200, accept(&seen)),
        };
        requests.lock().unwrap().push(seen);
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nretry-after: 0\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).unwrap();
    }
}

fn receive(reader: &mut BufReader<TcpStream>) -> Option<Seen> {
    let headers: Vec<String> = reader.lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let path = headers.first()?.split(' ').nth(1)?.to_owned();
    let mut seen = Seen { path, headers, body: String::new() };
    let mut bytes = vec![0; seen.header("content-length").parse().unwrap()];
    reader.read_exact(&mut bytes).unwrap();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut seen.body).unwrap();
    Some(seen)
}

fn accept(seen: &Seen) -> String {
    let fate = |line: &str| match line.contains("bad") {
        true => r#"{"status":"rejected","error":{"reason":"too_deep","field":"x","message":"m"}}"#,
        false => r#"{"status":"accepted"}"#,
    };
    let records: Vec<&str> = seen.lines().into_iter().map(fate).collect();
    format!(r#"{{"records":[{}]}}"#, records.join(","))
}

fn record(user: usize, number: usize) -> String {
    format!(r#"{{"type":"user","identifiers":{{"user_id":"u{user}"}},"set":{{"n":{number}}}}}"#)
}

fn counts(progress: &Progress) -> (u64, u64) {
    (progress.accepted.load(Ordering::Relaxed), progress.refused.load(Ordering::Relaxed))
}

fn send_text(target: &Target, lines: &[String], progress: &Progress) -> anyhow::Result<()> {
    send_lines(target, "f", lines.iter().map(String::as_str), progress)
}

#[test]
fn records_go_in_batches_compressed_and_signed() {
    let gateway = Gateway::start(&[]);
    let lines: Vec<String> = (0..5).map(|number| record(1, number)).collect();
    let progress = Progress::default();
    send_text(&gateway.target(2, 1), &lines, &progress).unwrap();
    assert_eq!(counts(&progress), (5, 0));
    let seen = gateway.seen();
    assert_eq!(seen.iter().map(|seen| seen.lines().len()).collect::<Vec<_>>(), [2, 2, 1]);
    assert_eq!(seen.iter().flat_map(Seen::lines).collect::<Vec<_>>(), lines);
    assert_eq!((seen[0].path.as_str(), seen[0].header("authorization")), ("/v1/batch", "Bearer k"));
    let keys: Vec<&str> = seen.iter().map(|seen| seen.header("idempotency-key")).collect();
    assert_eq!(keys, ["p:1", "p:3", "p:5"]);
}

#[test]
fn an_unknown_outcome_is_repeated_byte_by_byte() {
    let gateway = Gateway::start(&[(503, r#"{"status":"unknown","retry":["a"]}"#), (429, "")]);
    let progress = Progress::default();
    send_text(&gateway.target(10, 1), &[record(1, 1), record(1, 2)], &progress).unwrap();
    let seen = gateway.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|again| *again == seen[0]));
    assert_eq!((counts(&progress), progress.repeated.load(Ordering::Relaxed)), ((2, 0), 2));
}

#[test]
fn attempts_are_bounded_and_the_error_says_what_to_do() {
    let gateway = Gateway::start(&[(503, ""), (503, ""), (503, ""), (503, "")]);
    let error = send_text(&gateway.target(10, 1), &[record(1, 1)], &Progress::default()).unwrap_err().to_string();
    assert_eq!(gateway.seen().len(), 3);
    assert!(
        error.contains("3 attempts") && error.contains("--idempotency-key-prefix p") && error.contains("f:1"),
        "{error}"
    );
}

#[test]
fn a_wrong_key_ends_it_at_once() {
    let gateway = Gateway::start(&[(401, r#"{"error":{"message":"unknown key"}}"#)]);
    let error = send_text(&gateway.target(10, 1), &[record(1, 1)], &Progress::default()).unwrap_err().to_string();
    assert_eq!(gateway.seen().len(), 1);
    assert!(error.contains("unknown key"), "{error}");
}

#[test]
fn nobody_listening_is_an_error() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let target = Target { to: format!("http://{address}"), ..Gateway::start(&[]).target(1, 1) };
    assert!(send_text(&target, &[record(1, 1)], &Progress::default()).is_err());
}

#[test]
fn what_is_too_large_is_sent_in_halves_with_keys_of_their_own() {
    let gateway =
        Gateway::start(&[(413, ""), (200, r#"{"records":[{"status":"accepted"},{"status":"accepted"}]}"#), (413, "")]);
    let progress = Progress::default();
    let lines: Vec<String> = (0..3).map(|number| record(1, number)).collect();
    send_text(&gateway.target(10, 1), &lines, &progress).unwrap();
    let seen = gateway.seen();
    let keys: Vec<&str> = seen.iter().map(|seen| seen.header("idempotency-key")).collect();
    assert_eq!(keys, ["p:1", "p:1a", "p:1b"]);
    assert_eq!(counts(&progress), (2, 1));
    assert_eq!(progress.failures()[0].problem.reason, "too_large");
}

#[test]
fn refused_records_are_named_by_line() {
    let gateway = Gateway::start(&[]);
    let progress = Progress::default();
    let bad = r#"{"type":"bad","identifiers":{"user_id":"u1"}}"#.to_owned();
    send_text(&gateway.target(10, 3), &[record(1, 1), bad, record(2, 2)], &progress).unwrap();
    assert_eq!(counts(&progress), (2, 1));
    let failure = &progress.failures()[0];
    assert_eq!((failure.file.as_str(), failure.line, failure.problem.reason.as_str()), ("f", 2, "too_deep"));
}

#[test]
fn text_that_would_spoil_its_request_is_refused_here() {
    let gateway = Gateway::start(&[(200, "{}")]);
    let progress = Progress::default();
    let target = Target { source: Source::Segment, ..gateway.target(10, 1) };
    let track = r#"{"type":"track","userId":"u1","event":"e"}"#.to_owned();
    send_text(&target, &["{\"type\":".to_owned(), track], &progress).unwrap();
    assert_eq!(counts(&progress), (1, 1));
    assert_eq!(progress.failures()[0].problem.reason, "malformed_json");
    assert_eq!(gateway.seen()[0].header("authorization"), "Basic azo=");
}

#[test]
fn each_user_keeps_its_order_over_parallel_senders() {
    let gateway = Gateway::start(&[]);
    let lines: Vec<String> = (0..400).map(|number| record(number % 21 + 3, number)).collect();
    send_text(&gateway.target(7, 5), &lines, &Progress::default()).unwrap();
    let seen = gateway.seen();
    for user in 3..24 {
        let name = format!("\"u{user}\"");
        let of_user = |lines: &[&str]| {
            lines.iter().filter(|line| line.contains(&name)).map(|line| (*line).to_owned()).collect::<Vec<_>>()
        };
        let sent = of_user(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(of_user(&seen.iter().flat_map(Seen::lines).collect::<Vec<_>>()), sent, "{name}");
    }
}

#[test]
fn from_standard_input_a_record_does_not_wait_for_a_full_request() {
    let gateway = Gateway::start(&[]);
    let (target, progress) = (gateway.target(500, 1), Progress::default());
    let deadline = Instant::now() + Duration::from_secs(30);
    send_from(&target, &progress, Some(Duration::from_millis(1)), |take| {
        for number in 0..3 {
            assert!(take(Line { file: "-".into(), number, text: record(1, number as usize) }));
            while gateway.seen().len() as u64 <= number {
                assert!(Instant::now() < deadline, "it waits for more");
                std::thread::yield_now();
            }
        }
        Ok(())
    })
    .unwrap();
    let keys: Vec<String> = gateway.seen().iter().map(|seen| seen.header("idempotency-key").to_owned()).collect();
    assert_eq!(keys, ["p:1", "p:2", "p:3"]);
    assert_eq!(counts(&progress), (3, 0));
    assert_eq!(progress.bytes.load(Ordering::Relaxed), 3 * (record(1, 0).len() as u64 + 1));
}
