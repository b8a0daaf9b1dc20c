//! Compressed clusters.

use super::header::Compression;
use firn_disk::{Error, Result};
use flate2::{Decompress, FlushDecompress};

/// Unpacks one cluster: `packed` may be longer than the compressed bytes, `cluster` is filled.
///
/// # Errors
/// `Corrupt` when the bytes do not unpack to a whole cluster.
pub(super) fn unpack(compression: Compression, packed: &[u8], cluster: &mut [u8]) -> Result<()> {
    let unpacked = match compression {
        Compression::Zlib => inflate(packed, cluster),
        Compression::Zstd => unzstd(packed, cluster),
    };
    match unpacked {
        Ok(count) if count == cluster.len() => Ok(()),
        Ok(count) => Err(Error::corrupt(format!("it unpacks to {count} of {} bytes", cluster.len()))),
        Err(reason) => Err(Error::corrupt(format!("it does not unpack: {reason}"))),
    }
    .map_err(|error| error.in_structure("qcow2 compressed cluster"))
}

fn inflate(packed: &[u8], cluster: &mut [u8]) -> std::result::Result<usize, String> {
    // No zlib header. Like QEMU, stop when the cluster is full, whether or not the stream has ended.
    let mut stream = Decompress::new(false);
    stream.decompress(packed, cluster, FlushDecompress::Finish).map_err(|error| error.to_string())?;
    usize::try_from(stream.total_out()).map_err(|error| error.to_string())
}

fn unzstd(packed: &[u8], cluster: &mut [u8]) -> std::result::Result<usize, String> {
    // The frame's end is found first: what follows up to the end of the sector is no part of it. Unpacking in
    // one piece uses the cluster itself as window, so a frame cannot make us allocate more.
    let length = zstd::zstd_safe::find_frame_compressed_size(packed).map_err(|_| "no whole zstd frame".to_owned())?;
    let frame = packed.get(..length).ok_or("a zstd frame that is cut short")?;
    zstd::bulk::decompress_to_buffer(frame, cluster).map_err(|error| error.to_string())
}
