//! What a check found: where, what is wrong, and what to do about it.

use std::fmt;

/// One violation of a rule of the project.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Path relative to the workspace.
    pub file: String,
    /// Line in `file`, counted from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
    /// What to do next.
    pub advice: String,
}

impl Problem {
    /// A problem at `line` (from 1) of `file`.
    pub fn new(file: &str, line: usize, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, message: message.into(), advice: advice.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}; {}", self.file, self.line, self.message, self.advice)
    }
}

/// The line, from 1, of the first line of `text` for which `wanted` holds; 1 if there is none.
pub fn line_of(text: &str, wanted: impl Fn(&str) -> bool) -> usize {
    text.lines().position(wanted).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_place_and_the_next_step() {
        let problem = Problem::new("crates/a/src/lib.rs", 7, "too long", "split it");
        assert_eq!(problem.to_string(), "crates/a/src/lib.rs:7: too long; split it");
    }

    #[test]
    fn finds_lines_from_one() {
        assert_eq!(line_of("a\nb\nc\n", |line| line == "b"), 2);
        assert_eq!(line_of("a\n", |line| line == "z"), 1);
    }
}
