//! Images by mkfs, sfdisk, qemu-img and the kernel, and the program itself.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What running the program gave.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: Vec<u8>,
    pub err: String,
}

impl Run {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs firn in `folder`, without a pool unless it is named.
pub fn firn<S: AsRef<OsStr>>(folder: &Path, arguments: &[S]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firn"));
    for variable in ["FIRN_POOL", "FIRN_PASSWORD", "FIRN_PASSWORD_FILE", "FIRN_KEY_FILE"] {
        command.env_remove(variable);
    }
    command.args(arguments).current_dir(folder).env("XDG_CACHE_HOME", folder.join("cache")).env("TZ", "UTC");
    let Output { status, stdout, stderr } = command.output().unwrap();
    Run { code: status.code().unwrap_or(-1), out: stdout, err: String::from_utf8_lossy(&stderr).into_owned() }
}

/// Runs firn, which must succeed.
#[track_caller]
pub fn firn_ok<S: AsRef<OsStr>>(folder: &Path, arguments: &[S]) -> Run {
    let run = firn(folder, arguments);
    assert_eq!(run.code, 0, "{}", run.err);
    run
}

/// Whether all `tools` are installed; says so if not.
pub fn has(test: &str, tools: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = std::env::split_paths(&path).chain(["/sbin".into(), "/usr/sbin".into()]).collect();
    let missing = tools.iter().find(|tool| !places.iter().any(|place| place.join(tool).exists()));
    if let Some(tool) = missing {
        firn_disk::testing::skip(test, &format!("needs {tool}"));
    }
    missing.is_none()
}

/// Whether we are root and the kernel mounts images; says so if not.
pub fn can_mount(test: &str) -> bool {
    if !has(test, &["mkfs.ext4", "mount", "setfacl"]) {
        return false;
    }
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        firn_disk::testing::skip(test, "needs root for loop mounts");
    }
    is_root
}

/// Runs a shell script in `folder`.
#[track_caller]
pub fn shell(folder: &Path, script: &str) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("bash");
    // `script` runs its command by $SHELL, and where that is not set by sh.
    let command = command.args(["-euc", script]).env("PATH", path).env("SHELL", "/bin/bash");
    let output = command.current_dir(folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A mount that ends with it.
pub struct Mounted(pub PathBuf);

impl Mounted {
    pub fn new(image: &Path, folder: PathBuf, options: &str) -> Self {
        std::fs::create_dir_all(&folder).unwrap();
        let status = Command::new("mount").arg("-o").arg(options).arg(image).arg(&folder).status().unwrap();
        assert!(status.success(), "mount {}", image.display());
        Self(folder)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A small tree of all kinds of names and files, without anything that needs root.
pub fn make_tree(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    std::fs::create_dir_all(&tree).unwrap();
    shell(
        &tree,
        r#"
        mkdir -p etc usr/lib var/log/deep/er empty
        echo 'NAME="Test"' >usr/lib/os-release
        ln -s ../usr/lib/os-release etc/os-release
        ln -s /usr/lib/os-release absolute
        ln -s loop loop
        ln -s nowhere dangling
        echo hello >etc/hosts; chmod 640 etc/hosts
        for n in $(seq 300); do echo "file $n" >var/log/$n; done
        ln var/log/1 var/log/deep/one; ln var/log/1 etc/one
        head -c 3000001 /dev/urandom >var/large
        truncate -s 20M var/sparse; printf middle | dd of=var/sparse bs=1 seek=9000000 conv=notrunc status=none
        : >var/nothing
        echo x >'name with spaces'; echo x >'größe'; echo y >$'new\nline'; echo z >'back\slash'
        echo e >$'esc\e[31m'; echo b >$'bytes\xff'
        chmod 700 empty; touch -d '2001-02-03 04:05:06' empty etc/hosts
        "#,
    );
    tree
}

/// An ext4 file system with `tree` in it.
pub fn make_ext4(tree: &Path, image: &Path, mebibytes: u64, options: &str) {
    let (tree, image) = (tree.display(), image.display());
    let folder = Path::new("/");
    shell(folder, &format!("truncate -s {mebibytes}M {image}; mkfs.ext4 -q -F {options} -d {tree} {image}"));
}

/// Everything that a tree consists of, by path: type, mode, size, times, attributes, content.
pub fn describe(root: &Path, with_owner: bool) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    let mut firsts: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let below = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            if below == b"lost+found" {
                continue;
            }
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            let mut text =
                format!("mode {:o} mtime {}.{:09}", metadata.mode(), metadata.mtime(), metadata.mtime_nsec());
            if with_owner {
                text += &format!(" owner {} {}", metadata.uid(), metadata.gid());
            }
            if metadata.is_dir() {
                folders.push(path.clone());
            } else if metadata.is_symlink() {
                text += &format!(" -> {:?}", std::fs::read_link(&path).unwrap());
            } else if metadata.is_file() {
                let bytes = std::fs::read(&path).unwrap();
                text += &format!(" size {} sum {:x}", bytes.len(), sum(&bytes));
                text += &format!(" links {}", metadata.nlink());
            } else {
                text += &format!(" device {:x}", metadata.rdev());
            }
            if !metadata.is_symlink() {
                text += &xattrs(&path);
            }
            found.insert(below, text);
        }
    }
    // Second names of one file: the first path in order that has it, so that the order of reading does not matter.
    for path in found.keys() {
        let metadata = std::fs::symlink_metadata(root.join(OsStr::from_bytes(path))).unwrap();
        firsts.entry(metadata.ino()).or_insert_with(|| path.clone());
    }
    for (path, text) in &mut found {
        let metadata = std::fs::symlink_metadata(root.join(OsStr::from_bytes(path))).unwrap();
        *text += &format!(" same as {}", String::from_utf8_lossy(&firsts[&metadata.ino()]));
    }
    found
}

fn xattrs(path: &Path) -> String {
    let mut list = vec![0; 4096];
    let length = rustix::fs::listxattr(path, list.as_mut_slice()).unwrap();
    let mut names: Vec<&[u8]> = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    let mut text = String::new();
    for name in names {
        let mut value = vec![0; 65536];
        let length = rustix::fs::getxattr(path, name, value.as_mut_slice()).unwrap();
        text += &format!(" {}={:?}", String::from_utf8_lossy(name), &value[..length]);
    }
    text
}

/// FNV-1a.
pub fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[track_caller]
pub fn assert_same(ours: &BTreeMap<Vec<u8>, String>, theirs: &BTreeMap<Vec<u8>, String>) {
    for (path, text) in theirs {
        assert_eq!(ours.get(path), Some(text), "{}", String::from_utf8_lossy(path));
    }
    let more: Vec<_> = ours.keys().filter(|path| !theirs.contains_key(*path)).collect();
    assert!(more.is_empty(), "{more:?}");
}

/// A number for a whole file, to see whether it was written to.
pub fn file_sum(path: &Path) -> u64 {
    sum(&std::fs::read(path).unwrap())
}
