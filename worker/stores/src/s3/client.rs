//! The SDK's client as a configuration says it: who is trusted, who asks, how long, how often.
//!
//! Nothing is taken from the environment or from files of AWS' own tools, but credentials where those are to be found ([`Credentials::Ambient`]).

use super::config::{Credentials, S3Config};
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::imds::Client as Machine;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    AppName, BehaviorVersion, Builder, Credentials as Keys, Region, SharedCredentialsProvider, SharedHttpClient,
};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use millstream_shard::objects::ObjectError;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::path::Path;
use std::time::Duration;

/// Before a request is sent again: short at first, for what goes on behind a load balancer is over in a moment.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A client of this bucket's server.
pub(super) fn client(config: &S3Config) -> Result<Client, ObjectError> {
    let authorities = config.ca_file.as_deref().map(authorities).transpose()?;
    let built = Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .app_name(AppName::new("millstream").map_err(|error| ObjectError::Configuration(error.to_string()))?)
        .region(Region::new(config.region.clone()))
        .force_path_style(config.path_style)
        .http_client(http_client(config, authorities.as_deref())?)
        .credentials_provider(credentials(config)?)
        .timeout_config(timeouts(config))
        .retry_config(retries(config));
    let built = match &config.endpoint {
        Some(endpoint) => built.endpoint_url(endpoint),
        None => built,
    };
    Ok(Client::from_conf(built.build()))
}

/// How often a request is sent, and what lies between.
fn retries(config: &S3Config) -> RetryConfig {
    RetryConfig::standard()
        .with_max_attempts(config.attempts)
        .with_initial_backoff(BACKOFF.0)
        .with_max_backoff(BACKOFF.1)
}

fn timeouts(config: &S3Config) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
        .operation_attempt_timeout(Duration::from_millis(config.attempt_timeout_ms))
        .operation_timeout(config.operation_timeout())
        .build()
}

/// Connections to the endpoint: whoever signed its certificate is one of the authorities, or one that the system trusts when there are none.
fn http_client(config: &S3Config, authorities: Option<&[u8]>) -> Result<SharedHttpClient, ObjectError> {
    let is_plain = config.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    match authorities {
        Some(pem) => https(TrustStore::empty().with_pem_certificate(pem)),
        // A machine need not have any then.
        None if is_plain => https(TrustStore::empty()),
        None => https(TrustStore::default()),
    }
}

fn https(trusted: TrustStore) -> Result<SharedHttpClient, ObjectError> {
    let context = TlsContext::builder().with_trust_store(trusted).build();
    let context = context.map_err(|error| ObjectError::Configuration(format!("TLS: {error}")))?;
    let builder = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
    Ok(builder.tls_context(context).build_https())
}

/// The content of a file of certificates, looked at: the SDK panics at one that is none.
fn authorities(file: &Path) -> Result<Vec<u8>, ObjectError> {
    let wrong = |why: String| ObjectError::Configuration(format!("ca_file {}: {why}", file.display()));
    let pem = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
    let mut trusted = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        trusted.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if trusted.is_empty() {
        return Err(wrong("has no certificate: PEM is expected, `-----BEGIN CERTIFICATE-----`".to_owned()));
    }
    Ok(pem)
}

fn credentials(config: &S3Config) -> Result<SharedCredentialsProvider, ObjectError> {
    match &config.credentials {
        Credentials::Ambient => ambient(config),
        Credentials::Static { access_key_id: id, secret_access_key: secret, session_token: token } => {
            Ok(SharedCredentialsProvider::new(Keys::new(id, secret, token.clone(), None, "millstream")))
        }
    }
}

/// The first that is there. What gives them is AWS' own: the system's authorities are trusted.
fn ambient(config: &S3Config) -> Result<SharedCredentialsProvider, ObjectError> {
    let environment = ProviderConfig::without_region()
        .with_region(Some(Region::new(config.region.clone())))
        .with_http_client(https(TrustStore::default())?);
    let web_identity = WebIdentityTokenCredentialsProvider::builder().configure(&environment).build();
    let container = EcsCredentialsProvider::builder().configure(&environment).build();
    // Twice is less than the SDK gives all of them together: where nobody answers, it is told that there are no credentials, not that they are late.
    let asked = Machine::builder().configure(&environment).max_attempts(2).build();
    let machine = ImdsCredentialsProvider::builder().configure(&environment).imds_client(asked).build();
    let chain = CredentialsProviderChain::first_try("environment", EnvironmentVariableCredentialsProvider::new())
        .or_else("web identity", web_identity)
        .or_else("container", container)
        .or_else("machine", machine);
    Ok(SharedCredentialsProvider::new(chain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_refused_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (content, why) in
            [(Some("nothing"), "has no certificate"), (Some(broken), "ca.pem"), (None, "No such file")]
        {
            drop(std::fs::remove_file(&file));
            if let Some(content) = content {
                std::fs::write(&file, content).unwrap();
            }
            let config = S3Config { ca_file: Some(file.clone()), ..S3Config::new("us-east-1", "b") };
            let error = client(&config).unwrap_err();
            assert!(matches!(&error, ObjectError::Configuration(said) if said.contains(why)), "{error}");
        }
    }
}
