//! A server that speaks MongoDB's protocol (secantus-mdb).
//!
//! Right in its answers as far as the conformance suite goes, but it loses acknowledged writes when it is killed (-9): it is always ended by
//! SIGTERM, and no test may draw conclusions about MongoDB's durability from it.

use super::cache::install_mongo;
use super::process::{Server, Stop, folder, free_ports, host};
use anyhow::{Context, Result};
use millstream_stores::mongo::{MongoConfig, MongoDocuments};
use std::sync::OnceLock;
use std::time::Duration;

const READY_WITHIN: Duration = Duration::from_secs(60);

/// A running server.
#[derive(Debug)]
pub struct Mongo {
    port: u16,
    uri: String,
    server: Server,
}

impl Mongo {
    /// Starts a server.
    ///
    /// # Errors
    /// When it cannot be installed or started.
    pub fn start() -> Result<Mongo> {
        let binary = install_mongo()?;
        let port = *free_ports(1)?.first().context("no port")?;
        let folder = folder("mongo")?;
        let data = folder.join("data");
        std::fs::create_dir_all(&data)?;
        let command = [
            binary.display().to_string(),
            format!("--host={}", host()),
            format!("--port={port}"),
            format!("--storage-path={}", data.display()),
            "--cache-size=256M".to_owned(),
            "--log-level=WARNING".to_owned(),
        ];
        let server = Server::start(folder, Stop::Terminate, &command)?;
        let mongo = Mongo { port, uri: format!("mongodb://{}:{port}/?directConnection=true", host()), server };
        let probe = MongoConfig { write_timeout_ms: 2000, ..mongo.config("probe") };
        mongo.server.wait_until(READY_WITHIN, || MongoDocuments::connect(probe.clone()).map(drop))?;
        Ok(mongo)
    }

    /// A server that all tests of a process share; use database names of your own.
    ///
    /// # Errors
    /// When it cannot be started; the same for everybody.
    pub fn shared() -> Result<&'static Mongo> {
        static SHARED: OnceLock<Result<Mongo, String>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| Mongo::start().map_err(|error| format!("{error:#}")));
        shared.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its connection string.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The process, for signals. Never SIGKILL.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// A configuration for a database of this server.
    pub fn config(&self, database: &str) -> MongoConfig {
        MongoConfig::new(&self.uri, database)
    }
}
