//! The metadata of a VHDX: what kind of disk it is, and the parent of a differencing one.
//!
//! ```text
//! table     0 "metadata"  10 items u16; each 32 bytes from 32 on: GUID, offset u32, length u32, flags u32 (4: required)
//! locator   0 GUID  18 pairs u16; each 12 bytes from 20 on: key u32, value u32, lengths u16; UTF-16
//! ```
//! Source: MS-VHDX, 2.6.

use super::header::Regions;
use crate::image::access::ImageFile;
use crate::image::parent::utf16;
use crate::table::Guid;
use firn_disk::{Error, Record, Result};

const TABLE_BYTES: usize = 64 << 10;
const ITEMS_MAX: u16 = 2047;
/// Items are small; a locator holds a few paths.
const ITEM_MAX: u32 = 1 << 20;
const PAIRS_MAX: u16 = 256;
/// 64 TiB, the largest disk that the format has.
const SIZE_MAX: u64 = 64 << 40;
const REQUIRED: u32 = 4;
const FLAG_FIXED: u32 = 1;
const FLAG_PARENT: u32 = 2;

const FILE_PARAMETERS: &str = "caa16737-fa36-4d43-b3b6-33f0aa44e76b";
const SIZE: &str = "2fa54224-cd1b-4876-b211-5dbed83bf4b8";
const DISK_ID: &str = "beca12ab-b2e6-4523-93ef-c309e000c746";
const LOGICAL_SECTOR: &str = "8141bf1d-a96f-4709-ba47-f233a8faab5f";
const PHYSICAL_SECTOR: &str = "cda348c7-445d-4471-9cc9-e9885251c556";
const LOCATOR: &str = "a8d35f2d-b30b-454d-abf7-d3d84834ab0c";
const LOCATOR_OF_VHDX: &str = "b04aefb7-d19e-4a81-b789-25b8e9445913";

/// Who the parent is.
#[derive(Debug, Default)]
pub(super) struct Locator {
    /// The parent's data write GUID when the child was made; during a merge there are two.
    pub(super) linkage: Vec<Guid>,
    /// Where it may lie, the relative path first.
    pub(super) paths: Vec<String>,
}

/// What the metadata say, checked.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) block: u64,
    pub(super) size: u64,
    pub(super) sector: u32,
    pub(super) disk_id: [u8; 16],
    pub(super) parent: Option<Locator>,
    is_fixed: bool,
}

impl Metadata {
    pub(super) fn read(file: &ImageFile, regions: &Regions) -> Result<Self> {
        let mut buf = vec![0; TABLE_BYTES];
        let table = Record::read(file.disk(), &mut buf, regions.metadata, "VHDX metadata table")?;
        if table.slice(0, 8)? != b"metadata" {
            return Err(table.corrupt(0, "there is none"));
        }
        let count = table.le_u16(10)?;
        if count > ITEMS_MAX {
            return Err(table.corrupt(10, format!("{count} items")));
        }
        let (mut parameters, mut size, mut sector, mut disk_id, mut locator) = (None, None, None, None, None);
        for number in 0..usize::from(count) {
            let entry = 32 + number * 32;
            let guid = Guid::from_disk(table.array(entry)?);
            let item = || read_item(file, regions, &table, entry);
            match guid.to_string().as_str() {
                FILE_PARAMETERS => parameters = Some(item()?),
                SIZE => size = Some(item()?),
                LOGICAL_SECTOR => sector = Some(item()?),
                DISK_ID => disk_id = Some(item()?),
                LOCATOR => locator = Some(item()?),
                PHYSICAL_SECTOR => {}
                _ if table.le_u32(entry + 24)? & REQUIRED == 0 => {}
                _ => return Err(table.unsupported(entry, format!("the item {guid}, which a reader must know"))),
            }
        }
        let parameters = wanted(&parameters, "file parameters")?;
        let (block, flags) = (parameters.le_u32(0)?, parameters.le_u32(4)?);
        let parent = match (flags & FLAG_PARENT != 0, &locator) {
            (false, _) => None,
            (true, locator) => Some(Locator::parse(&wanted(locator, "parent locator")?)?),
        };
        Self {
            block: u64::from(block),
            size: wanted(&size, "virtual disk size")?.le_u64(0)?,
            sector: wanted(&sector, "logical sector size")?.le_u32(0)?,
            disk_id: wanted(&disk_id, "virtual disk id")?.array(0)?,
            parent,
            is_fixed: flags & FLAG_FIXED != 0,
        }
        .checked()
    }

