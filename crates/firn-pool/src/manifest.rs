//! Manifests: the small objects that name the roots of a snapshot, sealed under the structure key.
//!
//! ```text
//! frame (kind manifest or note)
//! 48 16  salt, random
//! 64  …  AES-256-GCM of the fields, under HKDF-SHA256(structure key, salt, "firn 0 object"), nonce zero;
//!        AAD = frame, and what the object's name says (machine, sequence, snapshot; for a note subject, number)
//! checksum
//! ```
//! Fields of a manifest:
//! ```text
//! 1 machine UUID   2 machine's name then   3 snapshot UUID   4 sequence   5 created, nanoseconds
//! 6 consistency: 0 torn, 1 crash, 2 filesystem, 3 application    7 frozen, milliseconds    8 group UUID
//! 9 disk (repeats): 1 name  2 length  3 logical block size  4 root (33)  5 source  6 source generation
//! 10 attachment (repeats): 1 name  2 bytes
//! 11 statistics: 1 bytes read  2 new bytes stored  3 milliseconds taken  4 bytes that are neither hole nor zero
//! 12 remark (repeats): a line of text
//! ```

use crate::clock;
use crate::entropy::{Entropy, random_bytes};
use crate::fields::{FieldWriter, Fields};
use crate::key::{Keys, derive};
use crate::lease::Tree;
use crate::object::{self, FRAME_BYTES, ObjectKind};
use crate::tree::{self, Child};
use firn_disk::{Error, ErrorKind, Result};
use jiff::Timestamp;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use uuid::Uuid;

/// What can be said of the state that a snapshot holds, from worst to best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Consistency {
    /// A file read while something wrote to it. Not a good snapshot.
    Torn,
    /// One instant of the block device, as after pulling the plug.
    Crash,
    /// The guest's file systems were frozen.
    Filesystem,
    /// Hooks brought the applications to a consistent point.
    Application,
}

impl Consistency {
    const ALL: [Self; 4] = [Self::Torn, Self::Crash, Self::Filesystem, Self::Application];

    /// A word for people and for `--json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Torn => "torn",
            Self::Crash => "crash",
            Self::Filesystem => "filesystem",
            Self::Application => "application",
        }
    }
}

/// One disk of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRecord {
    /// `vda` and so on, unique in its snapshot.
    pub name: String,
    /// Length in bytes.
    pub length: u64,
    /// 512 or 4096.
    pub logical_block_size: u32,
    /// Where it was taken from, for people.
    pub source: String,
    /// What the source calls the state it was in, for the next snapshot's changed ranges.
    pub generation: Option<String>,
    pub(crate) root: Child,
}

/// A small file that is kept with a snapshot: libvirt XML, .vmx, NVRAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// File name, without a folder.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// What taking the snapshot cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotStatistics {
    /// Bytes read from the source.
    pub bytes_read: u64,
    /// Bytes that the pool grew by, for chunks and nodes.
    pub bytes_stored: u64,
    /// Milliseconds from the first read to the last write.
    pub milliseconds: u64,
    /// Bytes of the disks that are neither hole nor zero.
    pub bytes_data: u64,
}

/// A snapshot: the immutable state of all disks of a machine at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The machine.
    pub machine: Uuid,
    /// What the machine was called then.
    pub machine_name: String,
    /// The snapshot's own name.
    pub snapshot: Uuid,
    /// Grows with every snapshot of the machine; two writers at once may use one twice.
    pub sequence: u64,
    /// The instant.
    pub created: Timestamp,
    /// What can be said of the state.
    pub consistency: Consistency,
    /// How long the guest was frozen, in milliseconds.
    pub frozen_milliseconds: Option<u64>,
    /// Machines that were taken together share this.
    pub group: Option<Uuid>,
    /// The disks, in order.
    pub disks: Vec<DiskRecord>,
    /// Small files kept with it.
    pub attachments: Vec<Attachment>,
    /// What it cost.
    pub statistics: SnapshotStatistics,
    /// What has to be known of how it was taken, a line each: hooks and how they ended, why nothing was frozen.
    pub remarks: Vec<String>,
}

const MACHINE: u16 = 1;
const MACHINE_NAME: u16 = 2;
const SNAPSHOT: u16 = 3;
const SEQUENCE: u16 = 4;
const CREATED: u16 = 5;
const CONSISTENCY: u16 = 6;
const FROZEN: u16 = 7;
const GROUP: u16 = 8;
const DISK: u16 = 9;
const ATTACHMENT: u16 = 10;
const STATISTICS: u16 = 11;
const REMARK: u16 = 12;

