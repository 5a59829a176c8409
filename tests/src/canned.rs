//! An HTTP server that answers as it is told: what real ones do now and then only.

use anyhow::Result;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// An answer; every connection is closed behind one.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Of HTTP.
    pub status: u16,
    /// Names and values, without the length.
    pub headers: Vec<(&'static str, String)>,
    /// What follows.
    pub body: String,
    /// Bytes of the body that are announced and do not come.
    pub missing: usize,
}

impl Answer {
    /// One without headers.
    pub fn new(status: u16, body: &str) -> Answer {
        Answer { status, body: body.to_owned(), ..Answer::default() }
    }

    /// The same with one more header.
    pub fn with(mut self, name: &'static str, value: &str) -> Answer {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// An error as S3 says it.
    pub fn error(status: u16, code: &str) -> Answer {
        Answer::new(status, &format!("<Error><Code>{code}</Code><Message>canned</Message></Error>"))
    }
}

/// A running server; it ends with the process.
pub struct Canned {
    /// Where it listens.
    pub endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Canned {
    /// Starts one; it is told of each request, how many came before and its head, and answers one after the other.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(answer: impl Fn(usize, &str) -> Answer + Send + 'static) -> Result<Canned> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let requests = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&requests);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut client = BufReader::new(client);
                let Ok(head) = request(&mut client) else { continue };
                let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
                let answer = answer(taken.len(), &head);
                taken.push(head);
                drop(say(client.get_mut(), &answer));
            }
        });
        Ok(Canned { endpoint, requests })
    }

    /// The heads of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads a request; its head.
fn request(client: &mut BufReader<TcpStream>) -> Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        anyhow::ensure!(client.read_line(&mut head)? > 0, "no whole request");
    }
    let lower = head.to_lowercase();
    let length = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .map_or(Ok(0), |length| length.trim().parse())?;
    std::io::copy(&mut client.take(length), &mut std::io::sink())?;
    Ok(head)
}

fn say(client: &mut TcpStream, answer: &Answer) -> Result<()> {
    let mut head = format!("HTTP/1.1 {} Canned\r\nconnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let length = answer.body.len() + answer.missing;
    client.write_all(format!("{head}content-length: {length}\r\n\r\n{}", answer.body).as_bytes())?;
    Ok(client.flush()?)
}
