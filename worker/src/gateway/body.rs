//! Reading a body: everything is bounded before it is allocated.
//!
//! A body arrives in pieces; each is counted against its limit and takes its bytes from the process's budget of bytes in flight, until the
//! log has acknowledged the records; when its records grow beyond the body (each carries what the body said about all of them), they take the
//! rest before they go on. Compressed bodies are read whole (their limit is small) and decompressed with a limit on the output, so that a bomb
//! costs no more than the limit. So is the decoder's window: gzip's is 32 KiB; zstd's and brotli's have their largest named here, because both formats
//! let the sender ask for a gigabyte (brotli by an extension, which this decoder knows and RFC 7932 does not).

use super::answer::Failure;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A zstd frame may ask for a window of 2^27 bytes; 2^23 is what level 19 and all defaults stay within.
const ZSTD_WINDOW_LOG: u32 = 23;
/// How a brotli stream begins that asks for more than the 16 MiB of RFC 7932 (section 9.1: this pattern of its first seven bits is invalid).
const BROTLI_LARGE_WINDOW: u8 = 0x11;
/// Bytes that are decompressed before room for them is asked for.
const STEP: u64 = 64 * 1024;

/// How a body is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Zstd,
    Brotli,
}

impl Encoding {
    /// That of a request.
    ///
    /// # Errors
    /// 415.
    pub(super) fn of(headers: &HeaderMap) -> Result<Encoding, Failure> {
        let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
        let name = values.next().map(|value| value.to_str().unwrap_or("?").trim().to_ascii_lowercase());
        match (name.as_deref(), values.next()) {
            (None | Some("" | "identity"), None) => Ok(Encoding::Identity),
            (Some("gzip" | "x-gzip"), None) => Ok(Encoding::Gzip),
            (Some("zstd"), None) => Ok(Encoding::Zstd),
            (Some("br"), None) => Ok(Encoding::Brotli),
            _ => Err(Failure::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_encoding",
                "the Content-Encoding is none of gzip, zstd, br, identity (one of them, once)",
            )),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Encoding::Identity => "identity",
            Encoding::Gzip => "gzip",
            Encoding::Zstd => "zstd",
            Encoding::Brotli => "br",
        }
    }
}

/// What a body may measure.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimits {
    /// Bytes, decompressed.
    pub(super) bytes: usize,
    /// Bytes as sent, when compressed.
    pub(super) compressed: usize,
    /// Time until its last byte.
    pub(super) timeout: Duration,
}

/// Bytes in flight that the process allows itself.
#[derive(Clone, Debug)]
pub(super) struct Budget(pub(super) Arc<Semaphore>);

/// Bytes taken from the [`Budget`]; given back when dropped.
#[derive(Debug, Default)]
pub(super) struct Taken(Option<OwnedSemaphorePermit>);

impl Taken {
    fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }
}

impl Budget {
    /// Takes what is missing to hold so many bytes altogether.
    ///
    /// # Errors
    /// 503 when the process holds too much already.
    pub(super) fn grow(&self, bytes: usize, taken: &mut Taken) -> Result<(), Failure> {
        match bytes.saturating_sub(taken.bytes()) {
            0 => Ok(()),
            missing => self.take(missing, taken),
        }
    }

    fn take(&self, bytes: usize, taken: &mut Taken) -> Result<(), Failure> {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let more = self.0.clone().try_acquire_many_owned(permits).map_err(|_| overloaded())?;
        match &mut taken.0 {
            Some(permit) => permit.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

fn overloaded() -> Failure {
    let message =
        "this gateway holds as many bytes in flight as it may; repeat the request after Retry-After, with the same ids";
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message).retry_after(1)
}

/// Reads a body, decompressed.
///
/// # Errors
/// 400 when it is cut or not what its encoding says, 408 when it does not come in time, 413 when it is too large (the limit is named),
/// 503 when the process holds too much already.
pub(super) async fn read(
    body: Body,
    headers: &HeaderMap,
    limits: BodyLimits,
    budget: &Budget,
) -> Result<(Bytes, Taken), Failure> {
    let encoding = Encoding::of(headers)?;
    let limit = if encoding == Encoding::Identity { limits.bytes } else { limits.compressed };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|announced| announced > limit as u64) {
        return Err(too_large(limit, encoding != Encoding::Identity));
    }
    let reading = collect(body, limit, announced, encoding, budget);
    let (raw, taken) = tokio::time::timeout(limits.timeout, reading).await.map_err(|_| slow(limits.timeout))??;
    if encoding == Encoding::Identity {
        return Ok((raw, taken));
    }
    let budget = budget.clone();
    let plain = tokio::task::spawn_blocking(move || {
        let mut taken = taken;
        let plain = decompress(&raw, encoding, limits.bytes, &mut |bytes| budget.take(bytes, &mut taken))?;
        Ok((plain, taken))
    });
    plain.await.map_err(|error| Failure::internal(&format!("decompression: {error}")))?
}

async fn collect(
    mut body: Body,
    limit: usize,
    announced: Option<u64>,
    encoding: Encoding,
    budget: &Budget,
) -> Result<(Bytes, Taken), Failure> {
    let mut taken = Taken::default();
    let mut collected = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| cut(collected.len(), announced))?.into_data() else { continue };
        if collected.len() + data.len() > limit {
            return Err(too_large(limit, encoding != Encoding::Identity));
        }
        budget.take(data.len(), &mut taken)?;
        collected.extend_from_slice(&data);
    }
    Ok((collected.freeze(), taken))
}

fn too_large(limit: usize, compressed: bool) -> Failure {
    let what = if compressed { "compressed body" } else { "body" };
    let message = format!("the {what} is larger than the limit of {limit} bytes; send fewer records per request");
    Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
}

