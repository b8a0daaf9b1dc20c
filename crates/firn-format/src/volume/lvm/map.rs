//! From the segments of a logical volume to a disk.
//!
//! Volumes are made of others (a raid1 of its legs, all of pvmove's), so mapping goes down by name, to a
//! bounded depth, each volume once.

use super::copies::{Copies, read_mirror_log};
use super::group::VolumeGroup;
use super::metadata::{Kind, Logical, Place, Segment};
use super::snapshot::Snapshot;
use super::thin::Pool;
use super::{raid, raid1, state};
use crate::volume::raid::Clean;
use firn_disk::{Disk, Error, ErrorKind, Extent, ExtentKind, Result, SharedDisk, check_range};
use std::sync::{Arc, PoisonError};

/// Deepest nesting of volumes; LVM2's own deepest stacks have five.
const MAX_DEPTH: usize = 16;

/// Most notes that are kept of one volume.
const MAX_NOTES: usize = 32;

/// A volume that was mapped, with what was found out about it.
#[derive(Debug, Clone)]
pub(super) struct Mapped {
    pub(super) disk: SharedDisk,
    pub(super) notes: Vec<String>,
    /// How many volumes lie below it, one on the other: how deep a read goes.
    height: usize,
}

/// A thin pool, opened, with what was found out about it.
#[derive(Debug, Clone)]
pub(super) struct OpenPool {
    pool: Arc<Pool>,
    notes: Vec<String>,
    height: usize,
}

/// Maps one volume of a group.
pub(super) struct Mapper<'a> {
    group: &'a VolumeGroup,
    notes: Vec<String>,
    height: usize,
}

impl<'a> Mapper<'a> {
    pub(super) fn new(group: &'a VolumeGroup) -> Self {
        Self { group, notes: Vec::new(), height: 0 }
    }

