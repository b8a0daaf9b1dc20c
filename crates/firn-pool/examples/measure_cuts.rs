//! What each way to cut disks into chunks, and each level of compression, would store.
//!
//! ```text
//! cargo run --release --example measure_cuts -- IMAGE…
//! ```
//! Takes raw images in the order given, as if each were the next snapshot of one pool, and prints two tables in
//! Markdown: stored bytes after each image, and what the first image cost. The rule by content is the pool's
//! (`chunker.rs`), with parameters that the pool does not allow; fixed pieces lie on a grid from the disk's start and
//! are left out where they are nothing but zeros. Results stand in `docs/design/0001-where-to-cut.md`.
//!
//! Counted as stored is what the pool would add: a new chunk at the smaller of its compressed and its plain length;
//! 17 bytes for its codec and tag, 72 in its pack's directory, 24 in the index; and each new leaf of the tree with
//! the same surcharge, where leaf and directory count twice because packs of nodes are stored twice. Inner nodes,
//! manifests and headers are left out: they are the same for every rule, and below a tenth of a megabyte.
//!
//! Times are of the processor and not of the clock, on one thread, so that other work on the machine matters little.

use firn_disk::{Disk, ExtentKind, FileDisk, Result, visit_extents};
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashSet;
use std::io::{Error, Write};
use std::ops::Range;
use std::time::Duration;

const BLOCK_BYTES: usize = 4096;
const REGION_BLOCKS: usize = 4096;
const REGION_BYTES: u64 = 16 << 20;
/// Any fixed key gives the same picture.
const KEY: [u8; 32] = [7; 32];
/// Of zstd.
const LEVELS: [i32; 3] = [1, 2, 3];
/// Codec and tag.
const SEAL_BYTES: u64 = 1 + 16;
const DIRECTORY_BYTES: u64 = 72;
const INDEX_BYTES: u64 = 24;

/// A way to cut.
#[derive(Debug, Clone, Copy)]
enum Rule {
    /// On a grid of so many blocks.
    Fixed { blocks: usize },
    /// After a block whose hash has so many low bits zero, and after `most` blocks.
    Content { mask_bits: u32, most: usize },
}

impl Rule {
    fn all() -> Vec<Self> {
        let fixed = [1, 4, 16, 32].map(|blocks| Self::Fixed { blocks });
        let content =
            |times: usize| (2..=6).map(move |mask_bits| Self::Content { mask_bits, most: times << mask_bits });
        fixed.into_iter().chain(content(2)).chain(content(4)).collect()
    }

    fn name(self) -> String {
        match self {
            Self::Fixed { blocks } => format!("fixed, {} KiB", blocks * 4),
            Self::Content { mask_bits, most } => {
                format!("by content, average {} KiB, longest {} KiB", 4 << mask_bits, most * 4)
            }
        }
    }

    /// The runs of a region: blocks, and whether they are data.
    fn cut(self, data: &[bool], bytes: &[u8]) -> Vec<(Range<usize>, bool)> {
        let mut runs = Vec::new();
        match self {
            Self::Fixed { blocks } => {
                for start in (0..data.len()).step_by(blocks) {
                    let piece = start..(start + blocks).min(data.len());
                    let is_data = data[piece.clone()].contains(&true);
                    match runs.last_mut() {
                        Some((Range { end, .. }, false)) if !is_data => *end = piece.end,
                        _ => runs.push((piece, is_data)),
                    }
                }
            }
            Self::Content { mask_bits, most } => {
                let mut start = 0;
                for (number, is_data) in data.iter().enumerate() {
                    let end = number + 1;
                    let ends = data.get(end) != Some(is_data)
                        || *is_data && (end - start >= most || low_zeros(block(bytes, number)) >= mask_bits);
                    if ends {
                        runs.push((start..end, *is_data));
                        start = end;
                    }
                }
            }
        }
        runs
    }
}

fn block(bytes: &[u8], number: usize) -> &[u8] {
    &bytes[number * BLOCK_BYTES..(number + 1) * BLOCK_BYTES]
}