fn slow(timeout: Duration) -> Failure {
    let message =
        format!("the body did not arrive within {} ms; send it faster or in smaller requests", timeout.as_millis());
    Failure::new(StatusCode::REQUEST_TIMEOUT, "slow_body", message)
}

fn cut(received: usize, announced: Option<u64>) -> Failure {
    let announced = announced.map_or("the end of the chunks".to_owned(), |bytes| format!("{bytes} bytes"));
    let message = format!("the body ended after {received} bytes, before {announced}");
    Failure::new(StatusCode::BAD_REQUEST, "cut_body", message)
}

/// Asks for room for so many more bytes.
type Take<'a> = &'a mut dyn FnMut(usize) -> Result<(), Failure>;

/// Decompresses at most `limit` bytes, each step only after `take` has given room for it.
///
/// # Errors
/// 400 when the bytes are not of this encoding or are cut, 413 beyond the limit, and what `take` says.
fn decompress(raw: &[u8], encoding: Encoding, limit: usize, take: Take<'_>) -> Result<Bytes, Failure> {
    let broken = |error: std::io::Error| {
        let name = encoding.name();
        let message =
            format!("the body is not valid {name}: {error}; it may have been cut, or encoded twice or not at all");
        Failure::new(StatusCode::BAD_REQUEST, "malformed_encoding", message)
    };
    if raw.is_empty() {
        return Ok(Bytes::new());
    }
    match encoding {
        Encoding::Identity => Ok(Bytes::copy_from_slice(raw)),
        Encoding::Gzip => read_limited(flate2::read::MultiGzDecoder::new(raw), limit, take, broken),
        Encoding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(raw).map_err(broken)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(broken)?;
            read_limited(decoder, limit, take, broken)
        }
        Encoding::Brotli if raw.first().is_some_and(|first| first & 0x7f == BROTLI_LARGE_WINDOW) => {
            Err(broken(std::io::Error::other("its window is larger than RFC 7932 allows")))
        }
        Encoding::Brotli => read_limited(brotli_decompressor::Decompressor::new(raw, 4096), limit, take, broken),
    }
}

fn read_limited(
    mut decoder: impl Read,
    limit: usize,
    take: Take<'_>,
    broken: impl Fn(std::io::Error) -> Failure,
) -> Result<Bytes, Failure> {
    let mut plain = Vec::new();
    loop {
        let before = plain.len();
        decoder.by_ref().take(STEP).read_to_end(&mut plain).map_err(&broken)?;
        if plain.len() == before {
            return Ok(plain.into());
        }
        if plain.len() > limit {
            let message = format!(
                "the body, decompressed, is larger than the limit of {limit} bytes; send fewer records per request"
            );
            return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
        }
        take(plain.len() - before)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn encoded(encoding: Encoding, plain: &[u8]) -> Vec<u8> {
        match encoding {
            Encoding::Identity => plain.to_vec(),
            Encoding::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            Encoding::Zstd => zstd::encode_all(plain, 19).unwrap(),
            // The encoder is no dependency of this crate: tests/tests/bad_input.rs sends brotli.
            Encoding::Brotli => Vec::new(),
        }
    }

    #[test]
    fn bombs_are_stopped_at_the_limit() {
        let plain = vec![b' '; 50_000_000];
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let bomb = encoded(encoding, &plain);
            assert!(bomb.len() < 100_000, "{encoding:?}: {}", bomb.len());
            let failure = decompress(&bomb, encoding, 5_000_000, &mut |_| Ok(())).unwrap_err();
            assert_eq!((failure.status, failure.reason), (StatusCode::PAYLOAD_TOO_LARGE, "too_large"));
            assert!(failure.message.contains("5000000 bytes"), "{}", failure.message);
        }
    }

    #[test]
    fn what_is_cut_is_an_error_and_not_less() {
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let whole = encoded(encoding, br#"{"batch": []}"#);
            assert_eq!(decompress(&whole, encoding, 100, &mut |_| Ok(())).unwrap(), &br#"{"batch": []}"#[..]);
            let failure = decompress(&whole[..whole.len() - 3], encoding, 100, &mut |_| Ok(())).unwrap_err();
            assert_eq!(failure.reason, "malformed_encoding", "{encoding:?}");
        }
    }

    #[test]
    fn a_brotli_window_beyond_the_standard_is_refused() {
        // The extension's header: a window of 2^30, then an empty last block.
        let failure = decompress(&[0x11, 0x1e, 0x03], Encoding::Brotli, 100, &mut |_| Ok(())).unwrap_err();
        assert_eq!((failure.status, failure.reason), (StatusCode::BAD_REQUEST, "malformed_encoding"));
        assert!(failure.message.contains("RFC 7932"), "{}", failure.message);
        // An empty stream with a window of 2^16: the shortest one that is right.
        assert_eq!(decompress(&[0x06], Encoding::Brotli, 100, &mut |_| Ok(())).unwrap(), "");
    }

    #[tokio::test]
    async fn what_the_process_cannot_hold_is_refused_and_given_back() {
        let budget = Budget(Arc::new(Semaphore::new(10)));
        let limits = BodyLimits { bytes: 100, compressed: 100, timeout: Duration::from_secs(5) };
        let read = |text: &'static str| {
            let budget = budget.clone();
            async move { read(Body::from(text), &HeaderMap::new(), limits, &budget).await }
        };
        let held = read("12345678").await.unwrap();
        let failure = read("123").await.unwrap_err();
        assert_eq!((failure.status, failure.reason), (StatusCode::SERVICE_UNAVAILABLE, "overloaded"));
        drop(held);
        assert_eq!(read("1234567890").await.unwrap().0, "1234567890");
        assert_eq!(budget.0.available_permits(), 10);
    }
}