    fn note(&mut self, note: String) {
        if self.notes.len() < MAX_NOTES && !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Maps `volume`, which is a part of others to `depth`.
    pub(super) fn volume(mut self, volume: &'a Logical, depth: usize) -> Result<Mapped> {
        // Never locked while mapping goes on: two threads may map one volume twice, none waits for itself.
        let known = |group: &VolumeGroup| {
            group.mapped.lock().unwrap_or_else(PoisonError::into_inner).get(&volume.name).cloned()
        };
        if let Some(mapped) = known(self.group) {
            return Ok(mapped);
        }
        let too_deep = || Error::corrupt(format!("volumes are nested too deeply, or in a circle, at {}", volume.name));
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        let extent = self.group.extent_bytes();
        let mut pieces = Vec::with_capacity(volume.segments.len());
        for segment in &volume.segments {
            // None of it overflows: the volume's whole length was checked when its metadata was parsed.
            let start = segment.first.saturating_mul(extent);
            let length = segment.count.saturating_mul(extent);
            let map = self.segment(volume, segment, length, depth)?;
            pieces.push(Piece { start, end: start.saturating_add(length), map });
        }
        // What lies below may have been mapped before, so that the way down to it was shorter than it is.
        if self.height > MAX_DEPTH {
            return Err(too_deep());
        }
        let mapped = Mapped { disk: Arc::new(Volume::new(pieces)), notes: self.notes, height: self.height };
        let mut all = self.group.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(volume.name.clone(), mapped.clone());
        Ok(mapped)
    }

    /// Maps another volume that this one is made of.
    fn part(&mut self, volume: &'a Logical, depth: usize) -> Result<SharedDisk> {
        let mapped = Mapper::new(self.group).volume(volume, depth + 1)?;
        self.height = self.height.max(mapped.height + 1);
        for note in mapped.notes {
            self.note(note);
        }
        Ok(mapped.disk)
    }

    /// Maps the snapshot of `length` bytes of `origin` that the volume `store` keeps.
    pub(super) fn snapshot(mut self, store: &'a Logical, origin: &str, length: u64) -> Result<Mapped> {
        let missing = || Error::corrupt(format!("the origin {} does not exist", origin.escape_debug()));
        let origin = self.part(self.group.find(origin).ok_or_else(missing)?, 0)?;
        let store = self.part(store, 0)?;
        let disk = Arc::new(Snapshot::open(origin, store, length)?);
        Ok(Mapped { disk, notes: self.notes, height: self.height })
    }

    /// A device of a thin pool.
    fn thin(&mut self, volume: &Logical, pool: &str, device: u64, origin: Option<&str>, depth: usize) -> Result<Map> {
        let missing =
            |what: &str, name: &str| Error::corrupt(format!("the {what} {} does not exist", name.escape_debug()));
        let OpenPool { pool, notes, height } = self.pool(pool, depth)?;
        self.height = self.height.max(height + 1);
        for note in notes {
            self.note(note);
        }
        let origin = match origin {
            Some(name) => {
                let origin = self.group.find(name).ok_or_else(|| missing("external origin", name))?;
                Some(self.part(origin, depth)?)
            }
            None => None,
        };
        // A thin volume has one segment; another one would begin anew on the device.
        if volume.segments.len() != 1 {
            return Err(Error::corrupt("a thin volume has more than one segment"));
        }
        let length = volume.extents.saturating_mul(self.group.extent_bytes());
        Ok(Map::Linear { disk: Arc::new(pool.volume(device, length, origin)?), at: 0 })
    }

    /// The thin pool `name`, opened once.
    fn pool(&mut self, name: &str, depth: usize) -> Result<OpenPool> {
        let group = self.group;
        let known = group.pools.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if let Some(pool) = known {
            return Ok(pool);
        }
        let missing = |name: &str| Error::corrupt(format!("the thin pool {} does not exist", name.escape_debug()));
        let volume = group.find(name).ok_or_else(|| missing(name))?;
        let [Segment { kind: Kind::ThinPool { metadata, data, block_bytes, transaction }, .. }] =
            volume.segments.as_slice()
        else {
            return Err(Error::corrupt(format!("{name} is no thin pool")));
        };
        let mut mapper = Mapper::new(group);
        let metadata = mapper.part(group.find(metadata).ok_or_else(|| missing(metadata))?, depth + 1)?;
        let data = mapper.part(group.find(data).ok_or_else(|| missing(data))?, depth + 1)?;
        let pool = Arc::new(Pool::open(metadata, data, *block_bytes)?);
        if pool.transaction != *transaction {
            mapper.note(format!("the pool {name} is at transaction {}, LVM at {transaction}", pool.transaction));
        }
        if pool.needs_check {
            mapper.note(format!("the kernel asked for a check of the metadata of the pool {name}"));
        }
        let open = OpenPool { pool, notes: mapper.notes, height: mapper.height };
        group.pools.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), open.clone());
        Ok(open)
    }

    fn segment(&mut self, volume: &Logical, segment: &'a Segment, length: u64, depth: usize) -> Result<Map> {
        match &segment.kind {
            Kind::Striped { stripe_bytes, stripes } => {
                // The count of extents is a multiple of the count of stripes.
                let each = length / stripes.len().max(1) as u64;
                let mut places =
                    stripes.iter().map(|place| self.place(place, each, depth)).collect::<Result<Vec<_>>>()?;
                match places.pop() {
                    Some((disk, at)) if places.is_empty() => Ok(Map::Linear { disk, at }),
                    Some(last) => {
                        places.push(last);
                        Ok(Map::Striped { stripe_bytes: *stripe_bytes, stripes: places })
                    }
                    None => Err(Error::corrupt("a segment has no stripes")),
                }
            }
            Kind::Mirror { region_bytes, log, moved, legs } => {
                let mut copies =
                    legs.iter().map(|place| self.place(place, length, depth)).collect::<Result<Vec<_>>>()?;
                match moved {
                    // LVM2 reads from where a finished pvmove went to, and until then from where it began.
                    Some(moved) if *moved == segment.count && copies.len() > 1 => copies = copies.drain(1..2).collect(),
                    Some(_) => copies.truncate(1),
                    None => {}
                }
                let mut copies = copies.into_iter();
                let primary = copies.next();
                let clean = self.mirror_log(log.as_deref(), *region_bytes, length, depth)?;
                Ok(Map::Copies(Copies { primary, others: copies.collect(), clean }))
            }
            Kind::Raid1 { legs } => self.raid1(volume, legs, length, depth),
            Kind::Raid0 { stripe_bytes, legs } => {
                let each = length / legs.len().max(1) as u64;
                let place = |(_, data): &(_, String)| Place { volume: data.clone(), extent: 0 };
                let stripes = legs.iter().map(|leg| self.place(&place(leg), each, depth)).collect::<Result<_>>()?;
                Ok(Map::Striped { stripe_bytes: *stripe_bytes, stripes })
            }
            Kind::Raid { shape, stripe_bytes, legs, .. } => {
                self.raid(volume, *shape, *stripe_bytes, legs, length, depth)
            }
            Kind::Zero => Ok(Map::Zero),
            Kind::Error => Ok(Map::Fail("the volume is made to fail here (segment type error)")),
            Kind::Thin { pool, device, origin, .. } => self.thin(volume, pool, *device, origin.as_deref(), depth),
            kind @ (Kind::Snapshot { .. } | Kind::ThinPool { .. } | Kind::Other(_)) => {
                Err(Error::unsupported(format!("segment type {} of {} is not built yet", kind.name(), volume.name)))
            }
        }
    }

    /// Where the copies of a mirror other than the first may be read. Without a log that is nowhere.
    fn mirror_log(&mut self, log: Option<&str>, region_bytes: u64, length: u64, depth: usize) -> Result<Clean> {
        let Some(name) = log else { return Ok(Clean::Below(0)) };
        let Some(volume) = self.group.find(name) else {
            return Err(Error::corrupt(format!("the log {} does not exist", name.escape_debug())));
        };
        let disk = self.part(volume, depth)?;
        match read_mirror_log(&disk, region_bytes, length) {
            Ok(clean) => Ok(clean),
            Err(error) => {
                self.note(format!("only the first copy is read: the log {name} cannot be: {error}"));
                Ok(Clean::Below(0))
            }
        }
    }

    fn raid1(
        &mut self,
        volume: &Logical,
        legs: &'a [(Option<String>, String)],
        length: u64,
        depth: usize,
    ) -> Result<Map> {
        let (mut disks, mut states) = (Vec::new(), Vec::new());
        let (mut rebuilding, mut late) = (Vec::new(), Vec::new());
        for (at, (state, data)) in legs.iter().enumerate() {
            let place = |volume: &str| Place { volume: volume.to_owned(), extent: 0 };
            disks.push(self.place(&place(data), length, depth)?);
            states.push(match state {
                None => state::State::Absent,
                Some(state) => {
                    let (disk, _) = self.place(&place(state), 1, depth)?;
                    state::read(&disk, 1, None)?
                }
            });
            let has = |flag| self.group.find(data).is_some_and(|volume| volume.has(flag));
            if has("REBUILD") {
                rebuilding.push(at);
            }
            if has("WRITEMOSTLY") {
                late.push(at);
            }
        }
        let mut choice = raid1::choose(&states, &rebuilding);
        if choice.primary.is_none() && choice.others.is_empty() {
            return Err(raid1::nothing_to_read(&choice.notes));
        }
        for note in choice.notes.drain(..) {
            self.note(format!("{}: {note}", volume.name));
        }
        // A copy that is written late is read when no other is left.
        choice.others.sort_by_key(|at| late.contains(at));
        if let (Some(primary), Some(first)) = (choice.primary, choice.others.first().copied())
            && late.contains(&primary)
            && !late.contains(&first)
            && choice.synchronised == u64::MAX
        {
            choice.primary = Some(first);
            choice.others.remove(0);
            choice.others.push(primary);
        }
        let disk = |at: usize| disks.get(at).cloned();
        Ok(Map::Copies(Copies {
            primary: choice.primary.and_then(disk),
            others: choice.others.into_iter().filter_map(disk).collect(),
            clean: Clean::Below(choice.synchronised),
        }))
    }

    /// An array with parity or striped copies.
    fn raid(
        &mut self,
        volume: &Logical,
        shape: raid::Shape,
        stripe_bytes: u64,
        legs: &'a [(Option<String>, String)],
        length: u64,
        depth: usize,
    ) -> Result<Map> {
        let each = shape.member_bytes(length, legs.len()).filter(|each| *each > 0);
        let each = each.ok_or_else(|| Error::corrupt(format!("{} members are too few", legs.len())))?;
        let mut members = Vec::with_capacity(legs.len());
        for (state, data) in legs {
            let place = |volume: &str| Place { volume: volume.to_owned(), extent: 0 };
            let state = state.as_ref().map(|state| self.place(&place(state), 1, depth)).transpose()?;
            members.push(raid::Leg {
                name: data.clone(),
                data: self.place(&place(data), each, depth)?,
                state: state.map(|(disk, _)| disk),
                is_rebuilding: self.group.find(data).is_some_and(|volume| volume.has("REBUILD")),
            });
        }
        let (array, notes) = raid::open(shape, stripe_bytes, length, members)?;
        for note in notes {
            self.note(format!("{}: {note}", volume.name));
        }
        Ok(Map::Linear { disk: Arc::new(array), at: 0 })
    }

    /// The disk of a physical or logical volume, and where on it `length` bytes from the place's extent on are.
    fn place(&mut self, place: &Place, length: u64, depth: usize) -> Result<(SharedDisk, u64)> {
        let group = self.group;
        let at = place.extent.checked_mul(group.extent_bytes());
        let (disk, end) = if let Some((known, member)) = group.find_physical(&place.volume) {
            let disk: SharedDisk = match (&member.disk, &member.problem) {
                (Some(disk), None) => Arc::new(Extents {
                    disk: disk.clone(),
                    start: known.start,
                    length: known.length,
                    uuid: known.uuid.clone(),
                }),
                (_, problem) => {
                    let problem = problem.clone().unwrap_or_else(|| format!("{} cannot be read", known.uuid));
                    self.note(problem.clone());
                    Arc::new(Missing { length: known.length, block_size: 512, problem })
                }
            };
            (disk, known.length)
        } else if let Some(volume) = group.find(&place.volume) {
            let disk = self.part(volume, depth)?;
            let end = disk.len();
            (disk, end)
        } else {
            return Err(Error::corrupt(format!(
                "a segment lies on {}, which does not exist",
                place.volume.escape_debug()
            )));
        };
        match at.filter(|at| check_range(*at, length, end).is_ok()) {
            Some(at) => Ok((disk, at)),
            None => Err(Error::corrupt(format!(
                "a segment lies at extent {} of {}, which is too short for it",
                place.extent,
                place.volume.escape_debug()
            ))),
        }
    }
}

