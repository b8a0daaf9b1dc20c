//! Whoever is killed while a guest is frozen, it is thawed: by the run, by its watchdog, or by the next start of firn.

use crate::support::{Lab, SOON, child_program, until, words};
use firn_source::testing::Reaction;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// A run in a process of its own.
pub struct Run {
    child: Child,
    words: ChildStdin,
    places: mpsc::Receiver<String>,
}

impl Run {
    pub fn start(state: &Path, things: &Path, socket: &Path, hook: Option<&str>) -> Self {
        Self::spawn(&mut Self::command(state, things, socket, hook))
    }

    fn command(state: &Path, things: &Path, socket: &Path, hook: Option<&str>) -> Command {
        let mut command = Command::new(child_program());
        command.arg("take").args([state, things, socket]).args(hook);
        command
    }

    fn spawn(command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap();
        let output = child.stdout.take().unwrap();
        let (sender, places) = mpsc::channel();
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let words = child.stdin.take().unwrap();
        Self { child, words, places }
    }

    fn in_lab(lab: &Lab, hook: Option<&str>) -> Self {
        Self::start(&lab.state(), &lab.path("things"), lab.agent.socket(), hook)
    }

    pub fn await_place(&self, place: &str) {
        assert_eq!(self.places.recv_timeout(SOON).unwrap(), place);
    }

    pub fn go_on(&mut self) {
        self.words.write_all(b"\n").unwrap();
    }

    /// Lets it go on from place to place until it is at `place`.
    pub fn go_to(&mut self, place: &str) {
        for passed in ["prepare", "cut", "taken filesystem", "finish", "done"] {
            self.await_place(passed);
            if passed == place {
                return;
            }
            self.go_on();
        }
    }

