//! What a disk begins with: file systems, and everything else that leaves a magic number.
//!
//! Only signatures, labels and UUIDs are read here, a few KiB per disk. Formats that firn cannot read yet are
//! recognised too, so that they are refused by name.

use firn_disk::{Disk, Record, Result, SharedDisk};

/// What kind of thing a signature stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// A file system.
    FileSystem,
    /// Swap space.
    Swap,
    /// Encrypted: what is inside takes a key.
    Encrypted,
    /// A member of an array, pool or volume manager: what is inside takes the others.
    Member,
}

/// What was recognised on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Its name: `ext4`, `xfs`, `luks2`, `md`.
    pub kind: &'static str,
    /// What it stands for.
    pub class: Class,
    /// Where the signature stands, in bytes.
    pub offset: u64,
    /// Label, if it has one.
    pub label: Option<String>,
    /// UUID or serial number in its usual spelling.
    pub uuid: Option<String>,
    /// What else is worth telling: `version 1.2`, `raid1`.
    pub features: Vec<String>,
}

impl Signature {
    fn new(kind: &'static str, class: Class, offset: u64) -> Self {
        Self { kind, class, offset, label: None, uuid: None, features: vec![] }
    }

    fn uuid(mut self, uuid: Option<String>) -> Self {
        self.uuid = uuid;
        self
    }

    fn label(mut self, bytes: &[u8]) -> Self {
        self.label = text(bytes);
        self
    }

    fn feature(mut self, feature: impl Into<String>) -> Self {
        self.features.push(feature.into());
        self
    }
}

/// The thing that `disk` holds, `None` when nothing is recognised.
///
/// When several signatures are found, the one that says the disk is part of something larger wins, since what
/// it holds must then be read through that.
///
/// # Errors
/// What the disk says.
pub fn identify(disk: &SharedDisk) -> Result<Option<Signature>> {
    for detect in
        [members_at_the_end as fn(&Reader<'_>) -> Result<Option<Signature>>, members, boot_sectors, linux, others, zfs]
    {
        if let Some(signature) = detect(&Reader { disk })? {
            return Ok(Some(signature));
        }
    }
    Ok(None)
}

/// Reads short pieces; what lies past the end reads as nothing.
struct Reader<'a> {
    disk: &'a SharedDisk,
}

impl Reader<'_> {
    fn bytes<const N: usize>(&self, offset: u64) -> Result<Option<[u8; N]>> {
        if firn_disk::check_range(offset, N as u64, self.disk.len()).is_err() {
            return Ok(None);
        }
        let mut bytes = [0; N];
        self.disk.read_at(&mut bytes, offset)?;
        Ok(Some(bytes))
    }

    fn holds<const N: usize>(&self, offset: u64, magic: &[u8; N]) -> Result<bool> {
        Ok(self.bytes::<N>(offset)?.is_some_and(|bytes| bytes == *magic))
    }

    /// A UUID in printed order at `offset`.
    fn uuid(&self, offset: u64) -> Result<Option<String>> {
        Ok(self.bytes::<16>(offset)?.and_then(uuid_text))
    }
}

/// md arrays whose superblock stands at the end, where a file system at the start looks whole.
fn members_at_the_end(reader: &Reader<'_>) -> Result<Option<Signature>> {
    let length = reader.disk.len();
    // Version 1.0: 8 KiB before the end, down to a multiple of 4 KiB. Version 0.90: in the last whole 64 KiB but one.
    let at_1_0 = length.checked_sub(8192).map(|at| at & !4095);
    let at_0_90 = (length & !0xFFFF).checked_sub(0x1_0000);
    if let Some(at) = at_1_0
        && let Some(signature) = md_version_1(reader, at, "1.0")?
    {
        return Ok(Some(signature));
    }
    if let Some(at) = at_0_90
        && let Some(bytes) = reader.bytes::<64>(at)?
    {
        let record = Record::new(&bytes, "md superblock", at);
        if record.le_u32(0)? == MD_MAGIC && record.le_u32(4)? == 0 && record.le_u32(8)? >= 90 {
            let mut uuid = [0; 16];
            for (piece, field) in uuid.chunks_exact_mut(4).zip([20, 52, 56, 60]) {
                piece.copy_from_slice(&record.le_u32(field)?.to_be_bytes());
            }
            let level = md_level(record.le_i32(28)?);
            let signature = Signature::new("md", Class::Member, at).uuid(uuid_text(uuid));
            return Ok(Some(signature.feature("version 0.90").feature(level)));
        }
    }
    Ok(None)
}

