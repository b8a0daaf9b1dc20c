//! raid10: chunks in several copies, striped over all members.
//!
//! ```text
//! near 2, 3 members        far 2, 3 members          offset 2, 3 members
//! A A B                    A B C                     A B C
//! B C C                    D E F                     C A B
//! D D E                    … (half of each member)   D E F
//!                          C A B                     F D E
//! ```
//! Layout bits: 0-7 near copies, 8-15 far copies, 16 offset, 17-18 how members are put into sets for far copies.
//! Source: Linux, drivers/md/raid10.c (`setup_geo`, `__raid10_find_phys`, `calc_sectors`).

use super::Place;
use firn_disk::{Error, Result};

/// How a raid10 lays its copies out.
#[derive(Debug, Clone)]
pub(crate) struct Ten {
    chunk: u64,
    members: u64,
    near: u64,
    far: u64,
    is_offset: bool,
    /// How many members the far copies of a chunk go around in.
    set: u64,
    /// Bytes from a copy to its next far copy.
    stride: u64,
    length: u64,
}

impl Ten {
    /// Of `members` with `member_bytes` each, and md's number for the layout.
    ///
    /// # Errors
    /// `Corrupt` when it makes no sense; `Unsupported` for a kind that is not known.
    pub(crate) fn new(layout: u32, chunk: u64, members: usize, member_bytes: u64) -> Result<Self> {
        let (near, far) = (u64::from(layout & 0xFF), u64::from(layout >> 8 & 0xFF));
        let count = members as u64;
        if layout >> 19 != 0 {
            return Err(Error::unsupported(format!("raid10 layout {layout:#x} is not known")));
        }
        let is_sound = near > 0 && far > 0 && chunk > 0 && near * far <= count;
        if !is_sound {
            let what =
                format!("raid10 with {near} near and {far} far copies in chunks of {chunk} bytes on {members} members");
            return Err(Error::corrupt(what));
        }
        let set = match layout >> 17 {
            0 => count,
            1 => count / far,
            _ => far * near,
        };
        let chunks = (member_bytes / chunk / far).checked_mul(count).map(|chunks| chunks / near);
        let used = chunks.and_then(|chunks| chunks.checked_mul(near * far)).map(|copies| copies.div_ceil(count));
        let (Some(chunks), Some(used)) = (chunks, used) else {
            return Err(Error::corrupt("its size overflows"));
        };
        let is_offset = layout & 1 << 16 != 0;
        let stride = if is_offset { chunk } else { (used / far).saturating_mul(chunk) };
        let length = chunks.checked_mul(chunk).ok_or_else(|| Error::corrupt("its size overflows"))?;
        Ok(Self { chunk, members: count, near, far, is_offset, set: set.max(1), stride, length })
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The places of all copies of a byte, the one that the kernel reads first in front, and how many bytes are left
    /// there.
    pub(super) fn locate(&self, offset: u64) -> Option<(Vec<Place>, u64)> {
        let within = offset % self.chunk;
        let first = (offset / self.chunk).checked_mul(self.near)?;
        let (mut stripe, mut member) = (first / self.members, first % self.members);
        if self.is_offset {
            stripe = stripe.checked_mul(self.far)?;
        }
        let mut at = stripe.checked_mul(self.chunk)?.checked_add(within)?;
        let mut places = Vec::with_capacity(usize::try_from(self.near * self.far).ok()?);
        for _ in 0..self.near {
            let (mut other, mut other_at) = (member, at);
            places.push(Place { member: usize::try_from(member).ok()?, at });
            for _ in 1..self.far {
                other = self.next_far(other);
                other_at = other_at.checked_add(self.stride)?;
                places.push(Place { member: usize::try_from(other).ok()?, at: other_at });
            }
            member += 1;
            if member >= self.members {
                member = 0;
                at = at.checked_add(self.chunk)?;
            }
        }
        Some((places, self.chunk - within))
    }

    /// The member of the next far copy. Where the sets do not come out even, the last one is larger.
    fn next_far(&self, member: u64) -> u64 {
        let last_set = (self.members / self.set).saturating_sub(1) * self.set;
        let next = member + self.near;
        if !self.members.is_multiple_of(self.set) && next > last_set {
            (next - last_set) % (self.set + self.members % self.set) + last_set
        } else {
            next % self.set + member / self.set * self.set
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(ten: &Ten, chunk: u64) -> Vec<(usize, u64)> {
        ten.locate(chunk * ten.chunk).unwrap().0.iter().map(|place| (place.member, place.at / ten.chunk)).collect()
    }

    #[test]
    fn copies_stand_where_the_manual_draws_them() {
        let near = Ten::new(0x102, 10, 3, 100).unwrap();
        assert_eq!(near.length(), 150);
        assert_eq!([members(&near, 0), members(&near, 1)], [[(0, 0), (1, 0)], [(2, 0), (0, 1)]]);
        let far = Ten::new(0x201, 10, 3, 100).unwrap();
        assert_eq!([members(&far, 0), members(&far, 5)], [[(0, 0), (1, 5)], [(2, 1), (0, 6)]]);
        let offset = Ten::new(0x1_0201, 10, 3, 100).unwrap();
        assert_eq!([members(&offset, 2), members(&offset, 3)], [[(2, 0), (0, 1)], [(0, 2), (1, 3)]]);
        // Far copies within pairs.
        let sets = Ten::new(0x4_0201, 10, 4, 100).unwrap();
        assert_eq!([members(&sets, 1), members(&sets, 2)], [[(1, 0), (0, 5)], [(2, 0), (3, 5)]]);
    }

    #[test]
    fn every_copy_of_every_chunk_has_a_place_of_its_own() {
        for layout in [0x101, 0x102, 0x103, 0x201, 0x301, 0x1_0201, 0x1_0301, 0x202, 0x4_0201] {
            for count in 2..8 {
                let Ok(ten) = Ten::new(layout, 10, count, 240) else { continue };
                let mut seen = std::collections::BTreeSet::new();
                for chunk in 0..ten.length() / 10 {
                    let places = members(&ten, chunk);
                    let on: std::collections::BTreeSet<usize> = places.iter().map(|place| place.0).collect();
                    assert_eq!(on.len(), places.len(), "{layout:#x} on {count}: {places:?}");
                    assert!(places.iter().all(|place| place.0 < count && place.1 < 24 && seen.insert(*place)));
                }
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (layout, chunk, count, bytes) in
            [(0x102, 0, 4, 100), (0, 10, 4, 100), (0x203, 10, 4, 100), (0x102, 1, 4, u64::MAX), (0x8_0102, 1, 4, 1)]
        {
            assert!(Ten::new(layout, chunk, count, bytes).is_err(), "{layout:#x}");
        }
    }
}
