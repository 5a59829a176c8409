//! `millstream inspect`: what is known of one user or device.

use super::visible::{quoted, visible};
use super::{Admin, AdminError, Outcome};
use crate::admin::Misdirected;
use anyhow::{Context, bail};
use serde_json::Value;

/// A chain of merges that leads from process to process is followed this far: it ends by itself, unless state is damaged.
const MAX_HOPS: usize = 100_000;

/// What to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Entity {
    /// A user
    User,
    /// A device
    Device,
}

/// Arguments of `millstream inspect`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct InspectArgs {
    /// What to look for
    #[arg(value_enum)]
    entity: Entity,
    /// The tenant
    #[arg(long)]
    tenant: String,
    /// An identifier, type=value, for example user_id=42
    #[arg(long, value_parser = parse_id)]
    id: String,
    /// Base URL of an admin port; several, separated by commas, when the action stage runs in several processes: whichever knows is asked
    #[arg(long, default_value = "http://127.0.0.1:9090", env = "MILLSTREAM_ADMIN", value_delimiter = ',')]
    admin: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn parse_id(text: &str) -> Result<String, String> {
    millstream_model::identifier::parse(text).map(|identifier| identifier.to_string())
}

/// Runs it.
pub(super) fn run(args: &InspectArgs) -> anyhow::Result<Outcome> {
    let path = match args.entity {
        Entity::User => "/v1/inspect/user",
        Entity::Device => "/v1/inspect/device",
    };
    let admins = args.admin.iter().map(|url| Admin::new(url)).collect::<Result<Vec<_>, _>>()?;
    match fetch(&admins, path, &args.tenant, &args.id)? {
        Some(found) => {
            let text = if args.json { serde_json::to_string_pretty(&found)? + "\n" } else { readable(&found) };
            super::print(format_args!("{text}"))?;
            Ok(Outcome::Good)
        }
        None => {
            let (tenant, id) = (visible(&args.tenant), visible(&args.id));
            super::print(format_args!("nobody at {tenant} is known by {id}\n"))?;
            Ok(Outcome::Bad)
        }
    }
}

/// What the processes know; `None` when the one that would does not. A user's merges may lead from one process to another: each says whom to ask for next.
///
/// # Errors
/// The process that would know is not among them, or cannot be asked.
pub(super) fn fetch(admins: &[Admin], path: &str, tenant: &str, id: &str) -> anyhow::Result<Option<Value>> {
    let mut question = ("id", id.to_owned());
    let mut forwarded: Vec<String> = Vec::new();
    for _ in 0..MAX_HOPS {
        let mut next = None;
        let mut failed = None;
        for admin in admins {
            match admin.json(path, &[("tenant", tenant), (question.0, &question.1)]) {
                Ok(found) => return Ok(Some(after(forwarded, found))),
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) => match elsewhere(&error) {
                    Some(elsewhere) if elsewhere.user.as_ref().is_some_and(|user| *user != question.1) => {
                        next = Some(elsewhere);
                        break;
                    }
                    _ => failed = failed.filter(|_| elsewhere(&error).is_some()).or(Some(error)),
                },
            }
        }
        match (next, failed) {
            (Some(Misdirected { user: Some(user), forwarded_from, .. }), _) => {
                forwarded.extend(forwarded_from);
                question = ("user", user);
            }
            (_, Some(error)) => return Err(error).context("cannot inspect"),
            (_, None) => bail!("cannot inspect: no admin port was given"),
        }
    }
    bail!("{id} leads through more than {MAX_HOPS} merges: they go round in a circle; report it")
}

/// Whom to ask instead.
fn elsewhere(error: &AdminError) -> Option<Misdirected> {
    let AdminError::Refused { status: 421, message, .. } = error else { return None };
    let mut body: Value = serde_json::from_str(message).ok()?;
    serde_json::from_value(body.get_mut("elsewhere")?.take()).ok()
}

/// The answer with the merges that led to the process that gave it.
fn after(mut forwarded: Vec<String>, mut found: Value) -> Value {
    if let Some(list) = found.get_mut("forwarded_from").and_then(Value::as_array_mut) {
        forwarded.extend(list.iter().filter_map(Value::as_str).map(str::to_owned));
        *list = forwarded.into_iter().map(Value::from).collect();
    }
    found
}

/// JSON as an indented outline: scalars on one line, lists of objects as one line per object. Names and values are of senders, so each shows as what it is.
pub(super) fn readable(value: &Value) -> String {
    let mut text = String::new();
    outline(&mut text, value, 0);
    text
}

