//! Running QEMUs by their command lines, and what `virsh` and `lvs` say.
//!
//! Sources: qemu-system-x86_64(1), virsh(1), lvs(8).

use super::{Found, MOST_FOUND, PATIENCE};
use crate::{command, process};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A command line that is longer is none of QEMU's.
const MOST_ARGUMENTS: usize = 10_000;

/// What a QEMU's command line says of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Qemu {
    name: Option<String>,
    monitor: Option<String>,
    agent: Option<String>,
    disks: Vec<String>,
    /// Its monitor came as a file descriptor, as libvirt does.
    is_inherited: bool,
}

pub(super) fn qemus() -> Vec<Found> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let found = processes.filter_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let bytes = std::fs::read(process.path().join("cmdline")).ok()?;
        let arguments: Vec<_> =
            bytes.split(|byte| *byte == 0).take(MOST_ARGUMENTS).map(String::from_utf8_lossy).collect();
        let program = Path::new(arguments.first()?.as_ref()).file_name()?.to_str()?;
        let is_qemu = program.starts_with("qemu-system-") || ["qemu-kvm", "kvm"].contains(&program);
        is_qemu.then(|| describe(pid, &Qemu::parse(&arguments), &process.path().join("cwd")))
    });
    found.take(MOST_FOUND).collect()
}

fn describe(pid: u32, qemu: &Qemu, folder: &Path) -> Found {
    let name = qemu.name.clone().unwrap_or_else(|| "without a name".to_owned());
    let disks = if qemu.disks.is_empty() { "no disks".to_owned() } else { qemu.disks.join(", ") };
    let detail = format!("{name}, PID {pid}, {disks}");
    let Some(monitor) = &qemu.monitor else {
        return Found::refused(
            "QEMU",
            detail,
            if qemu.is_inherited {
                format!("libvirt holds its monitor: take it as libvirt://{name}")
            } else {
                "it has no QMP socket: start it with -qmp unix:PATH,server=on,wait=off".to_owned()
            },
        );
    };
    // Where it was started from is not always where it is: a daemon changes to the root folder.
    let place = |socket: &str| {
        let folder = std::fs::read_link(folder).unwrap_or_default();
        let path = folder.join(socket);
        path.exists().then_some(path)
    };
    let Some(monitor) = place(monitor) else {
        return Found::refused("QEMU", detail, format!("its QMP socket {monitor} is not to be found"));
    };
    let agent = qemu.agent.as_deref().and_then(place);
    let agent_part = agent.as_deref().map_or_else(String::new, |agent| format!("?agent={}", agent.display()));
    let detail = if agent.is_some() { detail } else { format!("{detail}; no guest agent") };
    Found::new("QEMU", format!("qemu:{}{agent_part}", monitor.display()), detail)
}

impl Qemu {
    fn parse(arguments: &[impl AsRef<str>]) -> Self {
        let mut qemu = Self::default();
        let mut sockets = HashMap::new();
        let (mut monitors, mut agents, mut is_inherited) = (Vec::new(), Vec::new(), false);
        let pairs = arguments.iter().zip(arguments.iter().skip(1)).map(|(key, value)| (key.as_ref(), value.as_ref()));
        for (key, value) in pairs.filter(|(key, _)| key.starts_with('-')) {
            let options = Keys::parse(value);
            let get = |name: &str| options.get(name);
            match key.trim_start_matches('-') {
                "name" => qemu.name = get("guest").or_else(|| get("")),
                "qmp" | "qmp-pretty" => {
                    qemu.monitor = get("").and_then(|place| place.strip_prefix("unix:").map(str::to_owned));
                }
                "mon" if get("mode").as_deref() == Some("control") => {
                    monitors.extend(get("chardev").or_else(|| get("")))
                }
                "chardev" => {
                    is_inherited |= get("fd").is_some();
                    sockets.extend(get("id").zip(get("path")));
                }
                "device" if get("name").as_deref() == Some("org.qemu.guest_agent.0") => agents.extend(get("chardev")),
                "drive" | "blockdev" => qemu.disks.extend(
                    ["file.filename", "filename", "file"].into_iter().find_map(get).filter(|file| !file.is_empty()),
                ),
                "hda" | "hdb" | "hdc" | "hdd" => qemu.disks.push(value.to_owned()),
                _ => {}
            }
        }
        let by_id = |ids: &[String]| ids.iter().find_map(|id| sockets.get(id)).cloned();
        qemu.monitor = qemu.monitor.or_else(|| by_id(&monitors));
        qemu.agent = by_id(&agents);
        qemu.is_inherited = is_inherited && qemu.monitor.is_none();
        qemu
    }
}

/// An option's value: `word,key=value,key=value` with `,,` for a comma, or a JSON object. The first word has no key.
#[derive(Debug)]
struct Keys(HashMap<String, String>);

impl Keys {
    fn parse(text: &str) -> Self {
        if let Ok(Value::Object(object)) = serde_json::from_str(text) {
            let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
            return Self(object.iter().filter_map(text).collect());
        }
        let text = text.replace(",,", "\0");
        let pair = |part: &str| {
            let (key, value) = part.split_once('=').unwrap_or(("", part));
            (key.to_owned(), value.replace('\0', ","))
        };
        // The first one of a name counts: later words without a value are flags.
        let mut keys = HashMap::new();
        for (key, value) in text.split(',').map(pair) {
            keys.entry(key).or_insert(value);
        }
        Self(keys)
    }

    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }
}