/// The extents of a physical volume.
#[derive(Debug)]
struct Extents {
    disk: SharedDisk,
    start: u64,
    length: u64,
    uuid: String,
}

impl Extents {
    /// Where `offset` is on the disk, when `length` bytes are there at all.
    fn on_disk(&self, offset: u64, length: u64) -> Result<u64> {
        check_range(offset, length, self.length)?;
        let at = self.start.saturating_add(offset);
        check_range(at, length, self.disk.len()).map_err(|_| {
            let what = format!("the disk of physical volume {} was cut short at {} bytes", self.uuid, self.disk.len());
            Error::new(ErrorKind::Unavailable, what).at_offset(at)
        })?;
        Ok(at)
    }
}

impl Disk for Extents {
    fn len(&self) -> u64 {
        self.length
    }

    fn logical_block_size(&self) -> u32 {
        self.disk.logical_block_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let at = self.on_disk(offset, buf.len() as u64)?;
        if buf.is_empty() { Ok(()) } else { self.disk.read_at(buf, at) }
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let left = self.length.saturating_sub(offset);
        match self.on_disk(offset, 1) {
            Err(error) if error.kind() == ErrorKind::OutOfBounds => Err(error),
            // Reading it will say why it cannot be had.
            Err(_) => Ok(Extent { kind: ExtentKind::Data, length: left }),
            Ok(at) => {
                let extent = self.disk.extent_at(at)?;
                Ok(Extent { length: extent.length.min(left), ..extent })
            }
        }
    }
}

