//! What a transaction says it is going to do, and a later one says it has done.
//!
//! ```text
//! extents   type (2), regions (2), count (4), id (8);  each: inode (8), first block on disk (8), in the file (8),
//!           length (4), flags and what is done (4)
//! attribute type (2), regions (2), generation (4), id (8), inode (8), what is done (4), length of the name (4), of the
//!           value (4), flags (4);  then the name and the value as regions
//! exchange  type (2), regions (2), 0 (4), id (8), ...
//! done      type (2), regions (2), 0 (4), id (8)
//! ```
//!
//! What was begun and not done when the log ends is done here: as the kernel does, one by one in the order they were
//! begun. A changed map is not written to the disk's blocks but kept beside them.
//!
//! Source: the kernel's `fs/xfs/xfs_bmap_item.c`, `fs/xfs/xfs_attr_item.c`, `fs/xfs/xfs_exchmaps_item.c`.

use super::super::inode::Fork;
use super::super::map::{Run, RunKind, all_runs};
use super::super::volume::Volume;
use super::super::xattr;
use super::STRUCTURE;
use super::finished::{AttributeChange, ChangedMap};
use super::transaction::Item;
use firn_disk::{Error, Record, Result};
use std::collections::BTreeMap;

const EXTENTS: u16 = 0x1244;
const ATTRIBUTE: u16 = 0x1246;
const EXCHANGE: u16 = 0x1248;
const DONE: [u16; 3] = [0x1245, 0x1247, 0x1249];

const MAP: u32 = 1;
const UNMAP: u32 = 2;
const ATTRIBUTE_FORK: u32 = 1 << 31;
const UNWRITTEN: u32 = 1 << 30;
const REALTIME: u32 = 1 << 29;
/// Extents of a file whose map is changed.
const MAX_EXTENTS: usize = 1 << 20;
/// Things that are under way at once; the kernel has room for fewer in its log.
const MAX_INTENTS: usize = 1 << 20;

/// A change of a file's map.
#[derive(Debug, Clone, Copy)]
struct Remap {
    inode: u64,
    run: Run,
    flags: u32,
}

/// What was begun.
#[derive(Debug)]
enum Intent {
    Extents(Vec<Remap>),
    Attribute {
        inode: u64,
        change: AttributeChange,
    },
    /// What nobody sees: the parent pointers of a file.
    Parent,
    Exchange,
}

/// All that was begun and is not done yet.
#[derive(Debug, Default)]
pub(super) struct Intents {
    /// By when they were begun.
    begun: BTreeMap<u64, (u16, u64, Intent)>,
    count: u64,
}

impl Intents {
    /// Takes note of an item; `false` when it is none of ours.
    pub fn add(&mut self, kind: u16, item: &Item) -> Result<bool> {
        let form = item.region(0)?;
        if DONE.contains(&kind) {
            let id = form.le_u64(8)?;
            // What was begun before the tail of the log is not here.
            self.begun.retain(|_, (begun, other, _)| *begun != kind - 1 || *other != id);
            return Ok(true);
        }
        let intent = match kind {
            EXTENTS => Intent::Extents(extents(&form)?),
            ATTRIBUTE => attribute(item, &form)?,
            EXCHANGE => Intent::Exchange,
            _ => return Ok(false),
        };
        if self.begun.len() >= MAX_INTENTS {
            return Err(form.unsupported(0, format!("more than {MAX_INTENTS} changes under way")));
        }
        self.begun.insert(self.count, (kind, form.le_u64(8)?, intent));
        self.count += 1;
        Ok(true)
    }

    /// Does all that is not done, and says how much that was.
    pub fn finish(self, volume: &mut Volume) -> Result<u64> {
        let mut finished = 0;
        for (_, _, intent) in self.begun.into_values() {
            match intent {
                Intent::Extents(remaps) => remaps.iter().try_for_each(|remap| apply(volume, remap))?,
                Intent::Attribute { inode, change } => {
                    volume.finished.attributes.entry(inode).or_default().push(change);
                }
                Intent::Parent => continue,
                Intent::Exchange => {
                    return Err(Error::unsupported("the log ends within an exchange of two files' content (XMI)")
                        .in_structure(STRUCTURE));
                }
            }
            finished += 1;
        }
        Ok(finished)
    }
}