impl DiskRecord {
    pub(crate) fn tree(&self) -> Tree {
        Tree { length: self.length, root: self.root }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut fields = FieldWriter::default();
        fields
            .text(1, &self.name)
            .u64(2, self.length)
            .u64(3, u64::from(self.logical_block_size))
            .bytes(4, &tree::child_to_bytes(self.root))
            .text(5, &self.source);
        if let Some(generation) = &self.generation {
            fields.text(6, generation);
        }
        fields.finish()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let fields = Fields::parse(bytes, "manifest's disk", &[])?;
        let logical_block_size = match fields.u64(3)? {
            512 => 512,
            4096 => 4096,
            other => return Err(Error::corrupt(format!("a disk with sectors of {other} bytes"))),
        };
        Ok(Self {
            name: fields.text(1)?,
            length: fields.u64(2)?,
            logical_block_size,
            root: tree::child_from_bytes(fields.array(4)?)?,
            source: fields.text(5)?,
            generation: fields.optional_text(6)?,
        })
    }
}

impl Manifest {
    /// The disk called `name`.
    ///
    /// # Errors
    /// `NotFound`, listing the disks there are.
    pub fn disk(&self, name: &str) -> Result<&DiskRecord> {
        self.disks.iter().find(|disk| disk.name == name).ok_or_else(|| {
            let names: Vec<_> = self.disks.iter().map(|disk| disk.name.as_str()).collect();
            Error::not_found(format!("this snapshot has no disk {name}"))
                .hint(format!("its disks are {}", names.join(", ")))
        })
    }

    /// Length of all disks together, in bytes.
    pub fn total_length(&self) -> u64 {
        self.disks.iter().fold(0, |sum, disk| sum.saturating_add(disk.length))
    }

    pub(crate) fn context(&self) -> Vec<u8> {
        context(self.machine, self.sequence, self.snapshot)
    }

    pub(crate) fn to_fields(&self) -> Result<Vec<u8>> {
        let mut fields = FieldWriter::default();
        fields
            .uuid(MACHINE, self.machine)
            .text(MACHINE_NAME, &self.machine_name)
            .uuid(SNAPSHOT, self.snapshot)
            .u64(SEQUENCE, self.sequence)
            .i64(CREATED, clock::to_nanoseconds(self.created)?)
            .bytes(CONSISTENCY, &[self.consistency as u8]);
        if let Some(frozen) = self.frozen_milliseconds {
            fields.u64(FROZEN, frozen);
        }
        if let Some(group) = self.group {
            fields.uuid(GROUP, group);
        }
        for disk in &self.disks {
            fields.bytes(DISK, &disk.to_bytes());
        }
        for attachment in &self.attachments {
            let mut inner = FieldWriter::default();
            inner.text(1, &attachment.name).bytes(2, &attachment.bytes);
            fields.bytes(ATTACHMENT, &inner.finish());
        }
        let mut statistics = FieldWriter::default();
        let SnapshotStatistics { bytes_read, bytes_stored, milliseconds, bytes_data } = self.statistics;
        statistics.u64(1, bytes_read).u64(2, bytes_stored).u64(3, milliseconds).u64(4, bytes_data);
        fields.bytes(STATISTICS, &statistics.finish());
        for remark in &self.remarks {
            fields.text(REMARK, remark);
        }
        Ok(fields.finish())
    }

    pub(crate) fn from_fields(bytes: &[u8]) -> Result<Self> {
        let fields = Fields::parse(bytes, "manifest", &[])?;
        let [consistency] = fields.array(CONSISTENCY)?;
        let consistency = Consistency::ALL
            .into_iter()
            .find(|known| *known as u8 == consistency)
            .ok_or_else(|| Error::unsupported(format!("consistency {consistency} is not known")))?;
        let attachment = |bytes| {
            let fields = Fields::parse(bytes, "attachment", &[])?;
            Ok(Attachment { name: fields.text(1)?, bytes: fields.bytes(2)?.to_vec() })
        };
        let statistics = Fields::parse(fields.bytes(STATISTICS)?, "statistics", &[])?;
        Ok(Self {
            machine: fields.uuid(MACHINE)?,
            machine_name: fields.text(MACHINE_NAME)?,
            snapshot: fields.uuid(SNAPSHOT)?,
            sequence: fields.u64(SEQUENCE)?,
            created: clock::from_nanoseconds(fields.i64(CREATED)?)?,
            consistency,
            frozen_milliseconds: fields.optional_u64(FROZEN)?,
            group: fields.optional(GROUP).map(|_| fields.uuid(GROUP)).transpose()?,
            disks: fields.all(DISK).map(DiskRecord::from_bytes).collect::<Result<_>>()?,
            attachments: fields.all(ATTACHMENT).map(attachment).collect::<Result<_>>()?,
            statistics: SnapshotStatistics {
                bytes_read: statistics.u64(1)?,
                bytes_stored: statistics.u64(2)?,
                milliseconds: statistics.u64(3)?,
                bytes_data: statistics.u64(4)?,
            },
            remarks: fields.all(REMARK).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect(),
        })
    }
}

/// What a manifest's name says, bound into its seal so that it cannot stand under another name.
pub(crate) fn context(machine: Uuid, sequence: u64, snapshot: Uuid) -> Vec<u8> {
    [machine.as_bytes().as_slice(), &sequence.to_le_bytes(), snapshot.as_bytes()].concat()
}

