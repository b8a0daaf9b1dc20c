//! The text in which LVM2 keeps its metadata: a tree of sections, and of values with names.
//!
//! ```text
//! vg0 {                          # a section
//!     id = "X1…"                 # a string; \" and \\ are escapes
//!     extent_size = 8192         # a number
//!     status = ["RESIZEABLE", "READ"]
//! }
//! ```
//! The grammar is that of libdm's configuration parser. Size, depth and the number of items are bounded.

use firn_disk::{Error, Result};

/// Deepest nesting of sections; LVM2 itself uses four.
const MAX_DEPTH: usize = 16;
/// Most sections and values of one text.
const MAX_ITEMS: usize = 1 << 19;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Number(i64),
    Text(String),
    /// Only numbers and strings stand in lists.
    List(Vec<Value>),
    Section(Section),
}

/// A section: names with what they mean, in the order of the text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Section {
    items: Vec<(String, Value)>,
}

impl Section {
    /// Reads a whole text.
    ///
    /// # Errors
    /// `Corrupt`, with the line.
    pub(super) fn parse(text: &[u8]) -> Result<Self> {
        let mut parser = Parser { text, at: 0, items: 0 };
        let section = parser.section(0);
        section.map_err(|problem| {
            let line = text.get(..parser.at).unwrap_or(text).iter().filter(|byte| **byte == b'\n').count() + 1;
            Error::corrupt(format!("line {line}: {problem}")).in_structure("LVM metadata text")
        })
    }

    /// What `name` means. As in LVM2, the first of several counts.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.items.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// The section `name`.
    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        match self.get(name) {
            Some(Value::Section(section)) => Some(section),
            _ => None,
        }
    }

    /// All sections in it, with their names.
    pub(super) fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.items.iter().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((name.as_str(), section)),
            _ => None,
        })
    }

    /// The string `name`, if there is one.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The number `name`, if it is there.
    ///
    /// # Errors
    /// `Corrupt` when it is something else, or negative.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Number(number)) if *number >= 0 => Ok(Some(number.cast_unsigned())),
            Some(_) => Err(Error::corrupt(format!("{name} is not a number")).in_structure("LVM metadata text")),
        }
    }

    /// The number `name`.
    ///
    /// # Errors
    /// `Corrupt` when it is missing or something else.
    pub(super) fn require(&self, name: &str) -> Result<u64> {
        self.number(name)?.ok_or_else(|| Error::corrupt(format!("{name} is missing")).in_structure("LVM metadata text"))
    }

    /// The strings of the list `name`; nothing when there is no such list. A single string is a list of one.
    pub(super) fn texts(&self, name: &str) -> Vec<&str> {
        match self.get(name) {
            Some(Value::Text(text)) => vec![text],
            Some(Value::List(list)) => list
                .iter()
                .filter_map(|value| match value {
                    Value::Text(text) => Some(text.as_str()),
                    _ => None,
                })
                .collect(),
            _ => vec![],
        }
    }
}

type Parsed<T> = Result<T, &'static str>;

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    items: usize,
}

