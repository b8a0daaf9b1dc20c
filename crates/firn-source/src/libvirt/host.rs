//! [`Host`]: the few things that firn does on the domain's host beside asking libvirt: a folder for the NBD socket, room
//! for scratch files, leftovers, the way to the socket.
//!
//! On another host each of them is a small shell script over ssh. The way to the socket is one `ssh -L` for the whole run;
//! what runs at its other end prints the free space every second, so that the same connection tells when the scratch files
//! fill their file system, and so that it ends within a second of this process, however that ends.

use super::location::Ssh;
use crate::process;
use firn_disk::{Error, ErrorKind, Result};
use rustix::process::geteuid;
use std::fs::{DirBuilder, Permissions};
use std::io::{BufRead, BufReader, ErrorKind as Os, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// For what ssh takes to log in and to run a line of shell.
const SSH_PATIENCE: Duration = Duration::from_secs(30);

/// Where a domain runs.
#[derive(Debug, Clone)]
pub enum Host {
    /// Here.
    Local,
    /// At the other end of ssh.
    Remote(Ssh),
}

impl Host {
    /// Makes `name` in `base`, or where sockets belong on that host, so that only QEMU, which runs as `owner`, and this
    /// user can look into it. Answers with its path.
    ///
    /// # Errors
    /// The system's own; `Denied` where this user cannot share a folder with QEMU's.
    pub fn make_socket_folder(&self, base: Option<&Path>, name: &str, owner: Option<(u32, u32)>) -> Result<PathBuf> {
        match self {
            Self::Local => {
                let is_ours = owner.is_none_or(|(user, _)| geteuid().is_root() || user == geteuid().as_raw());
                let base =
                    base.map_or_else(|| if is_ours { runtime_folder() } else { std::env::temp_dir() }, Path::to_owned);
                let folder = base.join(name);
                make_private_folder(&folder)?;
                share(&folder, owner).inspect_err(|_| drop(std::fs::remove_dir(&folder)))?;
                Ok(folder)
            }
            Self::Remote(ssh) => {
                let base = base.map_or_else(|| "$(test -w /run && echo /run || echo /tmp)".to_owned(), quote);
                let share = owner.map_or_else(String::new, |(user, group)| {
                    format!(
                        "if [ $(id -u) = 0 ]; then chown {user}:{group} \"$f\"; elif [ $(id -u) != {user} ]; then \
                         chgrp {group} \"$f\" && chmod 770 \"$f\"; fi\n"
                    )
                });
                let script = format!("set -e\numask 077\nf={base}/{name}\nmkdir \"$f\"\n{share}echo \"$f\"\n");
                let folder = PathBuf::from(ssh_run(ssh, &script)?.trim_end());
                if folder.is_absolute() { Ok(folder) } else { Err(nonsense(ssh)) }
            }
        }
    }

    /// Removes the files and folders in `folder` that begin with `prefix` and go on with `tag` after the run's number. A
    /// folder that is not there is none that has any.
    ///
    /// # Errors
    /// The system's own.
    pub fn remove(&self, folder: &Path, names: &Names<'_>) -> Result<()> {
        match self {
            Self::Local => remove_local(folder, names),
            Self::Remote(ssh) => {
                let run = names.run.map_or_else(|| "????????".to_owned(), str::to_owned);
                let pattern = format!("{}/firn-{}-{run}-{}*", quote(folder), names.owner, names.tag);
                ssh_run(ssh, &format!("rm -rf -- {pattern}\n")).map(drop)
            }
        }
    }

    /// Folders in which [`make_socket_folder`](Self::make_socket_folder) may have made one.
    pub fn socket_folders(&self, base: Option<&Path>) -> Vec<PathBuf> {
        let usual = match self {
            Self::Local => vec![runtime_folder(), std::env::temp_dir()],
            Self::Remote(_) => vec!["/run".into(), "/tmp".into()],
        };
        base.map_or(usual, |base| vec![base.to_owned()])
    }

    /// Bytes that are free in each of these folders.
    ///
    /// # Errors
    /// The system's own, as when there is no such folder.
    pub fn free(&self, folders: &[PathBuf]) -> Result<Vec<u64>> {
        match self {
            Self::Local => folders.iter().map(|folder| free_here(folder)).collect(),
            Self::Remote(ssh) => {
                let text = ssh_run(ssh, &format!("export LC_ALL=C\n{}\n", df(folders)))?;
                let free: Vec<_> = text.lines().filter_map(available).collect();
                if free.len() == folders.len() { Ok(free) } else { Err(nonsense(ssh)) }
            }
        }
    }

    /// The content of a file of at most `most` bytes.
    ///
    /// # Errors
    /// The system's own; `Unsupported` for a longer one.
    pub fn read(&self, path: &Path, most: u64) -> Result<Vec<u8>> {
        let bytes = match self {
            Self::Local => {
                let failed = |error| Error::from_io("read", error).at_path(path);
                let mut bytes = Vec::new();
                std::fs::File::open(path).map_err(failed)?.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
                bytes
            }
            Self::Remote(ssh) => {
                let script = format!("head -c {} -- {}\n", most + 1, quote(path));
                process::run_well(&mut command(ssh, &[]), script.as_bytes(), SSH_PATIENCE)?.stdout
            }
        };
        if bytes.len() as u64 > most {
            return Err(Error::unsupported(format!("a file of more than {most} bytes")).at_path(path));
        }
        Ok(bytes)
    }
}

/// Which of the things that firn made are meant: `firn-<owner>-<run>-<tag>…`.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// 16 hexadecimal digits.
    pub owner: &'a str,
    /// 8 hexadecimal digits, or any.
    pub run: Option<&'a str>,
    /// What tells this domain from others.
    pub tag: &'a str,
}

