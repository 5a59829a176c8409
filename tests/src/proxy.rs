//! TCP proxies that cut connections: [`CuttingProxy`] cuts every second one when its first answer begins, so that the server has done the work and the client never
//! learns; [`Relay`] cuts all that there are, when it is told to.

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
    let server = TcpStream::connect(("127.0.0.1", upstream))?;
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