fn cipher(keys: &Keys, salt: &[u8]) -> Result<LessSafeKey> {
    let key = derive(keys.structure.as_ref(), salt, b"firn 0 object")?;
    let key = UnboundKey::new(&AES_256_GCM, key.as_ref()).map_err(|_| Error::invalid("a key of the wrong length"))?;
    Ok(LessSafeKey::new(key))
}

/// An object that only holders of the structure key can read or make.
pub(crate) fn seal_structure(
    keys: &Keys,
    kind: ObjectKind,
    context: &[u8],
    fields: &[u8],
    entropy: &dyn Entropy,
) -> Result<Vec<u8>> {
    let salt: [u8; 16] = random_bytes(entropy)?;
    let mut sealed = fields.to_vec();
    let aad = [object::frame(kind, keys.domain).as_slice(), context].concat();
    // The salt is new for every object, so its key is used once and the nonce may be zero.
    cipher(keys, &salt)?
        .seal_in_place_append_tag(Nonce::assume_unique_for_key([0; 12]), Aad::from(aad), &mut sealed)
        .map_err(|_| Error::new(ErrorKind::Invalid, "an object could not be sealed"))?;
    Ok(object::seal_small(kind, keys.domain, &[salt.as_slice(), &sealed].concat()))
}

/// The fields of an object that [`seal_structure`] made for the same `context`.
///
/// # Errors
/// `Corrupt` when checksum or seal does not hold.
pub(crate) fn open_structure(keys: &Keys, kind: ObjectKind, context: &[u8], object: &[u8]) -> Result<Vec<u8>> {
    let (_, payload) = object::open_small(object, kind)?;
    let does_not_open = || Error::corrupt("it does not open with the pool's key").in_structure(kind.name());
    let (salt, sealed) = payload.split_at_checked(16).ok_or_else(does_not_open)?;
    let mut sealed = sealed.to_vec();
    // The frame as it stands, so that changed feature bits are noticed, too.
    let aad = [&object[..FRAME_BYTES], context].concat();
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    let opened = cipher(keys, salt)?.open_in_place(nonce, Aad::from(aad), &mut sealed);
    opened.map(|fields| fields.to_vec()).map_err(|_| does_not_open())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::tests::SeededEntropy;
    use crate::seal::BlobId;
    use zeroize::Zeroizing;

    fn manifest() -> Manifest {
        Manifest {
            machine: Uuid::from_bytes([1; 16]),
            machine_name: "web1".into(),
            snapshot: Uuid::from_bytes([2; 16]),
            sequence: 3,
            created: "2026-11-21T10:49:26.5Z".parse().unwrap(),
            consistency: Consistency::Filesystem,
            frozen_milliseconds: Some(12),
            group: Some(Uuid::from_bytes([4; 16])),
            disks: vec![
                DiskRecord {
                    name: "vda".into(),
                    length: 123_456,
                    logical_block_size: 512,
                    source: "a.qcow2".into(),
                    generation: None,
                    root: Child::Node(BlobId([5; 32])),
                },
                DiskRecord {
                    name: "vdb".into(),
                    length: 0,
                    logical_block_size: 4096,
                    source: String::new(),
                    generation: Some("g".into()),
                    root: Child::Hole,
                },
            ],
            attachments: vec![Attachment { name: "web1.xml".into(), bytes: b"<domain/>".to_vec() }],
            statistics: SnapshotStatistics { bytes_read: 1, bytes_stored: 2, milliseconds: 3, bytes_data: 4 },
            remarks: vec!["hook: well".into()],
        }
    }

    #[test]
    fn a_manifest_is_read_back_only_under_its_own_name_and_key() {
        let keys = |seed| Keys::from_master(Uuid::from_bytes([9; 16]), Zeroizing::new([seed; 32])).unwrap();
        let manifest = manifest();
        let seal = |context: &[u8]| {
            let fields = manifest.to_fields().unwrap();
            seal_structure(&keys(1), ObjectKind::Manifest, context, &fields, &SeededEntropy::new(1)).unwrap()
        };
        let object = seal(&manifest.context());
        let fields = open_structure(&keys(1), ObjectKind::Manifest, &manifest.context(), &object).unwrap();
        assert_eq!(Manifest::from_fields(&fields).unwrap(), manifest);
        let other = context(manifest.machine, 4, manifest.snapshot);
        open_structure(&keys(1), ObjectKind::Manifest, &other, &object).unwrap_err();
        open_structure(&keys(2), ObjectKind::Manifest, &manifest.context(), &object).unwrap_err();
        assert_eq!(manifest.disk("vdc").unwrap_err().next_step(), Some("its disks are vda, vdb"));
        // Fields cut anywhere are an error or fewer fields, never a panic.
        (0..fields.len()).for_each(|end| drop(Manifest::from_fields(&fields[..end])));
    }
}