fn extents(form: &Record<'_>) -> Result<Vec<Remap>> {
    let mut found = Vec::new();
    // Each takes 32 bytes of the region.
    for index in 0..form.le_u32(4)? as usize {
        let at = 16 + index * 32;
        let (block, start) = (form.le_u64(at + 8)?, form.le_u64(at + 16)?);
        let (length, flags) = (u64::from(form.le_u32(at + 24)?), form.le_u32(at + 28)?);
        let kind = if flags & UNWRITTEN != 0 { RunKind::Unwritten(block) } else { RunKind::Data(block) };
        if length == 0 || start >= super::super::map::MAX_BLOCKS {
            return Err(form.corrupt(at, "an extent that cannot be"));
        }
        found.push(Remap { inode: form.le_u64(at)?, run: Run { start, length, kind }, flags });
    }
    Ok(found)
}

fn attribute(item: &Item, form: &Record<'_>) -> Result<Intent> {
    let inode = form.le_u64(16)?;
    let operation = form.le_u32(24)? & 0xFF;
    let part = |region: usize, length: u32| -> Result<Vec<u8>> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        Ok(if length == 0 { Vec::new() } else { item.region(region)?.slice(0, length)?.to_vec() })
    };
    let is_set = match operation {
        1 | 3 => true,
        2 => false,
        4..=6 => return Ok(Intent::Parent),
        other => return Err(form.unsupported(24, format!("the attribute operation {other}"))),
    };
    let [flags, ..] = form.le_u32(36)?.to_le_bytes();
    let value = if is_set { Some(part(2, form.le_u32(32)?)?) } else { None };
    let change = AttributeChange { namespace: flags & xattr::NAMESPACE, name: part(1, form.le_u32(28)?)?, value };
    Ok(Intent::Attribute { inode, change })
}

/// Changes the map of a file.
fn apply(volume: &mut Volume, remap: &Remap) -> Result<()> {
    if remap.flags & (ATTRIBUTE_FORK | REALTIME) != 0 {
        return Err(Error::unsupported(
            "the log ends within a change of a map of attributes or on a realtime device (BUI)",
        )
        .in_structure(STRUCTURE));
    }
    let inode = volume.inode(remap.inode)?;
    let before = all_runs(volume, &inode, Fork::Data, MAX_EXTENTS)?;
    let (start, end) = (remap.run.start, remap.run.end());
    let (mut runs, removed) = without(before, start, end);
    let blocks = match remap.flags & 0xFF {
        MAP if removed > 0 => {
            return Err(Error::corrupt(format!("blocks {start}..{end} are to be mapped and are already"))
                .in_structure(inode.name()));
        }
        MAP => {
            if let RunKind::Data(block) | RunKind::Unwritten(block) = remap.run.kind {
                volume.block_offset(block, remap.run.length, STRUCTURE)?;
            }
            runs.push(remap.run);
            inode.blocks.saturating_add(remap.run.length)
        }
        UNMAP => inode.blocks.saturating_sub(removed),
        other => return Err(Error::unsupported(format!("the change of a map {other}")).in_structure(STRUCTURE)),
    };
    runs.sort_unstable_by_key(|run| run.start);
    let changed = ChangedMap { runs: runs.into(), blocks, size: inode.size };
    volume.finished.maps.insert(inode.number, changed);
    Ok(())
}