    fn process(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The only child that it has.
    fn watchdog(&self) -> Pid {
        let parent = format!("PPid:\t{}\n", self.child.id());
        let is_child = |entry: &std::fs::DirEntry| {
            std::fs::read_to_string(entry.path().join("status")).is_ok_and(|status| status.contains(&parent))
        };
        let mut children = std::fs::read_dir("/proc").unwrap().flatten().filter(is_child);
        let number = children.next().unwrap().file_name().into_string().unwrap();
        assert!(children.next().is_none());
        Pid::from_raw(number.parse().unwrap()).unwrap()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn kill_with_watchdog(&mut self) {
        let watchdog = self.watchdog();
        kill_process(watchdog, Signal::KILL).unwrap();
        self.kill();
        // Its locks are gone when it is.
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", watchdog.as_raw_nonzero())).unwrap_or_default();
        until("the watchdog is dead", || {
            state().rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
        });
    }
}

/// What every start of firn does; what it told.
pub fn next_start(state: &Path) -> String {
    let output = Command::new(child_program()).arg("recover").arg(state).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn the_run_is_killed() {
    for place in ["prepare", "cut", "taken filesystem", "finish"] {
        let lab = Lab::new();
        let hook = format!("echo $FIRN_OUTCOME >>{}", lab.path("note").display());
        let mut run = Run::in_lab(&lab, Some(&hook));
        run.go_to(place);
        assert_eq!(lab.agent.is_frozen(), place == "cut");
        run.kill();
        lab.assert_clean();
        // The hook runs once.
        let expected = match place {
            "prepare" => "",
            "cut" => "failed",
            _ => "filesystem",
        };
        assert_eq!(words(&lab.path("note")), expected, "{place}");
        assert_eq!(next_start(&lab.state()), "");
    }
}

#[test]
fn the_run_is_killed_while_the_guest_is_asked_to_freeze() {
    let lab = Lab::new();
    lab.agent.react("guest-fsfreeze-freeze", [Reaction::Late(Duration::from_millis(1_000))]);
    let mut run = Run::in_lab(&lab, None);
    run.await_place("prepare");
    run.go_on();
    // The record names the guest before it is asked.
    let is_armed = || lab.records().iter().any(|path| words(&path.join("record.json")).contains("ga.sock\""));
    until("the record names the guest", is_armed);
    run.kill();
    lab.assert_clean();
}

#[test]
fn the_watchdog_is_killed() {
    for place in ["prepare", "cut", "taken filesystem"] {
        let lab = Lab::new();
        let mut run = Run::in_lab(&lab, None);
        run.go_to(place);
        kill_process(run.watchdog(), Signal::KILL).unwrap();
        // The run goes on to its end; but without a watchdog it freezes nobody.
        run.go_on();
        let rest: Vec<_> = run.places.iter().inspect(|_| drop(run.words.write_all(b"\n"))).collect();
        let ended = run.child.wait().unwrap();
        let expected: &[&str] = match place {
            "prepare" => &["finish"],
            "cut" => &["taken filesystem", "finish", "done"],
            _ => &["finish", "done"],
        };
        assert_eq!(rest, expected, "{place}");
        assert_eq!(ended.success(), place != "prepare");
        assert!(!lab.agent.is_frozen());
        lab.assert_clean();
    }
}

#[test]
fn both_are_killed() {
    for place in ["prepare", "cut", "taken filesystem", "finish"] {
        let lab = Lab::new();
        let hook = format!("echo $FIRN_OUTCOME >>{}", lab.path("note").display());
        let mut run = Run::in_lab(&lab, Some(&hook));
        run.go_to(place);
        run.kill_with_watchdog();
        assert_eq!(lab.agent.is_frozen(), place == "cut");
        let told = next_start(&lab.state());
        assert!(told.contains("was killed over a snapshot of web1"), "{told}");
        assert_eq!(told.contains("thawed the guest"), place == "cut", "{told}");
        assert!(!lab.agent.is_frozen());
        assert_eq!((lab.records().len(), lab.things()), (0, 0), "{place}");
        assert_eq!(words(&lab.path("note")), if place == "cut" { "failed" } else { words_after(place) });
        assert_eq!(next_start(&lab.state()), "");
    }
}

fn words_after(place: &str) -> &'static str {
    if place == "prepare" { "" } else { "filesystem" }
}

#[test]
fn the_whole_process_group_is_killed() {
    let lab = Lab::new();
    let mut run = Run::in_lab(&lab, None);
    run.go_to("cut");
    kill_process_group(run.process(), Signal::KILL).unwrap();
    run.child.wait().unwrap();
    lab.assert_clean();
}

#[test]
fn a_run_that_is_stopped_does_not_keep_the_guest_frozen() {
    let lab = Lab::new();
    let mut command = Run::command(&lab.state(), &lab.path("things"), lab.agent.socket(), None);
    let mut run = Run::spawn(command.env("FROZEN_LIMIT_MILLISECONDS", "1500"));
    run.go_to("cut");
    kill_process(run.process(), Signal::STOP).unwrap();
    lab.agent.await_thaw(SOON);
    // It is another one's business whether the run ever goes on; if so, it knows.
    kill_process(run.process(), Signal::CONT).unwrap();
    run.go_on();
    run.await_place("taken crash");
    run.go_on();
    run.await_place("finish");
    run.go_on();
    run.await_place("done");
    run.child.wait().unwrap();
    lab.assert_clean();
}

#[test]
fn a_guest_that_is_gone_or_silent_is_tried_again_at_each_start() {
    let lab = Lab::new();
    let mut run = Run::in_lab(&lab, None);
    run.go_to("cut");
    run.kill_with_watchdog();
    lab.agent.react("guest-sync-delimited", vec![Reaction::Ignore; 2]);
    lab.agent.react("guest-fsfreeze-thaw", [Reaction::Ignore]);
    let told = next_start(&lab.state());
    assert!(told.contains("could not be undone") && lab.agent.is_frozen(), "{told}");
    assert_eq!(lab.records().len(), 1);
    next_start(&lab.state());
    lab.assert_clean();
}
