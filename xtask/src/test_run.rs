//! `cargo xtask test`: builds once, runs every test of the workspace, and ends with one line of totals.
//!
//! Tests that cannot run on this machine say so through `firn_disk::testing::skip`, which also appends to the file
//! named by `FIRN_SKIP_LOG`; so a skipped test is told from a passed one although cargo hides what passed tests print.

use crate::command::{cargo, succeeds};
use crate::test_tally::{Line, Tally};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

/// Runs the tests; true if all passed and at least one ran. `quick` runs the unit tests only. `arguments` go to
/// `cargo test` (a package named there stands in for the whole workspace), those after `--` to the test programs.
pub fn run(root: &Path, quick: bool, arguments: &[String]) -> Result<bool, String> {
    let (for_cargo, for_tests) = split_arguments(arguments);
    let mut options = vec!["--all-features", "--no-fail-fast"];
    if !for_cargo.iter().any(|option| option.starts_with("-p") || option.starts_with("--package")) {
        options.push("--workspace");
    }
    if quick {
        options.extend(["--lib", "--bins"]);
    }
    options.extend(for_cargo);

    let mut tally = Tally::new(std::env::var_os("FIRN_REQUIRE_ALL").is_some_and(|value| value == "1"));
    // Built first, so that what does not compile is not taken for a test that fails.
    let built = succeeds(cargo(root, "test").args(&options).arg("--no-run"))?;
    let succeeded = built && run_built(root, &options, for_tests, &mut tally)?;
    if !built {
        println!("the tests do not build");
    }
    finish(&mut tally, succeeded, &mut std::io::stdout().lock())
}

fn split_arguments(arguments: &[String]) -> (Vec<&str>, Vec<&str>) {
    let mut groups = arguments.splitn(2, |argument| argument == "--");
    let mut next = || groups.next().unwrap_or_default().iter().map(String::as_str).collect();
    (next(), next())
}

/// Runs the test programs, shows what they print and counts it; says whether cargo was content.
fn run_built(root: &Path, options: &[&str], for_tests: Vec<&str>, tally: &mut Tally) -> Result<bool, String> {
    let log = root.join("target").join(format!("skipped-tests-{}.log", std::process::id()));
    let mut child = cargo(root, "test")
        .args(options)
        .args(["--", "--show-output"])
        .args(for_tests)
        .env("FIRN_SKIP_LOG", &log)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run cargo test: {error}"))?;
    let mut output = BufReader::new(child.stdout.take().ok_or("cargo test has no output")?);
    let mut screen = std::io::stdout();
    let mut line = Vec::new();
    let broken = |error| format!("cannot pass on the output of cargo test: {error}");
    while output.read_until(b'\n', &mut line).map_err(broken)? > 0 {
        if tally.take(String::from_utf8_lossy(&line).trim_end()) == Line::Shown {
            screen.write_all(&line).map_err(broken)?;
        }
        line.clear();
    }
    let status = child.wait().map_err(|error| format!("cannot wait for cargo test: {error}"))?;
    tally.finish_program();
    if let Ok(skipped) = std::fs::read_to_string(&log) {
        tally.take_skip_log(&skipped);
        std::fs::remove_file(&log).map_err(|error| format!("cannot remove {}: {error}", log.display()))?;
    }
    Ok(status.success())
}

/// Prints what did not run and the totals; true if the run is good.
fn finish(tally: &mut Tally, succeeded: bool, screen: &mut impl Write) -> Result<bool, String> {
    if !succeeded && tally.totals().failed == 0 {
        // Cargo failed where no test did: a program that could not be built or started.
        tally.add_failure();
    }
    let broken = |error| format!("cannot print the totals: {error}");
    let totals = tally.totals();
    let mut not_run = tally.not_run().peekable();
    if not_run.peek().is_some() {
        writeln!(screen, "\nThese tests did NOT run on this machine:").map_err(broken)?;
    }
    for message in not_run {
        writeln!(screen, "SKIPPED: {message}").map_err(broken)?;
    }
    if totals.passed + totals.failed == 0 {
        writeln!(screen, "\nno test ran").map_err(broken)?;
    }
    writeln!(screen, "\n{} passed, {} failed, {} skipped", totals.passed, totals.failed, totals.skipped)
        .map_err(broken)?;
    Ok(succeeded && totals.failed == 0 && totals.passed > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_arguments_at_the_first_dashes() {
        let arguments = ["-p", "firn", "--", "--exact", "--", "a"].map(str::to_owned);
        let (for_cargo, for_tests) = split_arguments(&arguments);
        assert_eq!(for_cargo, ["-p", "firn"]);
        assert_eq!(for_tests, ["--exact", "--", "a"]);
        assert_eq!(split_arguments(&[]), (vec![], vec![]));
    }

    fn last_line(tally: &mut Tally, succeeded: bool) -> (bool, String) {
        let mut screen = Vec::new();
        let good = finish(tally, succeeded, &mut screen).unwrap();
        let text = String::from_utf8(screen).unwrap();
        assert!(text.ends_with('\n'));
        (good, text.lines().next_back().unwrap().to_owned())
    }

    #[test]
    fn a_run_without_tests_is_no_success() {
        assert_eq!(last_line(&mut Tally::default(), true), (false, "0 passed, 0 failed, 0 skipped".to_owned()));
    }

    #[test]
    fn a_failure_of_cargo_alone_counts() {
        assert_eq!(last_line(&mut Tally::default(), false), (false, "0 passed, 1 failed, 0 skipped".to_owned()));
    }

    #[test]
    fn a_run_with_a_skipped_test_is_a_success() {
        let mut tally = Tally::default();
        for line in ["running 2 tests", "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured"] {
            tally.take(line);
        }
        tally.take_skip_log("1\ta: no root\n");
        assert_eq!(last_line(&mut tally, true), (true, "1 passed, 0 failed, 1 skipped".to_owned()));
    }
}
