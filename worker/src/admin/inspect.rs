//! `/v1/inspect/user` and `/v1/inspect/device`: what is known of one of them, by an identifier or, for users, by internal id.
//!
//! A shard knows only its part: the identifier's shard knows the user's id, the user's shard knows the user, or into whom it was merged. A process follows that
//! through its own shards. Where it leads out of them, the answer is 421 (Misdirected Request, RFC 9110) with the shard that knows, and with what to ask
//! there: `/v1/inspect/user?tenant=T&user=ID`. Whoever asks goes on with that ([`crate::cli`]).

use super::{AdminState, NoAnswer, Subject, answer, failed, no_shards, problem};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use millstream_model::id::UserId;
use millstream_model::identifier;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Another process's shard knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Misdirected {
    /// The shard of the stage action.
    pub shard: u32,
    /// Ask for the user with this id; none: ask the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Ids of users that were merged into it, from where the search began.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forwarded_from: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InspectQuery {
    tenant: Option<String>,
    id: Option<String>,
    user: Option<String>,
}

/// Handles a request.
pub(super) async fn inspect(
    State(state): State<AdminState>,
    Path(kind): Path<String>,
    Query(query): Query<InspectQuery>,
) -> Response {
    let Some(inspect) = state.inspect else { return no_shards() };
    let (tenant, subject) = match asked(&kind, query) {
        Ok(asked) => asked,
        Err((status, message)) => return problem(status, message),
    };
    let nobody = match &subject {
        Subject::User(identifier) => format!("{tenant} has no user with {identifier}"),
        Subject::UserId(id) => format!("{tenant} has no user {id}"),
        Subject::Device(identifier) => format!("{tenant} has no device with {identifier}"),
    };
    match tokio::task::spawn_blocking(move || inspect.inspect(&tenant, &subject)).await {
        Ok(Ok(Some(found))) => answer(StatusCode::OK, &found),
        Ok(Ok(None)) => problem(StatusCode::NOT_FOUND, nobody),
        Ok(Err(NoAnswer::NotNow(message))) => problem(StatusCode::SERVICE_UNAVAILABLE, message),
        Ok(Err(NoAnswer::Elsewhere(elsewhere))) => {
            let message = format!(
                "action shard {} knows, which this process does not own; ask the process that does (`millstream shards`)",
                elsewhere.shard
            );
            let body = json!({"error": {"message": message}, "elsewhere": elsewhere});
            answer(StatusCode::MISDIRECTED_REQUEST, &body)
        }
        Err(error) => failed(&error),
    }
}

fn asked(kind: &str, query: InspectQuery) -> Result<(String, Subject), (StatusCode, String)> {
    let bad = |message: String| (StatusCode::BAD_REQUEST, message);
    let usage = "send ?tenant=NAME&id=TYPE=VALUE, for example ?tenant=acme&id=user_id=42, or ?tenant=NAME&user=ID";
    let Some(tenant) = query.tenant else { return Err(bad(usage.to_owned())) };
    let subject = match (kind, query.id, query.user) {
        ("user", Some(id), None) => Subject::User(identifier::parse(&id).map_err(bad)?),
        ("device", Some(id), None) => Subject::Device(identifier::parse(&id).map_err(bad)?),
        ("user", None, Some(id)) => match UserId::parse(&id) {
            Some(id) => Subject::UserId(id),
            None => return Err(bad(format!("{id:?} is no id of a user"))),
        },
        ("user" | "device", ..) => return Err(bad(usage.to_owned())),
        _ => return Err((StatusCode::NOT_FOUND, "inspect `user` or `device`".to_owned())),
    };
    Ok((tenant, subject))
}