impl Names<'_> {
    fn fits(&self, name: &str) -> bool {
        let rest = name.strip_prefix("firn-").and_then(|name| name.strip_prefix(self.owner));
        let split = rest.and_then(|rest| rest.strip_prefix('-')).and_then(|rest| rest.split_once('-'));
        split.is_some_and(|(run, rest)| self.run.is_none_or(|wanted| wanted == run) && rest.starts_with(self.tag))
    }
}

/// Where this user's sockets and locks belong.
pub fn runtime_folder() -> PathBuf {
    if geteuid().is_root() {
        return PathBuf::from("/run");
    }
    let folder = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    folder.filter(|folder| folder.is_absolute() && folder.is_dir()).unwrap_or_else(std::env::temp_dir)
}

/// Makes a folder that nobody else can look into.
///
/// # Errors
/// The system's own.
pub fn make_private_folder(folder: &Path) -> Result<()> {
    let made = DirBuilder::new().mode(0o700).create(folder);
    made.map_err(|error| Error::from_io("make the folder", error).at_path(folder))
}

fn share(folder: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    let Some((user, group)) = owner.filter(|(user, _)| *user != geteuid().as_raw()) else { return Ok(()) };
    let given = if geteuid().is_root() {
        std::os::unix::fs::chown(folder, Some(user), Some(group))
    } else {
        std::os::unix::fs::chown(folder, None, Some(group))
            .and_then(|()| std::fs::set_permissions(folder, Permissions::from_mode(0o770)))
    };
    given.map_err(|error| {
        Error::from_io("share the folder of the NBD socket with QEMU", error)
            .at_path(folder)
            .hint(format!("run firn as root, or as a member of QEMU's group ({group})"))
    })
}

