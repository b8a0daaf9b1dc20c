//! Whether the kernel writes to a disk: mounted file systems, volume managers, loop devices.
//!
//! A device that is mounted, or that LVM, md or device-mapper has taken, is claimed by the kernel, and so is a disk one
//! of whose partitions is: opening it with `O_EXCL` then fails (open(2)). Mounted read-only it may be read all the same.
//! A file below a loop device is told of by `/sys/block/loopN/loop/backing_file`.

use firn_disk::{Error, ErrorKind, Result};
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// `O_EXCL`, which std does not name for existing files.
pub const O_EXCL: i32 = 0o200;

/// # Errors
/// `Unavailable` for a device that is mounted for writing or claimed by the kernel, and for a file that is mounted by
/// way of a loop device.
pub fn refuse_mounted(path: &Path) -> Result<()> {
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(()) };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if metadata.file_type().is_block_device() {
        return check_device(path, path, &mounts);
    }
    loop_devices(&metadata).iter().try_for_each(|device| check_device(device, path, &mounts))
}

/// `path` is what errors call it.
fn check_device(device: &Path, path: &Path, mounts: &str) -> Result<()> {
    let refuse = |message: String| {
        let hint = "unmount it or mount it read-only, or take it with --torn";
        Err(Error::new(ErrorKind::Unavailable, message).at_path(path).hint(hint))
    };
    let Ok(number) = std::fs::metadata(device).map(|metadata| metadata.rdev()) else { return Ok(()) };
    // btrfs shows a number of its own for the mount, so the device that was mounted is looked at, too.
    let is_it = |mount: &Mount| {
        mount.device == device_number(number)
            || mount.source.starts_with('/')
                && std::fs::metadata(mount.source)
                    .is_ok_and(|metadata| metadata.file_type().is_block_device() && metadata.rdev() == number)
    };
    let (mut is_mounted, mut writable) = (false, None);
    for mount in mounts.lines().filter_map(Mount::parse).filter(is_it) {
        is_mounted = true;
        writable = writable.or(mount.writable.then_some(mount.folder));
    }
    if let Some(folder) = writable {
        return refuse(format!("this is mounted on {}", folder));
    }
    let claimed = std::fs::OpenOptions::new().read(true).custom_flags(O_EXCL).open(device);
    if !is_mounted && claimed.is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy) {
        return refuse("a mounted partition of it, LVM, md or device-mapper uses this".to_owned());
    }
    Ok(())
}

/// `major:minor` as mountinfo writes it, of a `dev_t`.
fn device_number(number: u64) -> String {
    format!("{}:{}", number >> 8 & 0xFFF | number >> 32 & 0xFFFF_F000, number & 0xFF | number >> 12 & 0xFFF00)
}

/// The loop devices that have the file of `metadata` below them and may write to it.
fn loop_devices(metadata: &Metadata) -> Vec<PathBuf> {
    let backs = |block: &Path| {
        let read = |name: &str| std::fs::read_to_string(block.join(name)).unwrap_or_default();
        let file = read("loop/backing_file");
        let is_it = |file: Metadata| (file.dev(), file.ino()) == (metadata.dev(), metadata.ino());
        read("ro").trim() == "0" && std::fs::metadata(file.trim_end_matches('\n')).is_ok_and(is_it)
    };
    let blocks = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    blocks.filter(|block| backs(&block.path())).map(|block| Path::new("/dev").join(block.file_name())).collect()
}

/// A line of `/proc/self/mountinfo` (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mount<'a> {
    /// `major:minor`.
    device: &'a str,
    /// With spaces as `\040`.
    folder: &'a str,
    /// What was mounted: a device's path, or a word.
    source: &'a str,
    /// Whether the file system can change, wherever else it may be mounted read-only.
    writable: bool,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        let device = mount.next()?;
        let folder = mount.nth(1)?;
        let mut file_system = file_system.split(' ').skip(1);
        let source = file_system.next()?;
        let writable = file_system.next()?.split(',').any(|option| option == "rw");
        Some(Self { device, folder, source, writable })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_counts_when_the_file_system_can_change() {
        let parse = |line| Mount::parse(line).unwrap();
        let root = parse("22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw");
        assert_eq!(root, Mount { device: "8:1", folder: "/", source: "/dev/sda1", writable: true });
        assert!(parse("23 1 8:2 / /srv\\040x ro shared:1 - ext4 /dev/sda2 rw,errors=remount-ro").writable);
        assert!(!parse("24 1 8:3 / /mnt ro - ext4 /dev/sda3 ro").writable);
        assert_eq!(parse("25 1 0:45 / /mnt rw - btrfs /dev/loop1 rw,ssd").source, "/dev/loop1");
        assert_eq!(Mount::parse("nothing of the kind"), None);
    }

    #[test]
    fn numbers_of_devices_are_those_of_the_kernel() {
        // makedev(3): 12 bits of the minor number stand above the major's lower ones.
        assert_eq!([0x0801, 0x0010_0702, 0xFD03].map(device_number), ["8:1", "7:258", "253:3"]);
    }
}
