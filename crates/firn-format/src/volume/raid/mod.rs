//! Arrays of disks, as md and LVM lay them out: one engine for both.
//!
//! An [`Array`] reads `linear`, raid0, raid1, raid10 and raid4/5/6 with any members missing. What is gone is read from
//! a copy, or computed from parity, only where the caller knows that copies and parity agree with the data
//! ([`Clean`]); everything else fails with `Unavailable` and the reason.

mod clean;
mod galois;
mod parity;
mod ten;
mod zones;

pub(crate) use clean::Clean;
pub(crate) use parity::Parity;
pub(crate) use ten::Ten;
pub(crate) use zones::{Counting, Linear, Zones};

use firn_disk::{Disk, Error, ErrorKind, Extent, ExtentKind, Result, SharedDisk, check_range};
use parity::Role;

/// Most members of an array; md itself takes fewer.
pub(crate) const MAX_MEMBERS: usize = 1024;
/// Most bytes that are computed from parity at once.
const PIECE: usize = 64 << 10;

/// A byte of an array on one of its members, counted from where the member's part of the array begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) member: usize,
    pub(crate) at: u64,
}

/// How an array lays its bytes out.
#[derive(Debug, Clone)]
pub(crate) enum Geometry {
    Linear(Linear),
    Zones(Zones),
    /// raid1: every member has this many bytes, the same.
    Mirror(u64),
    Ten(Ten),
    Parity(Parity),
}

impl Geometry {
    /// Bytes of the whole array.
    fn capacity(&self) -> u64 {
        match self {
            Self::Linear(linear) => linear.length(),
            Self::Zones(zones) => zones.length(),
            Self::Mirror(length) => *length,
            Self::Ten(ten) => ten.length(),
            Self::Parity(parity) => parity.length(),
        }
    }

    /// What synchronising counts in: the bytes of the array, or of each member where there is parity.
    pub(crate) fn covered(&self, member_bytes: u64) -> u64 {
        if matches!(self, Self::Parity(_)) { member_bytes } else { self.capacity() }
    }
}

/// A member of an array.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// What messages call it: `member 2 (vdc)`.
    pub(crate) name: String,
    /// Its disk, or why it is not read.
    pub(crate) disk: Result<SharedDisk, String>,
    /// Where its part of the array begins on the disk, in bytes.
    pub(crate) start: u64,
    /// Bytes from there on that may be read; more were not rebuilt yet.
    pub(crate) readable: u64,
}

impl Member {
    fn may_read(&self, at: u64, length: u64) -> bool {
        self.disk.is_ok() && check_range(at, length, self.readable).is_ok()
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> Result<()> {
        let unavailable = |what: String| Error::new(ErrorKind::Unavailable, what).at_offset(at);
        let disk = self.disk.as_ref().map_err(|problem| {
            unavailable(format!("{} {problem}", self.name)).hint("name all disks of the array, as a list: a.img,b.img")
        })?;
        if check_range(at, buf.len() as u64, self.readable).is_err() {
            return Err(unavailable(format!("{} is not rebuilt here", self.name)));
        }
        let start = self.start.saturating_add(at);
        if check_range(start, buf.len() as u64, disk.len()).is_err() {
            return Err(unavailable(format!("{} was cut short at {} bytes", self.name, disk.len())));
        }
        disk.read_at(buf, start)
    }
}

/// When copies other than the first in order are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Where all that come before are missing as a whole, as md does; after a failed read only where clean.
    FirstThere,
    /// Only where clean.
    FirstOnly,
}

/// An array as a disk.
#[derive(Debug)]
pub(crate) struct Array {
    geometry: Geometry,
    members: Vec<Member>,
    /// Counted on the members for parity, on the array for copies.
    clean: Clean,
    trust: Trust,
    length: u64,
    block_size: u32,
}

