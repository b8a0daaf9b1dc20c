//! Running cargo and other tools in the workspace.

use std::path::Path;
use std::process::{Command, Stdio};

/// The cargo that runs this program, to be run in the workspace. In CI the lock file is not to be touched.
pub fn cargo(root: &Path, subcommand: &str) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root).arg(subcommand);
    let takes_lock = subcommand != "fmt";
    if takes_lock && std::env::var_os("CI").is_some_and(|value| value == "true") {
        command.arg("--locked");
    }
    command
}

/// Runs `command` with the terminal's output, and says whether it succeeded.
pub fn succeeds(command: &mut Command) -> Result<bool, String> {
    match command.stdin(Stdio::null()).status() {
        Ok(status) => Ok(status.success()),
        Err(error) => Err(format!("cannot run {}: {error}", command.get_program().display())),
    }
}

/// Runs `command` and returns its standard output.
pub fn output_of(command: &mut Command) -> Result<Vec<u8>, String> {
    let name = command.get_program().display().to_string();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot run {name}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{name} failed: {}", output.status));
    }
    Ok(output.stdout)
}
