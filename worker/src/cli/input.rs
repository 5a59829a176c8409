//! Records from files: NDJSON, or one JSON array; `-` is standard input.

use anyhow::Context;
use serde_json::value::RawValue;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One record and where it stands, for reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// The file's name as it was given.
    pub(super) file: Arc<str>,
    /// Line number in NDJSON, position of the element in a JSON array; from 1.
    pub(super) number: u64,
    /// The record.
    pub(super) text: String,
}

/// Hands each record of the files to `take`, in order, until it says stop (`false`).
pub(super) fn read_all(files: &[PathBuf], take: &mut dyn FnMut(Line) -> bool) -> anyhow::Result<()> {
    for path in files {
        let name: Arc<str> = path.to_string_lossy().into();
        let read = if path == Path::new("-") {
            read(std::io::stdin().lock(), &name, take)
        } else {
            let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
            read(BufReader::with_capacity(1 << 16, file), &name, take)
        };
        if !read.with_context(|| format!("cannot read {name}"))? {
            break;
        }
    }
    Ok(())
}

fn read(mut from: impl BufRead, name: &Arc<str>, take: &mut dyn FnMut(Line) -> bool) -> anyhow::Result<bool> {
    if is_array(&mut from)? {
        return read_array(from, name, take);
    }
    let mut number = 0;
    loop {
        let mut bytes = Vec::new();
        if from.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(true);
        }
        number += 1;
        // What is not UTF-8 is sent as what it is not: the answer then says that it is no JSON.
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        if !text.is_empty() && !take(Line { file: name.clone(), number, text }) {
            return Ok(false);
        }
    }
}

/// Skips white space, and tells whether `[` comes next.
fn is_array(from: &mut impl BufRead) -> std::io::Result<bool> {
    loop {
        let buffer = from.fill_buf()?;
        if buffer.is_empty() {
            return Ok(false);
        }
        // Line numbers stay right: white space is skipped only in front of an array.
        match buffer.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(first) => return Ok(*first == b'['),
            None => {
                let length = buffer.len();
                from.consume(length);
            }
        }
    }
}

fn read_array(from: impl BufRead, name: &Arc<str>, take: &mut dyn FnMut(Line) -> bool) -> anyhow::Result<bool> {
    let records: Vec<Box<RawValue>> =
        serde_json::from_reader(from).context("it begins with `[` but is no JSON array")?;
    for (number, record) in (1..).zip(records) {
        let text = one_line(record.get());
        if !take(Line { file: name.clone(), number, text }) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// JSON knows line breaks only between tokens, where a space does as well.
fn one_line(json: &str) -> String {
    json.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> anyhow::Result<Vec<(u64, String)>> {
        let mut lines = Vec::new();
        read(text.as_bytes(), &"f".into(), &mut |line| {
            lines.push((line.number, line.text));
            true
        })?;
        Ok(lines)
    }

    #[test]
    fn lines_keep_their_numbers() {
        let lines = lines("\n{\"a\":1}\r\n\n  {\"a\":\n[2]").unwrap();
        assert_eq!(lines, [(2, "{\"a\":1}".to_owned()), (4, "{\"a\":".to_owned()), (5, "[2]".to_owned())]);
    }

    #[test]
    fn an_array_gives_its_elements_as_they_are_written() {
        assert!(lines("[1,").is_err());
        let lines = lines(" \n[{\"a\": 1.0,\n \"b\":\"x\\ny\"},2]\n").unwrap();
        assert_eq!(lines, [(1, "{\"a\": 1.0,  \"b\":\"x\\ny\"}".to_owned()), (2, "2".to_owned())]);
    }

    #[test]
    fn reading_stops_when_told() {
        let mut count = 0;
        let finished = read(&b"1\n2\n3\n"[..], &"f".into(), &mut |_| {
            count += 1;
            count < 2
        });
        assert_eq!((finished.unwrap(), count), (false, 2));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read_all(&[PathBuf::from("/no/such")], &mut |_| true).unwrap_err();
        assert_eq!(error.to_string(), "cannot open /no/such");
    }
}