/// The extents of a physical volume that cannot be read.
#[derive(Debug)]
struct Missing {
    length: u64,
    block_size: u32,
    problem: String,
}

impl Disk for Missing {
    fn len(&self) -> u64 {
        self.length
    }

    fn logical_block_size(&self) -> u32 {
        self.block_size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.length)?;
        if buf.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unavailable, &self.problem)
            .at_offset(offset)
            .hint("name the missing disk too, as a list: first.img,second.img"))
    }
}

/// How a piece of a volume is read. Offsets are counted from the piece's start.
#[derive(Debug)]
enum Map {
    Linear { disk: SharedDisk, at: u64 },
    Striped { stripe_bytes: u64, stripes: Vec<(SharedDisk, u64)> },
    Copies(Copies),
    Zero,
    Fail(&'static str),
}

/// Where an offset of a striped piece lies, and how many bytes of its chunk are left there.
fn stripe_at(stripe_bytes: u64, stripes: &[(SharedDisk, u64)], offset: u64) -> Option<(&SharedDisk, u64, u64)> {
    let chunk = offset.checked_div(stripe_bytes)?;
    let count = stripes.len() as u64;
    let (disk, at) = stripes.get(usize::try_from(chunk.checked_rem(count)?).ok()?)?;
    let within = offset % stripe_bytes;
    let on_stripe = (chunk / count).saturating_mul(stripe_bytes).saturating_add(within);
    Some((disk, at.saturating_add(on_stripe), stripe_bytes - within))
}

impl Map {
    fn block_size(&self) -> u32 {
        let largest = |copies: &mut dyn Iterator<Item = &(SharedDisk, u64)>| {
            copies.map(|(disk, _)| disk.logical_block_size()).max()
        };
        let size = match self {
            Self::Linear { disk, .. } => Some(disk.logical_block_size()),
            Self::Striped { stripes, .. } => largest(&mut stripes.iter()),
            Self::Copies(copies) => largest(&mut copies.primary.iter().chain(&copies.others)),
            Self::Zero | Self::Fail(_) => None,
        };
        size.unwrap_or(512)
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        match self {
            Self::Linear { disk, at } => disk.read_at(buf, at.saturating_add(offset)),
            Self::Copies(copies) => copies.read_at(buf, offset),
            Self::Zero => {
                buf.fill(0);
                Ok(())
            }
            Self::Fail(why) => Err(Error::new(ErrorKind::Unavailable, *why).at_offset(offset)),
            Self::Striped { stripe_bytes, stripes } => {
                while !buf.is_empty() {
                    let (disk, at, left) = stripe_at(*stripe_bytes, stripes, offset)
                        .ok_or_else(|| Error::corrupt("a striped segment has no stripes"))?;
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
                    let (now, later) = buf.split_at_mut(count);
                    disk.read_at(now, at)?;
                    buf = later;
                    offset = offset.saturating_add(count as u64);
                }
                Ok(())
            }
        }
    }

