//! Counting what libtest prints.
//!
//! ```text
//! running 12 tests
//! test cache::keeps_the_newest ... ok
//! successes:                            (with --show-output: what tests that passed had printed)
//! ---- mount::reads_xfs stdout ----
//! SKIPPED: mount::reads_xfs: mkfs.xfs is not installed
//! test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s
//! ```
//!
//! A test that skips itself counts as passed for libtest, so its message is looked for and the counts are put
//! right. A test program that dies before its `test result:` counts as one failure at least.

use std::collections::BTreeSet;

/// What a line of a test program's output is for the person who watches.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// To be shown.
    Shown,
    /// What a test that passed has printed: of no interest.
    OfPassedTest,
}

/// Counts over all test programs of a run.
#[derive(Debug, Default)]
pub struct Tally {
    passed: usize,
    failed: usize,
    ignored: Vec<String>,
    skipped: Vec<String>,
    running: Option<Running>,
    in_successes: bool,
    require_all: bool,
}

/// Counts of the test program that is running.
#[derive(Debug, Default)]
struct Running {
    passed: usize,
    failed: usize,
}

/// The numbers of the last line.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Totals {
    /// Tests that ran to their end and were content.
    pub passed: usize,
    /// Tests that failed, and test programs that died.
    pub failed: usize,
    /// Tests that could not run here (failures where all are required), and ignored ones.
    pub skipped: usize,
}

impl Tally {
    /// An empty tally. With `require_all` a test that skips itself has failed.
    pub fn new(require_all: bool) -> Self {
        Self { require_all, ..Self::default() }
    }

    /// Takes one line of standard output.
    pub fn take(&mut self, line: &str) -> Line {
        if is_start(line) {
            self.finish_program();
            self.running = Some(Running::default());
        } else if let Some(counts) = result_counts(line) {
            self.passed += counts.passed;
            self.failed += counts.failed;
            self.running = None;
            self.in_successes = false;
        } else if line == "successes:" {
            self.in_successes = true;
        } else if line == "failures:" {
            self.in_successes = false;
        } else {
            self.take_test(line);
        }
        if let Some(message) = line.strip_prefix("SKIPPED: ") {
            self.skipped.push(message.to_owned());
        }
        if self.in_successes { Line::OfPassedTest } else { Line::Shown }
    }

    /// Takes what tests wrote to the skip log, one line each: process id, tab, message.
    pub fn take_skip_log(&mut self, log: &str) {
        let unique: BTreeSet<&str> = log.lines().collect();
        let logged: Vec<String> =
            unique.iter().filter_map(|line| line.split_once('\t')).map(|(_, message)| message.to_owned()).collect();
        self.skipped.retain(|message| !logged.contains(message));
        self.skipped.extend(logged);
        self.skipped.sort();
    }

    /// Notes that the test program that was running, if any, has died.
    pub fn finish_program(&mut self) {
        if let Some(running) = self.running.take() {
            self.passed += running.passed;
            self.failed += running.failed.max(1);
        }
        self.in_successes = false;
    }

    /// Notes a failure that no test program told of.
    pub fn add_failure(&mut self) {
        self.failed += 1;
    }

    /// `name: reason` of each test that did not run.
    pub fn not_run(&self) -> impl Iterator<Item = &String> {
        self.skipped.iter().chain(&self.ignored)
    }

    /// The sums. A test that skipped itself is not counted as passed.
    pub fn totals(&self) -> Totals {
        let skipped = self.skipped.len();
        let (forbidden, allowed) = if self.require_all { (skipped, 0) } else { (0, skipped) };
        Totals {
            passed: self.passed.saturating_sub(skipped),
            failed: self.failed + forbidden,
            skipped: allowed + self.ignored.len(),
        }
    }

    fn take_test(&mut self, line: &str) {
        let Some(test) = line.strip_prefix("test ") else { return };
        let Some(running) = &mut self.running else { return };
        if let Some((name, reason)) = test.split_once(" ... ignored") {
            let reason = reason.trim_start_matches(", ");
            self.ignored.push(format!("{name}: {}", if reason.is_empty() { "ignored" } else { reason }));
        } else if test.ends_with(" ... ok") {
            running.passed += 1;
        } else if test.ends_with(" ... FAILED") {
            running.failed += 1;
        }
    }
}

/// `running 12 tests`
fn is_start(line: &str) -> bool {
    let mut words = line.split(' ');
    let number = |word: &str| word.parse::<usize>().is_ok();
    words.next() == Some("running")
        && words.next().is_some_and(number)
        && matches!(words.next(), Some("test" | "tests"))
        && words.next().is_none()
}

/// `test result: ok. 12 passed; 1 failed; …`
fn result_counts(line: &str) -> Option<Running> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what: &str| {
        let part = counts.split("; ").find_map(|part| part.trim().strip_suffix(what))?;
        part.trim().parse().ok()
    };
    Some(Running { passed: count("passed")?, failed: count("failed")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        for line in lines {
            tally.take(line);
        }
        tally.finish_program();
        tally
    }

    const RESULT: &str =
        "test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s";

    #[test]
    fn sums_programs() {
        let lines = ["running 5 tests", "test a ... ok", "test b ... ignored, needs a network", RESULT];
        let tally = tally(&[lines, lines].concat());
        assert_eq!(tally.totals(), Totals { passed: 6, failed: 2, skipped: 2 });
        assert_eq!(tally.not_run().next().unwrap(), "b: needs a network");
    }

    #[test]
    fn counts_a_skipped_test_once() {
        let mut tally = tally(&[
            "running 5 tests",
            "successes:",
            "---- a stdout ----",
            "SKIPPED: a: no mkfs",
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        ]);
        assert_eq!(tally.totals(), Totals { passed: 4, failed: 0, skipped: 1 });
        tally.take_skip_log("12\ta: no mkfs\n12\ta: no mkfs\n12\tb: no root\n13\tb: no root\n");
        assert_eq!(tally.totals(), Totals { passed: 2, failed: 0, skipped: 3 });
        assert_eq!(tally.not_run().collect::<Vec<_>>(), ["a: no mkfs", "b: no root", "b: no root"]);
    }

    #[test]
    fn a_skipped_test_fails_where_all_are_required() {
        let mut tally = Tally::new(true);
        for line in ["running 5 tests", "test b ... ignored, needs a network", RESULT] {
            tally.take(line);
        }
        tally.take_skip_log("12\ta: no mkfs\n");
        assert_eq!(tally.totals(), Totals { passed: 2, failed: 2, skipped: 1 });
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        assert_eq!(tally(&["running 2 tests", "test a ... ok"]).totals(), Totals { passed: 1, failed: 1, skipped: 0 });
        let followed = tally(&["running 2 tests", "running 5 tests", RESULT]);
        assert_eq!(followed.totals(), Totals { passed: 3, failed: 2, skipped: 0 });
    }

    #[test]
    fn hides_what_passed_tests_printed_and_nothing_else() {
        let mut tally = Tally::default();
        let shown: Vec<bool> = ["running 1 test", "successes:", "noise", "failures:", "why", RESULT, "after"]
            .iter()
            .map(|line| tally.take(line) == Line::Shown)
            .collect();
        assert_eq!(shown, [true, false, false, true, true, true, true]);
    }

    #[test]
    fn is_not_fooled_by_what_tests_print() {
        let totals = tally(&["running out of tests", "test result: none", "running 5 tests", RESULT]).totals();
        assert_eq!(totals, Totals { passed: 3, failed: 1, skipped: 0 });
    }
}
