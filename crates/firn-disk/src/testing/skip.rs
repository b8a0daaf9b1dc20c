//! A test that cannot run on this machine says so, loudly, and where everything has to run it fails.
//!
//! Test runners hide what passed tests print, so the message also goes into the file that `FIRN_SKIP_LOG` names; the
//! project's runner (`cargo xtask test`) reads it and counts the test as skipped.

use std::fs::OpenOptions;
use std::io::Write;

/// Says that `test` does not run here because of `reason`; the caller then returns.
///
/// # Panics
///
/// With `FIRN_REQUIRE_ALL=1` in the environment, as in CI, where a skipped test is a failed one; and when the
/// file of `FIRN_SKIP_LOG` cannot be written.
pub fn skip(test: &str, reason: &str) {
    assert!(
        std::env::var_os("FIRN_REQUIRE_ALL").is_none_or(|value| value != "1"),
        "{test} must run, since FIRN_REQUIRE_ALL=1, but cannot: {reason}"
    );
    eprintln!("SKIPPED: {test}: {reason}");
    if let Some(path) = std::env::var_os("FIRN_SKIP_LOG") {
        // One write of one line: test programs append at the same time.
        let line = format!("{}\t{test}: {}\n", std::process::id(), reason.replace('\n', " "));
        let written =
            OpenOptions::new().create(true).append(true).open(&path).and_then(|mut log| log.write_all(line.as_bytes()));
        if let Err(error) = written {
            panic!("cannot note in {} that {test} was skipped: {error}", path.display());
        }
    }
}