impl Parser<'_> {
    /// The next byte that is neither blank nor comment, without taking it.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match self.text.get(self.at)? {
                b' ' | b'\t' | b'\r' | b'\n' => self.at += 1,
                b'#' => {
                    let rest = self.text.get(self.at..)?;
                    self.at += rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                }
                // The text on disk ends with a NUL.
                0 => return None,
                byte => return Some(*byte),
            }
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let taken = self.peek() == Some(byte);
        self.at += usize::from(taken);
        taken
    }

    /// The items up to the closing brace, or up to the end at depth 0.
    fn section(&mut self, depth: usize) -> Parsed<Section> {
        if depth > MAX_DEPTH {
            return Err("sections are nested too deeply");
        }
        let mut section = Section::default();
        loop {
            match self.peek() {
                None if depth == 0 => return Ok(section),
                None => return Err("the text ends within a section"),
                Some(b'}') if depth > 0 => {
                    self.at += 1;
                    return Ok(section);
                }
                Some(_) => {
                    let name = self.name()?;
                    let value = if self.take(b'{') {
                        Value::Section(self.section(depth + 1)?)
                    } else if self.take(b'=') {
                        self.value()?
                    } else {
                        return Err("a name is followed by neither = nor {");
                    };
                    self.count()?;
                    section.items.push((name, value));
                }
            }
        }
    }

    fn count(&mut self) -> Parsed<()> {
        self.items += 1;
        if self.items > MAX_ITEMS { Err("there are too many items") } else { Ok(()) }
    }

    fn name(&mut self) -> Parsed<String> {
        if self.peek() == Some(b'"') {
            return self.string(b'"');
        }
        let rest = self.text.get(self.at..).unwrap_or_default();
        let is_name = |byte: &u8| byte.is_ascii_graphic() && !b"=#{}[],\"'".contains(byte);
        let length = rest.iter().position(|byte| !is_name(byte)).unwrap_or(rest.len());
        let name = rest.get(..length).unwrap_or_default();
        if name.is_empty() {
            return Err("a name was expected");
        }
        self.at += length;
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    fn value(&mut self) -> Parsed<Value> {
        if !self.take(b'[') {
            return self.scalar();
        }
        let mut list = Vec::new();
        while !self.take(b']') {
            self.count()?;
            list.push(self.scalar()?);
            if !self.take(b',') && self.peek() != Some(b']') {
                return Err("a list is not closed");
            }
        }
        Ok(Value::List(list))
    }

    fn scalar(&mut self) -> Parsed<Value> {
        match self.peek() {
            Some(quote @ (b'"' | b'\'')) => self.string(quote).map(Value::Text),
            Some(b'0'..=b'9' | b'-' | b'+' | b'.') => self.number(),
            _ => Err("a value was expected"),
        }
    }

    fn number(&mut self) -> Parsed<Value> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let is_part = |byte: &u8| byte.is_ascii_digit() || b"+-.".contains(byte);
        let length = rest.iter().position(|byte| !is_part(byte)).unwrap_or(rest.len());
        let digits = rest.get(..length).unwrap_or_default();
        self.at += length;
        let digits = std::str::from_utf8(digits).map_err(|_| "a number is not one")?;
        // Nothing that is read from LVM metadata is a fraction; it is kept as its text.
        match digits.parse() {
            Ok(number) => Ok(Value::Number(number)),
            Err(_) if digits.contains('.') => Ok(Value::Text(digits.to_owned())),
            Err(_) => Err("a number is not one, or too large"),
        }
    }

    fn string(&mut self, quote: u8) -> Parsed<String> {
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            match self.text.get(self.at) {
                None | Some(0) => return Err("a string is not closed"),
                Some(byte) if *byte == quote => {
                    self.at += 1;
                    return Ok(String::from_utf8_lossy(&bytes).into_owned());
                }
                // Only what stands between double quotes has escapes.
                Some(b'\\') if quote == b'"' => {
                    bytes.push(*self.text.get(self.at + 1).ok_or("a string is not closed")?);
                    self.at += 2;
                }
                Some(byte) => {
                    bytes.push(*byte);
                    self.at += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::testing::Random;

    const SAMPLE: &str = r#"
vg0 {  # comment {
	id = "a\"b\\c" empty = []
	extent_size = 8192 negative = -1
	stripes = ["pv0", 0, # here too
		"pv1", 12
	]
	inner { type="striped+FLAG" }
}
contents = "Text Format Volume Group"
version = 1
"#;

    #[test]
    fn values_lists_and_sections() {
        let text = [SAMPLE.as_bytes(), b"\0rubbish {"].concat();
        let root = Section::parse(&text).unwrap();
        let vg = root.section("vg0").unwrap();
        assert_eq!(vg.text("id"), Some("a\"b\\c"));
        assert_eq!(vg.require("extent_size").unwrap(), 8192);
        assert!(vg.require("negative").is_err());
        assert!(vg.require("absent").is_err());
        assert_eq!(vg.number("absent").unwrap(), None);
        assert_eq!(vg.texts("stripes"), ["pv0", "pv1"]);
        assert_eq!(vg.sections().map(|(name, _)| name).collect::<Vec<_>>(), ["inner"]);
        assert_eq!(root.text("contents"), Some("Text Format Volume Group"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, problem) in [
            ("a {\n b = 1\n", "line 3: the text ends"),
            ("a\n", "neither = nor {"),
            ("a = [1,\n2", "line 2"),
            ("a = \"x", "not closed"),
            ("a = 99999999999999999999", "too large"),
            ("}", "a name"),
        ] {
            let error = Section::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(problem), "{text:?}: {error}");
        }
        let deep = "a {".repeat(100_000);
        assert!(Section::parse(deep.as_bytes()).unwrap_err().to_string().contains("too deeply"));
    }

    #[test]
    fn mutated_text_never_panics() {
        let mut random = Random::new(11);
        for _ in 0..20_000 {
            let mut text = SAMPLE.as_bytes().to_vec();
            for _ in 0..=random.below(4) {
                let at = usize::try_from(random.below(text.len() as u64)).unwrap();
                match random.below(3) {
                    0 => text[at] = random.next_u64().to_le_bytes()[0],
                    1 => text.truncate(at.max(1)),
                    _ => text.insert(at, b"{}[]\"'=#,\\\0-"[usize::try_from(random.below(12)).unwrap()]),
                }
            }
            let _ = Section::parse(&text);
        }
    }
}
