//! raid4, raid5 and raid6: data in chunks, and one or two chunks of parity in each stripe over all members.
//!
//! ```text
//! raid5, left-symmetric     raid6, left-symmetric
//! D0 D1 D2 P                D0 D1 P  Q
//! D4 D5 P  D3               D3 P  Q  D2
//! D8 P  D6 D7               P  Q  D4 D5
//! ```
//! P is the sum of a stripe's data, Q that of g^i times the i-th, counted from the member after Q on (in layouts of
//! DDF from member 0 on, with P and Q counted too). Source: Linux, drivers/md/raid5.c (`raid5_compute_sector`,
//! `raid6_idx_to_slot`) and raid5.h.

use super::Place;
use firn_disk::{Error, Result};

/// Where parity stands in each stripe. The numbers are those of md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rotation {
    LeftAsymmetric,
    RightAsymmetric,
    LeftSymmetric,
    RightSymmetric,
    First,
    Last,
    /// raid6 of DDF.
    ZeroRestart,
    LastRestart,
    LastContinue,
}

/// What a member holds in one stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Data, and the exponent of its factor in Q.
    Data(usize),
    P,
    Q,
}

/// How an array with parity lays its chunks out.
#[derive(Debug, Clone)]
pub(crate) struct Parity {
    pub(super) chunk: u64,
    pub(super) members: usize,
    /// One or two.
    pub(super) parities: usize,
    rotation: Rotation,
    /// raid6 made of a raid5: Q has the last member to itself.
    has_own_q: bool,
    length: u64,
}

