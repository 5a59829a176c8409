//! Certificates for servers on loopback, made anew for each run: nothing secret is kept, nothing expires.

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::path::PathBuf;
use tempfile::TempDir;

/// Issues certificates; its own is in a file, for clients.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: TempDir,
}

/// A certificate and its private key, PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// PKCS #8.
    pub key: String,
}

impl Issued {
    /// Key and certificate, as one file.
    pub fn in_one(&self) -> String {
        format!("{}{}", self.key, self.certificate)
    }
}

impl Authority {
    /// A new one, which nobody knows yet.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn new() -> Result<Authority> {
        let (key, mut params) = (KeyPair::generate()?, CertificateParams::new(Vec::new())?);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let folder = tempfile::tempdir().context("a folder for the certificate")?;
        std::fs::write(folder.path().join("ca.pem"), params.self_signed(&key)?.pem())?;
        Ok(Authority { issuer: Issuer::new(params, key), folder })
    }

    /// The file with its certificate.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for a server with these names or addresses.
    ///
    /// # Errors
    /// When a name is none.
    pub fn issue(&self, names: &[&str]) -> Result<Issued> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { certificate, key: key.serialize_pem() })
    }
}