    /// `None` when nothing is known.
    fn extent_at(&self, offset: u64) -> Result<Option<Extent>> {
        match self {
            Self::Linear { disk, at } => disk.extent_at(at.saturating_add(offset)).map(Some),
            Self::Copies(copies) => Ok(copies.extent_at(offset)),
            Self::Zero => Ok(Some(Extent { kind: ExtentKind::Hole, length: u64::MAX })),
            Self::Fail(_) => Ok(None),
            Self::Striped { stripe_bytes, stripes } => match stripe_at(*stripe_bytes, stripes, offset) {
                None => Ok(None),
                Some((disk, at, left)) => {
                    let extent = disk.extent_at(at)?;
                    Ok(Some(Extent { length: extent.length.min(left), ..extent }))
                }
            },
        }
    }
}

#[derive(Debug)]
struct Piece {
    start: u64,
    end: u64,
    map: Map,
}

/// A logical volume: pieces that meet, from offset 0 on.
#[derive(Debug)]
struct Volume {
    pieces: Vec<Piece>,
    block_size: u32,
}

impl Volume {
    fn new(pieces: Vec<Piece>) -> Self {
        let block_size = pieces.iter().map(|piece| piece.map.block_size()).max().unwrap_or(512);
        Self { pieces, block_size }
    }

