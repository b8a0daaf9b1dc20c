//! Other programs: run with an end to every wait and a limit to what they print.

use firn_disk::{Error, ErrorKind, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// More than any program that is asked here has to say.
const MOST_OUTPUT_BYTES: u64 = 256 << 20;
/// How long a killed program's pipes are waited for: a grandchild that left the group may hold them for ever.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Between two looks at whether a program has ended.
const LOOK: Duration = Duration::from_millis(2);

/// What a program printed, and how it ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; 128 and the signal's number if one killed it.
    pub code: i32,
    /// What it printed to stdout.
    pub stdout: Vec<u8>,
    /// What it printed to stderr.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Stdout as text, with a replacement for what is not UTF-8.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The last line of stdout that says something, or of stderr: what programs answer to `--version`.
    pub fn last_line(&self) -> String {
        last_line(&self.stdout).or_else(|| last_line(&self.stderr)).unwrap_or_default()
    }

    /// The last line of stderr that says something, or of stdout.
    pub fn last_words(&self) -> String {
        last_line(&self.stderr).or_else(|| last_line(&self.stdout)).unwrap_or_default()
    }
}

fn last_line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

/// Runs `command` in a process group of its own, with `input` on its stdin, and waits for its end. When `timeout` is
/// over, the whole group is killed.
///
/// # Errors
/// `NotFound` when there is no such program, `Unavailable` when it took too long, `Io` when it printed more than
/// 256 MiB. A program that ends with another code than 0 is no error here; [`run_well`] makes it one.
pub fn run(command: &mut Command, input: &[u8], timeout: Duration) -> Result<Finished> {
    let deadline = Instant::now() + timeout;
    let name = display(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|error| {
        Error::from_io("start", error).at_path(command.get_program()).hint("is the program installed and on the PATH?")
    })?;
    let stdin = child.stdin.take();
    let input = input.to_vec();
    // A program need not read what it is given.
    let writer = std::thread::spawn(move || stdin.map(|mut pipe| pipe.write_all(&input)));
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child, deadline, &name)?;
    drop(writer);
    let gather = |pipe: mpsc::Receiver<std::io::Result<Vec<u8>>>| {
        let left = deadline.saturating_duration_since(Instant::now()).max(LAST_WORDS);
        let bytes =
            pipe.recv_timeout(left).map_err(|_| late(&name))?.map_err(|error| Error::from_io("read from", error))?;
        if bytes.len() as u64 > MOST_OUTPUT_BYTES {
            return Err(Error::new(ErrorKind::Io, format!("{name} printed more than 256 MiB")));
        }
        Ok(bytes)
    };
    Ok(Finished {
        code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        stdout: gather(stdout)?,
        stderr: gather(stderr)?,
    })
}

/// As [`run`], for a program that has to succeed.
///
/// # Errors
/// As [`run`]; `Io` with its last words when it ends with another code than 0.
pub fn run_well(command: &mut Command, input: &[u8], timeout: Duration) -> Result<Finished> {
    let finished = run(command, input, timeout)?;
    if finished.code == 0 {
        return Ok(finished);
    }
    let name = display(command);
    let words = finished.last_words();
    Err(Error::new(ErrorKind::Io, format!("{name} failed with code {}: {words}", finished.code)))
}

/// The command as one would type it, for messages.
pub fn display(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = pipe.map_or(Ok(0), |pipe| pipe.take(MOST_OUTPUT_BYTES + 1).read_to_end(&mut bytes));
        // Nobody waits for it any more when the time was over.
        let _ = sender.send(read.map(|_| bytes));
    });
    receiver
}

fn wait(child: &mut Child, deadline: Instant, name: &str) -> Result<std::process::ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().map_err(|error| Error::from_io("wait for", error))? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            // It may have ended this moment; then there is nobody to kill.
            group.map(|group| kill_process_group(group, Signal::KILL));
            child.wait().map_err(|error| Error::from_io("wait for", error))?;
            return Err(late(name));
        }
        std::thread::sleep(LOOK);
    }
}

fn late(name: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{name} did not end in time and was killed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_input_and_code() {
        let finished = run(&mut shell("cat; echo no >&2; exit 3"), b"in", Duration::from_secs(20)).unwrap();
        assert_eq!((finished.code, finished.text().as_str(), finished.last_words().as_str()), (3, "in", "no"));
        let error = run_well(&mut shell("echo why >&2; kill -9 $$"), b"", Duration::from_secs(20)).unwrap_err();
        assert!(error.to_string().contains("137: why"), "{error}");
        // More than a pipe holds, both ways, to a program that reads none of it.
        let finished = run(&mut shell("head -c 300000 /dev/zero"), &[7; 300_000], Duration::from_secs(20)).unwrap();
        assert_eq!(finished.stdout.len(), 300_000);
    }

    #[test]
    fn what_takes_too_long_is_killed_with_its_children() {
        let error = run(&mut shell("sleep 600 & sleep 600"), b"", Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(run(&mut Command::new("no such program"), b"", LOOK).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