impl Array {
    /// The first `length` bytes of an array; all of them when `length` is `None`.
    ///
    /// # Errors
    /// `Corrupt` when `members` are not as many as the geometry has, or `length` is more than it has.
    pub(crate) fn new(
        geometry: Geometry,
        members: Vec<Member>,
        clean: Clean,
        trust: Trust,
        length: Option<u64>,
    ) -> Result<Self> {
        let capacity = geometry.capacity();
        let length = length.unwrap_or(capacity);
        if length > capacity || length > i64::MAX.cast_unsigned() || members.len() > MAX_MEMBERS {
            return Err(Error::corrupt(format!("it has {length} bytes, and its members have room for {capacity}")));
        }
        let sizes = members.iter().filter_map(|member| member.disk.as_ref().ok());
        let block_size = sizes.map(|disk| disk.logical_block_size()).max().unwrap_or(512);
        Ok(Self { geometry, members, clean, trust, length, block_size })
    }

    /// The places of all copies of a byte and how many bytes are left there; the stripe where there is parity.
    fn locate(&self, offset: u64) -> Result<(Vec<Place>, Option<u64>, u64)> {
        let found = match &self.geometry {
            Geometry::Linear(linear) => linear.locate(offset).map(|(place, left)| (vec![place], None, left)),
            Geometry::Zones(zones) => zones.locate(offset).map(|(place, left)| (vec![place], None, left)),
            Geometry::Mirror(length) => {
                let places = (0..self.members.len()).map(|member| Place { member, at: offset }).collect();
                Some((places, None, length.saturating_sub(offset)))
            }
            Geometry::Ten(ten) => ten.locate(offset).map(|(places, left)| (places, None, left)),
            Geometry::Parity(parity) => {
                parity.locate(offset).map(|(place, stripe, left)| (vec![place], Some(stripe), left))
            }
        };
        found.ok_or_else(|| Error::corrupt("the array has no place for this byte").at_offset(offset))
    }

    fn member(&self, at: usize) -> Result<&Member> {
        self.members.get(at).ok_or_else(|| Error::corrupt(format!("the array has no member {at}")))
    }