const MD_MAGIC: u32 = 0xA92B_4EFC;

/// An md superblock of version 1 at `at`, which is where it must say that it is.
fn md_version_1(reader: &Reader<'_>, at: u64, minor: &str) -> Result<Option<Signature>> {
    let Some(bytes) = reader.bytes::<152>(at)? else { return Ok(None) };
    let record = Record::new(&bytes, "md superblock", at);
    if record.le_u32(0)? != MD_MAGIC || record.le_u32(4)? != 1 || record.le_u64(144)? != at / 512 {
        return Ok(None);
    }
    let level = md_level(record.le_i32(72)?);
    let signature = Signature::new("md", Class::Member, at)
        .uuid(uuid_text(record.array(16)?))
        .label(record.slice(32, 32)?)
        .feature(format!("version {minor}"))
        .feature(level);
    Ok(Some(signature))
}

fn md_level(level: i32) -> String {
    match level {
        -1 => "linear".into(),
        -4 => "multipath".into(),
        level if level >= 0 => format!("raid{level}"),
        level => format!("level {level}"),
    }
}

/// Whatever says at its start that it is part of something, or encrypted.
fn members(reader: &Reader<'_>) -> Result<Option<Signature>> {
    for (at, minor) in [(0, "1.1"), (4096, "1.2")] {
        if let Some(signature) = md_version_1(reader, at, minor)? {
            return Ok(Some(signature));
        }
    }
    if let Some(bytes) = reader.bytes::<208>(0)?
        && bytes.starts_with(b"LUKS\xBA\xBE")
    {
        let record = Record::new(&bytes, "LUKS header", 0);
        let uuid = text(record.slice(168, 40)?);
        return Ok(match record.be_u16(6)? {
            1 => Some(Signature::new("luks1", Class::Encrypted, 0).uuid(uuid)),
            2 => Some(Signature::new("luks2", Class::Encrypted, 0).uuid(uuid).label(record.slice(24, 48)?)),
            version => Some(Signature::new("luks", Class::Encrypted, 0).feature(format!("version {version}"))),
        });
    }
    if reader.holds(0, b"dmvdo001")? {
        return Ok(Some(Signature::new("vdo", Class::Member, 0)));
    }
    if reader.holds(4096 + 24, b"\xC6\x85\x73\xF6\x4E\x1A\x45\xCA\x82\x65\xF5\x7F\x48\xBA\x6D\x81")? {
        return Ok(Some(Signature::new("bcache", Class::Member, 4096).uuid(reader.uuid(4096 + 40)?)));
    }
    if reader.holds(0, b"bluestore block device\n")? {
        let uuid = reader.bytes::<36>(23)?.and_then(|bytes| text(&bytes));
        return Ok(Some(Signature::new("bluestore", Class::Member, 0).uuid(uuid)));
    }
    if reader.holds(512 + 4, b"!Stra0tis\x86\xFF\x02^\x41rh")? {
        return Ok(Some(Signature::new("stratis", Class::Member, 512)));
    }
    Ok(None)
}

/// The file systems whose first sector is a PC's boot sector.
fn boot_sectors(reader: &Reader<'_>) -> Result<Option<Signature>> {
    let Some(bytes) = reader.bytes::<512>(0)? else { return Ok(None) };
    let sector = Record::new(&bytes, "boot sector", 0);
    let serial_64 = |at| sector.le_u64(at).map(|serial| Some(format!("{serial:016X}")));
    if sector.array(3)? == *b"-FVE-FS-" {
        return Ok(Some(Signature::new("bitlocker", Class::Encrypted, 0)));
    }
    if sector.array(3)? == *b"ReFS\0\0\0\0" {
        return Ok(Some(Signature::new("refs", Class::FileSystem, 0)));
    }
    if sector.array(510)? != [0x55, 0xAA] {
        return Ok(None);
    }
    match &sector.array(3)? {
        b"NTFS    " => return Ok(Some(Signature::new("ntfs", Class::FileSystem, 0).uuid(serial_64(72)?))),
        b"EXFAT   " => {
            let serial = serial_32(sector.le_u32(100)?);
            return Ok(Some(Signature::new("exfat", Class::FileSystem, 0).uuid(serial)));
        }
        _ => {}
    }
    fat(&sector)
}

