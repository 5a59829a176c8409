//! Answers that are no yes, by what the caller must do.

use super::config::{Credentials, S3Config};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use millstream_shard::objects::ObjectError;
use std::error::Error;
use std::fmt;

/// What may be done with objects, by the names that rights have on S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// To see which objects there are; without it, it cannot be told either that one is not there.
    List,
    /// To read one.
    Get,
    /// To write one.
    Put,
    /// To delete one.
    Delete,
    /// To give up an upload in parts.
    Abort,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Right::List => "s3:ListBucket",
            Right::Get => "s3:GetObject",
            Right::Put => "s3:PutObject",
            Right::Delete => "s3:DeleteObject",
            Right::Abort => "s3:AbortMultipartUpload",
        })
    }
}

/// In place of a code, where there was no answer.
const NO_CREDENTIALS: &str = "(no credentials)";
const DISTRUSTED: &str = "(distrusted)";

/// Why something was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Try again; nobody knows whether it was done.
    Unavailable,
    /// A right is missing.
    Forbidden,
    /// The store does not know how.
    Unable,
    /// Something else that a person must put right.
    Wrong,
    /// The content is not what was written.
    Damaged,
}

/// What came in place of a yes.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// Of HTTP; 0: there was no answer.
    pub(super) status: u16,
    /// Of S3, `NoSuchKey` and its like; may be empty. Without an answer, of ours.
    pub(super) code: String,
    /// In words.
    pub(super) said: String,
    /// What follows.
    pub(super) cause: Cause,
}

impl Failure {
    /// An answer of a server.
    pub(super) fn answer(status: u16, code: &str, said: &str) -> Failure {
        Failure { status, code: code.to_owned(), said: said.to_owned(), cause: cause(status, code) }
    }

    /// Nothing that came from a server.
    pub(super) fn without_answer(cause: Cause, said: impl Into<String>) -> Failure {
        Failure { status: 0, code: String::new(), said: said.into(), cause }
    }

    /// Content that did not come to its end, or is not what its checksum says.
    pub(super) fn content(said: &str) -> Failure {
        let is_other = said.contains("checksum mismatch");
        Failure {
            status: 200,
            ..Failure::without_answer(if is_other { Cause::Damaged } else { Cause::Unavailable }, said)
        }
    }

    /// The client was dropped.
    pub(super) fn closed() -> Failure {
        Failure::without_answer(Cause::Unavailable, "the client is closed")
    }

    /// Content failed that was promised: it is worth to ask for it again.
    pub(super) fn is_broken_off(&self) -> bool {
        self.status == 200
    }

    /// No object of that name is there, and not: no bucket.
    pub(super) fn is_missing(&self) -> bool {
        self.code == "NoSuchKey"
    }

    /// What was to be there was not.
    pub(super) fn is_refusal(&self) -> bool {
        self.status == 412 || self.is_missing()
    }

    /// Another write came in between: nothing was done.
    pub(super) fn is_conflict(&self) -> bool {
        self.status == 409
    }

    /// As the trait has it; `what` was done with `name`.
    pub(super) fn into_error(self, config: &S3Config, what: Right, name: &str) -> ObjectError {
        if self.cause == Cause::Damaged {
            return ObjectError::Damaged { name: name.to_owned(), why: self.said };
        }
        let said = format!("{what} of `{name}` in {}: {self}", config.place());
        // Such credentials are renewed by somebody else.
        let is_passing = self.code == "ExpiredToken" && config.credentials == Credentials::Ambient;
        if self.cause == Cause::Unavailable || is_passing {
            return ObjectError::Unavailable(said);
        }
        ObjectError::Configuration(format!("{said}; {}", self.advice(what)))
    }

    /// What a person should do.
    fn advice(&self, what: Right) -> String {
        let advice = match self.code.as_str() {
            "NoSuchBucket" => "create the bucket, or correct its name, the region or the endpoint",
            "InvalidAccessKeyId" => "the store does not know this access key id: correct it",
            "SignatureDoesNotMatch" => "the secret access key does not belong to the access key id: correct it",
            "ExpiredToken" | "InvalidToken" | "InvalidTokenId" => "give credentials that are valid now",
            NO_CREDENTIALS => {
                "give credentials, or run where there are some: a role of the service account, the container or the machine"
            }
            DISTRUSTED => "name the file of the authority that has signed the endpoint's certificate",
            "RequestTimeTooSkewed" => "set this machine's clock",
            "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException" => {
                "the bucket is in another region: correct the region, or the endpoint"
            }
            code if code.starts_with("KMS") => {
                "give a key for encryption that there is, and that these credentials may use"
            }
            _ if self.cause == Cause::Forbidden => {
                return format!(
                    "these credentials need the right {what}, also by the bucket's policy{}",
                    self.doubt(what)
                );
            }
            _ if self.cause == Cause::Unable => "this store cannot do it: Millstream needs it, take another one",
            _ => "correct the settings of the object store",
        };
        advice.to_owned()
    }

    /// S3 says of what is not there that it may not be read, to those who may not list.
    fn doubt(&self, what: Right) -> &'static str {
        if what == Right::Get { "; or s3:ListBucket, if there is no such object" } else { "" }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status, self.code.as_str()) {
            (0, _) => f.write_str(&self.said),
            (status, "") => write!(f, "{} (HTTP status {status})", self.said),
            (status, code) => write!(f, "{code}: {} (HTTP status {status})", self.said),
        }
    }
}

