//! Another password for a user of Kafka: one request, `AlterUserScramCredentials` (KIP-554), written by hand, because the client has no call for it. It does what `kafka-configs.sh --alter --entity-type users` does.

use super::acls::ask;
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha512};

/// The request, and the version of it that is written here.
const ALTER_USER_SCRAM_CREDENTIALS: (i16, i16) = (51, 0);
/// `SCRAM-SHA-512`.
const MECHANISM: u8 = 2;
/// The fewest that Kafka takes.
const ITERATIONS: i32 = 4096;
const SALT: &[u8] = b"of no use to anybody";
/// What a block of SHA-512 is.
const BLOCK: usize = 128;

/// From now on the user has this password for SCRAM-SHA-512, and no other one.
///
/// # Errors
/// When the broker refuses.
pub(super) fn alter(broker: (&str, u16), user: &str, password: &str) -> Result<()> {
    let mut request = Vec::new();
    let (key, version) = ALTER_USER_SCRAM_CREDENTIALS;
    request.extend(key.to_be_bytes());
    request.extend(version.to_be_bytes());
    request.extend(1_i32.to_be_bytes());
    // No client id, no tagged fields; no deletions, and one insertion.
    request.extend((-1_i16).to_be_bytes());
    request.extend([0, 1, 2]);
    compact(&mut request, user.as_bytes())?;
    request.push(MECHANISM);
    request.extend(ITERATIONS.to_be_bytes());
    compact(&mut request, SALT)?;
    compact(&mut request, &salted(password))?;
    request.extend([0, 0]);
    let answer = ask(broker, &request)?;
    // Number of the request, tagged fields, throttling, one answer: the user, a code, a message.
    let rest = answer.get(10 + user.len() + 1..).context("a short answer")?;
    let (code, message) = rest.split_first_chunk::<2>().context("a short answer")?;
    ensure!(*code == [0, 0], "the password of {user}: {}", String::from_utf8_lossy(message));
    Ok(())
}

/// A string, or bytes, of fewer than 127.
fn compact(request: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    let length = u8::try_from(bytes.len() + 1).ok().filter(|length| *length < 128);
    request.push(length.context("too long")?);
    request.extend(bytes);
    Ok(())
}

/// PBKDF2 with HMAC-SHA-512, of one block.
fn salted(password: &str) -> [u8; 64] {
    let mut last = hmac(password.as_bytes(), &[SALT, &[0, 0, 0, 1]].concat());
    let mut all = last;
    for _ in 1..ITERATIONS {
        last = hmac(password.as_bytes(), &last);
        all.iter_mut().zip(last).for_each(|(all, last)| *all ^= last);
    }
    all
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 64] {
    let padded = |with: u8| {
        let mut block = [with; BLOCK];
        block.iter_mut().zip(key).for_each(|(block, key)| *block ^= key);
        block
    };
    let inner = Sha512::new().chain_update(padded(0x36)).chain_update(message).finalize();
    Sha512::new().chain_update(padded(0x5c)).chain_update(inner).finalize().into()
}