fn remove_local(folder: &Path, names: &Names<'_>) -> Result<()> {
    let failed = |error| Error::from_io("remove leftovers in", error).at_path(folder);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        // Where this user may not look, libvirt alone makes and removes files.
        Err(error) if matches!(error.kind(), Os::NotFound | Os::NotADirectory | Os::PermissionDenied) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_str().is_some_and(|name| names.fits(name)) {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed =
                if is_folder { std::fs::remove_dir_all(entry.path()) } else { std::fs::remove_file(entry.path()) };
            match removed {
                Err(error) if error.kind() != Os::NotFound => {
                    return Err(Error::from_io("remove", error).at_path(entry.path()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn free_here(folder: &Path) -> Result<u64> {
    let failed = |error: rustix::io::Errno| {
        Error::from_io("look for free space in", error.into())
            .at_path(folder)
            .hint("name another folder for scratch files")
    };
    let state = rustix::fs::statvfs(folder).map_err(failed)?;
    Ok(state.f_bavail.saturating_mul(state.f_frsize))
}

/// The free bytes in these folders, one after the other, as they were told of last.
#[derive(Debug, Clone)]
pub enum Gauge {
    /// Looked up each time.
    Local(Vec<PathBuf>),
    /// Told by the other end; none before the first time.
    Told(Arc<Mutex<Option<Vec<u64>>>>),
}

impl Gauge {
    /// What is known now; none where nothing is.
    pub fn read(&self) -> Option<Vec<u64>> {
        match self {
            Self::Local(folders) => Host::Local.free(folders).ok(),
            Self::Told(told) => told.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// A socket here that leads to one on another host.
#[derive(Debug)]
pub struct Forward {
    child: Child,
    /// The socket here.
    pub socket: PathBuf,
    /// The free space there.
    pub gauge: Gauge,
}

impl Forward {
    /// Leads `here` to `there`, which need not exist yet, and measures `folders`.
    ///
    /// # Errors
    /// `Unavailable` when the other host cannot be logged in to in 30 s, with ssh's words.
    pub fn start(ssh: &Ssh, here: &Path, there: &Path, folders: &[PathBuf]) -> Result<Self> {
        let forward = format!("{}:{}", here.display(), there.display());
        let mut command =
            command(ssh, &["-o", "ExitOnForwardFailure=yes", "-o", "StreamLocalBindUnlink=yes", "-L", &forward]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|error| Error::from_io("start ssh", error))?;
        let script = format!("export LC_ALL=C\nwhile {} && echo; do sleep 1; done\n", df(folders));
        if let Some(mut stdin) = child.stdin.take() {
            // When ssh has ended already, its silence is noticed below.
            let _ = stdin.write_all(script.as_bytes());
        }
        let told = Arc::new(Mutex::new(None));
        let (sender, first) = std::sync::mpsc::sync_channel(1);
        if let Some(stdout) = child.stdout.take() {
            let told = told.clone();
            let count = folders.len();
            std::thread::spawn(move || listen(BufReader::new(stdout), count, &told, &sender));
        }
        let mut forward = Self { child, socket: here.to_owned(), gauge: Gauge::Told(told) };
        if first.recv_timeout(SSH_PATIENCE).is_err() {
            forward.end();
            let mut words = String::new();
            if let Some(stderr) = forward.child.stderr.take() {
                // A grandchild may hold the pipe; what it says beyond this is of no use.
                let _ = stderr.take(4096).read_to_string(&mut words);
            }
            let words = words.lines().last().unwrap_or("it did not answer in time").to_owned();
            return Err(Error::new(ErrorKind::Unavailable, format!("ssh to {}: {words}", ssh.destination))
                .hint("ssh has to log in without a password there, and the user has to get at QEMU's sockets"));
        }
        Ok(forward)
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.end();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Takes over each round of figures; a line without any ends it.
fn listen(output: impl BufRead, count: usize, told: &Mutex<Option<Vec<u64>>>, first: &std::sync::mpsc::SyncSender<()>) {
    let mut round = Vec::new();
    for line in output.take(1 << 30).lines() {
        let Ok(line) = line else { break };
        if let Some(free) = available(&line) {
            round.push(free);
            round.truncate(count);
        } else if line.is_empty() {
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::mem::take(&mut round));
            // Only the first is waited for.
            let _ = first.try_send(());
        }
    }
}

/// One `df` for each folder, so that one that is missing fails by itself.
fn df(folders: &[PathBuf]) -> String {
    let each: Vec<_> = folders.iter().map(|folder| format!("df -Pk -- {}", quote(folder))).collect();
    if each.is_empty() { "true".to_owned() } else { each.join(" && ") }
}

/// `/dev/vda 263174212 22544384 73195236 24% /` of `df -Pk`: what is available, in bytes.
fn available(line: &str) -> Option<u64> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let at = fields.iter().position(|field| field.ends_with('%'))?;
    fields.get(at.checked_sub(1)?)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// `ssh … DESTINATION sh`, whose stdin is a script.
fn command(ssh: &Ssh, options: &[&str]) -> Command {
    let mut command = Command::new(&ssh.command);
    command.args(&ssh.options).args(options).args(["-T", "--", &ssh.destination, "sh"]);
    command
}

fn ssh_run(ssh: &Ssh, script: &str) -> Result<String> {
    Ok(process::run_well(&mut command(ssh, &[]), script.as_bytes(), SSH_PATIENCE)?.text())
}

fn nonsense(ssh: &Ssh) -> Error {
    Error::new(ErrorKind::Io, format!("ssh to {}: an answer that makes no sense", ssh.destination))
        .hint("does its login shell print something of its own?")
}

/// A path as one word of a shell.
fn quote(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_known_by_their_names() {
        let names = Names { owner: "0123456789abcdef", run: None, tag: "aa" };
        assert!(names.fits("firn-0123456789abcdef-01234567-aa-vda.qcow2"));
        for other in
            ["firn-0123456789abcdef-01234567-bb-vda", "firn-0123456789abcdee-01234567-aa", "firn-0123456789abcdef"]
        {
            assert!(!names.fits(other), "{other}");
        }
        assert!(!Names { run: Some("01234568"), ..names }.fits("firn-0123456789abcdef-01234567-aa-vda.qcow2"));
    }

    #[test]
    fn df_and_the_shell() {
        let (header, line) = ("Filesystem 1024-blocks Used Available Capacity Mounted on", "a b 10 4 6 40% /x 50%");
        assert_eq!((available(header), available(line), available("1%")), (None, Some(6 * 1024), None));
        assert_eq!(quote(Path::new("/it's")), "'/it'\\''s'");
        let told = Mutex::new(None);
        let (sender, first) = std::sync::mpsc::sync_channel(1);
        listen(format!("{header}\n{line}\n\nrest").as_bytes(), 1, &told, &sender);
        assert_eq!((told.lock().unwrap().clone(), first.try_recv().is_ok()), (Some(vec![6144]), true));
    }

    #[test]
    fn what_is_removed_here() {
        let folder = tempfile::tempdir().unwrap();
        let names = Names { owner: "0123456789abcdef", run: Some("01234567"), tag: "aa" };
        std::fs::write(folder.path().join("firn-0123456789abcdef-01234567-aa-vda"), "").unwrap();
        std::fs::create_dir_all(folder.path().join("firn-0123456789abcdef-01234567-aa/x")).unwrap();
        std::fs::write(folder.path().join("firn-0123456789abcdef-01234567-bb-vda"), "").unwrap();
        Host::Local.remove(folder.path(), &names).unwrap();
        Host::Local.remove(&folder.path().join("no"), &names).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
