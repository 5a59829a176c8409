//! TCP proxies that cut connections: [`CuttingProxy`] cuts every second one when its first answer begins, so that the server has done the work and the client never
//! learns; [`Relay`] cuts all that there are, when it is told to; a [`Door`] asks for a password.

use crate::servers::host;
use anyhow::Result;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A proxy that passes everything on; it ends with the process.
pub struct Relay {
    /// Its port.
    pub port: u16,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    /// Starts a relay in front of a loopback port.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(upstream: u16) -> Result<Relay> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let open = Arc::new(Mutex::new(Vec::new()));
        let opened = open.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if let Ok(client) = client.try_clone() {
                    opened.lock().unwrap_or_else(PoisonError::into_inner).push(client);
                }
                std::thread::spawn(move || pass(client, upstream, None));
            }
        });
        Ok(Relay { port, open })
    }

    /// Cuts every connection there is, in the middle of whatever passes; says how many. New ones are taken.
    pub fn cut(&self) -> usize {
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        open.iter().filter(|client| client.shutdown(Shutdown::Both).is_ok()).count()
    }
}

/// A running proxy; it ends with the process.
pub struct CuttingProxy {
    /// Its port.
    pub port: u16,
    /// Connections cut.
    pub cuts: Arc<AtomicU64>,
}

impl CuttingProxy {
    /// Starts a proxy in front of a loopback port.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(upstream: u16) -> Result<CuttingProxy> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let cuts = Arc::new(AtomicU64::new(0));
        let counted = cuts.clone();
        std::thread::spawn(move || {
            for (number, client) in listener.incoming().flatten().enumerate() {
                let cuts = (number % 2 == 0).then(|| counted.clone());
                std::thread::spawn(move || pass(client, upstream, cuts));
            }
        });
        Ok(CuttingProxy { port, cuts })
    }
}

fn pass(client: TcpStream, upstream: u16, cuts: Option<Arc<AtomicU64>>) -> Result<()> {
    let server = TcpStream::connect((host().as_str(), upstream))?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from_server, mut to_client) = (server, client);
    if let Some(cuts) = cuts {
        let mut first = [0; 1];
        if from_server.read(&mut first)? > 0 {
            cuts.fetch_add(1, Ordering::Relaxed);
        }
        to_client.shutdown(Shutdown::Both)?;
        from_server.shutdown(Shutdown::Both)?;
        return Ok(());
    }
    std::io::copy(&mut from_server, &mut to_client)?;
    to_client.flush()?;
    Ok(to_client.shutdown(Shutdown::Both)?)
}

/// A relay in front of MongoDB's port that lets clients in by a password, which can be changed: the server itself has no users.
///
/// It answers `saslStart` with the mechanism PLAIN by itself, as MongoDB does, and passes everything else on.
pub struct Door {
    /// Its port.
    pub port: u16,
    /// Turned away because of their password.
    pub refused: Arc<AtomicU64>,
    relay: Relay,
    password: Arc<Mutex<String>>,
}

impl Door {
    /// Starts one in front of a server's port, where servers listen.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(upstream: u16, password: &str) -> Result<Door> {
        let relay = Relay::start(upstream)?;
        let listener = TcpListener::bind((host().as_str(), 0))?;
        let port = listener.local_addr()?.port();
        let (password, refused) = (Arc::new(Mutex::new(password.to_owned())), Arc::new(AtomicU64::new(0)));
        let (behind, asked, counted) = (relay.port, Arc::clone(&password), Arc::clone(&refused));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (asked, counted) = (Arc::clone(&asked), Arc::clone(&counted));
                std::thread::spawn(move || let_in(client, behind, &asked, &counted));
            }
        });
        Ok(Door { port, refused, relay, password })
    }

    /// Only this one is right from now on; connections that were let in with another are cut.
    pub fn change_password(&self, password: &str) {
        *self.password.lock().unwrap_or_else(PoisonError::into_inner) = password.to_owned();
        self.relay.cut();
    }
}

/// `OP_MSG`.
const MESSAGE: i32 = 2013;

/// Passes a client on until one end closes; then no thread and no connection is left of it.
fn let_in(client: TcpStream, upstream: u16, password: &Mutex<String>, refused: &AtomicU64) -> Result<()> {
    let server = TcpStream::connect(("127.0.0.1", upstream))?;
    let (mut answers, mut to_client) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut answers, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let passed = pass_messages(client, &server, password, refused);
    // The copy above has the connection open, too.
    server.shutdown(Shutdown::Both)?;
    passed
}

/// Passes messages of a client on until it goes, but answers those in which it says who it is.
fn pass_messages(
    mut client: TcpStream,
    mut server: &TcpStream,
    password: &Mutex<String>,
    refused: &AtomicU64,
) -> Result<()> {
    loop {
        let mut message = vec![0; 16];
        client.read_exact(&mut message)?;
        let field =
            |at: usize| message.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_le_bytes);
        let (length, id, kind) = (usize::try_from(field(0))?, field(4), field(12));
        message.resize(length, 0);
        client.read_exact(message.get_mut(16..).unwrap_or_default())?;
        // Flags, and the kind of the first section, stand before a message's document.
        let command =
            message.get(21..).filter(|_| kind == MESSAGE).and_then(|body| bson::Document::from_reader(body).ok());
        let payload = command.as_ref().filter(|command| command.contains_key("saslStart"));
        let Some(payload) = payload.and_then(|command| command.get_binary_generic("payload").ok()) else {
            server.write_all(&message)?;
            continue;
        };
        let right = password.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_right = payload.rsplit(|byte| *byte == 0).next() == Some(right.as_bytes());
        client.write_all(&verdict(id, is_right)?)?;
        if !is_right {
            refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What MongoDB answers to a password.
fn verdict(to: i32, is_right: bool) -> Result<Vec<u8>> {
    let payload = bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: Vec::new() };
    let said = match is_right {
        true => bson::doc! { "conversationId": 1, "done": true, "payload": payload, "ok": 1.0 },
        false => {
            bson::doc! { "ok": 0.0, "errmsg": "Authentication failed.", "code": 18, "codeName": "AuthenticationFailed" }
        }
    };
    let mut body = vec![0; 5];
    said.to_writer(&mut body)?;
    let length = i32::try_from(16 + body.len())?;
    let mut message: Vec<u8> = [length, 0, to, MESSAGE].iter().flat_map(|field| field.to_le_bytes()).collect();
    message.extend(body);
    Ok(message)
}