fn serial_32(serial: u32) -> Option<String> {
    Some(format!("{:04X}-{:04X}", serial >> 16, serial & 0xFFFF))
}

/// FAT is told by its parameters alone; the number of clusters says which (Microsoft's FAT specification 1.03).
fn fat(sector: &Record<'_>) -> Result<Option<Signature>> {
    let sector_bytes = u32::from(sector.le_u16(11)?);
    let cluster_sectors = u32::from(sector.u8(13)?);
    let reserved = u32::from(sector.le_u16(14)?);
    let copies = u32::from(sector.u8(16)?);
    let sound = matches!(sector_bytes, 512 | 1024 | 2048 | 4096)
        && cluster_sectors.is_power_of_two()
        && reserved > 0
        && matches!(copies, 1 | 2)
        && matches!(sector.u8(21)?, 0xF0 | 0xF8..)
        && matches!(sector.array(0)?, [0xEB, _, 0x90] | [0xE9, _, _]);
    if !sound {
        return Ok(None);
    }
    let either = |small: u16, large: u32| if small != 0 { u32::from(small) } else { large };
    let total = u64::from(either(sector.le_u16(19)?, sector.le_u32(32)?));
    let fat_sectors = u64::from(either(sector.le_u16(22)?, sector.le_u32(36)?));
    let root_sectors = (u64::from(sector.le_u16(17)?) * 32).div_ceil(u64::from(sector_bytes));
    let before = u64::from(reserved) + u64::from(copies) * fat_sectors + root_sectors;
    let Some(data) = total.checked_sub(before).filter(|_| fat_sectors > 0) else { return Ok(None) };
    let clusters = data / u64::from(cluster_sectors);
    let is_32 = sector.le_u16(22)? == 0;
    let (kind, extended) = match clusters {
        _ if is_32 => ("fat32", 66),
        ..4085 => ("fat12", 38),
        _ => ("fat16", 38),
    };
    let mut signature = Signature::new(kind, Class::FileSystem, 0);
    // An extended boot signature says that serial number and label are there.
    if sector.u8(extended)? == 0x29 {
        let label = sector.slice(extended + 5, 11)?;
        signature = signature.uuid(serial_32(sector.le_u32(extended + 1)?));
        if label != b"NO NAME    " {
            signature = signature.label(label);
        }
    }
    Ok(Some(signature))
}

/// The file systems of Linux, and swap.
fn linux(reader: &Reader<'_>) -> Result<Option<Signature>> {
    if let Some(signature) = ext(reader)? {
        return Ok(Some(signature));
    }
    if reader.holds(0, b"XFSB")? {
        let label = reader.bytes::<12>(108)?.unwrap_or_default();
        return Ok(Some(Signature::new("xfs", Class::FileSystem, 0).uuid(reader.uuid(32)?).label(&label)));
    }
    if reader.holds(0x1_0040, b"_BHRfS_M")? {
        let label = reader.bytes::<256>(0x1_0000 + 299)?.unwrap_or([0; 256]);
        let signature = Signature::new("btrfs", Class::FileSystem, 0x1_0000);
        return Ok(Some(signature.uuid(reader.uuid(0x1_0020)?).label(&label)));
    }
    for page in [4096_u64, 8192, 16_384, 65_536] {
        if reader.holds(page - 10, b"SWAPSPACE2")? {
            let label = reader.bytes::<16>(1052)?.unwrap_or_default();
            return Ok(Some(Signature::new("swap", Class::Swap, 0).uuid(reader.uuid(1036)?).label(&label)));
        }
        if reader.holds(page - 10, b"SWAP-SPACE")? {
            return Ok(Some(Signature::new("swap", Class::Swap, 0).feature("version 0")));
        }
        if reader.holds(page - 10, b"S1SUSPEND\0")? {
            return Ok(Some(Signature::new("swap", Class::Swap, 0).feature("holds a suspended machine")));
        }
    }
    if reader.holds(1024, &0xF2F5_2010_u32.to_le_bytes())? {
        return Ok(Some(Signature::new("f2fs", Class::FileSystem, 1024).uuid(reader.uuid(1024 + 108)?)));
    }
    if reader.holds(1024, &0xE0F5_E1E2_u32.to_le_bytes())? {
        return Ok(Some(Signature::new("erofs", Class::FileSystem, 1024).uuid(reader.uuid(1024 + 48)?)));
    }
    if reader.holds(0x1_0034, b"ReIsEr")? {
        return Ok(Some(Signature::new("reiserfs", Class::FileSystem, 0x1_0000).uuid(reader.uuid(0x1_0054)?)));
    }
    if reader.holds(0x8000, b"JFS1")? {
        return Ok(Some(Signature::new("jfs", Class::FileSystem, 0x8000).uuid(reader.uuid(0x8000 + 136)?)));
    }
    if reader.holds(0, b"hsqs")? {
        return Ok(Some(Signature::new("squashfs", Class::FileSystem, 0)));
    }
    Ok(None)
}

