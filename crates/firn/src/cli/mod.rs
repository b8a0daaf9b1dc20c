//! The command line: what can be asked, and the way from arguments to an exit code.
//!
//! Data goes to stdout, everything else to stderr. With `--json` each listing is one document.

mod cat;
mod context;
mod cp;
mod define;
mod doctor;
mod forget;
mod hash;
mod import;
mod in_place;
mod init;
mod key;
mod keyring;
mod list;
mod lock;
mod login;
mod look;
mod ls;
mod luks;
mod manual;
mod names;
mod nbd;
mod new_ids;
pub mod output;
mod pool;
mod progress;
mod prune;
mod restore;
mod restored;
mod snap;
mod snapshots;
mod source;
mod sources;
mod stat;
mod trouble;
mod verify;
mod watchdog;

use clap::{Args, Parser, Subcommand, ValueHint};
use context::Context;
use firn_disk::{Error, ErrorKind};
use std::path::PathBuf;
use std::process::ExitCode;

const AFTER_HELP: &str = "\
Addresses:
  web1                      a machine in the pool, at its latest snapshot
  web1@latest~2             2 before the latest; also @first @03:00 @2026-11-17
  disk.vmdk  disk.qcow2@s1  an image file; an internal snapshot of one
  a.img,b.img               several disks of one machine
  nbd://host/export         a disk behind an NBD server; nbd+unix:///export?socket=PATH
  disk.vmdk#vda2            a partition; #vg0/root a logical volume, #UUID anything
  disk.vmdk:/etc/hosts      a file, in the only file system or in Linux's root
  web1@03:00#vg0/home:/ann  all of it together

Environment:
  FIRN_POOL            the pool, in place of --pool
  FIRN_PASSWORD_FILE   in place of --password-file
  FIRN_KEY_FILE        in place of --key-file
  FIRN_PASSWORD        the password itself; a file is safer
  FIRN_STATE           the folder that remembers freezes; /run/firn for root
  FIRN_LUKS_KEY_FILE   in place of --luks-key-file

Exit codes:
  0 done                         1 failed
  2 wrong usage                  3 damage was found
  4 no such thing                5 not allowed, or a wrong password
  6 busy, locked, full or unreachable; later it may work
  7 firn does not know this format or feature yet
  130 stopped by Ctrl-C; the next run uses what was stored";

/// Consistent snapshots of virtual machines, kept for little, and anything back out of them.
#[derive(Debug, Parser)]
#[command(name = "firn", version, about, after_help = AFTER_HELP, max_term_width = 110)]
#[command(
    propagate_version = true,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands. [`Context::new`] looks into the environment for what is not given.
#[derive(Debug, Args)]
#[command(next_help_heading = "For every command")]
pub struct Global {
    /// The pool: a folder
    #[arg(long, global = true, value_name = "POOL", value_hint = ValueHint::DirPath)]
    pool: Option<String>,
    /// Read the password (or recovery key) from the first line of a file
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    password_file: Option<PathBuf>,
    /// Open the pool with a key file
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "password_file", value_hint = ValueHint::FilePath)]
    key_file: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long, global = true)]
    json: bool,
    /// Show no progress
    #[arg(long, short, global = true)]
    quiet: bool,
}

/// Each command's help stands at its arguments.
#[derive(Debug, Subcommand)]
enum Command {
    Look(look::LookArgs),
    Ls(ls::LsArgs),
    Cat(cat::CatArgs),
    Cp(cp::CpArgs),
    Hash(hash::HashArgs),
    Stat(stat::StatArgs),
    Init(init::InitArgs),
    Snap(snap::SnapArgs),
    Doctor(doctor::DoctorArgs),
    Sources(sources::SourcesArgs),
    Import(import::ImportArgs),
    List(list::ListArgs),
    Show(list::ShowArgs),
    Restore(restore::RestoreArgs),
    Verify(verify::VerifyArgs),
    Forget(forget::ForgetArgs),
    Prune(prune::PruneArgs),
    Lock(lock::LockArgs),
    Unlock(lock::UnlockArgs),
    Key(key::KeyArgs),
    Login(login::LoginArgs),
    Logout(login::LogoutArgs),
    Pool(pool::PoolArgs),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
    #[command(name = "__watchdog", hide = true)]
    Watchdog(watchdog::WatchdogArgs),
}

/// Runs the program and answers its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.global.json;
    if !matches!(cli.command, Command::Watchdog(_)) {
        watchdog::recover();
    }
    let result = Context::new(cli.global).and_then(|context| match cli.command {
        Command::Look(args) => look::run(&context, &args),
        Command::Ls(args) => ls::run(&context, &args),
        Command::Cat(args) => cat::run(&context, &args),
        Command::Cp(args) => cp::run(&context, &args),
        Command::Hash(args) => hash::run(&context, &args),
        Command::Stat(args) => stat::run(&context, &args),
        Command::Init(args) => init::run(&context, &args),
        Command::Snap(args) => snap::run(&context, &args),
        Command::Doctor(args) => doctor::run(&context, &args),
        Command::Sources(args) => sources::run(&context, &args),
        Command::Import(args) => import::run(&context, &args),
        Command::List(args) => list::list(&context, &args),
        Command::Show(args) => list::show(&context, &args),
        Command::Restore(args) => restore::run(&context, &args),
        Command::Verify(args) => verify::run(&context, &args),
        Command::Forget(args) => forget::run(&context, &args),
        Command::Prune(args) => prune::run(&context, &args),
        Command::Lock(args) => lock::lock(&context, &args),
        Command::Unlock(args) => lock::unlock(&context, &args),
        Command::Key(args) => key::run(&context, &args),
        Command::Login(args) => login::login(&context, &args),
        Command::Logout(args) => login::logout(&context, &args),
        Command::Pool(args) => pool::run(&context, &args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::pages(&args),
        Command::Watchdog(args) => watchdog::run(&args),
    });
    match result {
        Ok(code) => code,
        Err(error) => fail(&error, json),
    }
}

/// Tells what failed and what to do next.
fn fail(error: &Error, json: bool) -> ExitCode {
    if is_broken_pipe(error) {
        // The reader of our output has seen enough.
        return ExitCode::SUCCESS;
    }
    if json {
        let document = serde_json::json!({
            "error": { "kind": error.kind().as_str(), "message": error.to_string(), "hint": error.next_step() }
        });
        eprintln!("{document}");
    } else {
        // Names out of a stranger's disk may stand in it.
        eprintln!("firn: {}", output::plain(&error.to_string()));
        for hint in error.next_step().unwrap_or_default().lines() {
            eprintln!("      {}", output::plain(hint));
        }
    }
    ExitCode::from(exit_code(error.kind()))
}

/// The exit code that stands for a kind of failure.
fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Invalid => 2,
        ErrorKind::Corrupt => 3,
        ErrorKind::NotFound => 4,
        ErrorKind::Denied => 5,
        ErrorKind::Unavailable => 6,
        ErrorKind::Unsupported => 7,
        ErrorKind::Interrupted => 130,
        _ => 1,
    }
}

fn is_broken_pipe(error: &Error) -> bool {
    use std::error::Error as _;
    let system = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    system.is_some_and(|system| system.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound_and_every_command_has_a_line_of_help() {
        let command = Cli::command();
        command.clone().debug_assert();
        for subcommand in command.get_subcommands() {
            assert!(subcommand.get_about().is_some(), "{}", subcommand.get_name());
        }
    }
}
