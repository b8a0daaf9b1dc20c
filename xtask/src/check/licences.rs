//! The licences of everything that is linked in, as SPDX expressions from each crate's own manifest.
//!
//! `A OR B` needs one that is allowed, `A AND B` both; AND binds tighter; `A WITH exception` is a name of its
//! own. The `/` of old manifests means OR. See <https://spdx.github.io/spdx-spec/v2.3/SPDX-license-expressions/>.

use crate::problem::{Problem, line_of};
use serde_json::Value;

/// Licences that may be linked into a program under MIT OR Apache-2.0 without changing its terms.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Every package in `metadata` (of `cargo metadata`) whose licence is not allowed, by its line in the lock file.
pub fn check(metadata: &Value, lock: &str) -> Vec<Problem> {
    let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
    packages.iter().filter_map(|package| check_package(package, lock)).collect()
}

fn check_package(package: &Value, lock: &str) -> Option<Problem> {
    let name = package["name"].as_str().unwrap_or_default();
    let version = package["version"].as_str().unwrap_or_default();
    let message = match package["license"].as_str() {
        None => format!("{name} {version} names no licence"),
        Some(expression) => match is_allowed(expression) {
            Ok(true) => return None,
            Ok(false) => format!("{name} {version} is under {expression}, which is not on the list"),
            Err(reason) => format!("{name} {version}: cannot read the licence {expression:?}: {reason}"),
        },
    };
    let line = line_of(lock, |line| line == format!("name = \"{name}\""));
    let advice = "choose another crate, or give a reason and add the licence to xtask/src/check/licences.rs";
    Some(Problem::new("Cargo.lock", line, message, advice))
}

/// Whether the licence `expression` leaves a choice that is allowed.
fn is_allowed(expression: &str) -> Result<bool, String> {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let allowed = either(&mut words, MAX_DEPTH)?;
    match words.next() {
        None => Ok(allowed),
        Some(word) => Err(format!("{word} stands where AND or OR should")),
    }
}

const MAX_DEPTH: usize = 8;

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words<'_>, depth: usize) -> Result<bool, String> {
    let mut allowed = both(words, depth)?;
    while words.next_if_eq(&"OR").is_some() {
        allowed |= both(words, depth)?;
    }
    Ok(allowed)
}

fn both(words: &mut Words<'_>, depth: usize) -> Result<bool, String> {
    let mut allowed = one(words, depth)?;
    while words.next_if_eq(&"AND").is_some() {
        allowed &= one(words, depth)?;
    }
    Ok(allowed)
}

fn one(words: &mut Words<'_>, depth: usize) -> Result<bool, String> {
    match words.next() {
        Some("(") if depth == 0 => Err("too many parentheses".to_owned()),
        Some("(") => {
            let allowed = either(words, depth - 1)?;
            match words.next() {
                Some(")") => Ok(allowed),
                _ => Err("a parenthesis is not closed".to_owned()),
            }
        }
        None | Some(")" | "AND" | "OR" | "WITH") => Err("a licence is missing".to_owned()),
        Some(name) if words.next_if_eq(&"WITH").is_some() => {
            let exception = words.next().ok_or("an exception is missing")?;
            Ok(ALLOWED.contains(&format!("{name} WITH {exception}").as_str()))
        }
        Some(name) => Ok(ALLOWED.contains(&name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_expressions() {
        let cases = [
            ("MIT", true),
            ("MIT OR Apache-2.0", true),
            ("MIT/Apache-2.0", true),
            ("GPL-3.0-only", false),
            ("GPL-3.0-only OR MIT", true),
            ("MIT AND GPL-3.0-only", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("MIT OR GPL-3.0-only AND GPL-2.0-only", true),
            ("(MIT OR GPL-3.0-only) AND GPL-2.0-only", false),
            ("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", true),
            ("Apache-2.0 WITH Other-exception", false),
            ("Apache-2.0 AND ISC", true),
        ];
        for (expression, allowed) in cases {
            assert_eq!(is_allowed(expression), Ok(allowed), "{expression}");
        }
    }

    #[test]
    fn refuses_what_is_no_expression() {
        let deep = "(".repeat(100);
        for expression in ["", "MIT OR", "(MIT", "MIT)", "MIT MIT", "MIT WITH", "OR", deep.as_str()] {
            assert!(is_allowed(expression).is_err(), "{expression}");
        }
    }

    #[test]
    fn points_at_the_lock_file() {
        let metadata = json!({"packages": [
            {"name": "good", "version": "1.0.0", "license": "MIT"},
            {"name": "bad", "version": "2.0.0", "license": "AGPL-3.0-only"},
            {"name": "silent", "version": "3.0.0", "license": null},
        ]});
        let lock = "[[package]]\nname = \"good\"\n\n[[package]]\nname = \"bad\"\n\n[[package]]\nname = \"silent\"\n";
        let problems = check(&metadata, lock);
        assert_eq!(problems.iter().map(|problem| problem.line).collect::<Vec<_>>(), [5, 8]);
        assert!(problems[0].message.contains("AGPL-3.0-only"));
    }
}
