//! `millstream inspect`: what is known of one user or device.

use super::{Admin, AdminError, Outcome};
use anyhow::Context;
use serde_json::Value;

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
    /// Base URL of an admin port; several, separated by commas, when the action stage runs in several processes
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
    for url in &args.admin {
        if let Some(found) = fetch(&Admin::new(url)?, path, &args.tenant, &args.id).context("cannot inspect")? {
            let text = if args.json { serde_json::to_string_pretty(&found)? + "\n" } else { readable(&found) };
            super::print(format_args!("{text}"))?;
            return Ok(Outcome::Good);
        }
    }
    super::print(format_args!("nobody at {} is known by {}\n", args.tenant, args.id))?;
    Ok(Outcome::Bad)
}

/// What one process knows; `None` when it does not know the identifier.
///
/// # Errors
/// [`AdminError`]
pub(super) fn fetch(admin: &Admin, path: &str, tenant: &str, id: &str) -> Result<Option<Value>, AdminError> {
    match admin.json(path, &[("tenant", tenant), ("id", id)]) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// JSON as an indented outline: scalars on one line, lists of objects as one line per object.
pub(super) fn readable(value: &Value) -> String {
    let mut text = String::new();
    outline(&mut text, value, 0);
    text
}

fn outline(text: &mut String, value: &Value, indent: usize) {
    let Value::Object(members) = value else {
        return text.push_str(&format!("{:indent$}{}\n", "", inline(value)));
    };
    let width = members.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    for (name, value) in members {
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
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(inline).collect::<Vec<_>>().join(", "),
        Value::Object(members) => {
            let shown = members.iter().filter(|(_, value)| !value.is_null());
            shown.map(|(name, value)| format!("{name} {}", inline(value))).collect::<Vec<_>>().join("  ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_outline_reads_well() {
        let value = json!({"id": "u_1", "empty": {}, "identifiers": {"user_id": ["42"], "email": ["a@b.c", "d@e.f"]},
            "attributes": [{"name": "plan", "value": "pro", "set": "2026-01-01T00:00:00Z"}], "events": 3});
        let expected = "id           u_1\nidentifiers\n  user_id  42\n  email    a@b.c, d@e.f\nattributes\n  \
                        name plan  value pro  set 2026-01-01T00:00:00Z\nevents       3\n";
        assert_eq!(readable(&value), expected);
    }

    #[test]
    fn an_id_needs_type_and_value() {
        assert_eq!(parse_id("user_id=42=x").as_deref(), Ok("user_id=42=x"));
        assert!(parse_id("42").unwrap_err().contains("user_id=42"));
    }
}
