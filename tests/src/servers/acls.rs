//! What a user may do in Kafka: one request, `CreateAcls` (KIP-290), written by hand, because the client has no call for it.

use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The request, and the version of it that is written here: the newest without tagged fields.
const CREATE_ACLS: (i16, i16) = (30, 1);
/// A broker answers at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// Kinds of resources and operations, by the names that `kafka-acls.sh` takes, with their numbers.
const KINDS: [(&str, u8); 4] = [("Topic", 2), ("Group", 3), ("Cluster", 4), ("TransactionalId", 5)];
const OPERATIONS: [(&str, u8); 9] = [
    ("Read", 3),
    ("Write", 4),
    ("Create", 5),
    ("Delete", 6),
    ("Alter", 7),
    ("Describe", 8),
    ("ClusterAction", 9),
    ("DescribeConfigs", 10),
    ("IdempotentWrite", 12),
];
const PREFIXED: u8 = 4;
const ALLOW: u8 = 3;

/// Leave to do one thing with everything whose name begins so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    /// `Topic`, `TransactionalId`, ...
    pub kind: String,
    /// What names begin with.
    pub prefix: String,
    /// `Read`, `Write`, ...
    pub operation: String,
}

/// Gives a user this leave.
///
/// # Errors
/// When a name is not known, or the broker refuses.
pub(super) fn create(broker: (&str, u16), user: &str, acls: &[Acl]) -> Result<()> {
    let mut request = Vec::new();
    let (key, version) = CREATE_ACLS;
    request.extend(key.to_be_bytes());
    request.extend(version.to_be_bytes());
    request.extend(1_i32.to_be_bytes());
    string(&mut request, "tests")?;
    request.extend(i32::try_from(acls.len())?.to_be_bytes());
    for acl in acls {
        request.push(number(&KINDS, &acl.kind)?);
        string(&mut request, &acl.prefix)?;
        request.push(PREFIXED);
        string(&mut request, &format!("User:{user}"))?;
        string(&mut request, "*")?;
        request.extend([number(&OPERATIONS, &acl.operation)?, ALLOW]);
    }
    let answer = ask(broker, &request)?;
    // Number of the request, throttling, and how many answers there are; then the code of each, and its message.
    let mut rest = answer.get(12..).context("a short answer")?;
    for acl in acls {
        let (code, message) = rest.split_first_chunk::<2>().context("a short answer")?;
        let (length, message) = message.split_first_chunk::<2>().context("a short answer")?;
        let (said, next) = message
            .split_at_checked(usize::try_from(i16::from_be_bytes(*length)).unwrap_or(0))
            .context("a short answer")?;
        ensure!(*code == [0, 0], "{acl:?}: {}", String::from_utf8_lossy(said));
        rest = next;
    }
    Ok(())
}

pub(super) fn ask(broker: (&str, u16), request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(broker)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&i32::try_from(request.len())?.to_be_bytes())?;
    stream.write_all(request)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).context("the broker refuses the request")?;
    let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length))?];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn string(request: &mut Vec<u8>, text: &str) -> Result<()> {
    request.extend(i16::try_from(text.len())?.to_be_bytes());
    request.extend(text.as_bytes());
    Ok(())
}

fn number(of: &[(&str, u8)], name: &str) -> Result<u8> {
    let found = of.iter().find(|(known, _)| *known == name);
    found.map(|(_, number)| *number).with_context(|| format!("Kafka knows no `{name}`"))
}
