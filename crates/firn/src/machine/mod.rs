//! A machine's disks, and the way from them to a file: disks, layers, file system, path.
//!
//! Where no layer is named, the file system is the only one there is, or the only one that looks like the root of an
//! installed Linux. A choice between several that look the same is the user's.

mod path;
mod walk;

pub use path::{Follow, last_name, resolve};
#[cfg(test)]
pub use walk::testing;
pub use walk::{Item, Order, Step, Walk, list};

use firn_disk::{Error, ErrorKind, Result, SharedDisk};
use firn_format::fs::{self, FileTree};
use firn_format::layers::{LayerKind, Layers, Node, NodeId};
use firn_format::volume::luks::Keys;
use std::sync::Arc;

/// Disks that belong together, with what was found on them.
#[derive(Debug)]
pub struct Machine {
    layers: Layers,
}

/// A file system of a machine, open.
#[derive(Debug)]
pub struct Mounted {
    /// Its files.
    pub tree: Arc<dyn FileTree>,
    /// Where it is, as `#vda2`.
    pub address: String,
    /// The other file systems that an address without a layer could have meant, as `#vda1`.
    pub passed_over: Vec<String>,
}

impl Machine {
    /// Looks at `disks`, each with its name.
    pub fn new(disks: Vec<(String, SharedDisk)>) -> Self {
        Self { layers: Layers::probe(disks) }
    }

    /// As [`new`](Self::new), and looks into what `keys` open.
    pub fn with_keys(disks: Vec<(String, SharedDisk)>, keys: &Keys) -> Self {
        Self { layers: Layers::probe_with_keys(disks, keys) }
    }

    /// What is on the disks.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Opens the file system that `selectors` lead to; without any, the one that is meant.
    ///
    /// # Errors
    /// `Invalid`, with the list, when it is not clear which one is meant; otherwise as [`Layers::resolve`] and
    /// [`Layers::open_files`].
    pub fn files(&self, selectors: &[String], options: &fs::OpenOptions) -> Result<Mounted> {
        if !selectors.is_empty() {
            return self.mount(self.layers.resolve(selectors)?, options);
        }
        match self.layers.file_systems().as_slice() {
            [] => Err(self.no_file_system()),
            [one] => {
                let mounted = self.mount(*one, options)?;
                // The usual encrypted machine has a /boot that anyone can read.
                match self.locked() {
                    Some(error) if !looks_like_root(&*mounted.tree) => Err(error),
                    _ => Ok(mounted),
                }
            }
            several => self.root(several, options),
        }
    }

    fn mount(&self, id: NodeId, options: &fs::OpenOptions) -> Result<Mounted> {
        let tree = self.layers.open_files(id, options)?;
        Ok(Mounted { tree, address: self.layers.node(id).address.clone(), passed_over: Vec::new() })
    }

    /// The one of several file systems that a Linux is installed on.
    fn root(&self, several: &[NodeId], options: &fs::OpenOptions) -> Result<Mounted> {
        let mut roots = Vec::new();
        for id in self.layers.root_candidates() {
            // One that cannot be opened is not what people mean; if none is left, the list tells why.
            let Ok(mounted) = self.mount(id, options) else { continue };
            if looks_like_root(&*mounted.tree) {
                roots.push((id, mounted));
            }
        }
        if let Some(error) = self.locked().filter(|_| roots.is_empty()) {
            return Err(error);
        }
        if roots.len() != 1 {
            let found = if roots.is_empty() { "none looks" } else { "more than one looks" };
            let what = format!("there are {} file systems, and {found} like the root of a Linux", several.len());
            let list: Vec<String> = several.iter().map(|id| self.describe(*id)).collect();
            return Err(Error::invalid(what).hint(format!("add one of these to the address:\n{}", list.join("\n"))));
        }
        let (chosen, mut mounted) = roots.swap_remove(0);
        let others = several.iter().filter(|id| **id != chosen);
        mounted.passed_over = others.map(|id| self.layers.node(*id).address.clone()).collect();
        Ok(mounted)
    }

    /// Why an encrypted layer was not opened, when a key is all that it takes.
    fn locked(&self) -> Option<Error> {
        let encrypted = self.layers.iter().filter(|(_, node)| node.kind == LayerKind::Encrypted);
        encrypted.filter_map(|(_, node)| node.error.clone()).find(|error| error.kind() == ErrorKind::Denied)
    }

    /// A file system for people who have to choose.
    fn describe(&self, id: NodeId) -> String {
        let node = self.layers.node(id);
        let label = node.label.as_ref().map(|label| format!(" \"{label}\"")).unwrap_or_default();
        let size = crate::cli::output::size(node.size);
        format!("{:<20} {}{label}, {size}", node.address, node.name)
    }

    /// Why there is no file system: what is broken comes first.
    fn no_file_system(&self) -> Error {
        let broken = |node: &Node| node.error.clone();
        if let Some(error) = self.layers.iter().find_map(|(_, node)| broken(node)) {
            return error;
        }
        let kinds = [LayerKind::Encrypted, LayerKind::Member, LayerKind::Swap];
        let telling = self.layers.iter().find(|(_, node)| kinds.contains(&node.kind)).map(|(id, _)| id);
        let reason = telling.or_else(|| self.layers.roots().first().copied()).map(|id| self.layers.file_system_of(id));
        match reason {
            Some(Err(error)) => error.hint("`firn look` shows what is there"),
            _ => Error::not_found("no file system was recognised").hint("`firn look` shows what is there"),
        }
    }
}

fn looks_like_root(tree: &dyn FileTree) -> bool {
    let find = |names: &[&[u8]]| names.iter().try_fold(tree.root(), |at, name| tree.lookup(at, name)).is_ok();
    find(&[b"etc", b"os-release"])
        || find(&[b"usr", b"lib", b"os-release"])
        || [b"etc", b"usr", b"var"].iter().all(|name| find(&[name.as_slice()]))
}