/// Who must act, by what a server answers.
fn cause(status: u16, code: &str) -> Cause {
    match (status, code) {
        (_, "NotImplemented" | "MethodNotAllowed") | (501 | 405, _) => Cause::Unable,
        (_, "AccessDenied" | "AllAccessDisabled") => Cause::Forbidden,
        // Broken on its way; waited too long for; completed or given up by an earlier attempt.
        (_, "RequestTimeout" | "IncompleteBody" | "BadDigest" | "XAmzContentSHA256Mismatch" | "NoSuchUpload") => {
            Cause::Unavailable
        }
        (_, "SlowDown" | "Throttling" | "ThrottlingException" | "RequestLimitExceeded") => Cause::Unavailable,
        (403, "") => Cause::Forbidden,
        (408 | 409 | 425 | 429 | 500.., _) => Cause::Unavailable,
        _ => Cause::Wrong,
    }
}

impl<E> From<SdkError<E, HttpResponse>> for Failure
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> Failure {
        match &error {
            SdkError::ServiceError(answer) => {
                let (status, known) = (answer.raw().status().as_u16(), answer.err());
                let said = known.message().map_or_else(|| causes(known), str::to_owned);
                Failure::answer(status, known.code().unwrap_or_default(), &said)
            }
            // It broke off.
            SdkError::ResponseError(_) => Failure::without_answer(Cause::Unavailable, causes(&error)),
            _ => unanswered(&error),
        }
    }
}

/// No answer. Mostly nobody must act: who is there will answer some time.
fn unanswered(error: &(dyn Error + 'static)) -> Failure {
    let code = if chain(error).any(lacks_credentials) {
        NO_CREDENTIALS
    } else if chain(error).any(is_distrust) {
        DISTRUSTED
    } else {
        return Failure::without_answer(Cause::Unavailable, causes(error));
    };
    Failure { code: code.to_owned(), ..Failure::without_answer(Cause::Wrong, causes(error)) }
}

fn lacks_credentials(error: &(dyn Error + 'static)) -> bool {
    use CredentialsError::{CredentialsNotLoaded, InvalidConfiguration};
    matches!(error.downcast_ref(), Some(CredentialsNotLoaded(_) | InvalidConfiguration(_)))
}

fn is_distrust(error: &(dyn Error + 'static)) -> bool {
    // One of I/O does not count that which it has in it among its causes.
    if let Some(within) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        return is_distrust(within);
    }
    matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))
}

/// An error and its causes.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    fn next<'a>(error: &&'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
        (*error).source()
    }
    std::iter::successors(Some(error), next)
}

/// What an error says, and what it says of its causes.
pub(super) fn causes(error: &(dyn Error + 'static)) -> String {
    let mut said: Vec<String> = chain(error).map(ToString::to_string).collect();
    said.dedup();
    said.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, code: &str, what: Right) -> ObjectError {
        Failure::answer(status, code, "said").into_error(&S3Config::new("eu-central-1", "shop"), what, "a/b")
    }

    #[test]
    fn what_passes_is_unavailable() {
        for (status, code) in [
            (503, "SlowDown"),
            (500, "InternalError"),
            (503, ""),
            (429, ""),
            (400, "RequestTimeout"),
            (409, "OperationAborted"),
            (404, "NoSuchUpload"),
            // Ambient credentials.
            (400, "ExpiredToken"),
        ] {
            let said = error(status, code, Right::Put);
            assert!(matches!(said, ObjectError::Unavailable(_)), "{status} {code}: {said}");
        }
    }

    #[test]
    fn what_a_person_must_put_right_says_what_to_do() {
        for (status, code, advice) in [
            (404, "NoSuchBucket", "create the bucket"),
            (403, "InvalidAccessKeyId", "access key id"),
            (403, "SignatureDoesNotMatch", "secret access key"),
            (403, "AccessDenied", "s3:PutObject"),
            (403, "", "s3:PutObject"),
            (403, "RequestTimeTooSkewed", "clock"),
            (301, "PermanentRedirect", "region"),
            (400, "AuthorizationHeaderMalformed", "region"),
            (501, "NotImplemented", "take another"),
            (400, "KMS.NotFoundException", "key for encryption"),
            (400, "InvalidArgument", "settings"),
            (404, "", "settings"),
        ] {
            let said = error(status, code, Right::Put);
            let ObjectError::Configuration(text) = &said else { panic!("{status} {code}: {said}") };
            assert!(text.contains(advice) && text.contains("a/b") && text.contains("shop in eu-central-1"), "{text}");
        }
        assert!(error(403, "AccessDenied", Right::Get).to_string().contains("s3:ListBucket"));
    }

    #[test]
    fn a_missing_bucket_is_no_missing_object() {
        let answer = |status, code| Failure::answer(status, code, "");
        assert!(answer(404, "NoSuchKey").is_missing() && !answer(404, "NoSuchBucket").is_missing());
        assert!(!answer(404, "").is_missing(), "of something else than S3");
        assert!(answer(412, "PreconditionFailed").is_refusal() && answer(404, "NoSuchKey").is_refusal());
        assert!(!answer(404, "NoSuchBucket").is_refusal() && !answer(409, "OperationAborted").is_refusal());
    }
}
