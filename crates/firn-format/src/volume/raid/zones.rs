//! linear and raid0: each byte stands in one place.
//!
//! ```text
//! raid0   zone 0: stripes over all members, up to the end of the shortest
//!         zone 1: stripes over those that go on, up to the end of the next shortest …
//! ```
//! In the first stripe of a zone, old kernels (layout 1, *original*) count the chunks from the start of the array to
//! choose the member, new ones (layout 2, *alternate*) from the start of the zone. Source: Linux, drivers/md/raid0.c.

use super::Place;
use firn_disk::{Error, Result};

/// Members one after the other.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    /// Where each member ends in the array.
    ends: Vec<u64>,
}

impl Linear {
    /// Of members of these lengths.
    ///
    /// # Errors
    /// `Corrupt` when their sum overflows.
    pub(crate) fn new(lengths: &[u64]) -> Result<Self> {
        let mut end = 0_u64;
        let mut ends = Vec::with_capacity(lengths.len());
        for length in lengths {
            end = end.checked_add(*length).ok_or_else(|| Error::corrupt("the lengths of its members overflow"))?;
            ends.push(end);
        }
        Ok(Self { ends })
    }

    pub(super) fn length(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The place of a byte, and how many bytes are left there.
    pub(super) fn locate(&self, offset: u64) -> Option<(Place, u64)> {
        let member = self.ends.partition_point(|end| *end <= offset);
        let start = member.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        let end = self.ends.get(member)?;
        Some((Place { member, at: offset - start }, end - offset))
    }
}

/// Which chunk of a zone counts as its first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counting {
    /// From the start of the array: layout 1.
    Array,
    /// From the start of the zone: layout 2.
    Zone,
}

#[derive(Debug, Clone)]
struct Zone {
    /// Where it begins and ends in the array.
    start: u64,
    end: u64,
    /// Where it begins on each of its members.
    on_member: u64,
    members: Vec<usize>,
}

/// Stripes over members of any lengths.
#[derive(Debug, Clone)]
pub(crate) struct Zones {
    chunk: u64,
    counting: Counting,
    zones: Vec<Zone>,
}

impl Zones {
    /// Of members of these lengths, in chunks of `chunk` bytes. `counting` may be `None` where it makes no difference.
    ///
    /// # Errors
    /// `Corrupt` when sizes make no sense; `Unavailable` when `counting` is not known and matters.
    pub(crate) fn new(chunk: u64, lengths: &[u64], counting: Option<Counting>) -> Result<Self> {
        let whole: Vec<u64> = lengths.iter().map(|length| length - length.checked_rem(chunk).unwrap_or(0)).collect();
        let mut ends: Vec<u64> = whole.clone();
        ends.sort_unstable();
        ends.dedup();
        if chunk == 0 || ends.first().is_none_or(|shortest| *shortest == 0) {
            return Err(Error::corrupt(format!("stripes of {chunk} bytes do not fit into its members")));
        }
        let (mut zones, mut start, mut on_member) = (Vec::new(), 0_u64, 0);
        for end_on_member in ends {
            let members: Vec<usize> =
                whole.iter().enumerate().filter(|(_, length)| **length > on_member).map(|(at, _)| at).collect();
            let length = (end_on_member - on_member).checked_mul(members.len() as u64);
            let end = length.and_then(|length| start.checked_add(length));
            let end = end.ok_or_else(|| Error::corrupt("the lengths of its members overflow"))?;
            zones.push(Zone { start, end, on_member, members });
            (start, on_member) = (end, end_on_member);
        }
        let matters = zones.iter().skip(1).any(|zone| zone.members.len() > 1);
        let counting = match counting {
            Some(counting) => counting,
            None if !matters => Counting::Zone,
            None => {
                let what = "its members have different lengths, and it does not say which of two layouts it has";
                return Err(Error::new(firn_disk::ErrorKind::Unavailable, what)
                    .hint("`mdadm --assemble --update=layout-original` or `layout-alternate` writes it down"));
            }
        };
        Ok(Self { chunk, counting, zones })
    }

    pub(super) fn length(&self) -> u64 {
        self.zones.last().map_or(0, |zone| zone.end)
    }

    /// The place of a byte, and how many bytes are left there.
    pub(super) fn locate(&self, offset: u64) -> Option<(Place, u64)> {
        let zone = self.zones.get(self.zones.partition_point(|zone| zone.end <= offset))?;
        let in_zone = offset - zone.start;
        let count = zone.members.len() as u64;
        let counted = match self.counting {
            Counting::Array => offset / self.chunk,
            Counting::Zone => in_zone / self.chunk,
        };
        let member = *zone.members.get(usize::try_from(counted.checked_rem(count)?).ok()?)?;
        let within = offset % self.chunk;
        let stripe = in_zone / self.chunk / count;
        let at = zone.on_member.saturating_add(stripe.saturating_mul(self.chunk)).saturating_add(within);
        Some((Place { member, at }, self.chunk - within))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_follow_from_the_lengths() {
        let zones = Zones::new(10, &[25, 49, 45, 20], Some(Counting::Array)).unwrap();
        assert_eq!(zones.length(), 80 + 40);
        let place = |offset| zones.locate(offset).unwrap();
        assert_eq!(place(79), (Place { member: 3, at: 19 }, 1));
        // The ninth chunk of the array, and the first of its zone.
        assert_eq!(place(85), (Place { member: 1, at: 25 }, 5));
        assert_eq!(place(90), (Place { member: 2, at: 20 }, 10));
        assert!(zones.locate(120).is_none());
        let zones = Zones::new(10, &[40, 40, 20, 40, 20], Some(Counting::Zone)).unwrap();
        assert_eq!(zones.locate(100).unwrap(), (Place { member: 0, at: 20 }, 10));
        assert_eq!(zones.locate(115).unwrap(), (Place { member: 1, at: 25 }, 5));
    }

    #[test]
    fn what_is_not_known_is_refused_where_it_matters() {
        assert!(Zones::new(10, &[20, 20, 30], None).is_ok(), "one member has no order");
        assert_eq!(Zones::new(10, &[20, 30, 30], None).unwrap_err().kind(), firn_disk::ErrorKind::Unavailable);
        for (chunk, lengths) in [(0, &[1_u64][..]), (10, &[]), (10, &[30, 9]), (1, &[u64::MAX, u64::MAX])] {
            assert!(Zones::new(chunk, lengths, None).is_err());
        }
        assert!(Linear::new(&[u64::MAX, 1]).is_err());
        let linear = Linear::new(&[5, 0, 7]).unwrap();
        assert_eq!(linear.locate(5).unwrap(), (Place { member: 2, at: 0 }, 7));
        assert!(linear.locate(12).is_none());
    }
}