    fn checked(self) -> Result<Self> {
        let bad = |message: String| Err(Error::corrupt(message).in_structure("VHDX metadata"));
        if !self.block.is_power_of_two() || !(1 << 20..=256 << 20).contains(&self.block) {
            return bad(format!("blocks of {} bytes", self.block));
        }
        if !matches!(self.sector, 512 | 4096) {
            return bad(format!("sectors of {} bytes", self.sector));
        }
        if self.size > SIZE_MAX || !self.size.is_multiple_of(u64::from(self.sector)) {
            return bad(format!("a disk of {} bytes", self.size));
        }
        Ok(self)
    }

    pub(super) fn subformat(&self) -> &'static str {
        match (&self.parent, self.is_fixed) {
            (Some(_), _) => "differencing",
            (None, true) => "fixed",
            (None, false) => "dynamic",
        }
    }
}

/// The bytes of an item.
fn read_item(file: &ImageFile, regions: &Regions, table: &Record<'_>, entry: usize) -> Result<Vec<u8>> {
    let (offset, length) = (table.le_u32(entry + 16)?, table.le_u32(entry + 20)?);
    let is_inside = u64::from(offset) + u64::from(length) <= regions.metadata_length;
    if length > ITEM_MAX || !is_inside || u64::from(offset) < TABLE_BYTES as u64 {
        return Err(table.corrupt(entry + 16, format!("an item of {length} bytes at {offset}")));
    }
    let mut item = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_stored(&mut item, regions.metadata.saturating_add(u64::from(offset)))?;
    Ok(item)
}

fn wanted<'a>(item: &'a Option<Vec<u8>>, name: &str) -> Result<Record<'a>> {
    let missing = || Error::corrupt(format!("there is no {name}")).in_structure("VHDX metadata");
    item.as_ref().map(|bytes| Record::new(bytes, "VHDX metadata item", 0)).ok_or_else(missing)
}

impl Locator {
    fn parse(record: &Record<'_>) -> Result<Self> {
        let kind = Guid::from_disk(record.array(0)?);
        if kind.to_string() != LOCATOR_OF_VHDX {
            return Err(record.unsupported(0, format!("a parent locator of type {kind}")));
        }
        let pairs = record.le_u16(18)?;
        if pairs > PAIRS_MAX {
            return Err(record.corrupt(18, format!("a parent locator of {pairs} pairs")));
        }
        let mut found = Vec::new();
        for number in 0..usize::from(pairs) {
            let entry = 20 + number * 12;
            let text = |place: usize, length: usize| -> Result<String> {
                let at = usize::try_from(record.le_u32(place)?).unwrap_or(usize::MAX);
                Ok(utf16(record.slice(at, usize::from(record.le_u16(length)?))?, false))
            };
            found.push((text(entry, entry + 8)?, text(entry + 4, entry + 10)?));
        }
        let value = |key: &str| found.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        let guid = |text: String| Guid::parse(text.trim_matches(['{', '}']));
        let linkage: Vec<Guid> =
            ["parent_linkage", "parent_linkage2"].into_iter().filter_map(value).filter_map(guid).collect();
        let paths = ["relative_path", "volume_path", "absolute_win32_path"].into_iter().filter_map(value).collect();
        if linkage.is_empty() {
            return Err(record.corrupt(0, "it does not say which state of the parent it stands on"));
        }
        Ok(Self { linkage, paths })
    }
}
