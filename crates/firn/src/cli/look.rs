//! `firn look`: what is on the disks, as a tree.
//!
//! ```text
//! vda              20.0 GiB  web1.vmdk: vmdk monolithicSparse
//! │                          gpt, sectors of 512 bytes, UUID 4C9E…
//! ├─ vda1         512.0 MiB  fat32 "EFI", UUID 4A3F-91C2
//! │                          EFI system
//! └─ vda2          19.5 GiB  LVM2 PV of vg0
//! vg0              19.5 GiB  volume group
//! └─ vg0/root      10.0 GiB  ext4 "root", replayed 12 transactions, 3.1 GiB free, UUID 5C1D…
//! ```
//! A line stands for what can be addressed; what it holds is told beside it.

use super::context::Context;
use super::output;
use super::source::{Source, SourceArgs};
use clap::{Args, ValueHint};
use firn_disk::{Error, Result};
use firn_format::fs::{self, Facts};
use firn_format::image::Image;
use firn_format::layers::{LayerKind, Layers, Node, NodeId};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Lines are not longer than this if they can be broken.
const WIDTH: usize = 100;
/// Deepest nesting that is shown. The layers below are bounded, too.
const MAX_DEPTH: usize = 64;

/// Show what is on the disks: image format, partitions, volumes, file systems, and whether they are well.
///
/// What is broken is shown with the reason, and the rest as well.
#[derive(Debug, Args)]
pub struct LookArgs {
    /// An image file, a machine in the pool, or a layer of one, as disk.vmdk#vda2
    #[arg(value_name = "ADDRESS", value_hint = ValueHint::FilePath)]
    address: Option<OsString>,
    #[command(flatten)]
    source: SourceArgs,
}

