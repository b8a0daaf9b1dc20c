//! Owner, mode, times and extended attributes of something that was just made.

use super::CopyOptions;
use firn_format::fs::{FileType, Stat, Timestamp, Xattr};
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
/// Lists of permissions: who may use it, and what is made in it.
const LISTS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

/// What is to be set.
#[derive(Debug)]
pub(super) struct Attributes {
    file_type: FileType,
    owner: Option<(u32, u32)>,
    mode: u32,
    times: Timestamps,
    xattrs: Vec<Xattr>,
    /// Lists of permissions that the original does not have.
    foreign_lists: Vec<&'static str>,
    /// Whether setuid, setgid or capabilities were left out.
    pub(super) is_weakened: bool,
}

impl Attributes {
    /// `inherits` says that the new one may have got lists of permissions from its folder.
    pub(super) fn of(stat: &Stat, xattrs: Vec<Xattr>, inherits: bool, options: &CopyOptions) -> Self {
        // On a folder setgid gives no power, only its group to what is made in it.
        let power = if stat.file_type == FileType::Folder { SETUID } else { SETUID | SETGID };
        let has_capability = xattrs.iter().any(|xattr| xattr.name == b"security.capability");
        let is_weakened = !options.setuid
            && matches!(stat.file_type, FileType::File)
            && (stat.permissions & power != 0 || has_capability);
        let mode = if options.setuid { stat.permissions } else { stat.permissions & !power };
        let wanted = |xattr: &Xattr| {
            let name = xattr.name.as_slice();
            let is_own = name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
            (is_own || options.is_root) && (options.setuid || name != b"security.capability")
        };
        let is_foreign = |name: &&str| !xattrs.iter().any(|xattr| xattr.name == name.as_bytes());
        let may_have = match stat.file_type {
            FileType::Folder if inherits => LISTS.as_slice(),
            FileType::Symlink => &[],
            _ if inherits => LISTS.get(..1).unwrap_or_default(),
            _ => &[],
        };
        let foreign_lists = may_have.iter().copied().filter(is_foreign).collect();
        Self {
            file_type: stat.file_type,
            owner: options.is_root.then_some((stat.user, stat.group)),
            mode,
            times: Timestamps { last_access: timespec(stat.accessed), last_modification: timespec(stat.modified) },
            xattrs: xattrs.into_iter().filter(wanted).collect(),
            foreign_lists,
            is_weakened,
        }
    }

    /// Sets them on an open file, or on what an `O_PATH` descriptor stands for; answers what could not be set.
    ///
    /// In this order: a new owner takes setuid and capabilities away, a list of permissions changes the mode.
    pub(super) fn set(&self, at: BorrowedFd<'_>) -> Vec<String> {
        let mut failed = Vec::new();
        let mut check = |what: &str, done: Result<(), Errno>| {
            if let Err(error) = done {
                failed.push(format!("{what} could not be set: {}", std::io::Error::from(error)));
            }
        };
        // Links, devices and FIFOs are not opened; their descriptors take the calls that go by a path only.
        let is_open = matches!(self.file_type, FileType::File | FileType::Folder);
        let path = format!("/proc/self/fd/{}", at.as_raw_fd());
        if let Some((user, group)) = self.owner {
            let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
            check("the owner", rustix::fs::chownat(at, c"", user, group, AtFlags::EMPTY_PATH));
        }
        for name in &self.foreign_lists {
            let removed =
                if is_open { rustix::fs::fremovexattr(at, *name) } else { rustix::fs::removexattr(&path, *name) };
            let removed = removed.or_else(|error| if error == Errno::NODATA { Ok(()) } else { Err(error) });
            check(&format!("the inherited {name}"), removed);
        }
        for xattr in &self.xattrs {
            let name = String::from_utf8_lossy(&xattr.name);
            let done = if is_open {
                rustix::fs::fsetxattr(at, xattr.name.as_slice(), &xattr.value, XattrFlags::empty())
            } else if self.file_type == FileType::Symlink {
                // Through /proc it would be set on what the link leads to.
                Err(Errno::OPNOTSUPP)
            } else {
                rustix::fs::setxattr(&path, xattr.name.as_slice(), &xattr.value, XattrFlags::empty())
            };
            check(&format!("the attribute {name}"), done);
        }
        if self.file_type != FileType::Symlink {
            let mode = Mode::from_raw_mode(self.mode);
            let done = if is_open { rustix::fs::fchmod(at, mode) } else { rustix::fs::chmod(&path, mode) };
            check("the mode", done);
        }
        let done = if is_open {
            rustix::fs::futimens(at, &self.times)
        } else {
            rustix::fs::utimensat(at.as_fd(), c"", &self.times, AtFlags::EMPTY_PATH)
        };
        check("the times", done);
        failed
    }
}

fn timespec(time: Timestamp) -> Timespec {
    Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.min(999_999_999).into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::testing::stat;

    fn options(setuid: bool, is_root: bool) -> CopyOptions {
        CopyOptions { force: false, devices: false, setuid, is_root }
    }

    #[test]
    fn power_is_given_only_when_asked_for() {
        let xattrs: Vec<Xattr> = ["security.capability", "user.a", "trusted.b", "system.posix_acl_access"]
            .map(|name| Xattr { name: name.into(), value: vec![1] })
            .into();
        let of = |file_type, setuid, is_root| {
            let stat = Stat { permissions: 0o6755, user: 7, group: 8, ..stat(file_type) };
            let set = Attributes::of(&stat, xattrs.clone(), false, &options(setuid, is_root));
            let names: Vec<_> =
                set.xattrs.iter().map(|xattr| String::from_utf8_lossy(&xattr.name).into_owned()).collect();
            (set.mode, set.owner, names.join(" "), set.is_weakened)
        };
        let own = "user.a system.posix_acl_access".to_owned();
        assert_eq!(of(FileType::File, false, false), (0o755, None, own.clone(), true));
        let most = "user.a trusted.b system.posix_acl_access".to_owned();
        assert_eq!(of(FileType::File, false, true), (0o755, Some((7, 8)), most.clone(), true));
        let all = format!("security.capability {most}");
        assert_eq!(of(FileType::File, true, true), (0o6755, Some((7, 8)), all, false));
        assert_eq!(of(FileType::Folder, false, true), (0o2755, Some((7, 8)), most, false));
    }
}
