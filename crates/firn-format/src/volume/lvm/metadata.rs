//! What the text says: groups, their physical and logical volumes, and the segments of those.
//!
//! Nothing is looked up here; that names exist and lengths fit is checked when a volume is opened.

use super::raid::Shape;
use super::text::{Section, Value};
use firn_disk::{Error, Result};

/// Bytes in the sectors that LVM2 counts in.
pub(super) const SECTOR: u64 = 512;
/// Most segments of one logical volume.
const MAX_SEGMENTS: usize = 1 << 16;
/// Most areas (stripes, legs) of one segment.
const MAX_AREAS: usize = 1024;

/// A volume group as one copy of its metadata describes it.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) sequence: u64,
    pub(super) flags: Vec<String>,
    /// Bytes of an extent.
    pub(super) extent_bytes: u64,
    pub(super) physical: Vec<Physical>,
    pub(super) logical: Vec<Logical>,
    /// The section itself, to compare copies.
    pub(super) section: Section,
}

/// A physical volume as the group knows it.
#[derive(Debug, Clone)]
pub(super) struct Physical {
    /// What segments call it: `pv0`.
    pub(super) key: String,
    pub(super) uuid: String,
    /// The device's name when it was last seen, for messages only.
    pub(super) device: Option<String>,
    /// Where its first extent begins, in bytes.
    pub(super) start: u64,
    /// Bytes of all its extents.
    pub(super) length: u64,
    /// Whether the group went on without it, so that its data is old.
    pub(super) is_missing: bool,
}

/// A logical volume.
#[derive(Debug, Clone)]
pub(super) struct Logical {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) flags: Vec<String>,
    pub(super) segments: Vec<Segment>,
    pub(super) extents: u64,
}

impl Logical {
    pub(super) fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|own| own == flag)
    }
}

/// A run of extents of a logical volume.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) kind: Kind,
}

/// Where a stripe or leg is: a physical or logical volume by its name, from an extent on.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) volume: String,
    pub(super) extent: u64,
}

/// How a segment maps.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// Stripes in turn; with one stripe, linear.
    Striped { stripe_bytes: u64, stripes: Vec<Place> },
    /// Copies with an optional log volume. `moved` is how much of a pvmove is done, in extents.
    Mirror { region_bytes: u64, log: Option<String>, moved: Option<u64>, legs: Vec<Place> },
    /// Copies, each with a volume for its state where there is one.
    Raid1 { legs: Vec<(Option<String>, String)> },
    /// Chunks in stripes over data volumes alone; each may have one for its state, which is not needed.
    Raid0 { stripe_bytes: u64, legs: Vec<(Option<String>, String)> },
    /// Stripes with parity, or with copies, by the name of the segment type.
    Raid { name: String, shape: Shape, stripe_bytes: u64, legs: Vec<(Option<String>, String)> },
    /// Zeros.
    Zero,
    /// Fails by intention.
    Error,
    /// The pool that thin volumes are in: its metadata and data volumes, and how often LVM2 changed it.
    ThinPool { metadata: String, data: String, block_bytes: u64, transaction: u64 },
    /// A device of a pool. What it does not map is that of `origin`, when it has an external one.
    Thin { pool: String, device: u64, origin: Option<String>, merging_into: Option<String> },
    /// Not a mapping of its own: says that `store` holds what `origin` was before it changed. While it merges,
    /// the origin reads as a mix of both.
    Snapshot { origin: String, store: String, is_merging: bool },
    /// The others, by name.
    Other(String),
}

impl Kind {
    /// As LVM2 calls it for people: `linear`, `raid1`.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Striped { stripes, .. } if stripes.len() == 1 => "linear",
            Self::Striped { .. } => "striped",
            Self::Mirror { .. } => "mirror",
            Self::Raid1 { .. } => "raid1",
            Self::Raid0 { .. } => "raid0",
            Self::Raid { name, .. } => name,
            Self::ThinPool { .. } => "thin-pool",
            Self::Thin { .. } => "thin",
            Self::Zero => "zero",
            Self::Error => "error",
            Self::Snapshot { .. } => "snapshot",
            Self::Other(name) => name,
        }
    }
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::corrupt(message).in_structure("LVM metadata text")
}

