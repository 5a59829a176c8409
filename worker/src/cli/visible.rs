//! Text of senders as people may see it: it came from anywhere, and a terminal obeys what is in it.
//!
//! Control characters would move the cursor, ring, hide or change what was printed; a line break would forge a line of ours; characters that turn the direction of
//! writing show a text in another order. They are shown by their escapes, as Rust and JSON write them.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Does a terminal show it as something else than a character in its place?
fn is_unseen(character: char) -> bool {
    let turns = matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    character.is_control() || turns || matches!(character, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// A text whose place says where it ends: what is unseen is escaped.
pub(super) fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unseen) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().fold(String::new(), |mut shown, character| {
        push(&mut shown, character);
        shown
    }))
}

/// A text among others on a line. It is quoted when it could be taken for more than one: it has breaks, gaps, commas or quotes as we print them.
pub(super) fn quoted(text: &str) -> Cow<'_, str> {
    let is_plain = !text.is_empty()
        && text.trim() == text
        && !text.starts_with('"')
        && !text.contains(is_unseen)
        && !text.contains("  ")
        && !text.contains(", ");
    if is_plain {
        return Cow::Borrowed(text);
    }
    let mut shown = String::from('"');
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            shown.push('\\');
        }
        push(&mut shown, character);
    }
    Cow::Owned(shown + "\"")
}

/// A line of JSON: the same value, with what is unseen as JSON escapes it.
pub(super) fn json_line(line: &str) -> Cow<'_, str> {
    if !line.contains(is_unseen) {
        return Cow::Borrowed(line);
    }
    Cow::Owned(line.chars().fold(String::new(), |mut shown, character| {
        if is_unseen(character) {
            // All of them are of the first 65,536, and a string takes it.
            let _ = write!(shown, "\\u{:04x}", u32::from(character));
        } else {
            shown.push(character);
        }
        shown
    }))
}

fn push(shown: &mut String, character: char) {
    if is_unseen(character) {
        shown.extend(character.escape_default());
    } else {
        shown.push(character);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_reaches_the_terminal_as_a_command() {
        assert_eq!(visible("zoë \u{1f600} \\n"), "zoë \u{1f600} \\n");
        assert_eq!(visible("a\nb\u{1b}[2J\u{9b}1m\u{7f}"), "a\\nb\\u{1b}[2J\\u{9b}1m\\u{7f}");
        assert_eq!(visible("\u{202e}txt.exe"), "\\u{202e}txt.exe");
    }

    #[test]
    fn what_could_be_two_is_quoted() {
        for plain in ["pro", "two words", "C:\\x", "it's", "a,b"] {
            assert_eq!(quoted(plain), plain);
        }
        let cases = [
            ("", "\"\""),
            ("a  set 2026", "\"a  set 2026\""),
            ("a\nplan  pro", "\"a\\nplan  pro\""),
            ("\"a\"", "\"\\\"a\\\"\""),
            ("a, b", "\"a, b\""),
            (" a", "\" a\""),
            ("\\\t", "\"\\\\\\t\""),
        ];
        for (text, expected) in cases {
            assert_eq!(quoted(text), expected);
        }
    }

    #[test]
    fn a_line_of_json_stays_the_same_value() {
        let line = "{\"a\":\"x\u{9b}\u{202e}\u{7f}y\"}";
        let shown = json_line(line);
        assert_eq!(shown, r#"{"a":"x\u009b\u202e\u007fy"}"#);
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(&shown), value(line));
    }
}