/// Runs it.
///
/// # Errors
/// When nothing could be read at all.
pub fn run(context: &Context, args: &LookArgs) -> Result<ExitCode> {
    let address = args.source.address(args.address.as_deref())?;
    if address.path.is_some() {
        return Err(Error::invalid("look shows layers, not files").hint("`firn ls` and `firn stat` show files"));
    }
    let source = args.source.open(context, &address)?;
    let machine = args.source.machine(source.disks.clone())?;
    let layers = machine.layers();
    let tops = match address.selectors.as_slice() {
        [] => layers.roots().to_vec(),
        selectors => vec![layers.resolve(selectors)?],
    };
    let options = args.source.file_options(context, &machine)?;
    let look = Look { source: &source, layers, files: open_all(layers, &tops, &options) };
    if context.json {
        output::json(&look.to_json(&tops))?;
    } else {
        look.print(&tops)?;
    }
    let failed = |id: &NodeId| layers.node(*id).error.clone();
    match tops.iter().map(failed).collect::<Option<Vec<_>>>().and_then(|errors| errors.into_iter().next()) {
        Some(error) => Err(error),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// What each file system says of itself.
fn open_all(layers: &Layers, tops: &[NodeId], options: &fs::OpenOptions) -> HashMap<NodeId, Result<Facts>> {
    let below = |id: NodeId| {
        let mut at = Some(id);
        while let Some(now) = at {
            if tops.contains(&now) || matches!(layers.node(now).kind, LayerKind::VolumeGroup | LayerKind::Array) {
                return true;
            }
            at = layers.node(now).parent;
        }
        false
    };
    let systems = layers.file_systems().into_iter().filter(|id| below(*id));
    systems.map(|id| (id, layers.open_files(id, options).map(|tree| tree.facts()))).collect()
}

struct Look<'a> {
    source: &'a Source,
    layers: &'a Layers,
    files: HashMap<NodeId, Result<Facts>>,
}

/// A line of the table: what stands before the name, the name, the size, and what is told.
struct Row {
    /// The branches of the tree before the name, and those before the lines that follow.
    branches: (String, String),
    name: String,
    size: String,
    lines: Vec<Vec<String>>,
}

impl Look<'_> {
    fn print(&self, tops: &[NodeId]) -> Result<()> {
        let mut rows = Vec::new();
        for id in tops {
            self.rows(*id, ("", ""), 0, &mut rows);
        }
        let name_width = rows.iter().map(|row| row.branches.0.chars().count() + row.name.chars().count()).max();
        let name_width = name_width.unwrap_or(0);
        let style = Style::for_stdout();
        for row in &rows {
            row.print(name_width, &style)?;
        }
        for note in &self.layers.health {
            output::line(&format!("! {note}"))?;
        }
        Ok(())
    }

    /// Adds the row of `id` and those of what can be addressed below it.
    fn rows(&self, id: NodeId, branches: (&str, &str), depth: usize, rows: &mut Vec<Row>) {
        if depth > MAX_DEPTH {
            return;
        }
        let node = self.layers.node(id);
        let mut lines = self.image_lines(node);
        let mut below = Vec::new();
        self.content(id, &mut lines, &mut below, depth);
        // An extended partition is only the chain of those within it.
        let is_chain = node.features.iter().any(|feature| feature.to_ascii_lowercase().contains("extended"));
        if node.children.is_empty() && node.error.is_none() && node.kind != LayerKind::VolumeGroup && !is_chain {
            lines.push(vec!["nothing recognised".into()]);
        }
        lines.extend(self.own_lines(node));
        let is_parent = !below.is_empty();
        let (first, rest) = branches;
        let follow = format!("{rest}{}", if is_parent { "│" } else { " " });
        rows.push(Row {
            branches: (first.to_owned(), follow),
            name: output::plain(&node.name),
            size: output::size(node.size),
            lines: lines.into_iter().filter(|line| !line.is_empty()).collect(),
        });
        let last = below.len().saturating_sub(1);
        for (number, child) in below.into_iter().enumerate() {
            let (branch, bar) = if number == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            self.rows(child, (&format!("{rest}{branch}"), &format!("{rest}{bar}")), depth + 1, rows);
        }
    }

    /// What a node holds: lines of what has no address of its own, and the nodes that have one.
    fn content(&self, id: NodeId, lines: &mut Vec<Vec<String>>, below: &mut Vec<NodeId>, depth: usize) {
        for child in &self.layers.node(id).children {
            let node = self.layers.node(*child);
            match node.kind {
                _ if node.is_hidden => {}
                LayerKind::Disk
                | LayerKind::Partition
                | LayerKind::Array
                | LayerKind::VolumeGroup
                | LayerKind::LogicalVolume => below.push(*child),
                _ if depth <= MAX_DEPTH => {
                    lines.extend(self.held_lines(*child));
                    self.content(*child, lines, below, depth + 1);
                }
                _ => {}
            }
        }
    }

    /// The image that a disk comes from.
    fn image_lines(&self, node: &Node) -> Vec<Vec<String>> {
        if node.kind != LayerKind::Disk {
            return Vec::new();
        }
        let number = self.source.disks.iter().position(|(name, _)| *name == node.name);
        match number.and_then(|number| self.source.images.get(number)) {
            Some((file, image)) => image_lines(file, image),
            None => Vec::new(),
        }
    }

    /// A table, physical volume, file system and the like.
    fn held_lines(&self, id: NodeId) -> Vec<Vec<String>> {
        let node = self.layers.node(id);
        let mut name = node.name.clone();
        if let Some(label) = &node.label {
            name += &format!(" \"{label}\"");
        }
        let mut first = vec![name];
        let mut lines = Vec::new();
        match self.files.get(&id) {
            Some(Ok(facts)) => {
                if !facts.health.is_empty() {
                    first.push(facts.health.clone());
                }
                first.extend(facts.free.map(|free| format!("{} free", output::size(free))));
                lines.push(vec![facts.features.join(" ")]);
            }
            Some(Err(error)) => lines.push(vec![format!("! {error}")]),
            None => {}
        }
        first.extend(node.features.iter().cloned());
        first.extend(node.uuid.as_ref().map(|uuid| format!("UUID {uuid}")));
        lines.insert(0, first);
        lines.extend(node.health.iter().map(|note| vec![format!("! {note}")]));
        lines.extend(node.error.iter().map(|error| vec![format!("! {error}")]));
        lines
    }

    /// What is told of a disk, partition or volume itself.
    fn own_lines(&self, node: &Node) -> Vec<Vec<String>> {
        let mut facts = Vec::new();
        if node.kind == LayerKind::VolumeGroup {
            facts.push("volume group".to_owned());
        }
        if node.kind == LayerKind::Array {
            facts.push("array".to_owned());
        }
        facts.extend(node.features.iter().cloned());
        facts.extend(node.label.as_ref().map(|label| format!("\"{label}\"")));
        facts.extend(node.uuid.as_ref().map(|uuid| format!("UUID {uuid}")));
        let mut lines = vec![facts];
        lines.extend(node.health.iter().map(|note| vec![format!("! {note}")]));
        lines.extend(node.error.iter().map(|error| vec![format!("! {error}")]));
        lines
    }

    fn to_json(&self, tops: &[NodeId]) -> Value {
        let images = self.source.images.iter().map(|(file, image)| image_to_json(file, image));
        let snapshot = self.source.manifest.as_ref().map(|manifest| {
            json!({
                "machine": manifest.machine_name,
                "created": output::json_time(manifest.created),
                "consistency": manifest.consistency.as_str(),
                "uuid": manifest.snapshot.to_string(),
            })
        });
        json!({
            "images": images.collect::<Vec<_>>(),
            "snapshot": snapshot,
            "layers": tops.iter().map(|id| self.node_to_json(*id, 0)).collect::<Vec<_>>(),
            "health": self.layers.health,
        })
    }

    fn node_to_json(&self, id: NodeId, depth: usize) -> Value {
        let node = self.layers.node(id);
        let mut object = Map::new();
        object.insert("kind".into(), node.kind.as_str().into());
        object.insert("name".into(), node.name.clone().into());
        object.insert("address".into(), node.address.clone().into());
        object.insert("size".into(), node.size.into());
        object.insert("uuid".into(), node.uuid.clone().into());
        object.insert("label".into(), node.label.clone().into());
        object.insert("features".into(), node.features.clone().into());
        object.insert("health".into(), node.health.clone().into());
        object.insert("error".into(), node.error.as_ref().map(error_to_json).into());
        if node.is_hidden {
            object.insert("hidden".into(), true.into());
        }
        match self.files.get(&id) {
            Some(Ok(facts)) => drop(object.insert("files".into(), facts_to_json(facts))),
            Some(Err(error)) => drop(object.insert("files".into(), json!({ "error": error_to_json(error) }))),
            None => {}
        }
        let children = if depth < MAX_DEPTH { node.children.as_slice() } else { &[] };
        let children: Vec<Value> = children.iter().map(|child| self.node_to_json(*child, depth + 1)).collect();
        object.insert("children".into(), children.into());
        object.into()
    }
}

