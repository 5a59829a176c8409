//! Lists of the object store in a folder: in order of names, although a folder's entries come in none.

use super::objects::{END, UPLOADS};
use millstream_shard::objects::{Listed, check_name};
use std::fs::{self, DirEntry};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::UNIX_EPOCH;

/// Objects in a page, as on S3.
const PAGE: usize = 1000;

/// What is asked for.
pub(super) struct Query<'a> {
    /// What names begin with.
    pub(super) prefix: &'a str,
    /// What they come after.
    pub(super) after: Option<&'a str>,
}

impl Query<'_> {
    fn has(&self, name: &str) -> bool {
        name.starts_with(self.prefix) && self.after.is_none_or(|after| name > after)
    }

    /// Whether a folder may have such an object; its name ends with a slash.
    fn may_have(&self, folder: &str) -> bool {
        let is_behind = self.after.is_none_or(|after| folder > after || after.starts_with(folder));
        is_behind && (folder.starts_with(self.prefix) || self.prefix.starts_with(folder))
    }
}

/// The first objects below a folder that are asked for.
pub(super) fn page(root: &Path, query: &Query<'_>) -> io::Result<Vec<Listed>> {
    let mut found = Vec::new();
    walk(root, "", query, &mut found)?;
    Ok(found)
}

/// Adds what is in a folder until the page is full.
fn walk(folder: &Path, at: &str, query: &Query<'_>, found: &mut Vec<Listed>) -> io::Result<()> {
    for (name, entry) in entries(folder, at)? {
        if found.len() == PAGE {
            return Ok(());
        }
        if name.ends_with('/') {
            if query.may_have(&name) {
                walk(&entry.path(), &name, query, found)?;
            }
        } else if query.has(&name) {
            found.extend(listed(name, &entry)?);
        }
    }
    Ok(())
}

/// Objects and folders in a folder, in order: a folder's objects come where its name with the slash does.
fn entries(folder: &Path, at: &str) -> io::Result<Vec<(String, DirEntry)>> {
    let listing = match fs::read_dir(folder) {
        // Its last object was deleted a moment ago.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing?,
    };
    let mut entries = Vec::new();
    for entry in listing {
        let entry = entry?;
        let Ok(file) = entry.file_name().into_string() else { continue };
        let is_folder = file != UPLOADS && entry.file_type()?.is_dir();
        match file.strip_suffix(END) {
            // Without a name it would look like a folder.
            Some("") => {}
            Some(object) => entries.push((format!("{at}{object}"), entry)),
            None if is_folder => entries.push((format!("{at}{file}/"), entry)),
            None => {}
        }
    }
    // What has no such name, somebody else has put there.
    entries.retain(|(name, _)| check_name(name.trim_end_matches('/')).is_ok());
    entries.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    Ok(entries)
}

/// `None`: it was deleted a moment ago.
fn listed(name: String, entry: &DirEntry) -> io::Result<Option<Listed>> {
    let metadata = match entry.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        metadata => metadata?,
    };
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let modified_ms = u64::try_from(modified.as_millis()).unwrap_or(u64::MAX);
    Ok(Some(Listed { name, size: metadata.len(), modified_ms }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_that_may_have_what_is_asked_for_are_read() {
        let may = |prefix, after, folder: &str| Query { prefix, after }.may_have(folder);
        assert!(may("", None, "a/") && may("a", None, "a/") && may("a/b", None, "a/") && may("a/", None, "a/b/"));
        assert!(!may("b", None, "a/") && !may("a/b", None, "a/c/"));
        assert!(may("", Some("a/5"), "a/") && may("", Some("a-"), "a/") && may("", Some("a/"), "a/"));
        assert!(!may("", Some("b"), "a/") && !may("", Some("a0"), "a/"));
    }
}
