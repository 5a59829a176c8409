//! A TCP proxy that cuts every second connection when its first answer begins: the server has done the work, the client never learns.

use anyhow::Result;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