pub(super) fn commands() -> Vec<Found> {
    let found = command::known().into_iter().map(|(name, file, usable)| {
        let found = Found::new("your commands", format!("command:{name}"), file.display().to_string());
        found.unless(usable.err().map(|error| error.to_string()))
    });
    found.take(MOST_FOUND).collect()
}

/// Whether the program is on the path or where administrators' programs are.
pub(super) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.any(|folder| folder.join(program).is_file())
}

/// What a program prints, or why it does not.
fn ask(program: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(arguments).env("LC_ALL", "C").env("PATH", format!("{path}:/usr/sbin:/sbin"));
    process::run_well(&mut command, b"", PATIENCE).map(|finished| finished.text()).map_err(|error| error.to_string())
}

pub(super) fn domains() -> Vec<Found> {
    const WHAT: &str = "libvirt domain";
    if !is_installed("virsh") {
        return Vec::new();
    }
    match ask("virsh", &["--quiet", "list", "--all"]) {
        Ok(text) => text
            .lines()
            .filter_map(domain)
            .map(|(name, state)| Found::new(WHAT, format!("libvirt://{name}"), state))
            .collect(),
        Err(reason) => vec![Found::refused(WHAT, "virsh does not answer".to_owned(), reason)],
    }
}

/// `ID NAME STATE`, where the state may have several words.
fn domain(line: &str) -> Option<(String, String)> {
    let mut words = line.split_whitespace();
    let name = words.nth(1)?.to_owned();
    Some((name, words.collect::<Vec<_>>().join(" ")))
}

pub(super) fn logical_volumes() -> Vec<Found> {
    const WHAT: &str = "logical volume";
    if !is_installed("lvs") || !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    let columns = "vg_name,lv_name,lv_attr,lv_size";
    match ask("lvs", &["--noheadings", "--separator", "|", "-o", columns]) {
        Ok(text) => text.lines().filter_map(logical_volume).collect(),
        Err(reason) => vec![Found::refused(WHAT, "lvs does not answer".to_owned(), reason)],
    }
}

/// `VG|LV|ATTRIBUTES|SIZE`. The sixth attribute is `o` where the device is open, the fifth `a` where there is one.
fn logical_volume(line: &str) -> Option<Found> {
    let mut fields = line.trim().split('|');
    let (group, name, attributes, size) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let detail = format!("{group}/{name}, {size}");
    let found = Found::new("logical volume", format!("/dev/{group}/{name}"), detail);
    let attribute = |number: usize| attributes.as_bytes().get(number).copied();
    Some(found.unless(match (attribute(4), attribute(5)) {
        (_, Some(b'o')) => {
            Some("it is in use: take a snapshot of it by command:, as the guide's lvm.toml does".to_owned())
        }
        (Some(b'a'), _) => None,
        _ => Some(format!("it is not active: lvchange -ay {group}/{name}")),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_tells_sockets_and_disks() {
        let line = "qemu-system-x86_64 -name web1 -blockdev driver=qcow2,node-name=a,file.driver=file,file.filename=/a,,b \
                    -drive file=/c.img,format=raw -device virtserialport,chardev=ga,name=org.qemu.guest_agent.0 \
                    -chardev socket,id=ga,path=/run/ga.sock,server=on,wait=off -qmp unix:/run/qmp.sock,server=on,wait=off";
        let qemu = Qemu::parse(&line.split_whitespace().collect::<Vec<_>>());
        let expected = Qemu {
            name: Some("web1".into()),
            monitor: Some("/run/qmp.sock".into()),
            agent: Some("/run/ga.sock".into()),
            disks: vec!["/a,b".into(), "/c.img".into()],
            is_inherited: false,
        };
        assert_eq!(qemu, expected);
        let line = r#"qemu-system-x86_64 -name guest=web2,debug-threads=on -chardev socket,id=m,fd=22,server=on,wait=off -mon chardev=m,id=monitor,mode=control -blockdev {"driver":"file","filename":"/d.qcow2","node-name":"s"}"#;
        let qemu = Qemu::parse(&line.split(' ').collect::<Vec<_>>());
        assert_eq!((qemu.name.as_deref(), qemu.monitor, qemu.is_inherited), (Some("web2"), None, true));
        assert_eq!(qemu.disks, ["/d.qcow2"]);
        assert_eq!(Qemu::parse(&["", "-qmp", "-name", "-"]).monitor, None);
    }

    #[test]
    fn volumes_and_domains_are_what_their_tools_print() {
        let volume = |line| logical_volume(line).unwrap();
        let free = volume("  vg0|data|-wi-a-----|4.00g");
        assert_eq!((free.uri.as_deref(), free.detail.as_str()), (Some("/dev/vg0/data"), "vg0/data, 4.00g"));
        assert!(volume("vg0|root|-wi-ao----|4.00g").refused.unwrap().contains("in use"));
        assert!(volume("vg0|off|-wi-------|4.00g").refused.unwrap().contains("lvchange"));
        assert_eq!(logical_volume("  vg0"), None);
        assert_eq!(domain(" -     web1   shut off"), Some(("web1".into(), "shut off".into())));
        assert_eq!(domain(""), None);
    }
}
