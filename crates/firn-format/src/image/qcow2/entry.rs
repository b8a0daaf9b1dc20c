//! Level 1 and level 2 table entries.
//!
//! ```text
//! L1            63 refcount is 1   9-55 L2 table              all else reserved
//! L2 standard   63 refcount is 1   62 = 0   9-55 cluster      0 reads as zeros   all else reserved
//! L2 packed     62 = 1   x-61 further sectors   0..x offset   x = 62 - (cluster bits - 8)
//! extended L2   second word: 0-31 subcluster allocated, 32-63 subcluster reads as zeros
//! ```
//! Source: QEMU, docs/interop/qcow2, "Cluster mapping" and "Extended L2 Entries".

use super::header::Header;
use firn_disk::{Error, Result};

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
const COPIED: u64 = 1 << 63;
const PACKED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// Where a guest cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cluster {
    Below,
    Zero,
    /// At this byte of the data file.
    Stored(u64),
    /// The whole entry; [`packed_at`] reads it.
    Packed(u64),
    /// Subclusters differ: the byte of the data file (if any is allocated), and the bitmap.
    Mixed(u64, u64),
}

/// The byte at which a level 2 table begins; `None` when there is none.
pub(super) fn l2_table(entry: u64, header: &Header) -> Result<Option<u64>> {
    let at = entry & OFFSET;
    if entry & L1_RESERVED != 0 {
        return Err(Error::corrupt(format!("reserved bits are set in {entry:#018x}")).in_structure("qcow2 L1 entry"));
    }
    if !at.is_multiple_of(header.cluster_bytes()) {
        return Err(Error::corrupt(format!("a level 2 table at byte {at}, which is not the start of a cluster"))
            .in_structure("qcow2 L1 entry"));
    }
    Ok((at != 0).then_some(at))
}

/// What the level 2 entry for the cluster at `guest` says. `bitmap` is its second word, or 0.
pub(super) fn cluster(entry: u64, bitmap: u64, guest: u64, header: &Header) -> Result<Cluster> {
    let corrupt = |message: String| Error::corrupt(message).in_structure("qcow2 L2 entry");
    if entry & PACKED != 0 {
        if header.has_data_file {
            return Err(corrupt("a compressed cluster beside an external data file".to_owned()));
        }
        return Ok(Cluster::Packed(entry));
    }
    if entry & L2_RESERVED != 0 || (header.extended_l2 && entry & ZERO != 0) {
        return Err(corrupt(format!("reserved bits are set in {entry:#018x}")));
    }
    let at = entry & OFFSET;
    if !at.is_multiple_of(header.cluster_bytes()) {
        return Err(corrupt(format!("a data cluster at byte {at}, which is not the start of a cluster")));
    }
    let is_allocated = at != 0 || (header.has_data_file && entry & COPIED != 0);
    if is_allocated && header.has_data_file && at != guest {
        return Err(corrupt(format!("byte {at} of the external data file for byte {guest} of the disk")));
    }
    if header.extended_l2 {
        return subclusters(at, bitmap, is_allocated);
    }
    match (entry & ZERO != 0, is_allocated) {
        (true, _) if header.version < 3 => Err(corrupt("a zero cluster in a version 2 image".to_owned())),
        (true, _) => Ok(Cluster::Zero),
        (false, true) => Ok(Cluster::Stored(at)),
        (false, false) => Ok(Cluster::Below),
    }
}

fn subclusters(at: u64, bitmap: u64, is_allocated: bool) -> Result<Cluster> {
    let (allocated, zero) = (bitmap & 0xffff_ffff, bitmap >> 32);
    let corrupt = |message: &str| Error::corrupt(message).in_structure("qcow2 L2 entry");
    if allocated & zero != 0 {
        return Err(corrupt("a subcluster is both allocated and zero"));
    }
    if allocated != 0 && !is_allocated {
        return Err(corrupt("a subcluster is allocated in no cluster"));
    }
    Ok(match (allocated, zero) {
        (0xffff_ffff, _) => Cluster::Stored(at),
        (0, 0xffff_ffff) => Cluster::Zero,
        (0, 0) => Cluster::Below,
        _ => Cluster::Mixed(at, bitmap),
    })
}

/// What a run of subclusters is, and how many from `index` on are the same; `index` is below 32.
pub(super) fn subcluster_run(bitmap: u64, index: u32) -> (Subcluster, u32) {
    let state = |index: u32| match (bitmap >> index & 1, bitmap >> (index + 32) & 1) {
        (1, _) => Subcluster::Stored,
        (_, 1) => Subcluster::Zero,
        _ => Subcluster::Below,
    };
    let first = state(index);
    let count = (index..32).take_while(|next| state(*next) == first).count();
    (first, u32::try_from(count).unwrap_or(1))
}

/// Where a subcluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subcluster {
    Below,
    Zero,
    Stored,
}

/// The first byte and the number of bytes of a compressed cluster's whole sectors.
pub(super) fn packed_at(entry: u64, cluster_bits: u32) -> (u64, u64) {
    let shift = 62 - (cluster_bits - 8);
    let at = entry & ((1 << shift) - 1);
    let sectors = (entry >> shift & ((1 << (cluster_bits - 8)) - 1)) + 1;
    (at, sectors * 512 - at % 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_entries_are_split_at_the_bit_that_the_cluster_size_says() {
        // 64 KiB clusters: x = 54, eight bits of sectors.
        assert_eq!(packed_at(PACKED | 3 << 54 | 0x1_0203, 16), (0x1_0203, 4 * 512 - 3));
        // 512-byte clusters: x = 61, one bit.
        assert_eq!(packed_at(PACKED | 1 << 61 | 0x400, 9), (0x400, 1024));
        // 2 MiB clusters: x = 49, thirteen bits.
        assert_eq!(packed_at(PACKED | 0x1fff << 49 | 512, 21), (512, 0x2000 * 512));
    }

    #[test]
    fn subclusters_are_counted_to_the_end_of_the_cluster() {
        let bitmap = 0b0111_u64 | 0b1_1000 << 32;
        assert_eq!(subcluster_run(bitmap, 1), (Subcluster::Stored, 2));
        assert_eq!(subcluster_run(bitmap, 3), (Subcluster::Zero, 2));
        assert_eq!(subcluster_run(bitmap, 5), (Subcluster::Below, 27));
        assert_eq!(subcluster_run(1 << 31, 31), (Subcluster::Stored, 1));
    }
}