impl Group {
    /// Reads a whole text.
    ///
    /// # Errors
    /// `Corrupt` when something that belongs there is missing or makes no sense.
    pub(super) fn parse(text: &Section) -> Result<Self> {
        if text.text("contents") != Some("Text Format Volume Group") || text.number("version")? != Some(1) {
            return Err(corrupt("it does not say that it is a volume group of version 1"));
        }
        let (name, section) = text.sections().next().ok_or_else(|| corrupt("it describes no volume group"))?;
        check_name(name)?;
        let in_group = |error: Error| error.context(format_args!("volume group {name}"));
        let extent_bytes = section.require("extent_size").map_err(in_group)?.saturating_mul(SECTOR);
        if extent_bytes == 0 || extent_bytes > 1 << 50 {
            return Err(in_group(corrupt(format!("extents of {extent_bytes} bytes are not possible"))));
        }
        let list = |name| section.section(name).into_iter().flat_map(Section::sections);
        Ok(Self {
            name: name.to_owned(),
            uuid: require_uuid(section).map_err(in_group)?,
            sequence: section.require("seqno").map_err(in_group)?,
            flags: flags(section),
            extent_bytes,
            physical: list("physical_volumes")
                .map(|(key, section)| Physical::parse(key, section, extent_bytes).map_err(in_group))
                .collect::<Result<_>>()?,
            logical: list("logical_volumes")
                .map(|(name, section)| {
                    Logical::parse(name, section, extent_bytes)
                        .map_err(|error| in_group(error.context(format_args!("logical volume {name}"))))
                })
                .collect::<Result<_>>()?,
            section: section.clone(),
        })
    }
}

fn flags(section: &Section) -> Vec<String> {
    ["status", "flags"].iter().flat_map(|name| section.texts(name)).map(str::to_owned).collect()
}

/// LVM2's names of groups, volumes and segment types have these characters only, so that they can be shown as
/// they are.
fn check_name(name: &str) -> Result<()> {
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte));
    if is_name { Ok(()) } else { Err(corrupt(format!("{name:?} is not a name"))) }
}

fn require_uuid(section: &Section) -> Result<String> {
    let id = section.text("id").ok_or_else(|| corrupt("its id is missing"))?;
    let is_uuid = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-!#".contains(&byte));
    if is_uuid { Ok(id.to_owned()) } else { Err(corrupt(format!("its id {id:?} is not a UUID"))) }
}

impl Physical {
    fn parse(key: &str, section: &Section, extent_bytes: u64) -> Result<Self> {
        let overflow = || corrupt(format!("the size of {key} overflows"));
        Ok(Self {
            key: key.to_owned(),
            uuid: require_uuid(section)?,
            device: section.text("device").map(str::to_owned),
            start: section.require("pe_start")?.checked_mul(SECTOR).ok_or_else(overflow)?,
            length: section.require("pe_count")?.checked_mul(extent_bytes).ok_or_else(overflow)?,
            is_missing: flags(section).iter().any(|flag| flag == "MISSING"),
        })
    }
}

impl Logical {
    fn parse(name: &str, section: &Section, extent_bytes: u64) -> Result<Self> {
        check_name(name)?;
        let mut segments =
            section.sections().map(|(_, section)| Segment::parse(section)).collect::<Result<Vec<_>>>()?;
        if segments.len() > MAX_SEGMENTS || section.number("segment_count")? != Some(segments.len() as u64) {
            return Err(corrupt(format!("it has {} segments, which is not what it says", segments.len())));
        }
        segments.sort_by_key(|segment| segment.first);
        let mut extents = 0_u64;
        for segment in &segments {
            if segment.first != extents {
                return Err(corrupt(format!("its segments do not meet at extent {extents}")));
            }
            extents = extents.checked_add(segment.count).ok_or_else(|| corrupt("its size overflows"))?;
        }
        if extents.checked_mul(extent_bytes).is_none_or(|bytes| bytes > i64::MAX.cast_unsigned()) {
            return Err(corrupt("its size overflows"));
        }
        Ok(Self { name: name.to_owned(), uuid: require_uuid(section)?, flags: flags(section), segments, extents })
    }
}

impl Segment {
    fn parse(section: &Section) -> Result<Self> {
        let (first, count) = (section.require("start_extent")?, section.require("extent_count")?);
        if count == 0 {
            return Err(corrupt("a segment has no extents"));
        }
        // A segment without a type is as old as LVM2 itself, and striped.
        let kind = match section.text("type").unwrap_or("striped") {
            "striped" | "linear" => striped(section, count)?,
            "mirror" => mirror(section)?,
            "raid1" => Kind::Raid1 { legs: legs(section)? },
            "raid0" | "raid0_meta" => raid0(section, count)?,
            "thin-pool" => thin_pool(section)?,
            "thin" => thin(section)?,
            "zero" => Kind::Zero,
            "error" => Kind::Error,
            "snapshot" => snapshot(section)?,
            other => {
                check_name(other)?;
                raid(other, section)?.unwrap_or_else(|| Kind::Other(other.to_owned()))
            }
        };
        Ok(Self { first, count, kind })
    }
}