    /// The piece that holds `offset`, which is below the end.
    fn piece_at(&self, offset: u64) -> Result<&Piece> {
        let index = self.pieces.partition_point(|piece| piece.end <= offset);
        self.pieces.get(index).ok_or_else(|| Error::out_of_bounds(offset, 1, self.len()))
    }
}

impl Disk for Volume {
    fn len(&self) -> u64 {
        self.pieces.last().map_or(0, |piece| piece.end)
    }

    fn logical_block_size(&self) -> u32 {
        self.block_size
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        while !buf.is_empty() {
            let piece = self.piece_at(offset)?;
            let count = usize::try_from(piece.end - offset).unwrap_or(usize::MAX).min(buf.len());
            let (now, later) = buf.split_at_mut(count);
            piece.map.read_at(now, offset - piece.start)?;
            buf = later;
            offset += count as u64;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len())?;
        let piece = self.piece_at(offset)?;
        let left = piece.end - offset;
        let extent = piece.map.extent_at(offset - piece.start)?;
        let extent = extent.unwrap_or(Extent { kind: ExtentKind::Data, length: left });
        Ok(Extent { length: extent.length.min(left), ..extent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firn_disk::{MemDisk, testing};

    fn disk(length: usize, seed: u64) -> (Vec<u8>, SharedDisk) {
        let bytes = testing::pattern(length, seed);
        (bytes.clone(), Arc::new(MemDisk::from(bytes)))
    }

    #[test]
    fn linear_striped_copied_and_zero_pieces_conform() {
        let (a_bytes, a) = disk(3000, 1);
        let (b_bytes, b) = disk(3000, 2);
        let missing: SharedDisk = Arc::new(Missing { length: 3000, block_size: 512, problem: "gone".into() });
        let copies =
            Copies { primary: Some((missing, 0)), others: vec![(b.clone(), 70)], clean: Clean::Below(u64::MAX) };
        let pieces = vec![
            Piece { start: 0, end: 500, map: Map::Linear { disk: a.clone(), at: 100 } },
            Piece { start: 500, end: 900, map: Map::Zero },
            Piece { start: 900, end: 2900, map: Map::Striped { stripe_bytes: 100, stripes: vec![(a, 1000), (b, 7)] } },
            Piece { start: 2900, end: 3900, map: Map::Copies(copies) },
        ];
        let mut expected = a_bytes[100..600].to_vec();
        expected.resize(900, 0);
        for chunk in 0..10 {
            expected.extend_from_slice(&a_bytes[1000 + chunk * 100..1100 + chunk * 100]);
            expected.extend_from_slice(&b_bytes[7 + chunk * 100..107 + chunk * 100]);
        }
        expected.extend_from_slice(&b_bytes[70..1070]);
        testing::check_disk(&Volume::new(pieces), &expected, 3);
    }

    #[test]
    fn a_physical_volume_that_was_cut_short_fails_where_it_was_cut() {
        let (bytes, below) = disk(2000, 5);
        let extents = Extents { disk: below, start: 500, length: 2000, uuid: "u".into() };
        let mut buf = vec![0; 1500];
        extents.read_at(&mut buf, 0).unwrap();
        assert_eq!(buf, bytes[500..]);
        assert_eq!(extents.read_at(&mut [0; 2], 1499).unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(extents.read_at(&mut [0; 2], 1999).unwrap_err().kind(), ErrorKind::OutOfBounds);
        assert_eq!(extents.extent_at(1999).unwrap().length, 1);
        assert_eq!(extents.extent_at(2000).unwrap_err().kind(), ErrorKind::OutOfBounds);
    }
}