fn low_zeros(block: &[u8]) -> u32 {
    let hash = blake3::keyed_hash(&KEY, block);
    let [a, b, c, d, ..] = *hash.as_bytes();
    u32::from_le_bytes([a, b, c, d]).trailing_zeros()
}

/// A pool as one rule would fill it: raw, and at each of [`LEVELS`].
struct Trial {
    rule: Rule,
    chunks: HashSet<[u8; 32]>,
    leaves: HashSet<[u8; 32]>,
    /// Bytes of unique chunks before compression.
    content: u64,
    compressed: [u64; LEVELS.len()],
    overhead: u64,
    cut_and_name: Duration,
    compress: [Duration; LEVELS.len()],
    compressors: Vec<zstd::bulk::Compressor<'static>>,
    packed: Vec<u8>,
}

impl Trial {
    fn new(rule: Rule) -> std::io::Result<Self> {
        Ok(Self {
            rule,
            chunks: HashSet::new(),
            leaves: HashSet::new(),
            content: 0,
            compressed: [0; LEVELS.len()],
            overhead: 0,
            cut_and_name: Duration::ZERO,
            compress: [Duration::ZERO; LEVELS.len()],
            compressors: LEVELS.into_iter().map(zstd::bulk::Compressor::new).collect::<std::io::Result<_>>()?,
            packed: Vec::new(),
        })
    }

    /// Takes in a whole disk.
    fn store(&mut self, disk: &dyn Disk) -> Result<()> {
        let mut bytes = Vec::new();
        for region in 0..disk.len().div_ceil(REGION_BYTES) {
            let start = region * REGION_BYTES;
            let data = read(disk, start..(start + REGION_BYTES).min(disk.len()), &mut bytes)?;
            self.store_region(&data, &bytes);
        }
        Ok(())
    }

    fn store_region(&mut self, data: &[bool], bytes: &[u8]) {
        let began = processor_time();
        let mut leaf = blake3::Hasher::new();
        let mut leaf_bytes = 2;
        let mut new = Vec::new();
        let runs = self.rule.cut(data, bytes);
        for (blocks, is_data) in &runs {
            leaf.update(&blocks.len().to_le_bytes()).update(&[u8::from(*is_data)]);
            leaf_bytes += 2;
            if *is_data {
                let content = &bytes[blocks.start * BLOCK_BYTES..blocks.end * BLOCK_BYTES];
                let id = *blake3::keyed_hash(&KEY, content).as_bytes();
                leaf.update(&id);
                leaf_bytes += 32;
                if self.chunks.insert(id) {
                    new.push(content);
                }
            }
        }
        self.cut_and_name += processor_time() - began;
        let has_data = runs.iter().any(|(_, is_data)| *is_data);
        if has_data && self.leaves.insert(*leaf.finalize().as_bytes()) {
            self.overhead += 2 * (leaf_bytes + SEAL_BYTES + DIRECTORY_BYTES) + INDEX_BYTES;
        }
        self.overhead += new.len() as u64 * (SEAL_BYTES + DIRECTORY_BYTES + INDEX_BYTES);
        self.content += new.iter().map(|content| content.len() as u64).sum::<u64>();
        for (number, compressor) in self.compressors.iter_mut().enumerate() {
            let began = processor_time();
            for content in &new {
                self.packed.resize(content.len() - 1, 0);
                let length = compressor.compress_to_buffer(content, &mut self.packed[..]).unwrap_or(content.len());
                self.compressed[number] += length as u64;
            }
            self.compress[number] += processor_time() - began;
        }
    }

    /// Stored bytes: raw, then at each level.
    fn stored(&self) -> Vec<u64> {
        [self.content].into_iter().chain(self.compressed).map(|bytes| bytes + self.overhead).collect()
    }
}