fn striped(section: &Section, count: u64) -> Result<Kind> {
    let stripes = places(section, "stripes", section.require("stripe_count")?)?;
    let stripe_bytes = section.number("stripe_size")?.unwrap_or(0).saturating_mul(SECTOR);
    if stripes.len() > 1 && (stripe_bytes == 0 || !count.is_multiple_of(stripes.len() as u64)) {
        return Err(corrupt(format!("{count} extents in {} stripes of {stripe_bytes} bytes", stripes.len())));
    }
    Ok(Kind::Striped { stripe_bytes, stripes })
}

fn mirror(section: &Section) -> Result<Kind> {
    Ok(Kind::Mirror {
        region_bytes: section.number("region_size")?.unwrap_or(0).saturating_mul(SECTOR),
        log: section.text("mirror_log").map(str::to_owned),
        moved: section.number("extents_moved")?,
        legs: places(section, "mirrors", section.require("mirror_count")?)?,
    })
}

/// The list `name`: volume, extent, volume, extent…
fn places(section: &Section, name: &str, count: u64) -> Result<Vec<Place>> {
    let Some(Value::List(list)) = section.get(name) else { return Err(corrupt(format!("{name} is missing"))) };
    let places = list
        .chunks(2)
        .map(|pair| match pair {
            [Value::Text(volume), Value::Number(extent)] if *extent >= 0 => {
                Ok(Place { volume: volume.clone(), extent: extent.cast_unsigned() })
            }
            _ => Err(corrupt(format!("{name} does not list volumes with extents"))),
        })
        .collect::<Result<Vec<_>>>()?;
    if places.is_empty() || places.len() > MAX_AREAS || places.len() as u64 != count {
        return Err(corrupt(format!("{name} lists {} areas instead of {count}", places.len())));
    }
    Ok(places)
}

/// The list `raids`: state, data, state, data…, or data alone, told apart by name as LVM2 does.
fn legs(section: &Section) -> Result<Vec<(Option<String>, String)>> {
    let mut legs = Vec::new();
    let mut state = None;
    for name in section.texts("raids") {
        if name.contains("_rmeta_") && state.is_none() {
            state = Some(name.to_owned());
        } else {
            legs.push((state.take(), name.to_owned()));
        }
    }
    let count = section.require("device_count")?;
    if legs.is_empty() || legs.len() > MAX_AREAS || legs.len() as u64 != count || state.is_some() {
        return Err(corrupt(format!("raids lists {} legs instead of {count}", legs.len())));
    }
    Ok(legs)
}

fn raid0(section: &Section, count: u64) -> Result<Kind> {
    let legs = legs(section)?;
    let stripe_bytes = section.number("stripe_size")?.unwrap_or(0).saturating_mul(SECTOR);
    if stripe_bytes == 0 || !count.is_multiple_of(legs.len() as u64) {
        return Err(corrupt(format!("{count} extents in {} stripes of {stripe_bytes} bytes", legs.len())));
    }
    Ok(Kind::Raid0 { stripe_bytes, legs })
}

/// A segment of one of the other raid types; `None` when it is of none.
fn raid(name: &str, section: &Section) -> Result<Option<Kind>> {
    let copies = section.number("data_copies")?.unwrap_or(2).clamp(1, 255);
    let Some(shape) = Shape::of(name, u32::try_from(copies).unwrap_or(1)) else { return Ok(None) };
    let stripe_bytes = section.require("stripe_size")?.saturating_mul(SECTOR);
    Ok(Some(Kind::Raid { name: name.to_owned(), shape, stripe_bytes, legs: legs(section)? }))
}

/// The name of another volume that must be there.
fn name_of(section: &Section, name: &str) -> Result<String> {
    section.text(name).map(str::to_owned).ok_or_else(|| corrupt(format!("{name} is missing")))
}

fn thin_pool(section: &Section) -> Result<Kind> {
    Ok(Kind::ThinPool {
        metadata: name_of(section, "metadata")?,
        data: name_of(section, "pool")?,
        block_bytes: section.require("chunk_size")?.saturating_mul(SECTOR),
        transaction: section.require("transaction_id")?,
    })
}

fn thin(section: &Section) -> Result<Kind> {
    Ok(Kind::Thin {
        pool: name_of(section, "thin_pool")?,
        device: section.require("device_id")?,
        origin: section.text("external_origin").map(str::to_owned),
        merging_into: section.text("merge").map(str::to_owned),
    })
}

fn snapshot(section: &Section) -> Result<Kind> {
    let merging = section.text("merging_store");
    match (section.text("origin"), merging.or(section.text("cow_store"))) {
        (Some(origin), Some(store)) => {
            Ok(Kind::Snapshot { origin: origin.to_owned(), store: store.to_owned(), is_merging: merging.is_some() })
        }
        _ => Err(corrupt("a snapshot has no origin or no store")),
    }
}
