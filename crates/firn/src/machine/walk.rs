//! Going through a whole tree without recursion and without trusting it.
//!
//! A folder that is met a second time is a loop or has two names, which no sound file system has; it is told of and
//! not entered. So is what lies deeper than any real tree.

use firn_disk::{Error, Result};
use firn_format::fs::{Entry, FileTree, FileType, Stat};
use std::collections::HashSet;

/// Deepest nesting of folders. A copy holds one of the system's file descriptors for each level.
const MAX_DEPTH: usize = 800;
/// Most names in one folder.
const MAX_ENTRIES: usize = 20_000_000;

/// In which order the names of a folder come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By name, as bytes.
    Names,
    /// So that all paths come sorted as bytes.
    Paths,
}

/// Something with a path.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its path below where the walk began, which itself has an empty one.
    pub path: Vec<u8>,
    /// Its name in its folder.
    pub name: Vec<u8>,
    /// What is known of it.
    pub stat: Stat,
}

/// What the walk came to.
#[derive(Debug)]
pub enum Step {
    /// A folder; its content comes next, and then its [`Leave`](Self::Leave).
    Enter(Item),
    /// The end of a folder.
    Leave(Item),
    /// Anything else.
    Node(Item),
    /// Something at this path that cannot be read.
    Failed(Vec<u8>, Error),
}

/// A walk through a tree.
#[derive(Debug)]
pub struct Walk<'a> {
    tree: &'a dyn FileTree,
    order: Order,
    start: Option<Stat>,
    open: Vec<Level>,
    /// A failure that comes before everything else.
    pending: Option<(Vec<u8>, Error)>,
    seen: HashSet<u64>,
}

#[derive(Debug)]
struct Level {
    item: Item,
    entries: std::vec::IntoIter<Entry>,
}

impl<'a> Walk<'a> {
    /// A walk from the file or folder `start` on.
    ///
    /// # Errors
    /// What the file system says of `start`.
    pub fn new(tree: &'a dyn FileTree, start: u64, order: Order) -> Result<Self> {
        let start = Some(tree.stat(start)?);
        Ok(Self { tree, order, start, open: Vec::new(), pending: None, seen: HashSet::new() })
    }

    /// Leaves out what is left of the innermost folder. Its [`Step::Leave`] does not come.
    pub fn skip_folder(&mut self) {
        self.leave_folder();
    }

    /// Leaves the innermost folder at once; `None` when there is none.
    pub fn leave_folder(&mut self) -> Option<Item> {
        self.pending = None;
        self.open.pop().map(|level| level.item)
    }

    fn arrive(&mut self, item: Item) -> Step {
        if item.stat.file_type != FileType::Folder {
            return Step::Node(item);
        }
        if !self.seen.insert(item.stat.inode) {
            let error = Error::corrupt(format!("the folder with inode {} has more than one name", item.stat.inode));
            return Step::Failed(item.path, error);
        }
        if self.open.len() >= MAX_DEPTH {
            let error = Error::unsupported(format!("more than {MAX_DEPTH} folders within each other"));
            return Step::Failed(item.path, error);
        }
        let (entries, failed) = list(self.tree, item.stat.inode, self.order);
        self.pending = failed.map(|error| (item.path.clone(), error));
        self.open.push(Level { item: item.clone(), entries: entries.into_iter() });
        Step::Enter(item)
    }
}

impl Iterator for Walk<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if let Some(stat) = self.start.take() {
            return Some(self.arrive(Item { path: Vec::new(), name: Vec::new(), stat }));
        }
        if let Some((path, error)) = self.pending.take() {
            return Some(Step::Failed(path, error));
        }
        let level = self.open.last_mut()?;
        let Some(entry) = level.entries.next() else {
            return self.open.pop().map(|level| Step::Leave(level.item));
        };
        let path = match level.item.path.as_slice() {
            [] => entry.name.clone(),
            above => [above, b"/", &entry.name].concat(),
        };
        Some(match check_name(&entry.name).and_then(|()| self.tree.stat(entry.inode)) {
            Ok(stat) => self.arrive(Item { path, name: entry.name, stat }),
            Err(error) => Step::Failed(path, error),
        })
    }
}

/// Whether a name can only mean something in its folder.
fn check_name(name: &[u8]) -> Result<()> {
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(Error::corrupt("this is no name for a file"));
    }
    Ok(())
}

/// The names of a folder in order, as far as they could be read, and what stopped that.
pub fn list(tree: &dyn FileTree, folder: u64, order: Order) -> (Vec<Entry>, Option<Error>) {
    let mut entries = Vec::new();
    let listed = tree.list(folder, &mut |entry| {
        if entries.len() >= MAX_ENTRIES {
            return Err(Error::unsupported(format!("more than {MAX_ENTRIES} names in one folder")));
        }
        entries.push(entry);
        Ok(())
    });
    match order {
        Order::Names => entries.sort_by(|a, b| a.name.cmp(&b.name)),
        Order::Paths => entries.sort_by_cached_key(|entry| {
            let known = entry.file_type.or_else(|| tree.stat(entry.inode).ok().map(|stat| stat.file_type));
            let mut key = entry.name.clone();
            if known == Some(FileType::Folder) {
                key.push(b'/');
            }
            key
        }),
    }
    (entries, listed.err())
}

#[cfg(test)]
pub mod testing {
    //! A tree in memory.