/// Reads a region, filled up to whole blocks, and answers which of its blocks are data.
fn read(disk: &dyn Disk, range: Range<u64>, bytes: &mut Vec<u8>) -> Result<Vec<bool>> {
    // At most a region.
    let index = |offset: u64| usize::try_from(offset - range.start).unwrap_or(usize::MAX);
    let blocks = index(range.end).div_ceil(BLOCK_BYTES).min(REGION_BLOCKS);
    bytes.clear();
    bytes.resize(blocks * BLOCK_BYTES, 0);
    visit_extents(disk, range.clone(), |kind, run| match kind {
        ExtentKind::Data => disk.read_at(&mut bytes[index(run.start)..index(run.end)], run.start),
        ExtentKind::Zero | ExtentKind::Hole => Ok(()),
    })?;
    Ok((0..blocks).map(|number| block(bytes, number) != [0; BLOCK_BYTES]).collect())
}

/// The time that this thread has had of a processor.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // Neither is ever negative, and a nanosecond part is below 10⁹.
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn megabytes(bytes: u64) -> String {
    format!("{:.0}", bytes as f64 / 1e6)
}

/// One rule over all images: its rows of the two tables.
fn measure(rule: Rule, images: &[(String, FileDisk)]) -> std::result::Result<[String; 2], Box<dyn std::error::Error>> {
    let mut trial = Trial::new(rule)?;
    let mut rows = [format!("| {} |", rule.name()), format!("| {} |", rule.name())];
    let mut after = Vec::new();
    for (number, (_, disk)) in images.iter().enumerate() {
        trial.store(disk)?;
        after.push(trial.stored());
        if number == 0 {
            let content = trial.content as f64 / 1e6;
            let cut = trial.cut_and_name;
            let mean_kib = content * 1e6 / 1024.0 / trial.chunks.len() as f64;
            rows[1] += &format!(" {} | {mean_kib:.1} | {:.1} |", trial.chunks.len(), cut.as_secs_f64());
            trial.compress.iter().for_each(|time| rows[1] += &format!(" {:.1} |", time.as_secs_f64()));
            let rate = |time: &Duration| content / (cut + *time).as_secs_f64();
            trial.compress.iter().for_each(|time| rows[1] += &format!(" {:.0} |", rate(time)));
        }
    }
    for kind in 0..=LEVELS.len() {
        after.iter().for_each(|stored| rows[0] += &format!(" {} |", megabytes(stored[kind])));
    }
    rows[0] += &format!(" {} | {} |", trial.chunks.len(), megabytes(trial.overhead));
    Ok(rows)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    if names.is_empty() {
        return Err(Error::other("name raw images, in the order in which they shall be stored").into());
    }
    let open = |name: String| FileDisk::open(&name).map(|disk| (name, disk));
    let images: Vec<_> = names.into_iter().map(open).collect::<Result<_>>()?;
    let short = |name: &str| name.rsplit('/').next().unwrap_or(name).to_owned();
    let mut out = std::io::stdout();
    let mut heads =
        ["| MB stored after |".to_owned(), "| first image | chunks | mean KiB | s to cut and name |".to_owned()];
    let kinds = ["raw".to_owned()].into_iter().chain(LEVELS.map(|level| format!("zstd {level}")));
    for kind in kinds.clone() {
        images.iter().for_each(|(name, _)| heads[0] += &format!(" {kind}: {} |", short(name)));
    }
    heads[0] += " chunks | overhead MB |";
    kinds.clone().skip(1).for_each(|kind| heads[1] += &format!(" s {kind} |"));
    kinds.skip(1).for_each(|kind| heads[1] += &format!(" MB/s with {kind} |"));
    let line = |head: &str| format!("|---|{}", "--:|".repeat(head.matches('|').count() - 2));
    writeln!(out, "{}\n{}", heads[0], line(&heads[0]))?;
    let mut costs = Vec::new();
    for rule in Rule::all() {
        let [stored, cost] = measure(rule, &images)?;
        writeln!(out, "{stored}")?;
        costs.push(cost);
    }
    writeln!(out, "\n{}\n{}", heads[1], line(&heads[1]))?;
    costs.iter().try_for_each(|cost| writeln!(out, "{cost}"))?;
    Ok(())
}
