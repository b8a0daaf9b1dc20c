//! Dirty bitmaps: from one snapshot to the next.
//!
//! ```text
//!   snapshot k                                  snapshot k+1
//!      | G(k) records ..............................|.................... until the snapshot is published, then removed
//!      |                                            | G(k+1) records ......
//!      |                                            | its copy, disabled: what is read; removed with the run
//! ```
//! A bitmap's name is the generation of the disk that it began at. As the last one's stays until the new snapshot is in
//! the pool, a run that fails or is killed costs nothing. A bitmap that is missing, that QEMU did not save in order, that
//! does not record, or whose disk has another length, is not believed: then all of the disk is read.
//!
//! A disk that was made smaller and then as large as before between two snapshots is not noticed: QEMU's bitmaps do not
//! tell it.

use super::blocks::Drive;
use super::names::Names;
use crate::source::PreviousDisk;
use serde_json::{Value, json};

/// Bytes to a bit of the bitmaps that firn makes.
pub(super) const GRANULARITY: u64 = 64 << 10;

/// What a disk's next snapshot is read by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Base {
    /// The bitmap that records since the last one.
    Since {
        /// Its name: the last snapshot's generation.
        bitmap: String,
        /// Bytes to a bit.
        granularity: u64,
        /// Dirty bytes so far.
        dirty_bytes: u64,
    },
    /// There is none that could be believed, and why.
    Nothing(String),
}

/// By what `drive` is read, the last snapshot having been `previous`.
pub(super) fn base(drive: &Drive, previous: &[PreviousDisk]) -> Base {
    let nothing = |reason: &str| Base::Nothing(reason.to_owned());
    let Some(before) = previous.iter().find(|disk| disk.name == drive.name) else {
        return nothing("it was not in the last snapshot");
    };
    let Some(generation) = &before.generation else {
        return nothing("the last snapshot left no dirty bitmap");
    };
    if before.length != drive.length {
        return Base::Nothing(format!("it was resized from {} to {} bytes", before.length, drive.length));
    }
    let Some(bitmap) = drive.bitmaps.iter().find(|bitmap| bitmap.name == *generation) else {
        return nothing(if drive.keeps_bitmaps {
            "its dirty bitmap is gone"
        } else {
            "its dirty bitmap is gone; the image's format does not keep it over a restart"
        });
    };
    if bitmap.inconsistent {
        return nothing("its dirty bitmap was not saved when QEMU ended");
    }
    if !bitmap.recording {
        return nothing("its dirty bitmap does not record");
    }
    if bitmap.busy {
        return nothing("its dirty bitmap is in use by something else");
    }
    Base::Since { bitmap: generation.clone(), granularity: bitmap.granularity, dirty_bytes: bitmap.count }
}

/// The transaction's action that lets the new generation's bitmap record.
pub(super) fn begin(drive: &Drive, names: &Names) -> Value {
    json!({"type": "block-dirty-bitmap-add", "data": {
        "node": drive.node, "name": names.bitmap(), "granularity": GRANULARITY, "persistent": drive.keeps_bitmaps}})
}

/// The transaction's actions that copy what was recorded until now; none where nothing is believed.
pub(super) fn copy(drive: &Drive, base: &Base, names: &Names) -> Vec<Value> {
    let Base::Since { bitmap, granularity, .. } = base else { return Vec::new() };
    let copy = names.dirty_bitmap();
    vec![
        json!({"type": "block-dirty-bitmap-add", "data": {
            "node": drive.node, "name": copy, "granularity": granularity, "persistent": false, "disabled": true}}),
        json!({"type": "block-dirty-bitmap-merge", "data": {"node": drive.node, "target": copy, "bitmaps": [bitmap]}}),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::blocks::Bitmap;
    use super::*;

    fn drive(bitmap: Bitmap) -> Drive {
        Drive {
            name: "vda".to_owned(),
            device: "/machine/x".to_owned(),
            node: "n".to_owned(),
            length: 100,
            file: "/a".to_owned(),
            keeps_bitmaps: true,
            bitmaps: vec![bitmap],
        }
    }

    #[test]
    fn only_a_sound_bitmap_of_the_last_generation_is_believed() {
        let good = Bitmap {
            name: "g".to_owned(),
            count: 7,
            granularity: 512,
            recording: true,
            inconsistent: false,
            busy: false,
        };
        let previous = |generation: Option<&str>, length| {
            let generation = generation.map(str::to_owned);
            [PreviousDisk { name: "vda".to_owned(), length, source: String::new(), generation }]
        };
        let since = base(&drive(good.clone()), &previous(Some("g"), 100));
        assert_eq!(since, Base::Since { bitmap: "g".to_owned(), granularity: 512, dirty_bytes: 7 });
        let reason = |bitmap: Bitmap, previous: &[PreviousDisk]| match base(&drive(bitmap), previous) {
            Base::Nothing(reason) => reason,
            Base::Since { .. } => String::new(),
        };
        assert!(reason(good.clone(), &[]).contains("not in the last"));
        assert!(reason(good.clone(), &previous(None, 100)).contains("left no"));
        assert!(reason(good.clone(), &previous(Some("g"), 99)).contains("resized"));
        assert!(reason(good.clone(), &previous(Some("h"), 100)).contains("gone"));
        let last = previous(Some("g"), 100);
        assert!(reason(Bitmap { inconsistent: true, recording: false, ..good.clone() }, &last).contains("not saved"));
        assert!(reason(Bitmap { recording: false, ..good.clone() }, &last).contains("record"));
        assert!(reason(Bitmap { busy: true, ..good }, &last).contains("in use"));
    }
}
