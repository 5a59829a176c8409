//! A bucket as others see it: what uploads have left, how objects are encrypted, who may do what.

use anyhow::{Context, Result};
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials as Keys, Region};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use millstream_stores::s3::{Credentials, S3Config};
use tokio::runtime::Runtime;

/// A bucket of a server without TLS, by keys instead of names.
pub struct Bucket {
    name: String,
    s3: aws_sdk_s3::Client,
    sts: aws_sdk_sts::Client,
    runtime: Runtime,
}

impl Bucket {
    /// The one of this configuration.
    ///
    /// # Errors
    /// When the configuration has no endpoint, or ambient credentials.
    pub fn of(config: &S3Config) -> Result<Bucket> {
        let endpoint = config.endpoint.as_ref().context("an endpoint")?;
        let Credentials::Static { access_key_id: id, secret_access_key: secret, session_token: token } =
            &config.credentials
        else {
            anyhow::bail!("credentials of its own");
        };
        let keys = Keys::new(id, secret, token.clone(), None, "tests");
        let context = TlsContext::builder().with_trust_store(TrustStore::empty()).build()?;
        let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
        let http = http.tls_context(context).build_https();
        let (region, latest) = (Region::new(config.region.clone()), BehaviorVersion::latest());
        let s3 = aws_sdk_s3::Config::builder()
            .behavior_version(latest)
            .region(region.clone())
            .endpoint_url(endpoint)
            .force_path_style(true)
            .http_client(http.clone())
            .credentials_provider(keys.clone())
            .retry_config(RetryConfig::disabled());
        let sts = aws_sdk_sts::Config::builder()
            .behavior_version(latest)
            .region(region)
            .endpoint_url(endpoint)
            .http_client(http)
            .credentials_provider(keys);
        Ok(Bucket {
            name: config.bucket.clone(),
            s3: aws_sdk_s3::Client::from_conf(s3.build()),
            sts: aws_sdk_sts::Client::from_conf(sts.build()),
            runtime: Runtime::new()?,
        })
    }

    /// Writes an object, whatever it is called.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn put(&self, key: &str, content: &[u8]) -> Result<()> {
        let put = self.s3.put_object().bucket(&self.name).key(key).body(content.to_vec().into());
        self.runtime.block_on(put.send())?;
        Ok(())
    }

    /// Uploads in parts of one key that are neither completed nor given up.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn unfinished_uploads(&self, key: &str) -> Result<usize> {
        let listed = self.s3.list_multipart_uploads().bucket(&self.name).prefix(key);
        Ok(self.runtime.block_on(listed.send())?.uploads().len())
    }

    /// Begins an upload in parts, and leaves it so.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn begin_upload(&self, key: &str) -> Result<()> {
        self.runtime.block_on(self.s3.create_multipart_upload().bucket(&self.name).key(key).send())?;
        Ok(())
    }

    /// How an object is encrypted: the algorithm, and the id of the key.
    ///
    /// # Errors
    /// When it is not there.
    pub fn encryption(&self, key: &str) -> Result<(Option<String>, Option<String>)> {
        let head = self.runtime.block_on(self.s3.head_object().bucket(&self.name).key(key).send())?;
        let algorithm = head.server_side_encryption().map(|algorithm| algorithm.as_str().to_owned());
        Ok((algorithm, head.ssekms_key_id().map(str::to_owned)))
    }

    /// Credentials, with a token, that may do so much only: names of actions, like `s3:GetObject`.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn credentials(&self, actions: &[&str]) -> Result<Credentials> {
        let policy = serde_json::json!({
            "Version": "2012-10-17",
            "Statement": [{ "Effect": "Allow", "Action": actions, "Resource": "arn:aws:s3:::*" }],
        });
        let role = self.sts.assume_role().role_arn("arn:aws:iam::0:role/tests").role_session_name("tests");
        let assumed = self.runtime.block_on(role.policy(policy.to_string()).send())?;
        let keys = assumed.credentials().context("no credentials")?;
        Ok(Credentials::Static {
            access_key_id: keys.access_key_id().to_owned(),
            secret_access_key: keys.secret_access_key().to_owned(),
            session_token: Some(keys.session_token().to_owned()),
        })
    }
}
