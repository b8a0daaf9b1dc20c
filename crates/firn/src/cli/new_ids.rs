//! New identifiers for what `restore` writes, and what in it still speaks of the old ones.

use super::context::Context;
use super::output;
use crate::machine::{Follow, Machine, resolve};
use clap::Args;
use firn_disk::{Disk, Error, Result, SharedDisk};
use firn_format::fs::{FileTree, FileType, OpenOptions};
use firn_format::identity::IdChange;
use firn_format::layers::RenewOptions;
use firn_pool::{Entropy, SystemEntropy};

/// Configuration is small; what is larger is not looked at.
const MOST_BYTES: u64 = 4 << 20;
/// Names in a folder of boot entries.
const MOST_ENTRIES: usize = 1000;
/// Files that name disks and file systems by their identifiers. Those of /boot stand at the root of a file system of
/// its own, too.
const FILES: [&str; 14] = [
    "etc/fstab",
    "etc/crypttab",
    "etc/default/grub",
    "etc/kernel/cmdline",
    "etc/lvm/devices/system.devices",
    "etc/initramfs-tools/conf.d/resume",
    "boot/grub/grub.cfg",
    "boot/grub2/grub.cfg",
    "boot/grub2/grubenv",
    "boot/extlinux/extlinux.conf",
    "grub/grub.cfg",
    "grub2/grub.cfg",
    "grub2/grubenv",
    "extlinux/extlinux.conf",
];
const FOLDERS: [&str; 2] = ["boot/loader/entries", "loader/entries"];

/// Disks with their names.
type NamedDisks = Vec<(String, SharedDisk)>;

/// Options of new identifiers.
#[derive(Debug, Args)]
pub struct NewIdsArgs {
    /// Give disks, partitions, volume groups and file systems new identifiers, so that the copy can be attached beside
    /// its original; journals are replayed for it. With --define the disks' serial numbers, too
    #[arg(long, help_heading = "New identifiers")]
    new_ids: bool,
    /// Leave the identifiers of this layer as they are: vda3, vg0/data, vg0 (repeatable)
    #[arg(long, value_name = "LAYER", requires = "new_ids", help_heading = "New identifiers")]
    keep_id: Vec<String>,
    /// Give a volume group another name, as it cannot be active twice under one (repeatable)
    #[arg(long, value_name = "OLD=NEW", requires = "new_ids", value_parser = parse_renaming, help_heading = "New identifiers")]
    rename_vg: Vec<(String, String)>,
}

fn parse_renaming(text: &str) -> std::result::Result<(String, String), String> {
    let (old, new) = text.split_once('=').ok_or("give it as OLD=NEW")?;
    Ok((old.to_owned(), new.to_owned()))
}

impl NewIdsArgs {
    /// Whether identifiers are to change, for which journals must be replayed first.
    pub fn is_wanted(&self) -> bool {
        self.new_ids
    }

    /// `disks` with new identifiers. What in them speaks of the old ones is told on stderr.
    ///
    /// # Errors
    /// As [`Layers::renewed`](firn_format::layers::Layers::renewed).
    pub fn apply(&self, context: &Context, disks: NamedDisks) -> Result<(NamedDisks, Vec<IdChange>)> {
        let machine = Machine::new(disks);
        let options = RenewOptions { keep: self.keep_id.clone(), group_names: self.rename_vg.clone() };
        let renewed = machine.layers().renewed(&options, &mut |buf| SystemEntropy.fill(buf))?;
        for change in renewed.changes.iter().filter(|_| !context.quiet) {
            let IdChange { what, address, old, new } = change;
            eprintln!("firn: {} {}: {} -> {new}", output::plain(address), output::plain(what), output::plain(old));
        }
        for warning in stale_names(&machine, &renewed.changes, &self.rename_vg) {
            eprintln!("firn: warning: {}", output::plain(&warning));
        }
        Ok((renewed.disks, renewed.changes))
    }
}

/// Lines of configuration in the machine's own files that name what is called otherwise in the copy.
fn stale_names(machine: &Machine, changes: &[IdChange], groups: &[(String, String)]) -> Vec<String> {
    let mut words: Vec<String> = changes.iter().map(|change| change.old.clone()).collect();
    // LVM writes UUIDs of physical volumes without dashes into its list of devices.
    words.extend(
        changes.iter().filter(|change| change.what == "physical volume").map(|change| change.old.replace('-', "")),
    );
    for (old, _) in groups {
        words.extend([
            format!("/dev/{old}/"),
            format!("/dev/mapper/{}-", old.replace('-', "--")),
            format!("lv={old}/"),
        ]);
    }
    let mut warnings = Vec::new();
    for id in machine.layers().file_systems() {
        let address = machine.layers().node(id).address.clone();
        // What cannot be read cannot be warned of; that it is unchanged or refused was told before.
        let Ok(tree) = machine.layers().open_files(id, &OpenOptions::default()) else { continue };
        for path in paths(&*tree) {
            let Some(text) = read(&*tree, &path) else { continue };
            let stale: Vec<_> = text.lines().filter(|line| is_stale(line, &words)).collect();
            if path == "etc/fstab" {
                let line = |line: &&str| format!("{address}:/{path}: no longer there under this name: {}", line.trim());
                warnings.extend(stale.iter().map(line));
            } else if !stale.is_empty() {
                let count = stale.len();
                warnings.push(format!("{address}:/{path}: {count} lines name what has another identifier in the copy"));
            }
        }
    }
    warnings
}

fn is_stale(line: &str, words: &[String]) -> bool {
    let line = line.trim();
    let lower = line.to_ascii_lowercase();
    !line.starts_with('#') && words.iter().any(|word| lower.contains(&word.to_ascii_lowercase()))
}

/// The files to look at, as paths without the first slash.
fn paths(tree: &dyn FileTree) -> Vec<String> {
    let mut paths: Vec<String> = FILES.iter().map(|path| (*path).to_owned()).collect();
    for folder in FOLDERS {
        let Ok(inode) = resolve(tree, folder.as_bytes(), Follow::Last) else { continue };
        // A folder that cannot be listed to its end gives what it gave.
        let _ = tree.list(inode, &mut |entry| {
            if let Ok(name) = String::from_utf8(entry.name)
                && name.ends_with(".conf")
                && paths.len() < MOST_ENTRIES
            {
                paths.push(format!("{folder}/{name}"));
            }
            Ok(())
        });
    }
    paths
}

fn read(tree: &dyn FileTree, path: &str) -> Option<String> {
    let inode = resolve(tree, path.as_bytes(), Follow::Last).ok()?;
    let is_file = tree.stat(inode).ok()?.file_type == FileType::File;
    let content = is_file.then(|| tree.open(inode).ok()).flatten().filter(|content| content.len() <= MOST_BYTES)?;
    let mut bytes = vec![0; usize::try_from(content.len()).ok()?];
    content.read_at(&mut bytes, 0).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The changes as JSON.
pub fn to_json(changes: &[IdChange]) -> serde_json::Value {
    let change = |change: &IdChange| serde_json::json!({ "what": change.what, "address": change.address, "old": change.old, "new": change.new });
    changes.iter().map(change).collect()
}

/// # Errors
/// `Invalid` where only some of the disks are written: a table or group may stand on the others.
pub fn check_all_disks(args: &NewIdsArgs, chosen: &[String]) -> Result<()> {
    if args.new_ids && !chosen.is_empty() {
        return Err(Error::invalid("new identifiers are for all disks of a machine, as they name each other")
            .hint("leave out --disk"));
    }
    Ok(())
}
