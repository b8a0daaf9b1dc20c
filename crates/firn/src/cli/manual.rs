//! `firn completions` and `firn man`.

use super::Cli;
use clap::{Args, CommandFactory, ValueHint};
use clap_complete::Shell;
use firn_disk::{Error, Result};
use std::path::PathBuf;
use std::process::ExitCode;

/// Print completions for a shell.
///
/// For bash: `source <(firn completions bash)`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Write the manual pages into a folder: firn.1, firn-snap.1 and so on.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The folder, which is made if it is missing
    #[arg(value_hint = ValueHint::DirPath)]
    folder: PathBuf,
}

/// Prints completions.
///
/// # Errors
/// When stdout is closed or full.
pub fn completions(args: &CompletionsArgs) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "firn", &mut script);
    std::io::Write::write_all(&mut std::io::stdout().lock(), &script)
        .map_err(|error| Error::from_io("write to stdout", error))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the manual pages.
///
/// # Errors
/// The system's own.
pub fn pages(args: &ManArgs) -> Result<ExitCode> {
    let failed = |error| Error::from_io("write the manual pages", error).at_path(&args.folder);
    std::fs::create_dir_all(&args.folder).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), &args.folder).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