/// What is left of a map without `start..end`, and how many blocks that had.
fn without(before: Vec<Run>, start: u64, end: u64) -> (Vec<Run>, u64) {
    let (mut runs, mut removed) = (Vec::with_capacity(before.len() + 2), 0);
    for run in before {
        let (from, to) = (run.start.max(start), run.end().min(end));
        if from >= to {
            runs.push(run);
            continue;
        }
        removed += to - from;
        if run.start < from {
            runs.push(Run { length: from - run.start, ..run });
        }
        if to < run.end() {
            runs.push(run.from(to));
        }
    }
    (runs, removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(kind: u16, id: u64, more: &[&[u8]]) -> Item {
        let form = [&kind.to_le_bytes()[..], &[1, 0], &1_u32.to_le_bytes(), &id.to_le_bytes(), more[0]].concat();
        let regions = std::iter::once(form).chain(more[1..].iter().map(|region| region.to_vec())).collect();
        Item::whole(regions)
    }

    fn remap_item(id: u64, flags: u32) -> Item {
        let extent = [131_u64.to_le_bytes(), 77_u64.to_le_bytes(), 5_u64.to_le_bytes()].concat();
        item(EXTENTS, id, &[&[&extent[..], &3_u32.to_le_bytes(), &flags.to_le_bytes()].concat()])
    }

    #[test]
    fn what_is_done_is_not_done_again() {
        let mut intents = Intents::default();
        assert!(intents.add(EXTENTS, &remap_item(1, UNMAP)).unwrap());
        assert!(intents.add(EXTENTS, &remap_item(2, MAP | UNWRITTEN)).unwrap());
        // The same number of another kind, and one that was begun before the tail.
        assert!(intents.add(0x1247, &item(0x1247, 2, &[&[]])).unwrap());
        assert!(intents.add(0x1245, &item(0x1245, 1, &[&[]])).unwrap());
        assert!(intents.add(0x1245, &item(0x1245, 9, &[&[]])).unwrap());
        assert!(!intents.add(0x1236, &item(0x1236, 1, &[&[]])).unwrap());
        let left: Vec<_> = intents.begun.into_values().collect();
        let [(EXTENTS, 2, Intent::Extents(remaps))] = left.as_slice() else { panic!("{left:?}") };
        let run = Run { start: 5, length: 3, kind: RunKind::Unwritten(77) };
        assert_eq!((remaps[0].inode, remaps[0].run, remaps[0].flags & 0xFF), (131, run, MAP));
    }

    #[test]
    fn attributes_that_were_begun_are_kept_with_their_values() {
        let form = |operation: u32, filter: u32| {
            [
                &131_u64.to_le_bytes()[..],
                &operation.to_le_bytes(),
                &3_u32.to_le_bytes(),
                &5_u32.to_le_bytes(),
                &filter.to_le_bytes(),
            ]
            .concat()
        };
        let mut intents = Intents::default();
        for (id, operation) in [(1, 1), (2, 2), (3, 4)] {
            let item = item(ATTRIBUTE, id, &[&form(operation, 2), b"abc\0", b"value\0\0\0"]);
            assert!(intents.add(ATTRIBUTE, &item).unwrap());
        }
        let left: Vec<_> = intents.begun.values().map(|(_, _, intent)| intent).collect();
        let change = |value| AttributeChange { namespace: xattr::ROOT, name: b"abc".to_vec(), value };
        let [Intent::Attribute { inode: 131, change: set }, Intent::Attribute { change: removed, .. }, Intent::Parent] =
            left.as_slice()
        else {
            panic!("{left:?}")
        };
        assert_eq!((set, removed), (&change(Some(b"value".to_vec())), &change(None)));
        let cut_off = item(ATTRIBUTE, 4, &[&form(1, 0), b"ab"]);
        assert!(intents.add(ATTRIBUTE, &cut_off).is_err());
    }

    #[test]
    fn a_range_is_taken_out_of_a_map() {
        let run = |start, length, block| Run { start, length, kind: RunKind::Data(block) };
        let (runs, removed) = without(vec![run(0, 4, 100), run(4, 10, 200), run(20, 5, 300)], 2, 22);
        assert_eq!((runs, removed), (vec![run(0, 2, 100), run(22, 3, 302)], 14));
        let (runs, removed) = without(vec![run(0, 10, 100)], 3, 5);
        assert_eq!((runs, removed), (vec![run(0, 3, 100), run(5, 5, 105)], 2));
    }
}