    use super::*;
    use firn_disk::{MemDisk, SharedDisk};
    use firn_format::fs::{Facts, Timestamp, Xattr};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    /// A `stat` of nothing special.
    pub fn stat(file_type: FileType) -> Stat {
        let time = Timestamp::default();
        Stat {
            inode: 1,
            file_type,
            permissions: 0o644,
            user: 0,
            group: 0,
            size: 0,
            allocated: 0,
            links: 1,
            device: None,
            accessed: time,
            modified: time,
            changed: time,
            created: None,
        }
    }

    #[derive(Debug)]
    enum Content {
        Folder(BTreeMap<Vec<u8>, u64>),
        File(Vec<u8>),
        Link(Vec<u8>),
    }

    /// Inode 1 is the root.
    #[derive(Debug)]
    pub struct Fake {
        nodes: Vec<Content>,
    }

    impl Default for Fake {
        fn default() -> Self {
            Self { nodes: vec![Content::Folder(BTreeMap::new())] }
        }
    }

    impl Fake {
        fn node(&self, inode: u64) -> &Content {
            &self.nodes[usize::try_from(inode - 1).unwrap()]
        }

        /// Names an inode in a folder, whatever it is.
        pub fn name(&mut self, folder: u64, name: &[u8], inode: u64) {
            let Content::Folder(names) = &mut self.nodes[usize::try_from(folder - 1).unwrap()] else { panic!() };
            names.insert(name.to_vec(), inode);
        }

        fn put(&mut self, path: &str, content: Content) {
            let mut at = 1;
            let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
            for part in above.split('/').filter(|part| !part.is_empty()) {
                at = match self.lookup(at, part.as_bytes()) {
                    Ok(inode) => inode,
                    Err(_) => {
                        self.nodes.push(Content::Folder(BTreeMap::new()));
                        let inode = self.nodes.len() as u64;
                        self.name(at, part.as_bytes(), inode);
                        inode
                    }
                };
            }
            self.nodes.push(content);
            let inode = self.nodes.len() as u64;
            self.name(at, name.as_bytes(), inode);
        }

        pub fn file(&mut self, path: &str, bytes: &[u8]) {
            self.put(path, Content::File(bytes.to_vec()));
        }

        pub fn link(&mut self, path: &str, target: &[u8]) {
            self.put(path, Content::Link(target.to_vec()));
        }
    }

    impl FileTree for Fake {
        fn facts(&self) -> Facts {
            Facts {
                kind: "fake",
                label: None,
                uuid: None,
                size: 0,
                free: None,
                block_size: 4096,
                features: Vec::new(),
                health: String::new(),
            }
        }
        fn root(&self) -> u64 {
            1
        }
        fn lookup(&self, folder: u64, name: &[u8]) -> Result<u64> {
            let Content::Folder(names) = self.node(folder) else { return Err(Error::invalid("not a folder")) };
            names.get(name).copied().ok_or_else(|| Error::not_found("no such name"))
        }
        fn list(&self, folder: u64, visit: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
            let Content::Folder(names) = self.node(folder) else { return Err(Error::invalid("not a folder")) };
            names
                .iter()
                .try_for_each(|(name, inode)| visit(Entry { name: name.clone(), inode: *inode, file_type: None }))
        }
        fn stat(&self, inode: u64) -> Result<Stat> {
            let (file_type, size) = match self.node(inode) {
                Content::Folder(_) => (FileType::Folder, 0),
                Content::File(bytes) => (FileType::File, bytes.len()),
                Content::Link(target) => (FileType::Symlink, target.len()),
            };
            Ok(Stat { inode, size: size as u64, ..stat(file_type) })
        }
        fn open(&self, inode: u64) -> Result<SharedDisk> {
            let Content::File(bytes) = self.node(inode) else { return Err(Error::invalid("not a file")) };
            Ok(Arc::new(MemDisk::from(bytes.clone())))
        }
        fn read_link(&self, inode: u64) -> Result<Vec<u8>> {
            let Content::Link(target) = self.node(inode) else { return Err(Error::invalid("not a link")) };
            Ok(target.clone())
        }
        fn xattrs(&self, _: u64) -> Result<Vec<Xattr>> {
            Ok(Vec::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Fake;
    use super::*;

    fn steps(tree: &Fake, order: Order) -> Vec<String> {
        let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        Walk::new(tree, 1, order)
            .unwrap()
            .map(|step| match step {
                Step::Enter(item) => format!("+{}", shown(&item.path)),
                Step::Leave(item) => format!("-{}", shown(&item.path)),
                Step::Node(item) => shown(&item.path),
                Step::Failed(path, _) => format!("!{}", shown(&path)),
            })
            .collect()
    }

    #[test]
    fn paths_come_in_the_order_that_was_asked_for() {
        let mut tree = Fake::default();
        tree.file("a/b", b"");
        tree.file("a.txt", b"");
        assert_eq!(steps(&tree, Order::Names), ["+", "+a", "a/b", "-a", "a.txt", "-"]);
        assert_eq!(steps(&tree, Order::Paths), ["+", "a.txt", "+a", "a/b", "-a", "-"]);
    }

    #[test]
    fn loops_second_names_and_names_that_lead_out_are_told_of_and_not_followed() {
        let mut tree = Fake::default();
        tree.file("a/b", b"");
        let folder = tree.lookup(1, b"a").unwrap();
        tree.name(folder, b"up", 1);
        tree.name(1, b"again", folder);
        tree.name(1, b"..", folder);
        tree.name(1, b"x/../../y", folder);
        let found = steps(&tree, Order::Names);
        assert_eq!(found, ["+", "!..", "+a", "a/b", "!a/up", "-a", "!again", "!x/../../y", "-"]);
    }
}
