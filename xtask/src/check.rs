//! `cargo xtask check`: all checks are run, whatever the first ones say, and every problem is listed.

mod imports;
mod licences;
mod tidy;

use crate::command::{cargo, output_of, succeeds};
use crate::problem::Problem;
use crate::sources;
use serde_json::Value;
use std::path::Path;

/// Runs the checks over the workspace at `root`; true if nothing was found. `quick` leaves out the documentation.
pub fn run(root: &Path, quick: bool) -> Result<bool, String> {
    let mut failed = Vec::new();

    let mut problems = tidy::check(&sources::all(root)?);
    let metadata = metadata(root)?;
    problems.extend(imports::check(&imports::read_packages(root, &metadata)?));
    let lock = std::fs::read_to_string(root.join("Cargo.lock")).map_err(|error| format!("Cargo.lock: {error}"))?;
    problems.extend(licences::check(&metadata, &lock));
    report("rules of the project", &mut problems, &mut failed);

    step("format", &mut failed, || succeeds(cargo(root, "fmt").args(["--all", "--check"])))?;
    step("clippy", &mut failed, || {
        let everything = ["--workspace", "--all-targets", "--all-features", "--quiet"];
        let rules = ["--", "-D", "warnings", "-D", "clippy::undocumented_unsafe_blocks"];
        succeeds(cargo(root, "clippy").args(everything).args(rules))
    })?;
    if !quick {
        step("documentation", &mut failed, || {
            let everything = ["--workspace", "--all-features", "--no-deps", "--quiet"];
            succeeds(cargo(root, "doc").args(everything).env("RUSTDOCFLAGS", "-D warnings"))
        })?;
    }
    match failed.as_slice() {
        [] => eprintln!("check: all well"),
        names => eprintln!("check: FAILED: {}", names.join(", ")),
    }
    Ok(failed.is_empty())
}

fn report(name: &'static str, problems: &mut [Problem], failed: &mut Vec<&'static str>) {
    eprintln!("check: {name}");
    problems.sort();
    for problem in problems.iter() {
        eprintln!("{problem}");
    }
    if !problems.is_empty() {
        failed.push(name);
    }
}

fn step(
    name: &'static str,
    failed: &mut Vec<&'static str>,
    run: impl FnOnce() -> Result<bool, String>,
) -> Result<(), String> {
    eprintln!("check: {name}");
    if !run()? {
        failed.push(name);
    }
    Ok(())
}

/// What cargo knows about the workspace and all of its dependencies.
fn metadata(root: &Path) -> Result<Value, String> {
    let output = output_of(cargo(root, "metadata").args(["--format-version", "1", "--all-features"]))?;
    serde_json::from_slice(&output).map_err(|error| format!("cargo metadata: {error}"))
}
