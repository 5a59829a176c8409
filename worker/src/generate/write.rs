//! The files of a load: NDJSON per (tenant, source, part), and a manifest that says what is in them.

use super::{Load, Stream};
use millstream_model::proto::Source;
use serde::{Deserialize, Serialize};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The manifest's file name.
pub const MANIFEST: &str = "manifest.json";
/// Lines per file. Parts are consecutive in time: send them in the order of their names.
pub const PART_LINES: usize = 50_000;

/// One file of a load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Whose records.
    pub tenant: String,
    /// The tenant's API key.
    pub key: String,
    /// `native`, `data-api` or `segment`, as `millstream send --source` takes it.
    pub source: String,
    /// File name, in the manifest's folder.
    pub file: String,
    /// Number of lines.
    pub records: u64,
}

/// A file could not be written: free space, or name another folder.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {error}")]
pub struct WriteError {
    path: PathBuf,
    error: std::io::Error,
}

/// What a source is called on the command line and in file names.
pub fn source_name(source: Source) -> &'static str {
    match source {
        Source::Native | Source::Unspecified => "native",
        Source::DataApi => "data-api",
        Source::Segment => "segment",
    }
}

/// Writes a load into a folder, which is made when it is not there.
///
/// # Errors
/// [`WriteError`]
pub fn write(load: &Load, folder: &Path) -> Result<Vec<Part>, WriteError> {
    std::fs::create_dir_all(folder).map_err(|error| WriteError { path: folder.to_owned(), error })?;
    let mut parts = Vec::new();
    for stream in &load.streams {
        for (number, lines) in stream.lines.chunks(PART_LINES).enumerate() {
            parts.push(write_part(stream, number, lines, folder)?);
        }
    }
    write_json(&folder.join(MANIFEST), &parts)?;
    Ok(parts)
}

/// Writes a value as JSON for people and programs.
///
/// # Errors
/// [`WriteError`]
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), WriteError> {
    let text = serde_json::to_string_pretty(value).map_err(std::io::Error::from);
    text.and_then(|text| std::fs::write(path, text + "\n")).map_err(|error| WriteError { path: path.to_owned(), error })
}

fn write_part(stream: &Stream, number: usize, lines: &[String], folder: &Path) -> Result<Part, WriteError> {
    let source = source_name(stream.source);
    let file = format!("{}.{source}.{number:03}.ndjson", stream.tenant);
    let path = folder.join(&file);
    write_lines(&path, lines).map_err(|error| WriteError { path, error })?;
    Ok(Part {
        tenant: stream.tenant.clone(),
        key: stream.key.clone(),
        source: source.to_owned(),
        file,
        records: lines.len() as u64,
    })
}

fn write_lines(path: &Path, lines: &[String]) -> std::io::Result<()> {
    let mut file = BufWriter::new(std::fs::File::create(path)?);
    for line in lines {
        file.write_all(line.as_bytes())?;
        file.write_all(b"\n")?;
    }
    file.flush()
}