fn outline(text: &mut String, value: &Value, indent: usize) {
    let Value::Object(members) = value else {
        return text.push_str(&format!("{:indent$}{}\n", "", inline(value)));
    };
    let width = members.keys().map(|name| quoted(name).chars().count()).max().unwrap_or(0);
    for (name, value) in members {
        let name = quoted(name);
        match value {
            Value::Object(inner) if inner.is_empty() => {}
            Value::Array(items) if items.is_empty() => {}
            Value::Null => {}
            Value::Object(inner) if inner.values().any(|value| value.is_object() || value.is_array()) => {
                text.push_str(&format!("{:indent$}{name}\n", ""));
                outline(text, value, indent + 2);
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                text.push_str(&format!("{:indent$}{name}\n", ""));
                items
                    .iter()
                    .for_each(|item| text.push_str(&format!("{:inner$}{}\n", "", inline(item), inner = indent + 2)));
            }
            Value::Object(_) => {
                text.push_str(&format!("{:indent$}{name}\n", ""));
                outline(text, value, indent + 2);
            }
            _ => text.push_str(&format!("{:indent$}{name:width$}  {}\n", "", inline(value))),
        }
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text).into_owned(),
        Value::Array(items) => items.iter().map(inline).collect::<Vec<_>>().join(", "),
        Value::Object(members) => {
            let shown = members.iter().filter(|(_, value)| !value.is_null());
            shown.map(|(name, value)| format!("{} {}", quoted(name), inline(value))).collect::<Vec<_>>().join("  ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::{BufRead, Write};

    #[test]
    fn an_outline_reads_well() {
        let value = json!({"id": "u_1", "empty": {}, "identifiers": {"user_id": ["42"], "email": ["a@b.c", "d@e.f"]},
            "attributes": [{"name": "plan", "value": "pro", "set": "2026-01-01T00:00:00Z"}], "events": 3});
        let expected = "id           u_1\nidentifiers\n  user_id  42\n  email    a@b.c, d@e.f\nattributes\n  \
                        name plan  value pro  set 2026-01-01T00:00:00Z\nevents       3\n";
        assert_eq!(readable(&value), expected);
    }

    #[test]
    fn a_value_cannot_forge_a_line_or_command_the_terminal() {
        let value = json!({"attributes": [
            {"name": "note", "value": "x\n  name plan  value pro  set 2026-01-01T00:00:00Z", "set": "t"},
            {"name": "\u{1b}[2J", "value": {"k\r": ["a, b", "c"]}, "set": "t"}
        ]});
        let shown = readable(&value);
        assert_eq!(shown.lines().count(), 3, "{shown}");
        assert!(!shown.contains('\u{1b}') && !shown.contains('\r'), "{shown}");
        assert!(shown.contains(r#"value "x\n  name plan  value pro  set 2026-01-01T00:00:00Z"  set t"#), "{shown}");
        assert!(shown.contains(r#"name "\u{1b}[2J"  value "k\r" "a, b", c  set t"#), "{shown}");
    }

    /// Admin ports that answer by what is asked for: (part of the request's first line, status, body).
    fn process(answers: &'static [(&'static str, u16, &'static str)]) -> Admin {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = Admin::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let mut lines = std::io::BufReader::new(client.try_clone().unwrap()).lines();
                let asked = lines.next().unwrap().unwrap();
                while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                let (_, status, body) = answers.iter().find(|(part, ..)| asked.contains(part)).unwrap();
                let length = body.len();
                let head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
                client.write_all(format!("{head}{body}").as_bytes()).unwrap();
            }
        });
        admin
    }

    const LEADS_ON: &str = r#"{"elsewhere":{"shard":1,"user":"u_b","forwarded_from":["u_a"]}}"#;
    const NOT_HERE: &str = r#"{"error":{"message":"action shard 0 knows"},"elsewhere":{"shard":0}}"#;
    const OPENING: &str = r#"{"error":{"message":"is being opened"}}"#;
    const HERE: &str = r#"{"id":"u_c","forwarded_from":["u_b"]}"#;

    fn asked(admins: &[Admin]) -> Result<Option<Value>, String> {
        fetch(admins, "/v1/inspect/user", "acme", "user_id=1").map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_chain_is_followed_from_process_to_process() {
        let first = || process(&[("id=user_id", 421, NOT_HERE), ("user=u_b", 200, HERE)]);
        let second = || process(&[("id=user_id", 421, LEADS_ON), ("user=u_b", 421, NOT_HERE)]);
        let whole = json!({"id": "u_c", "forwarded_from": ["u_a", "u_b"]});
        assert_eq!(asked(&[first(), second()]), Ok(Some(whole.clone())));
        assert_eq!(asked(&[second(), first()]), Ok(Some(whole)));
    }

    #[test]
    fn who_does_not_own_the_shard_is_passed_over() {
        let stranger = || process(&[("/v1", 421, NOT_HERE)]);
        assert_eq!(asked(&[stranger(), process(&[("/v1", 404, "{}")])]), Ok(None));
        let missing = asked(&[stranger(), stranger()]).unwrap_err();
        assert!(missing.contains("HTTP 421: action shard 0 knows"), "{missing}");
        for admins in [[stranger(), process(&[("/v1", 503, OPENING)])], [process(&[("/v1", 503, OPENING)]), stranger()]]
        {
            let why = asked(&admins).unwrap_err();
            assert!(why.contains("is being opened"), "{why}");
        }
    }

    #[test]
    fn an_id_needs_type_and_value() {
        assert_eq!(parse_id("user_id=42=x").as_deref(), Ok("user_id=42=x"));
        assert!(parse_id("42").unwrap_err().contains("user_id=42"));
    }
}
