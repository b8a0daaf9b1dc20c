//! Rules that can be seen in the text of a file: its length, how it opens, where `unsafe` stands, and what is
//! never committed.

use crate::masked::{has_word, mask};
use crate::problem::Problem;
use crate::sources::SourceFile;

/// Lines of a Rust file at which the second idea in it has to be found.
const MAX_LINES: usize = 800;

/// The only files with `unsafe`; each keeps it behind a safe interface with a SAFETY comment per block.
const UNSAFE_FILES: &[&str] = &["crates/firn-pool/src/mapping.rs"];

/// Code that is never committed, and what to do instead.
const FORBIDDEN_CODE: &[(&str, &str)] = &[
    ("todo!(", "build it or leave it out"),
    ("unimplemented!(", "return an error of kind Unsupported"),
    ("dbg!(", "remove it"),
    ("allow(dead_code", "remove what is not used"),
    ("allow(unused", "remove what is not used"),
    ("#[ignore]", "give the reason: #[ignore = \"...\"], or let the test skip itself loudly"),
];

/// Marks of unfinished work, in any text file with code.
const FORBIDDEN_NOTES: &[&str] = &["TODO", "FIXME"];

/// Every violation in `files`.
pub fn check(files: &[SourceFile]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files {
        if file.is_rust() {
            check_rust(file, &mut problems);
        }
        check_text(file, &mut problems);
    }
    problems
}

fn check_rust(file: &SourceFile, problems: &mut Vec<Problem>) {
    let lines = file.text.lines().count();
    if lines > MAX_LINES {
        let message = format!("{lines} lines, more than {MAX_LINES}");
        problems.push(Problem::new(&file.path, MAX_LINES + 1, message, "look for the second idea in it and split"));
    }
    if !file.text.trim_start().starts_with("//!") {
        let advice = "open it with //! and what it is, the on-disk picture if any, and what it refuses";
        problems.push(Problem::new(&file.path, 1, "the file does not say what it is", advice));
    }
    let may_be_unsafe = UNSAFE_FILES.contains(&file.path.as_str());
    for (index, line) in mask(&file.text).lines().enumerate() {
        if !may_be_unsafe && has_word(line, "unsafe") {
            let advice =
                format!("unsafe stands in {} only (the list is in xtask/src/check/tidy.rs)", UNSAFE_FILES.join(", "));
            problems.push(Problem::new(&file.path, index + 1, "unsafe code", advice));
        }
        for (code, advice) in FORBIDDEN_CODE.iter().filter(|(code, _)| line.contains(code)) {
            problems.push(Problem::new(&file.path, index + 1, format!("{code} is never committed"), *advice));
        }
    }
}

fn check_text(file: &SourceFile, problems: &mut Vec<Problem>) {
    let has_code = [".rs", ".sh", ".py", ".toml", "Makefile"].iter().any(|end| file.path.ends_with(end));
    for (index, line) in file.text.lines().enumerate() {
        if line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> ") {
            problems.push(Problem::new(&file.path, index + 1, "a merge was left half done", "resolve it"));
        }
        for note in FORBIDDEN_NOTES.iter().filter(|note| has_code && is_bare_note(line, note)) {
            let advice = "do it, or say why it waits: `note: reason`";
            problems.push(Problem::new(&file.path, index + 1, format!("{note} without a reason"), advice));
        }
    }
}

/// Whether `line` has `note` as a word without `: ` and a reason of some words after it. In quotes it is a
/// name, not a note.
fn is_bare_note(line: &str, note: &str) -> bool {
    if !has_word(line, note) || line.contains(&format!("\"{note}")) {
        return false;
    }
    let reason = line.split_once(&format!("{note}:")).map_or("", |(_, after)| after);
    reason.split_whitespace().count() < 3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_in(path: &str, text: &str) -> Vec<(usize, String)> {
        let file = SourceFile { path: path.to_owned(), text: text.to_owned() };
        check(&[file]).into_iter().map(|problem| (problem.line, problem.message)).collect()
    }

    #[test]
    fn accepts_a_tidy_file() {
        let text = "//! A file.\n#![forbid(unsafe_code)]\n// unsafe here is a word\nconst S: &str = \"todo!()\";\n";
        assert_eq!(problems_in("crates/a/src/lib.rs", text), []);
        assert_eq!(problems_in("docs/a.md", FORBIDDEN_NOTES[0]), []);
    }

    #[test]
    fn finds_long_files_and_missing_openings() {
        let long = format!("//! Long.\n{}", "const A: u8 = 1;\n".repeat(MAX_LINES));
        assert_eq!(problems_in("a.rs", &long)[0].0, MAX_LINES + 1);
        let just_right = format!("//! Long.\n{}", "const A: u8 = 1;\n".repeat(MAX_LINES - 1));
        assert_eq!(problems_in("a.rs", &just_right), []);
        assert_eq!(problems_in("a.rs", "fn main() {}\n").len(), 1);
    }

    #[test]
    fn finds_unsafe_outside_its_modules() {
        let text = "//! A.\n\nfn f() { unsafe { g() } }\n";
        assert_eq!(problems_in("crates/firn-disk/src/a.rs", text), [(3, "unsafe code".to_owned())]);
        assert_eq!(problems_in(UNSAFE_FILES[0], text), []);
    }

    #[test]
    fn finds_what_is_never_committed() {
        for (code, _) in FORBIDDEN_CODE {
            assert_eq!(problems_in("a.rs", &format!("//! A.\n{code}\n")).len(), 1, "{code}");
        }
        assert_eq!(problems_in("a.rs", "//! A.\n#[ignore = \"needs a network\"]\n"), []);
        assert_eq!(problems_in("a.sh", "<<<<<<< HEAD\n").len(), 1);
    }

    #[test]
    fn wants_a_reason_for_a_note() {
        for note in FORBIDDEN_NOTES {
            assert_eq!(problems_in("a.sh", &format!("# {note}\n")).len(), 1);
            assert_eq!(problems_in("a.sh", &format!("# {note}: later\n")).len(), 1);
            assert_eq!(problems_in("a.sh", &format!("# {note}: the kernel of Debian 12 lacks it\n")), []);
        }
    }
}