    /// Reads from the first copy that may be read.
    fn read_copies(&self, buf: &mut [u8], offset: u64, places: &[Place]) -> Result<()> {
        let is_clean = self.clean.covers(&(offset..offset.saturating_add(buf.len() as u64)));
        let mut failure: Option<Error> = None;
        let mut is_first = true;
        for place in places {
            let member = self.member(place.member)?;
            if is_first || is_clean {
                match member.read_at(buf, place.at) {
                    Ok(()) => return Ok(()),
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
            is_first &= self.trust == Trust::FirstThere && !member.may_read(place.at, buf.len() as u64);
        }
        let failure = failure.unwrap_or_else(|| Error::corrupt("the array has no members").at_offset(offset));
        if is_clean || places.len() < 2 {
            return Err(failure);
        }
        Err(failure.context("the other copies are not known to be in sync here"))
    }

    /// Reads a piece of one chunk, computing it when its own member cannot be read.
    fn read_parity(&self, parity: &Parity, buf: &mut [u8], place: Place, stripe: u64) -> Result<()> {
        let Err(own) = self.member(place.member)?.read_at(buf, place.at) else { return Ok(()) };
        if !self.clean.covers(&(place.at..place.at.saturating_add(buf.len() as u64))) {
            return Err(own.context("parity is not known to be in sync here"));
        }
        for (number, piece) in buf.chunks_mut(PIECE).enumerate() {
            let at = place.at.saturating_add((number * PIECE) as u64);
            self.compute(parity, piece, Place { at, ..place }, stripe).map_err(|error| error.context(&own))?;
        }
        Ok(())
    }

    /// Computes what `place` holds from all other members.
    fn compute(&self, parity: &Parity, buf: &mut [u8], place: Place, stripe: u64) -> Result<()> {
        let roles = parity.roles(stripe).filter(|roles| roles.len() == self.members.len());
        let roles = roles.ok_or_else(|| Error::corrupt("the array's members are not as many as it says"))?;
        let Some(Role::Data(wanted)) = roles.get(place.member).copied() else {
            return Err(Error::corrupt("the array's layout contradicts itself"));
        };
        // The sums over the data that is there, for P and for Q; and the one chunk that is missing beside the wanted.
        let (mut p, mut q) = (vec![0; buf.len()], vec![0; buf.len()]);
        let (mut other, mut p_member, mut q_member) = (None, None, None);
        for (at, (role, member)) in roles.iter().zip(&self.members).enumerate() {
            match role {
                Role::P => p_member = Some(member),
                Role::Q => q_member = Some(member),
                Role::Data(_) if at == place.member => {}
                Role::Data(exponent) => match member.read_at(buf, place.at) {
                    Ok(()) => {
                        galois::add(&mut p, buf);
                        if parity.parities == 2 {
                            galois::add_multiple(&mut q, buf, galois::power(*exponent));
                        }
                    }
                    Err(error) if other.is_some() || parity.parities == 1 => return Err(error),
                    Err(error) => other = Some((*exponent, error)),
                },
            }
        }
        let add_parity = |sum: &mut Vec<u8>, member: Option<&Member>, buf: &mut [u8]| {
            let member = member.ok_or_else(|| Error::corrupt("the array's layout has no parity"))?;
            member.read_at(buf, place.at)?;
            galois::add(sum, buf);
            Ok(())
        };
        match (other, add_parity(&mut p, p_member, buf)) {
            (None, Ok(())) => buf.copy_from_slice(&p),
            (None, Err(error)) if parity.parities == 1 => return Err(error),
            // wanted * g^i = q
            (None, Err(_)) => {
                add_parity(&mut q, q_member, buf)?;
                galois::scale(&mut q, galois::inverse(galois::power(wanted)));
                buf.copy_from_slice(&q);
            }
            (Some((_, error)), Err(_)) => return Err(error),
            // wanted + other = p, and wanted * g^i + other * g^j = q
            (Some((exponent, error)), Ok(())) => {
                add_parity(&mut q, q_member, buf).map_err(|_| error)?;
                let (own, other) = (galois::power(wanted), galois::power(exponent));
                galois::add_multiple(&mut q, &p, other);
                galois::scale(&mut q, galois::inverse(own ^ other));
                buf.copy_from_slice(&q);
            }
        }
        Ok(())
    }
}

impl Disk for Array {
    fn len(&self) -> u64 {
        self.length
    }

    fn logical_block_size(&self) -> u32 {
        self.block_size
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.length)?;
        while !buf.is_empty() {
            let (places, stripe, left) = self.locate(offset)?;
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            if count == 0 {
                return Err(Error::corrupt("the array has no place for this byte").at_offset(offset));
            }
            let (now, later) = buf.split_at_mut(count);
            match (&self.geometry, stripe, places.first()) {
                (Geometry::Parity(parity), Some(stripe), Some(place)) => {
                    self.read_parity(parity, now, *place, stripe)?;
                }
                _ => self.read_copies(now, offset, &places)?,
            }
            buf = later;
            offset = offset.saturating_add(count as u64);
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.length)?;
        let (places, _, left) = self.locate(offset)?;
        let left = left.min(self.length - offset).max(1);
        let unknown = Extent { kind: ExtentKind::Data, length: left };
        let Some(place) = places.first() else { return Ok(unknown) };
        let member = self.member(place.member)?;
        // Only of what would be read from here anything is known.
        let (true, Ok(disk)) = (member.may_read(place.at, left), &member.disk) else { return Ok(unknown) };
        match disk.extent_at(member.start.saturating_add(place.at)) {
            Ok(extent) => Ok(Extent { length: extent.length.min(left), ..extent }),
            Err(_) => Ok(unknown),
        }
    }
}

#[cfg(test)]
mod tests;
