//! The object store: is there one, and does it answer, with this bucket and these credentials.
//!
//! Only what reading shows: a write, or a conditional one, would leave something behind.

use super::PATIENCE_MS;
use super::finding::Finding;
use crate::config::{Config, Log, Objects, S3};
use crate::runtime::Role;
use millstream_shard::objects::{ObjectError, ObjectStore};
use millstream_stores::s3::S3Objects;

/// Everything about the object store, unless `role` does without it.
pub(super) fn check(config: &Config, role: Option<Role>) -> Vec<Finding> {
    let has_state = role.is_none_or(|role| matches!(role, Role::Unify | Role::Action));
    let is_alone = matches!(config.log, Log::Embedded);
    vec![match &config.objects {
        _ if !has_state => Finding::ok("objects", "this role does not use them"),
        Objects::None if is_alone => Finding::ok("objects", "none: local state is all there is"),
        Objects::None => Finding::warning(
            "objects",
            "none: changelogs are never trimmed, and a worker that has lost its disk reads all of its own",
            "configure `objects: {s3: {bucket: ...}}` for the roles unify and action",
        ),
        Objects::Folder(folder) if is_alone => {
            Finding::ok(format!("objects {}", folder.path.display()), "a folder: there is nobody to ask")
        }
        Objects::Folder(folder) => Finding::warning(
            format!("objects {}", folder.path.display()),
            "a folder: right only where every worker sees the same one, with locks, and it outlives their disks",
            "otherwise `objects: {s3: {bucket: ...}}`, for each role",
        ),
        Objects::S3(s3) => bucket(s3, config.pipeline.as_str()),
    }]
}

fn bucket(s3: &S3, pipeline: &str) -> Finding {
    let mut store = s3.store();
    store.connect_timeout_ms = store.connect_timeout_ms.min(PATIENCE_MS);
    store.attempt_timeout_ms = store.attempt_timeout_ms.min(PATIENCE_MS);
    store.operation_timeout_ms = store.operation_timeout_ms.min(PATIENCE_MS);
    let folder = [s3.prefix.as_str(), pipeline].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>();
    let subject = format!("objects s3://{}/{}", s3.bucket, folder.join("/"));
    let looked = S3Objects::new(store).and_then(|objects| objects.list(&format!("{pipeline}/"), None));
    match looked {
        Ok(found) if found.is_empty() => {
            Finding::ok(subject, "answers, and takes the credentials; nothing of this pipeline is there yet")
        }
        Ok(_) => Finding::ok(subject, "answers, and takes the credentials; something of this pipeline is there"),
        Err(error) => {
            let change = match &error {
                ObjectError::Unavailable(_) => "start it, or correct `objects.s3.endpoint` and `region`",
                _ => "correct `objects.s3`, or what its user may do",
            };
            Finding::problem(subject, error.to_string(), change)
        }
    }
}