fn error_to_json(error: &Error) -> Value {
    json!({ "kind": error.kind().as_str(), "message": error.to_string() })
}

fn facts_to_json(facts: &Facts) -> Value {
    json!({
        "size": facts.size,
        "free": facts.free,
        "block_size": facts.block_size,
        "features": facts.features,
        "health": facts.health,
    })
}

/// The image itself, what it stands on, and what it keeps inside.
fn image_lines(file: &Path, image: &Image) -> Vec<Vec<String>> {
    let details = &image.details;
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
    let mut first = vec![format!("{name}: {}", image.format.as_str())];
    if let (Some(subformat), Some(first)) = (&details.subformat, first.first_mut()) {
        *first += &format!(" {subformat}");
    }
    first.extend(details.cluster_size.map(|bytes| format!("clusters of {}", output::size(bytes))));
    first.extend(details.features.iter().cloned());
    let mut lines = vec![first];
    let names = |paths: &mut dyn Iterator<Item = &PathBuf>| -> Vec<String> {
        paths.map(|path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()).collect()
    };
    if !details.data_files.is_empty() {
        lines.push(vec![format!("data in {}", names(&mut details.data_files.iter()).join(" "))]);
    }
    if !details.chain.is_empty() {
        lines.push(vec![format!("on {}", names(&mut details.chain.iter().map(|link| &link.path)).join(" on "))]);
    }
    for snapshot in &details.snapshots {
        let taken = jiff::Timestamp::new(snapshot.seconds.into(), 0).map(output::time).unwrap_or_default();
        lines.push(vec![format!("snapshot {} \"{}\" of {taken}", snapshot.id, snapshot.name)]);
    }
    if details.is_dirty {
        lines.push(vec!["! it was not closed cleanly; reading is not affected".into()]);
    }
    if details.is_corrupt {
        lines.push(vec!["! its writer marked it as damaged".into()]);
    }
    lines
}