impl Parity {
    /// Of `members` with `member_bytes` each; `level` is 4, 5 or 6, `layout` md's number.
    ///
    /// # Errors
    /// `Corrupt` when sizes make no sense; `Unsupported` for a layout that is not known.
    pub(crate) fn new(level: u32, layout: u32, chunk: u64, members: usize, member_bytes: u64) -> Result<Self> {
        let parities = if level == 6 { 2 } else { 1 };
        let (rotation, has_own_q) = match (level, layout) {
            (4, _) => (Rotation::Last, false),
            (5 | 6, 0) => (Rotation::LeftAsymmetric, false),
            (5 | 6, 1) => (Rotation::RightAsymmetric, false),
            (5 | 6, 2) => (Rotation::LeftSymmetric, false),
            (5 | 6, 3) => (Rotation::RightSymmetric, false),
            (5 | 6, 4) => (Rotation::First, false),
            (5 | 6, 5) => (Rotation::Last, false),
            (6, 8) => (Rotation::ZeroRestart, false),
            (6, 9) => (Rotation::LastRestart, false),
            (6, 10) => (Rotation::LastContinue, false),
            (6, 16) => (Rotation::LeftAsymmetric, true),
            (6, 17) => (Rotation::RightAsymmetric, true),
            (6, 18) => (Rotation::LeftSymmetric, true),
            (6, 19) => (Rotation::RightSymmetric, true),
            (6, 20) => (Rotation::First, true),
            _ => return Err(Error::unsupported(format!("layout {layout} of raid{level} is not known"))),
        };
        // Q has a factor of its own for 255 members at most.
        if chunk == 0 || members <= parities || (parities == 2 && members > 255) {
            return Err(Error::corrupt(format!("raid{level} in chunks of {chunk} bytes on {members} members")));
        }
        let data = (members - parities) as u64;
        let length = (member_bytes / chunk).checked_mul(chunk).and_then(|bytes| bytes.checked_mul(data));
        let length = length.ok_or_else(|| Error::corrupt("its size overflows"))?;
        Ok(Self { chunk, members, parities, rotation, has_own_q, length })
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The place of a byte, its stripe, and how many bytes are left in its chunk.
    pub(super) fn locate(&self, offset: u64) -> Option<(Place, u64, u64)> {
        let within = offset % self.chunk;
        let data = (self.members - self.parities) as u64;
        let number = offset / self.chunk;
        let stripe = number / data;
        let index = usize::try_from(number % data).ok()?;
        let member = self.member_of(stripe, index)?;
        Some((Place { member, at: stripe.checked_mul(self.chunk)?.checked_add(within)? }, stripe, self.chunk - within))
    }

    /// P's member, and Q's in raid6.
    fn parity_of(&self, stripe: u64) -> Option<(usize, Option<usize>)> {
        let last = self.members - 1;
        let turn = |stripe: u64, count: usize| usize::try_from(stripe % (count.max(1) as u64)).ok();
        if self.parities == 1 || self.has_own_q {
            // With Q set aside it is a raid5 on the other members.
            let count = if self.has_own_q { last } else { self.members };
            let p = match self.rotation {
                Rotation::LeftAsymmetric | Rotation::LeftSymmetric => count - 1 - turn(stripe, count)?,
                Rotation::RightAsymmetric | Rotation::RightSymmetric => turn(stripe, count)?,
                Rotation::First => 0,
                _ => count - 1,
            };
            return Some((p, self.has_own_q.then_some(last)));
        }
        let after = |p: usize| (p + 1) % self.members;
        Some(match self.rotation {
            Rotation::LeftAsymmetric | Rotation::LeftSymmetric => {
                let p = last - turn(stripe, self.members)?;
                (p, Some(after(p)))
            }
            Rotation::RightAsymmetric | Rotation::RightSymmetric | Rotation::ZeroRestart => {
                let p = turn(stripe, self.members)?;
                (p, Some(after(p)))
            }
            Rotation::First => (0, Some(1)),
            Rotation::Last => (last - 1, Some(last)),
            Rotation::LastRestart => {
                let p = last - turn(stripe.checked_add(1)?, self.members)?;
                (p, Some(after(p)))
            }
            Rotation::LastContinue => {
                let p = last - turn(stripe, self.members)?;
                (p, Some((p + last) % self.members))
            }
        })
    }

    /// The member of data chunk `index` of a stripe.
    fn member_of(&self, stripe: u64, index: usize) -> Option<usize> {
        let (p, q) = self.parity_of(stripe)?;
        let count = if self.has_own_q { self.members - 1 } else { self.members };
        let rotating_q = q.filter(|_| !self.has_own_q);
        Some(match self.rotation {
            Rotation::LeftSymmetric | Rotation::RightSymmetric | Rotation::LastContinue => {
                // The chunk after the parity is the first.
                let skipped = if rotating_q.is_some() && self.rotation != Rotation::LastContinue { 2 } else { 1 };
                (p + skipped + index) % count
            }
            _ => {
                // In order of the members, without those of P and Q.
                let mut parity: Vec<usize> = std::iter::once(p).chain(rotating_q).collect();
                parity.sort_unstable();
                parity.into_iter().fold(index, |member, parity| if member >= parity { member + 1 } else { member })
            }
        })
    }

    /// What each member holds in a stripe.
    pub(super) fn roles(&self, stripe: u64) -> Option<Vec<Role>> {
        let (p, q) = self.parity_of(stripe)?;
        let is_ddf = matches!(self.rotation, Rotation::ZeroRestart | Rotation::LastRestart | Rotation::LastContinue);
        let first = match q {
            Some(q) if !is_ddf => (q + 1) % self.members,
            _ => 0,
        };
        let mut roles = vec![Role::P; self.members];
        let mut exponent = 0;
        for member in (0..self.members).map(|at| (first + at) % self.members) {
            let role = if member == p {
                Role::P
            } else if Some(member) == q {
                Role::Q
            } else {
                Role::Data(exponent)
            };
            exponent += usize::from(is_ddf || matches!(role, Role::Data(_)));
            *roles.get_mut(member)? = role;
        }
        Some(roles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The members of the data chunks of the first stripes, as rows of `D0…` beside P and Q.
    fn drawn(level: u32, layout: u32, members: usize, stripes: u64) -> Vec<String> {
        let parity = Parity::new(level, layout, 10, members, 1000).unwrap();
        (0..stripes)
            .map(|stripe| {
                let mut row: Vec<String> =
                    parity.roles(stripe).unwrap().iter().map(|role| format!("{role:?}")[..1].to_owned()).collect();
                for index in 0..members - parity.parities {
                    let number = stripe * (members - parity.parities) as u64 + index as u64;
                    let (place, at, left) = parity.locate(number * 10 + 3).unwrap();
                    assert_eq!((at, left, place.at), (stripe, 7, stripe * 10 + 3));
                    assert_eq!(row[place.member], "D", "{level} {layout} {stripe} {index}");
                    row[place.member] = index.to_string();
                }
                row.concat()
            })
            .collect()
    }

    #[test]
    fn stripes_are_as_md_draws_them() {
        assert_eq!(drawn(5, 2, 4, 4), ["012P", "12P0", "2P01", "P012"]);
        assert_eq!(drawn(5, 0, 4, 4), ["012P", "01P2", "0P12", "P012"]);
        assert_eq!(drawn(5, 1, 3, 3), ["P01", "0P1", "01P"]);
        assert_eq!(drawn(4, 0, 3, 2), ["01P", "01P"]);
        assert_eq!(drawn(6, 2, 4, 4), ["Q01P", "01PQ", "1PQ0", "PQ01"]);
        assert_eq!(drawn(6, 0, 4, 3), ["Q01P", "01PQ", "0PQ1"]);
        assert_eq!(drawn(6, 9, 4, 3), ["01PQ", "0PQ1", "PQ01"]);
        assert_eq!(drawn(6, 10, 4, 3), ["01QP", "1QP0", "QP01"]);
        assert_eq!(drawn(6, 18, 4, 3), ["01PQ", "1P0Q", "P01Q"]);
        assert_eq!(drawn(6, 20, 4, 1), ["P01Q"]);
    }

    #[test]
    fn every_layout_has_a_member_for_every_chunk() {
        for layout in (0..=5).chain(8..=10).chain(16..=20) {
            for members in 4..9 {
                for row in drawn(6, layout, members, 20) {
                    assert!(!row.contains('D') && row.contains('P') && row.contains('Q'), "{layout} {row}");
                }
            }
        }
        assert!(Parity::new(5, 8, 10, 4, 100).is_err());
        assert!(Parity::new(6, 7, 10, 4, 100).is_err());
        assert!(Parity::new(6, 2, 10, 2, 100).is_err());
        assert!(Parity::new(5, 2, 0, 4, 100).is_err());
        assert!(Parity::new(5, 2, 1, 4, u64::MAX).is_err());
    }
}
