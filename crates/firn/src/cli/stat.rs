//! `firn stat`, and the words and JSON for what is known of a file.

use super::context::Context;
use super::source::{SourceArgs, path_of};
use super::{names, output};
use crate::machine::{Follow, resolve};
use clap::{Args, ValueHint};
use firn_disk::{Disk, ExtentKind, Result, SharedDisk, visit_extents};
use firn_format::fs::{FileTree, FileType, Stat, Timestamp, Xattr};
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::process::ExitCode;

/// Tell all that is known of a file: times, owner, attributes, holes.
///
/// A symbolic link at the end of the path is not followed; with a `/` after it, it is.
#[derive(Debug, Args)]
pub struct StatArgs {
    /// The file, as disk.vmdk:/etc/hosts or web1@yesterday#vg0/root:/etc/hosts
    #[arg(value_name = "ADDRESS:/PATH", value_hint = ValueHint::FilePath)]
    address: Option<OsString>,
    #[command(flatten)]
    source: SourceArgs,
}

/// Runs it.
///
/// # Errors
/// `NotFound`; what the layers below say.
pub fn run(context: &Context, args: &StatArgs) -> Result<ExitCode> {
    let address = args.source.address(args.address.as_deref())?;
    let path = path_of(&address)?;
    let mounted = args.source.mount(context, &address)?;
    let tree = &*mounted.tree;
    let inode = resolve(tree, path, Follow::NotLast)?;
    let stat = tree.stat(inode)?;
    let target = (stat.file_type == FileType::Symlink).then(|| tree.read_link(inode)).transpose()?;
    let xattrs = tree.xattrs(inode)?;
    let runs = (stat.file_type == FileType::File).then(|| tree.open(inode).and_then(|disk| Runs::of(&disk)));
    if context.json {
        let mut object = to_json(&stat);
        names::put(&mut object, "path", path);
        object.insert("layer".into(), mounted.address.into());
        if let Some(target) = target {
            names::put(&mut object, "target", &target);
        }
        object.insert("xattrs".into(), xattrs.iter().map(xattr_to_json).collect());
        if let Some(runs) = runs {
            object.insert("extents".into(), runs?.to_json());
        }
        output::json(&object)?;
        return Ok(ExitCode::SUCCESS);
    }
    print(path, &stat, target.as_deref(), &xattrs)?;
    if let Some(runs) = runs {
        output::line(&format!("{:>10}  {}", "Extents", runs?.in_words()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(path: &[u8], stat: &Stat, target: Option<&[u8]>, xattrs: &[Xattr]) -> Result<()> {
    let line = |name: &str, value: String| output::line(&format!("{name:>10}  {value}"));
    let arrow = target.map(|target| format!(" -> {}", names::quoted(target))).unwrap_or_default();
    line("Path", names::quoted(path) + &arrow)?;
    line("Type", stat.file_type.as_str().into())?;
    match stat.device {
        Some((major, minor)) => line("Device", format!("{major}, {minor}"))?,
        None => line("Size", format!("{} bytes, {} on the disk", stat.size, output::size(stat.allocated)))?,
    }
    line("Mode", format!("{:04o} {}", stat.permissions, mode(stat)))?;
    line("Owner", format!("user {}, group {}", stat.user, stat.group))?;
    line("Inode", format!("{}, {}", stat.inode, output::count(stat.links, "link")))?;
    line("Modified", precise(stat.modified))?;
    line("Changed", precise(stat.changed))?;
    line("Accessed", precise(stat.accessed))?;
    if let Some(created) = stat.created {
        line("Created", precise(created))?;
    }
    for xattr in xattrs {
        let value = String::from_utf8(xattr.value.clone()).ok().filter(|text| !text.chars().any(char::is_control));
        let value = value.map_or_else(|| format!("0x{}", names::hex(&xattr.value)), |text| format!("{text:?}"));
        line("Attribute", format!("{} = {value}", names::quoted(&xattr.name)))?;
    }
    Ok(())
}

fn xattr_to_json(xattr: &Xattr) -> Value {
    let mut object = Map::new();
    names::put(&mut object, "name", &xattr.name);
    names::put(&mut object, "value", &xattr.value);
    object.into()
}

/// All fields of a `stat` under their names.
pub fn to_json(stat: &Stat) -> Map<String, Value> {
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| drop(object.insert(key.to_owned(), value));
    put("type", stat.file_type.as_str().into());
    put("mode", format!("{:04o}", stat.permissions).into());
    put("user", stat.user.into());
    put("group", stat.group.into());
    put("size", stat.size.into());
    put("allocated", stat.allocated.into());
    put("inode", stat.inode.into());
    put("links", stat.links.into());
    if let Some((major, minor)) = stat.device {
        put("device", json!({ "major": major, "minor": minor }));
    }
    put("modified", time_to_json(stat.modified));
    put("changed", time_to_json(stat.changed));
    put("accessed", time_to_json(stat.accessed));
    if let Some(created) = stat.created {
        put("created", time_to_json(created));
    }
    object
}

/// RFC 3339 in UTC with nanoseconds; a number of seconds where the calendar ends.
fn time_to_json(time: Timestamp) -> Value {
    match instant(time) {
        Some(instant) => instant.strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string().into(),
        None => time.seconds.into(),
    }
}

fn instant(time: Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(time.seconds, time.nanoseconds.try_into().ok()?).ok()
}

/// In the local zone, with nanoseconds.
fn precise(time: Timestamp) -> String {
    in_zone(time, "%Y-%m-%d %H:%M:%S.%9f %z")
}

/// In the local zone, to the second.
pub fn to_the_second(time: Timestamp) -> String {
    in_zone(time, "%Y-%m-%d %H:%M:%S")
}

fn in_zone(time: Timestamp, form: &str) -> String {
    let zoned = instant(time).map(|instant| instant.to_zoned(TimeZone::system()));
    zoned.map_or_else(|| format!("@{}.{:09}", time.seconds, time.nanoseconds), |zoned| zoned.strftime(form).to_string())
}

/// `-rwsr-xr-t`, as ls shows it.
pub fn mode(stat: &Stat) -> String {
    let bits = stat.permissions;
    let mut text = String::from(stat.file_type.letter());
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let class = bits >> shift;
        text.push(if class & 4 != 0 { 'r' } else { '-' });
        text.push(if class & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & special != 0, class & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Whether an attribute is an access control list.
pub fn has_acl(tree: &dyn FileTree, stat: &Stat) -> Result<bool> {
    if stat.file_type == FileType::Symlink {
        return Ok(false);
    }
    Ok(tree.xattrs(stat.inode)?.iter().any(|xattr| xattr.name.starts_with(b"system.posix_acl_")))
}

/// What the content of a file consists of.
#[derive(Debug, Default)]
struct Runs {
    data: (u64, u64),
    unwritten: (u64, u64),
    holes: (u64, u64),
}

impl Runs {
    fn of(disk: &SharedDisk) -> Result<Self> {
        let mut runs = Self::default();
        visit_extents(disk, 0..disk.len(), |kind, run| {
            let (count, bytes) = match kind {
                ExtentKind::Data => &mut runs.data,
                ExtentKind::Zero => &mut runs.unwritten,
                ExtentKind::Hole => &mut runs.holes,
            };
            *count += 1;
            *bytes += run.end - run.start;
            Ok(())
        })?;
        Ok(runs)
    }

    fn in_words(&self) -> String {
        let of =
            |(count, bytes): (u64, u64), one: &str| format!("{} ({})", output::count(count, one), output::size(bytes));
        let mut words = vec![of(self.data, "run") + " of data"];
        if self.unwritten.0 > 0 {
            words.push(of(self.unwritten, "run") + " reserved but not written");
        }
        if self.holes.0 > 0 {
            words.push(of(self.holes, "hole"));
        }
        words.join(", ")
    }

    fn to_json(&self) -> Value {
        let of = |(count, bytes): (u64, u64)| json!({ "count": count, "bytes": bytes });
        json!({ "data": of(self.data), "unwritten": of(self.unwritten), "holes": of(self.holes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_look_as_in_ls() {
        let mut stat = crate::machine::testing::stat(FileType::File);
        for (bits, expected) in [
            (0o644, "-rw-r--r--"),
            (0o4755, "-rwsr-xr-x"),
            (0o2644, "-rw-r-Sr--"),
            (0o1777, "-rwxrwxrwt"),
            (0o7000, "---S--S--T"),
        ] {
            stat.permissions = bits;
            assert_eq!(mode(&stat), expected);
        }
    }

    #[test]
    fn times_outside_of_the_calendar_are_numbers() {
        let time = Timestamp { seconds: i64::MAX, nanoseconds: 5 };
        assert_eq!(time_to_json(time), json!(i64::MAX));
        assert_eq!(precise(time), "@9223372036854775807.000000005");
        let time = Timestamp { seconds: -1, nanoseconds: 999_999_999 };
        assert_eq!(time_to_json(time), "1969-12-31T23:59:59.999999999Z");
    }
}
