//! Names of files, which are bytes: on a terminal, in a pipe, in JSON.
//!
//! On a terminal a name that holds anything but printable characters is written as a shell would read it back,
//! `$'a\x1b[31m\n'`. In a pipe names are bytes as they are. In JSON a name that is not UTF-8 is a text with `\xHH` for
//! the bytes that do not fit, and beside it the key with `_hex` has all its bytes.

use serde_json::{Map, Value};
use std::fmt::Write;

/// Whether a terminal shows `c` and does nothing else with it: no control, nothing that turns the text around.
fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

/// A name for a terminal.
pub fn quoted(name: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(name)
        && text.chars().all(is_harmless)
    {
        return text.to_owned();
    }
    let mut shown = String::from("$'");
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => shown.push_str("\\n"),
                '\t' => shown.push_str("\\t"),
                '\r' => shown.push_str("\\r"),
                '\'' | '\\' => shown.extend(['\\', c]),
                c if is_harmless(c) => shown.push(c),
                c => c.to_string().bytes().for_each(|byte| push_hex(&mut shown, byte)),
            }
        }
        chunk.invalid().iter().for_each(|byte| push_hex(&mut shown, *byte));
    }
    shown.push('\'');
    shown
}

fn push_hex(text: &mut String, byte: u8) {
    // Writing to a string cannot fail.
    let _ = write!(text, "\\x{byte:02x}");
}

/// Hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Puts `bytes` under `key` into a JSON object, exactly.
pub fn put(object: &mut Map<String, Value>, key: &str, bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        object.insert(key.to_owned(), text.into());
        return;
    }
    let mut shown = String::new();
    for chunk in bytes.utf8_chunks() {
        shown.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| push_hex(&mut shown, *byte));
    }
    object.insert(key.to_owned(), shown.into());
    object.insert(format!("{key}_hex"), hex(bytes).into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_acts_on_is_left() {
        assert_eq!(quoted(b"it's a name.txt"), "it's a name.txt");
        assert_eq!(quoted("größe".as_bytes()), "größe");
        assert_eq!(quoted(b"\x1b[31mred'\n\\"), "$'\\x1b[31mred\\'\\n\\\\'");
        assert_eq!(quoted(b"a\xff\xc2\x9bz"), "$'a\\xff\\xc2\\x9bz'");
        assert_eq!(quoted("a\u{202e}b".as_bytes()), "$'a\\xe2\\x80\\xaeb'");
    }

    #[test]
    fn every_name_can_be_read_back_from_json() {
        let mut object = Map::new();
        put(&mut object, "name", b"\xffa\\x");
        put(&mut object, "path", b"a\\xff");
        assert_eq!(object["name"], "\\xffa\\x");
        assert_eq!(object["name_hex"], "ff615c78");
        assert_eq!(object["path"], "a\\xff");
        assert!(!object.contains_key("path_hex"));
    }
}
