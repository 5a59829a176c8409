//! Fetches what came out of a running pipeline by its admin ports.

use super::usage;
use super::verify::{DocumentSeen, Snapshot};
use super::{Admin, AdminError};
use serde::de::DeserializeOwned;

/// Everything of these tenants, for [`super::verify::verify`]; the senders' answers are not in it. Topics and documents come from the
/// first process that has them.
///
/// # Errors
/// [`AdminError`]
pub fn fetch<'a>(admins: &[Admin], tenants: impl Iterator<Item = &'a str>) -> Result<Snapshot, AdminError> {
    let mut snapshot = Snapshot { usage: usage::collect(admins)?, ..Snapshot::default() };
    for tenant in tenants {
        let query = [("tenant", tenant), ("follow", "false")];
        snapshot.events.extend(first(admins, |admin| list(admin, "/v1/tail/events", &query))?);
        snapshot.rejects.extend(first(admins, |admin| list(admin, "/v1/tail/rejects", &query))?);
        let of = |collection| first(admins, |admin| documents(admin, tenant, collection, None));
        snapshot.users.insert(tenant.to_owned(), of("users")?);
        snapshot.devices.insert(tenant.to_owned(), of("devices")?);
    }
    Ok(snapshot)
}

/// The answer of the first process that has what is asked for.
fn first<T>(admins: &[Admin], ask: impl Fn(&Admin) -> Result<Vec<T>, AdminError>) -> Result<Vec<T>, AdminError> {
    let mut answers = admins.iter().map(ask);
    let mut answer = answers.next().unwrap_or_else(|| Ok(Vec::new()));
    while answer.as_ref().is_err_and(AdminError::is_not_found)
        && let Some(next) = answers.next()
    {
        answer = next;
    }
    answer
}

/// Documents of a collection; with an id, that one only.
///
/// # Errors
/// [`AdminError`]
pub fn documents(
    admin: &Admin,
    tenant: &str,
    collection: &str,
    id: Option<&str>,
) -> Result<Vec<DocumentSeen>, AdminError> {
    let mut query = vec![("tenant", tenant), ("collection", collection)];
    query.extend(id.map(|id| ("id", id)));
    let found: Vec<DocumentSeen> = list(admin, "/v1/documents", &query)?;
    Ok(found.into_iter().filter(|document| id.is_none_or(|id| document.id == id)).collect())
}

fn list<T: DeserializeOwned>(admin: &Admin, path: &str, query: &[(&str, &str)]) -> Result<Vec<T>, AdminError> {
    let mut items = Vec::new();
    admin.lines::<AdminError>(path, query, &mut |line| {
        let item = serde_json::from_str(line).map_err(|error| AdminError::Strange {
            url: path.to_owned(),
            message: format!("{error} in {}", line.chars().take(200).collect::<String>()),
        })?;
        items.push(item);
        Ok(true)
    })?;
    Ok(items)
}
