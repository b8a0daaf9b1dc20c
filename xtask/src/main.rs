//! The project's own checks and test runner: `cargo xtask check` and `cargo xtask test`.
//!
//! The Makefile and `.ci/run` call these, so that a developer's machine and CI judge by the same rules.

mod check;
mod command;
mod masked;
mod problem;
mod sources;
mod test_run;
mod test_tally;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask check [--quick]          every check of the project; --quick leaves out the documentation build
       cargo xtask test [--quick] [ARGS]    all tests; --quick only the unit tests; ARGS go to cargo test
";

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    }
    let task = arguments.remove(0);
    let quick = arguments.first().is_some_and(|first| first == "--quick");
    if quick {
        arguments.remove(0);
    }
    let root = workspace_root();
    let outcome = match task.as_str() {
        "check" if arguments.is_empty() => check::run(&root, quick),
        "test" => test_run::run(&root, quick, &arguments),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}

/// The folder of the workspace, which is the parent of this crate's.
fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
