//! Paths in a file tree, followed as the guest itself would follow them.
//!
//! An absolute link starts at the file system's own root, and `..` never leads out of it.

use firn_disk::{Error, Result};
use firn_format::fs::{FileTree, FileType};

/// Most links on the way to one file, as in Linux.
const MAX_LINKS: usize = 40;
/// Longest path, links included. Linux allows 4096 bytes for one.
const MAX_BYTES: usize = 1 << 18;

/// Whether a link at the very end is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// To what it leads to.
    Last,
    /// The link itself is meant, unless a `/` comes after it.
    NotLast,
}

/// The inode that `path` leads to. Empty components and `.` are passed over.
///
/// # Errors
/// `NotFound` and `Invalid`, with the part of the path that it is about; `Invalid` for more than 40 links; what the
/// file system says.
pub fn resolve(tree: &dyn FileTree, path: &[u8], follow: Follow) -> Result<u64> {
    let mut walk = PathWalk { tree, above: vec![tree.root()], seen: Vec::new(), links: 0 };
    // Components that are still to go, the next one last.
    let mut left: Vec<Vec<u8>> = Vec::new();
    let mut bytes = push(&mut left, path, 0)?;
    let wants_folder = matches!(path, [.., b'/'] | [.., b'/', b'.']);
    while let Some(name) = left.pop() {
        let follows = follow == Follow::Last || wants_folder || !left.is_empty();
        if let Some(target) = walk.step(&name, follows)? {
            bytes = push(&mut left, &target, bytes)?;
        }
    }
    let found = walk.here();
    if wants_folder {
        walk.check_folder(found)?;
    }
    Ok(found)
}

/// The last component of a path, if it names something: not `/`, `.` or `..`.
pub fn last_name(path: &[u8]) -> Option<&[u8]> {
    let name = path.rsplit(|byte| *byte == b'/').find(|name| !name.is_empty())?;
    (name != b"." && name != b"..").then_some(name)
}

/// Puts the components of `path` on top of those left; answers how many bytes that makes in all.
fn push(left: &mut Vec<Vec<u8>>, path: &[u8], so_far: usize) -> Result<usize> {
    let bytes = so_far + path.len();
    if bytes > MAX_BYTES {
        return Err(Error::invalid("the path is too long"));
    }
    let components = path.rsplit(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    left.extend(components.map(<[u8]>::to_vec));
    Ok(bytes)
}

struct PathWalk<'a> {
    tree: &'a dyn FileTree,
    /// The inodes from the root to where we are.
    above: Vec<u64>,
    /// The names that go with them, for messages.
    seen: Vec<Vec<u8>>,
    links: usize,
}

impl PathWalk<'_> {
    fn here(&self) -> u64 {
        self.above.last().copied().unwrap_or_else(|| self.tree.root())
    }

    fn shown(&self, name: &[u8]) -> String {
        let parts: Vec<_> = self.seen.iter().map(|part| String::from_utf8_lossy(part)).collect();
        let last = String::from_utf8_lossy(name);
        if parts.is_empty() { format!("/{last}") } else { format!("/{}/{last}", parts.join("/")) }
    }

    fn check_folder(&self, inode: u64) -> Result<()> {
        if self.tree.stat(inode)?.file_type == FileType::Folder {
            return Ok(());
        }
        let parts: Vec<_> = self.seen.iter().map(|part| String::from_utf8_lossy(part)).collect();
        Err(Error::invalid("this is not a folder").at_path(format!("/{}", parts.join("/"))))
    }

    /// Goes to `name`; a link that is to be followed answers its target instead.
    fn step(&mut self, name: &[u8], follows: bool) -> Result<Option<Vec<u8>>> {
        self.check_folder(self.here())?;
        if name == b".." {
            if self.above.len() > 1 {
                self.above.pop();
                self.seen.pop();
            }
            return Ok(None);
        }
        let missing = |error: Error| match error.kind() {
            firn_disk::ErrorKind::NotFound => {
                Error::not_found("there is no such file or folder").at_path(self.shown(name))
            }
            _ => error.at_path(self.shown(name)),
        };
        let inode = self.tree.lookup(self.here(), name).map_err(missing)?;
        let stat = self.tree.stat(inode).map_err(|error| error.at_path(self.shown(name)))?;
        if stat.file_type == FileType::Symlink && follows {
            self.links += 1;
            if self.links > MAX_LINKS {
                let what = format!("more than {MAX_LINKS} symbolic links on the way");
                return Err(Error::invalid(what).at_path(self.shown(name)));
            }
            let target = self.tree.read_link(inode).map_err(|error| error.at_path(self.shown(name)))?;
            if target.first() == Some(&b'/') {
                self.above.truncate(1);
                self.seen.clear();
            }
            return Ok(Some(target));
        }
        self.above.push(inode);
        self.seen.push(name.to_vec());
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::walk::testing::Fake;
    use firn_disk::ErrorKind;

    fn tree() -> Fake {
        let mut tree = Fake::default();
        tree.file("etc/hosts", b"hosts");
        tree.file("usr/lib/os-release", b"release");
        tree.link("etc/os-release", b"../usr/lib/os-release");
        tree.link("absolute", b"/etc/hosts");
        tree.link("out", b"../../../etc/hosts");
        tree.link("lib", b"usr/lib/");
        tree.link("loop", b"loop");
        tree.link("dangling", b"/nowhere");
        tree
    }

    #[test]
    fn links_lead_where_the_guest_sees_them() {
        let tree = tree();
        let get = |path: &str| resolve(&tree, path.as_bytes(), Follow::Last);
        let hosts = get("/etc/hosts").unwrap();
        for path in
            ["/absolute", "/out", "//etc/./hosts", "/etc/../etc/hosts", "/../../etc/hosts", "/lib/../../etc/hosts"]
        {
            assert_eq!(get(path).unwrap(), hosts, "{path}");
        }
        assert_eq!(get("/etc/os-release").unwrap(), get("/lib/os-release").unwrap());
        assert_eq!(get("/").unwrap(), 1);
        assert_eq!(get("/etc/").unwrap(), get("/etc/.").unwrap());
    }

    #[test]
    fn what_cannot_be_followed_says_where() {
        let tree = tree();
        let get = |path: &str| resolve(&tree, path.as_bytes(), Follow::Last).unwrap_err();
        assert_eq!(get("/loop").kind(), ErrorKind::Invalid);
        assert!(get("/loop").to_string().contains("40 symbolic links"));
        assert_eq!(get("/dangling").kind(), ErrorKind::NotFound);
        assert!(get("/etc/x/y").to_string().starts_with("/etc/x: "));
        assert!(get("/etc/hosts/x").to_string().starts_with("/etc/hosts: "));
        assert!(get("/etc/hosts/").to_string().contains("not a folder"));
    }

    #[test]
    fn the_last_link_is_followed_only_when_asked() {
        let tree = tree();
        let link = resolve(&tree, b"/lib", Follow::NotLast).unwrap();
        assert_eq!(tree.stat(link).unwrap().file_type, FileType::Symlink);
        let folder = resolve(&tree, b"/lib/", Follow::NotLast).unwrap();
        assert_eq!(tree.stat(folder).unwrap().file_type, FileType::Folder);
    }

    #[test]
    fn names_at_the_end() {
        assert_eq!(last_name(b"/etc/hosts"), Some(b"hosts".as_slice()));
        assert_eq!(last_name(b"/etc//"), Some(b"etc".as_slice()));
        assert_eq!(last_name(b"/"), None);
        assert_eq!(last_name(b"/etc/.."), None);
    }
}
