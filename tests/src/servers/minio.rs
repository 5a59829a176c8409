//! MinIO: S3 on one machine.
//!
//! A program of its own, under the AGPL: it is spoken to over a socket, and nothing of it is linked.

use super::cache::install_minio;
use super::certificates::Authority;
use super::process::{Server, Stop, folder, free_ports, host};
use anyhow::{Context, Result};
use millstream_shard::objects::ObjectStore;
use millstream_stores::s3::{Credentials, S3Config, S3Objects};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

const READY_WITHIN: Duration = Duration::from_secs(60);

/// Who may do everything: access key id and secret.
const ROOT: (&str, &str) = ("millstream", "open-sesame");

/// With it, it encrypts what it is told to encrypt; the key is called `tests`.
const KEY: &str = "tests:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// The bucket that is there from the start.
const BUCKET: &str = "millstream";

/// A running server.
#[derive(Debug)]
pub struct Minio {
    endpoint: String,
    port: u16,
    ca_file: Option<PathBuf>,
    /// Its folder has the certificate.
    _authority: Option<Authority>,
    server: Server,
}

impl Minio {
    /// Starts a server.
    ///
    /// # Errors
    /// When it cannot be installed or started.
    pub fn start() -> Result<Minio> {
        Minio::start_with(None)
    }

    /// Starts a server that speaks TLS only, with a certificate of an authority that nobody knows but by its file.
    ///
    /// # Errors
    /// When it cannot be installed or started.
    pub fn start_secure() -> Result<Minio> {
        Minio::start_with(Some(Authority::new()?))
    }

    fn start_with(authority: Option<Authority>) -> Result<Minio> {
        let (folder, port) = (folder("minio")?, *free_ports(1)?.first().context("no port")?);
        let (data, certificates) = (folder.join("data"), folder.join("certificates"));
        std::fs::create_dir_all(&certificates)?;
        // A folder is a bucket.
        std::fs::create_dir_all(data.join(BUCKET))?;
        if let Some(authority) = &authority {
            let issued = authority.issue(&[&host()])?;
            std::fs::write(certificates.join("public.crt"), issued.certificate)?;
            std::fs::write(certificates.join("private.key"), issued.key)?;
        }
        let address = format!("{}:{port}", host());
        let server = Server::start(folder, Stop::Kill, &command(&address, &certificates, &data)?)?;
        let scheme = if authority.is_some() { "https" } else { "http" };
        let minio = Minio {
            endpoint: format!("{scheme}://{address}"),
            port,
            ca_file: authority.as_ref().map(Authority::path),
            _authority: authority,
            server,
        };
        minio.wait_until_ready()?;
        Ok(minio)
    }

    fn wait_until_ready(&self) -> Result<()> {
        let probe = S3Objects::new(S3Config { attempts: 1, attempt_timeout_ms: 2000, ..self.config("probe") })?;
        self.server.wait_until(READY_WITHIN, || probe.list("", None).map(drop))
    }

    /// A server that all tests of a process share; use folders of your own.
    ///
    /// # Errors
    /// When it cannot be started; the same for everybody.
    pub fn shared() -> Result<&'static Minio> {
        static SHARED: OnceLock<Result<Minio, String>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| Minio::start().map_err(|error| format!("{error:#}")));
        shared.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A configuration for a folder of its bucket.
    pub fn config(&self, folder: &str) -> S3Config {
        S3Config {
            endpoint: Some(self.endpoint.clone()),
            path_style: true,
            folder: folder.to_owned(),
            ca_file: self.ca_file.clone(),
            credentials: Credentials::Static {
                access_key_id: ROOT.0.to_owned(),
                secret_access_key: ROOT.1.to_owned(),
                session_token: None,
            },
            ..S3Config::new("us-east-1", BUCKET)
        }
    }

    /// The section `objects` of a worker's configuration, for a folder of its bucket.
    pub fn section(&self, folder: &str) -> String {
        let (endpoint, (id, secret)) = (&self.endpoint, ROOT);
        format!(
            "objects: {{s3: {{bucket: {BUCKET}, endpoint: '{endpoint}', prefix: '{folder}', access_key_id: {id}, secret_access_key: {secret}}}}}\n"
        )
    }

    /// The process, for signals.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// `kill -9`; what was written stays.
    ///
    /// # Errors
    /// When its watchdog is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.server.kill()
    }

    /// Starts it again, on the same port and data.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_again(&mut self) -> Result<()> {
        self.server.start_again()?;
        self.wait_until_ready()
    }
}

fn command(address: &str, certificates: &Path, data: &Path) -> Result<Vec<String>> {
    let set = [
        format!("MINIO_ROOT_USER={}", ROOT.0),
        format!("MINIO_ROOT_PASSWORD={}", ROOT.1),
        format!("MINIO_KMS_SECRET_KEY={KEY}"),
        "MINIO_BROWSER=off".to_owned(),
        // It asks its maker for newer versions otherwise.
        "MINIO_UPDATE=off".to_owned(),
    ];
    let mut command = vec!["env".to_owned()];
    command.extend(set);
    command.extend([install_minio()?.display().to_string(), "server".to_owned(), "--quiet".to_owned()]);
    command.extend([format!("--address={address}"), format!("--certs-dir={}", certificates.display())]);
    command.push(data.display().to_string());
    Ok(command)
}
