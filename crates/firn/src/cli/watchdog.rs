//! `firn __watchdog`, which firn starts for itself before it freezes a guest; and what every start of firn does for
//! those that were killed.

use super::output;
use clap::Args;
use firn_disk::Result;
use firn_source::quiesce;
use firn_source::{Source, SourceOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// See to it that a guest is thawed if firn is killed. Nothing for people to call.
#[derive(Debug, Args)]
pub struct WatchdogArgs {
    /// The record of the freeze
    record: PathBuf,
}

/// Runs it.
///
/// # Errors
/// What could not be undone.
pub fn run(args: &WatchdogArgs) -> Result<ExitCode> {
    quiesce::watch(&args.record, &open, &tell)?;
    Ok(ExitCode::SUCCESS)
}

/// Thaws what killed runs left frozen. What goes wrong is told and keeps nobody from going on.
pub fn recover() {
    // Without a folder nothing was ever frozen.
    let Ok(folder) = quiesce::state_folder() else { return };
    if let Err(error) = quiesce::recover(&folder, &open, &tell) {
        tell(&error.to_string());
    }
}

fn open(uri: &str) -> Result<Box<dyn Source>> {
    firn_source::open(uri, &SourceOptions::default())
}

/// Whoever read it may be dead, and the watchdog must go on.
fn tell(line: &str) {
    drop(writeln!(std::io::stderr(), "firn: {}", output::plain(line)));
}