fn image_to_json(file: &Path, image: &Image) -> Value {
    let details = &image.details;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let chain = details.chain.iter().map(|link| json!({ "file": text(&link.path), "format": link.format.as_str() }));
    let snapshots = details.snapshots.iter().map(|snapshot| {
        let taken = jiff::Timestamp::new(snapshot.seconds.into(), snapshot.nanoseconds.try_into().unwrap_or(0));
        json!({
            "id": snapshot.id,
            "name": snapshot.name,
            "created": taken.map(output::json_time).ok(),
            "vm_state_size": snapshot.vm_state_size,
            "disk_size": snapshot.disk_size,
        })
    });
    json!({
        "file": text(file),
        "format": image.format.as_str(),
        "subformat": details.subformat,
        "virtual_size": details.virtual_size,
        "cluster_size": details.cluster_size,
        "features": details.features,
        "chain": chain.collect::<Vec<_>>(),
        "data_files": details.data_files.iter().map(|path| text(path)).collect::<Vec<_>>(),
        "snapshots": snapshots.collect::<Vec<_>>(),
        "dirty": details.is_dirty,
        "corrupt": details.is_corrupt,
    })
}

impl Row {
    fn print(&self, name_width: usize, style: &Style) -> Result<()> {
        let (before, follow) = &self.branches;
        let padding = name_width.saturating_sub(before.chars().count() + self.name.chars().count());
        let size = &self.size;
        let start = format!("{before}{}{:padding$}  {size:>10}  ", style.bold(&self.name), "");
        let indent =
            format!("{follow}{:width$}  ", "", width = (name_width + 12).saturating_sub(follow.chars().count()));
        let room = WIDTH.saturating_sub(name_width + 14).max(30);
        let mut texts = self.lines.iter().flat_map(|pieces| wrap(pieces, room));
        output::line(format!("{start}{}", texts.next().map(|text| style.text(&text)).unwrap_or_default()).trim_end())?;
        texts.try_for_each(|text| output::line(&format!("{indent}{}", style.text(&text))))
    }
}

/// Pieces joined by commas, in lines of `room` characters where they can be broken.
fn wrap(pieces: &[String], room: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let last = pieces.len().saturating_sub(1);
    for (number, piece) in pieces.iter().enumerate() {
        let piece = output::plain(piece) + if number == last { "" } else { "," };
        let fits = line.chars().count() + 1 + piece.chars().count() <= room;
        if !line.is_empty() && !fits {
            lines.push(std::mem::take(&mut line));
        }
        for word in piece.split(' ') {
            let fits = line.chars().count() + 1 + word.chars().count() <= room;
            if !line.is_empty() && !fits {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.push(line);
    lines
}

/// Colours, on a terminal that wants them.
struct Style {
    on: bool,
}

impl Style {
    fn for_stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { on: wanted && std::io::stdout().is_terminal() }
    }

    fn bold(&self, text: &str) -> String {
        if self.on { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// What is wrong, in red.
    fn text(&self, text: &str) -> String {
        if self.on && text.starts_with('!') { format!("\x1b[31m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_broken_between_them_first_and_then_between_words() {
        let pieces = ["ext4 \"root\"", "journal clean", "UUID 1234"].map(str::to_owned);
        assert_eq!(wrap(&pieces, 80), ["ext4 \"root\", journal clean, UUID 1234"]);
        assert_eq!(wrap(&pieces, 20), ["ext4 \"root\",", "journal clean,", "UUID 1234"]);
        assert_eq!(wrap(&["a b c d".to_owned()], 3), ["a b", "c d"]);
        assert_eq!(wrap(&["a\u{1b}b".to_owned()], 30), ["a\\u{1b}b"]);
    }
}
