//! What mounting would do first: replay the journal, finish fast commits, drop orphans.

use super::ExtOptions;
use super::edit::{Orphans, Workbench};
use super::features::{compat, incompat};
use super::journal::{Journal, Replayed};
use super::superblock::{self, Superblock, put_split, spell_uuid};
use super::volume::Volume;
use firn_disk::{Disk, Error, ErrorKind, Overlay, Result, SharedDisk};
use std::sync::Arc;

/// A file system that is ready to be read.
pub(super) struct Recovered {
    pub disk: SharedDisk,
    pub superblock: Superblock,
    pub notes: Vec<String>,
    /// Why the disk is not what mounting would leave.
    pub unfinished: Option<Error>,
}

/// Reads the superblock and does what mounting would do.
pub(super) fn recover(disk: SharedDisk, options: &ExtOptions) -> Result<Recovered> {
    let (superblock, damage) = Superblock::read(&*disk)?;
    let from_copy = damage.is_some();
    let mut notes = Vec::new();
    if let Some(damage) = damage {
        notes.push(format!("superblock damaged ({damage}), read from its copy at byte {}", superblock.offset));
    }
    if superblock.blocks * superblock.block_bytes() > disk.len() {
        notes.push(format!("the disk ends at byte {}, before the file system does", disk.len()));
    }
    if superblock.has_errors() {
        notes.push("the kernel noted errors".into());
    }
    let mut recovered = Recovered { disk, superblock, notes, unfinished: None };
    let has_journal = recovered.superblock.features.compat(compat::HAS_JOURNAL);
    let is_marked = recovered.superblock.features.incompat(incompat::RECOVER);
    if !options.replay {
        recovered.leave(has_journal && is_marked);
        return Ok(recovered);
    }
    // A copy of the superblock does not know whether the journal is clean.
    if has_journal && (is_marked || from_copy) {
        recovered.replay(options.external_journal.as_ref(), is_marked)?;
    } else if has_journal {
        recovered.notes.insert(0, "journal clean".into());
    } else {
        recovered.notes.insert(0, "no journal".into());
    }
    recovered.drop_orphans();
    Ok(recovered)
}

impl Recovered {
    /// Notes that nothing was replayed.
    fn leave(&mut self, is_dirty: bool) {
        let text = if is_dirty { "journal not replayed: the newest changes are missing" } else { "journal clean" };
        self.notes.insert(0, text.into());
        self.unfinished = Some(
            Error::invalid("the file system was opened without replaying its journal").hint("open it with replay"),
        );
    }

    fn replay(&mut self, external: Option<&SharedDisk>, is_marked: bool) -> Result<()> {
        let journal = match self.journal(external) {
            Ok(journal) => journal,
            Err(error) if !is_marked && error.kind() == ErrorKind::Unavailable => {
                self.notes.insert(0, "journal unknown".into());
                return Ok(());
            }
            Err(error) => return Err(hinted(error)),
        };
        let replayed = journal.replay(self.disk.len()).map_err(hinted)?;
        if journal.is_clean() && !is_marked {
            self.notes.insert(0, "journal clean".into());
            return Ok(());
        }
        // The superblock itself may be among the blocks that the journal had.
        let superblock = match Superblock::read(&*replayed.disk)? {
            (superblock, None) => superblock,
            (_, Some(_)) => self.superblock.clone(),
        };
        let mut bench = Workbench::new(replayed.disk.clone(), superblock);
        if !replayed.fast.changes.is_empty() {
            bench.apply_fast_commits(&replayed.fast).map_err(hinted)?;
        }
        let features = bench.volume.superblock.features.incompat & !incompat::RECOVER;
        bench.put_superblock(|raw| put_split(raw, 0x60, None, u64::from(features)))?;
        if let Some((offset, raw)) = &replayed.emptied {
            bench.put_foreign(*offset, raw)?;
        }
        (self.disk, self.superblock) = bench.finish()?;
        self.notes.insert(0, replay_note(&journal, &replayed));
        Ok(())
    }

    fn journal(&self, external: Option<&SharedDisk>) -> Result<Journal> {
        let superblock = &self.superblock;
        if superblock.journal_inode != 0 {
            return Journal::internal(&Volume::direct(self.disk.clone(), superblock.clone()));
        }
        let Some(external) = external else {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("the journal is on another disk, {}", spell_uuid(&superblock.journal_uuid)),
            )
            .in_structure("ext")
            .hint("name the journal's disk too, or open without replay"));
        };
        Journal::external(self.disk.clone(), external.clone(), superblock)
    }

    /// Deletes and shortens orphans; when one of them is damaged, all stay as they are.
    fn drop_orphans(&mut self) {
        let mut bench = Workbench::new(self.disk.clone(), self.superblock.clone());
        if !bench.has_orphans() {
            return;
        }
        if self.superblock.has_errors() {
            // As the kernel: after errors, the list cannot be trusted.
            self.notes.push("orphans left as they are".into());
            self.unfinished = Some(Error::corrupt("orphans are left, as the kernel noted errors"));
            return;
        }
        match bench.process_orphans().and_then(|done| Ok((done, bench.finish()?))) {
            Ok((done, (disk, superblock))) => {
                (self.disk, self.superblock) = (disk, superblock);
                self.note_orphans(done);
            }
            Err(error) => {
                self.notes.push(format!("orphans left as they are: {error}"));
                self.unfinished = Some(error);
            }
        }
    }

    fn note_orphans(&mut self, done: Orphans) {
        match done.deleted + done.shortened {
            0 => {}
            1 => self.notes.insert(1, "1 orphan".into()),
            count => self.notes.insert(1, format!("{count} orphans")),
        }
    }
}

fn hinted(error: Error) -> Error {
    error.hint("open it without replaying the journal to see what is on the disk")
}

fn replay_note(journal: &Journal, replayed: &Replayed) -> String {
    let plural = |count: u32, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let mut note = if journal.is_clean() {
        "journal clean".into()
    } else {
        format!("replayed {}", plural(replayed.transactions, "transaction"))
    };
    if replayed.fast.commits > 0 {
        note += &format!(" and {}", plural(replayed.fast.commits, "fast commit"));
    }
    if replayed.fast.cut_off {
        note += ", left out a fast commit that was not finished";
    }
    note
}

/// The disk with the superblock's counts as the group descriptors have them.
///
/// The kernel keeps them in memory while it is mounted, and writes them when it unmounts.
pub(super) fn with_counts(volume: &Volume) -> Result<SharedDisk> {
    let superblock = &volume.superblock;
    let (mut blocks, mut inodes) = (0_u64, 0_u64);
    for group in 0..superblock.groups {
        let group = volume.group(group)?;
        blocks += u64::from(group.free_clusters) * u64::from(superblock.cluster_blocks);
        inodes += u64::from(group.free_inodes);
    }
    let high = superblock.is_64bit().then_some(0x158);
    let raw = superblock.changed(|raw| {
        put_split(raw, 0xC, high, blocks);
        put_split(raw, 0x10, None, inodes);
        // A copy that stood elsewhere says where.
        if let Some(group) = raw.get_mut(0x5A..0x5C) {
            group.fill(0);
        }
    });
    let mut overlay = Overlay::new(volume.disk.clone());
    overlay.replace(superblock::OFFSET, raw.into())?;
    Ok(Arc::new(overlay))
}
