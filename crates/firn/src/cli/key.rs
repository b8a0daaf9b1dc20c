//! `firn key`.

use super::context::{self, Context};
use super::init;
use super::output::{self, Table};
use clap::{Args, Subcommand, ValueHint};
use firn_disk::{Error, Result};
use firn_pool::{NewCredential, Scope};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use uuid::Uuid;

/// Add, remove, list or export what opens the pool.
///
/// No data is written anew by any of it: the key that seals the data stays, and slots only wrap it.
#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Add a password (asked for), a key file or a recovery key
    Add(AddArgs),
    /// Remove a key slot
    Remove {
        /// Its UUID, or enough of its beginning; `firn key list` shows it
        slot: String,
    },
    /// List the key slots; needs no key
    List,
    /// Write the master key into a file that opens the pool even when all slots are lost
    Export {
        /// The file, which must not exist; use it with --key-file
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct AddArgs {
    /// Read the new password from the first line of a file
    #[arg(long, value_name = "FILE", group = "new", value_hint = ValueHint::FilePath)]
    new_password_file: Option<PathBuf>,
    /// Let a key file open the pool; it is made if it does not exist
    #[arg(long, value_name = "FILE", group = "new", value_hint = ValueHint::FilePath)]
    new_key_file: Option<PathBuf>,
    /// Make and print another recovery key
    #[arg(long, group = "new")]
    recovery: bool,
    /// Open the structure only: enough to check and to prune, not to read a disk
    #[arg(long, conflicts_with = "recovery")]
    structure_only: bool,
    /// A word for people
    #[arg(long, default_value = "")]
    label: String,
}

/// Runs it.
///
/// # Errors
/// What the pool says.
pub fn run(context: &Context, args: &KeyArgs) -> Result<ExitCode> {
    match &args.command {
        KeyCommand::Add(args) => add(context, args)?,
        KeyCommand::Remove { slot } => remove(context, slot)?,
        KeyCommand::List => list(context)?,
        KeyCommand::Export { file } => export(context, file)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn add(context: &Context, args: &AddArgs) -> Result<()> {
    let pool = context.open_pool()?;
    let now = context.now().timestamp();
    if args.recovery {
        let (slot, key) = pool.add_recovery_key(&args.label, now)?;
        if context.json {
            return output::json(&serde_json::json!({ "slot": slot.uuid, "recovery_key": key.to_text().as_str() }));
        }
        output::line(&format!("Added the key slot {}", slot.uuid))?;
        return output::line(&format!("\nRecovery key:  {}\n", *key.to_text()));
    }
    let credential = match (&args.new_password_file, &args.new_key_file) {
        (Some(file), _) => NewCredential::Password(context::read_password(file)?),
        (_, Some(file)) => NewCredential::KeyFile(init::key_file(file)?),
        _ => init::ask_new_password()
            .map_err(|error| error.hint("give --new-password-file FILE, --new-key-file FILE or --recovery"))?,
    };
    let scope = if args.structure_only { Scope::Structure } else { Scope::All };
    let slot = pool.add_key(&credential, scope, &args.label, now)?;
    if context.json {
        return output::json(&serde_json::json!({ "slot": slot.uuid }));
    }
    output::line(&format!("Added the key slot {}", slot.uuid))
}

fn remove(context: &Context, wanted: &str) -> Result<()> {
    let pool = context.open_pool()?;
    let wanted = wanted.to_lowercase();
    let slots: Vec<Uuid> = pool.key_slots()?.into_iter().map(|slot| slot.uuid).collect();
    let fitting: Vec<_> = slots.iter().filter(|uuid| uuid.to_string().starts_with(&wanted)).collect();
    let slot = match fitting.as_slice() {
        [slot] if wanted.len() >= 4 => **slot,
        [] => return Err(Error::not_found(format!("there is no key slot {wanted}")).hint("`firn key list` shows them")),
        _ => {
            return Err(Error::invalid(format!("{wanted} is not enough of a key slot's UUID"))
                .hint("`firn key list` shows them"));
        }
    };
    pool.remove_key(slot)?;
    if context.json {
        return output::json(&serde_json::json!({ "removed": slot }));
    }
    output::line(&format!("Removed the key slot {slot}"))
}

fn list(context: &Context) -> Result<()> {
    let slots = firn_pool::Pool::public_info(context.location()?)?.slots;
    if context.json {
        let slots: Vec<_> = slots
            .iter()
            .map(|slot| {
                serde_json::json!({
                    "slot": slot.uuid,
                    "kind": slot.kind.as_str(),
                    "scope": slot.scope.as_str(),
                    "label": slot.label,
                    "created": output::json_time(slot.created),
                })
            })
            .collect();
        return output::json(&serde_json::json!({ "slots": slots }));
    }
    let mut table = Table::new(&["SLOT", "OPENS BY", "GIVES", "MADE", "LABEL"], &[false; 5]);
    for slot in slots {
        table.row(vec![
            slot.uuid.to_string(),
            slot.kind.as_str().to_owned(),
            slot.scope.as_str().to_owned(),
            output::time(slot.created),
            slot.label,
        ]);
    }
    table.print()
}

fn export(context: &Context, file: &std::path::Path) -> Result<()> {
    let key = context.open_pool()?.export_key()?;
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    made.and_then(|mut made| made.write_all(key.as_bytes()).and_then(|()| made.sync_all()))
        .map_err(|error| Error::from_io("write the master key", error).at_path(file))?;
    if context.json {
        return output::json(&serde_json::json!({ "file": file.to_string_lossy() }));
    }
    output::line(&format!("Wrote the master key to {}", output::plain(&file.to_string_lossy())))?;
    output::line("Whoever has this file can read the pool: keep it where the pool is not.")
}
