//! Trouble with some files while the rest goes on: told at once, counted, and in the exit code at the end.

use super::{exit_code, output};
use firn_disk::{Error, ErrorKind};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Most warnings that are printed one by one.
const MOST_WARNINGS: u64 = 20;
/// Most errors that are kept for JSON.
const MOST_KEPT: usize = 1000;

/// What went wrong so far.
#[derive(Debug, Default)]
pub struct Troubles {
    first: Option<ErrorKind>,
    is_damaged: bool,
    errors: u64,
    kept: Vec<Value>,
    warnings: u64,
}

impl Troubles {
    /// Tells of what could not be read or written.
    pub fn error(&mut self, error: &Error) {
        self.errors += 1;
        self.is_damaged |= error.kind() == ErrorKind::Corrupt;
        self.first.get_or_insert(error.kind());
        if self.kept.len() < MOST_KEPT {
            self.kept.push(json!({ "kind": error.kind().as_str(), "message": error.to_string() }));
        }
        eprintln!("firn: {}", output::plain(&error.to_string()));
    }

    /// Tells of what was left out, or could not be set.
    pub fn warning(&mut self, what: &str) {
        self.warnings += 1;
        if self.warnings <= MOST_WARNINGS {
            eprintln!("firn: warning: {}", output::plain(what));
        }
    }

    /// Tells how many warnings were not printed, and answers the exit code.
    pub fn finish(&self) -> ExitCode {
        if let Some(more) = self.warnings.checked_sub(MOST_WARNINGS).filter(|more| *more > 0) {
            eprintln!("firn: warning: {more} more like these");
        }
        match self.first {
            None => ExitCode::SUCCESS,
            Some(_) if self.is_damaged => ExitCode::from(exit_code(ErrorKind::Corrupt)),
            Some(kind) => ExitCode::from(exit_code(kind)),
        }
    }

    /// How many errors there were.
    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// How many warnings there were.
    pub fn warnings(&self) -> u64 {
        self.warnings
    }

    /// The first errors, for a document.
    pub fn to_json(&self) -> Value {
        Value::Array(self.kept.clone())
    }
}
