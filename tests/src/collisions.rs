//! A proxy in front of a MongoDB-compatible server that answers some writes with E11000 itself, as a server does when two upserts collide.
//!
//! The servers of the tests never let upserts collide, MongoDB does. A write that is answered so was not passed on: what is stored stays as it is, lower
//! than the write's own revision perhaps, or not there at all. Everything else goes through byte by byte.

use anyhow::{Context, Result, ensure};
use bson::{Document, doc};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a message's header: length, request id, response to, operation.
const HEADER: usize = 16;
/// The operation of all commands, `OP_MSG`.
const OP_MSG: i32 = 2013;
/// The largest message that a server takes, and a little more.
const MOST: usize = 64 << 20;

/// Writes that are to collide, and that have.
#[derive(Debug, Default)]
struct Plan {
    to_come: AtomicU64,
    answered: AtomicU64,
}

/// A running proxy; it ends with the process.
#[derive(Debug)]
pub struct Collisions {
    port: u16,
    plan: Arc<Plan>,
}

impl Collisions {
    /// Starts a proxy in front of a loopback port.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(upstream: u16) -> Result<Collisions> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (port, plan) = (listener.local_addr()?.port(), Arc::<Plan>::default());
        let shared = plan.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let plan = shared.clone();
                std::thread::spawn(move || pass(client, upstream, &plan));
            }
        });
        Ok(Collisions { port, plan })
    }

    /// Where a client finds the server behind it.
    pub fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/?directConnection=true", self.port)
    }

    /// The next `count` commands that write collide.
    pub fn collide(&self, count: u64) {
        self.plan.to_come.fetch_add(count, Ordering::SeqCst);
    }

    /// Commands that were answered with E11000.
    pub fn answered(&self) -> u64 {
        self.plan.answered.load(Ordering::SeqCst)
    }
}

fn pass(mut client: TcpStream, upstream: u16, plan: &Plan) -> Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    while let Some(message) = read(&mut client)? {
        match collision(&message, plan)? {
            // The server has no answer under way on this connection: a client waits for one before it asks again.
            Some(answer) => client.write_all(&answer)?,
            None => server.write_all(&message)?,
        }
    }
    Ok(server.shutdown(Shutdown::Both)?)
}

/// A whole message; `None` at the end of the connection.
fn read(from: &mut TcpStream) -> Result<Option<Vec<u8>>> {
    let mut message = vec![0; HEADER];
    if from.read_exact(&mut message).is_err() {
        return Ok(None);
    }
    let length = usize::try_from(number(&message, 0)?)?;
    ensure!((HEADER..MOST).contains(&length), "a message of {length} bytes");
    message.resize(length, 0);
    from.read_exact(message.get_mut(HEADER..).context("no body")?)?;
    Ok(Some(message))
}

/// The answer to a command that is to collide.
fn collision(message: &[u8], plan: &Plan) -> Result<Option<Vec<u8>>> {
    let Some(command) = command(message)? else { return Ok(None) };
    let Some(body) = refusal(&command) else { return Ok(None) };
    let one_less = |left: u64| left.checked_sub(1);
    if plan.to_come.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_err() {
        return Ok(None);
    }
    plan.answered.fetch_add(1, Ordering::SeqCst);
    let body = body.to_vec()?;
    let length = i32::try_from(HEADER + 5 + body.len())?;
    let mut answer = Vec::new();
    for field in [length, 0, number(message, 4)?, OP_MSG, 0] {
        answer.extend_from_slice(&field.to_le_bytes());
    }
    answer.push(0);
    answer.extend_from_slice(&body);
    Ok(Some(answer))
}

/// The name of the command in a message; `None` when it is none.
fn command(message: &[u8]) -> Result<Option<String>> {
    if number(message, 12)? != OP_MSG {
        return Ok(None);
    }
    // After the flags: sections, each with its kind; kind 1 is a sequence of documents beside the command.
    let mut at = HEADER + 4;
    while let Some(kind) = message.get(at) {
        let section = message.get(at + 1..).unwrap_or_default();
        if *kind == 0 {
            let command = Document::from_reader(section)?;
            return Ok(command.keys().next().cloned());
        }
        at += 1 + usize::try_from(number(section, 0)?)?;
    }
    Ok(None)
}

/// What a server says whose first write of the command collides.
fn refusal(command: &str) -> Option<Document> {
    let message = "E11000 duplicate key error collection: a.b index: _id_ dup key: { _id: \"x\" }";
    match command {
        "update" => {
            let error = doc! { "index": 0, "code": 11000, "errmsg": message };
            Some(doc! { "ok": 1.0, "n": 0, "nModified": 0, "writeErrors": [error] })
        }
        "bulkWrite" => {
            let error = doc! { "ok": 0.0, "idx": 0, "code": 11000, "errmsg": message, "n": 0, "nModified": 0 };
            let cursor = doc! { "id": 0_i64, "ns": "admin.$cmd.bulkWrite", "firstBatch": [error] };
            let none = [("nInserted", 0), ("nMatched", 0), ("nModified", 0), ("nUpserted", 0), ("nDeleted", 0)];
            let mut answer = doc! { "ok": 1.0, "cursor": cursor, "nErrors": 1 };
            answer.extend(none.map(|(name, count)| (name.to_owned(), count.into())));
            Some(answer)
        }
        _ => None,
    }
}

fn number(bytes: &[u8], at: usize) -> Result<i32> {
    let field = bytes.get(at..).and_then(|bytes| bytes.first_chunk()).context("a message is too short")?;
    Ok(i32::from_le_bytes(*field))
}