/// ext2, ext3, ext4 or a journal device of theirs (Linux, fs/ext4/ext4.h).
fn ext(reader: &Reader<'_>) -> Result<Option<Signature>> {
    let Some(bytes) = reader.bytes::<256>(1024)? else { return Ok(None) };
    let superblock = Record::new(&bytes, "ext superblock", 1024);
    if superblock.le_u16(56)? != 0xEF53 {
        return Ok(None);
    }
    let (compatible, incompatible, read_only) =
        (superblock.le_u32(92)?, superblock.le_u32(96)?, superblock.le_u32(100)?);
    let uuid = uuid_text(superblock.array(104)?);
    if incompatible & 0x8 != 0 {
        return Ok(Some(Signature::new("ext journal", Class::Member, 1024).uuid(uuid)));
    }
    // What ext3 does not know makes it ext4; a journal makes ext2 an ext3 (the rule of util-linux).
    let is_ext4 = incompatible & !0x16 != 0 || read_only & !0x7 != 0;
    let kind = match (is_ext4, compatible & 0x4 != 0) {
        (true, _) => "ext4",
        (false, true) => "ext3",
        (false, false) => "ext2",
    };
    Ok(Some(Signature::new(kind, Class::FileSystem, 1024).uuid(uuid).label(superblock.slice(120, 16)?)))
}

/// Other systems' file systems.
fn others(reader: &Reader<'_>) -> Result<Option<Signature>> {
    if reader.holds(0x8001, b"CD001")? {
        let label = reader.bytes::<32>(0x8000 + 40)?.unwrap_or_default();
        return Ok(Some(Signature::new("iso9660", Class::FileSystem, 0x8000).label(&label)));
    }
    for magic in [b"NSR02", b"NSR03"] {
        for at in [0x8001, 0x8801, 0x9001] {
            if reader.holds(at, magic)? {
                return Ok(Some(Signature::new("udf", Class::FileSystem, 0x8000)));
            }
        }
    }
    let table: [(u64, &[u8; 4], &'static str); 4] = [
        (32, b"NXSB", "apfs"),
        (1024, b"H+\0\x04", "hfsplus"),
        (1024, b"HX\0\x05", "hfsplus"),
        (1 << 20, b"\x0D\xD0\x01\xC0", "vmfs"),
    ];
    for (at, magic, kind) in table {
        if reader.holds(at, magic)? {
            return Ok(Some(Signature::new(kind, Class::FileSystem, at)));
        }
    }
    Ok(None)
}

/// ZFS is told by an uberblock in the first of its four labels: 128 slots of 1 KiB from 128 KiB on.
fn zfs(reader: &Reader<'_>) -> Result<Option<Signature>> {
    const PIECE: usize = 16 << 10;
    for start in (0x2_0000..0x4_0000).step_by(PIECE) {
        let Some(bytes) = reader.bytes::<PIECE>(start)? else { return Ok(None) };
        for (slot, at) in bytes.chunks_exact(1024).zip((start..).step_by(1024)) {
            let magic = Record::new(slot, "uberblock", at).array(0)?;
            if [u64::from_le_bytes(magic), u64::from_be_bytes(magic)].contains(&0x00BA_B10C) {
                return Ok(Some(Signature::new("zfs", Class::Member, at)));
            }
        }
    }
    Ok(None)
}

/// `None` when all bytes are zero.
fn uuid_text(bytes: [u8; 16]) -> Option<String> {
    (bytes != [0; 16]).then(|| crate::table::Guid::from_printed_order(bytes).to_string())
}

/// The text before the first NUL, without blanks around it; `None` when nothing is left.
fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).trim().to_owned();
    (!text.is_empty()).then_some(text)
}
