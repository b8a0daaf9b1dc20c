//! The cut, with agents and sources that fail at every step.

use crate::support::{Lab, Monitor, around, member, until, words};
use firn_disk::{ErrorKind, Result};
use firn_source::Outcome;
use firn_source::quiesce::{
    Consistency, CutOptions, FailedHook, Freeze, Hook, Member, Phase, Place, Surroundings, Taken, Ticket, take,
};
use firn_source::testing::{Failure, FakeAgent, FakeSource, Reaction, Step};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Log = Arc<Mutex<Vec<String>>>;

/// Takes one machine with one source; finishes it.
fn take_one(source: FakeSource, hooks: Vec<Hook>, options: &CutOptions) -> Result<Taken> {
    let mut members = [member("web1", vec![source], hooks)];
    let (mut taken, watch) = take(&mut members, options, &around())?;
    members.iter_mut().flat_map(|member| &mut member.sources).for_each(|it| it.finish(Outcome::Published).unwrap());
    watch.done().unwrap();
    Ok(taken.remove(0))
}

fn entries(log: &Log) -> Vec<String> {
    log.lock().unwrap().clone()
}

/// A source that notes whether the guest was frozen while it was cut.
fn noting(lab: &Lab) -> (FakeSource, Arc<AtomicBool>) {
    let was_frozen = Arc::new(AtomicBool::new(false));
    let mut source = lab.source();
    let (note, probe) = (was_frozen.clone(), lab.agent.clone());
    source.at_step = Some(Box::new(move |step| {
        if step == Step::Cut {
            note.store(probe.is_frozen(), Ordering::SeqCst);
        }
    }));
    (source, was_frozen)
}

#[test]
fn a_guest_is_frozen_over_the_cut_and_runs_afterwards() {
    let lab = Lab::new();
    let (source, was_frozen) = noting(&lab);
    let log = source.log();
    let taken = take_one(source, Vec::new(), &lab.options()).unwrap();
    assert!(was_frozen.load(Ordering::SeqCst));
    assert_eq!((taken.consistency, taken.remarks.len()), (Consistency::Filesystem, 0), "{:?}", taken.remarks);
    assert!(taken.frozen.is_some() && taken.created == (around().now)());
    assert_eq!(lab.agent.log(), ["freeze / /srv", "thaw"]);
    assert_eq!(entries(&log), ["prepare", "cut", "finish Published"]);
    lab.assert_clean();
}

#[test]
fn nobody_is_asked_where_nothing_is_to_be_frozen() {
    let lab = Lab::new();
    let options = CutOptions { freeze: Freeze::No, ..lab.options() };
    let taken = take_one(lab.source(), Vec::new(), &options).unwrap();
    assert_eq!((taken.consistency, taken.frozen), (Consistency::Crash, None));
    let mut past = lab.source();
    past.taken = Some(jiff::Timestamp::UNIX_EPOCH);
    let options = CutOptions { freeze: Freeze::Require, ..lab.options() };
    let taken = take_one(past, Vec::new(), &options).unwrap();
    assert_eq!((taken.consistency, taken.created), (Consistency::Crash, jiff::Timestamp::UNIX_EPOCH));
    assert!(lab.agent.log().is_empty());
}

#[test]
fn hooks_make_it_application_consistent() {
    let lab = Lab::new();
    let hook = |place, phase, command: &str| Hook::new(place, phase, command);
    let note = format!("echo \"$FIRN_MACHINE $FIRN_PHASE $FIRN_OUTCOME\" >>{}; echo out", lab.path("note").display());
    let hooks = vec![
        hook(Place::Host, Phase::PostThaw, &note),
        hook(Place::Host, Phase::PreFreeze, &note),
        hook(Place::Guest, Phase::PreFreeze, &note),
        hook(Place::Guest, Phase::PostThaw, "exit 5"),
    ];
    let taken = take_one(lab.source(), hooks, &lab.options()).unwrap();
    assert_eq!(taken.consistency, Consistency::Application);
    let ran: Vec<_> = taken.hooks.iter().map(|it| (it.place.clone(), it.phase, it.code)).collect();
    let expected = [
        (Place::Host, Phase::PreFreeze, Some(0)),
        (Place::Guest, Phase::PreFreeze, Some(0)),
        (Place::Host, Phase::PostThaw, Some(0)),
        (Place::Guest, Phase::PostThaw, Some(5)),
    ];
    assert_eq!(ran, expected);
    assert_eq!(taken.hooks[0].output, "out\n");
    // What fails after the thaw is told, and changes nothing of what was taken.
    assert!(taken.remarks.len() == 1 && taken.remarks[0].contains("code 5"), "{:?}", taken.remarks);
    assert_eq!(words(&lab.path("note")), "web1 pre-freeze \nweb1 pre-freeze \nweb1 post-thaw application");
    lab.assert_clean();
}

#[test]
fn a_hook_that_fails_ends_it_or_costs_the_claim() {
    let lab = Lab::new();
    let note = format!("echo $FIRN_OUTCOME >>{}", lab.path("note").display());
    let hooks = vec![
        Hook::new(Place::Host, Phase::PreFreeze, "echo why >&2; exit 3"),
        Hook { timeout: Duration::from_millis(200), ..Hook::new(Place::Host, Phase::PreFreeze, "sleep 600") },
        Hook::new(Place::Host, Phase::PostThaw, note),
    ];
    let source = lab.source();
    let log = source.log();
    let error = take_one(source, hooks.clone(), &lab.options()).unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("code 3: why"), "{error}");
    assert_eq!((words(&lab.path("note")).as_str(), lab.agent.log().len()), ("failed", 0));
    assert_eq!(entries(&log), ["prepare", "finish Failed"]);
    lab.assert_clean();
    let options = CutOptions { failed_hook: FailedHook::GoOn, ..lab.options() };
    let taken = take_one(lab.source(), hooks, &options).unwrap();
    assert_eq!((taken.consistency, taken.remarks.len()), (Consistency::Filesystem, 2), "{:?}", taken.remarks);
    assert_eq!(words(&lab.path("note")), "failed\nfilesystem");
    assert!(taken.hooks[1].code.is_none() && taken.hooks[1].output.contains("killed"), "{:?}", taken.hooks[1]);
    let nowhere = vec![Hook::new(Place::Guest, Phase::PreFreeze, "true")];
    let source = FakeSource::new(&lab.path("things"), None);
    assert_eq!(take_one(source, nowhere, &lab.options()).unwrap_err().kind(), ErrorKind::Invalid);
    lab.assert_clean();
}

/// What it is, what the agent does in place of which command, and what the user is told.
type TroubledFreeze = (&'static str, Option<(&'static str, Reaction)>, &'static str);

/// Each thing that keeps a guest from being frozen: `auto` falls back and says why, `require` fails, and the guest runs.
#[test]
fn what_cannot_be_frozen_is_taken_as_crash_or_not_at_all() {
    let late = || Reaction::Late(Duration::from_millis(2_500));
    let cases: [TroubledFreeze; 9] = [
        ("missing", None, "not frozen by the guest agent"),
        ("hanging", Some(("guest-sync-delimited", Reaction::Ignore)), "no answer in time"),
        ("hanging in the freeze", Some(("guest-fsfreeze-freeze", Reaction::Ignore)), "no answer in time"),
        ("mute", Some(("guest-fsfreeze-freeze", Reaction::Mute)), "no answer in time"),
        ("late", Some(("guest-fsfreeze-freeze", late())), "no answer in time"),
        ("garbage", Some(("guest-fsfreeze-freeze", Reaction::Bytes(b"?\n".to_vec()))), "not JSON"),
        ("failing", Some(("guest-fsfreeze-freeze", Reaction::Error("GenericError", "bad disk"))), "bad disk"),
        ("nothing", Some(("guest-fsfreeze-freeze", Reaction::Bytes(b"{\"return\":0}\n".to_vec()))), "no file system"),
        ("gone", Some(("guest-fsfreeze-freeze", Reaction::HangUp)), "has gone"),
    ];
    for (name, reaction, why) in cases {
        let lab = Lab::new();
        let source = || match name {
            "missing" => FakeSource::new(&lab.path("things"), Some(&lab.path("nothing"))),
            _ => lab.source(),
        };
        let react = || reaction.clone().into_iter().for_each(|(command, it)| lab.agent.react(command, [it]));
        // Where an answer is waited for in vain; it is in time on a busy machine otherwise.
        let freeze_timeout = Duration::from_millis(if why.contains("in time") { 1_000 } else { 30_000 });
        let options = CutOptions { freeze_timeout, ..lab.options() };
        react();
        let taken = take_one(source(), Vec::new(), &options).unwrap();
        assert_eq!((taken.consistency, taken.frozen), (Consistency::Crash, None), "{name}");
        assert!(taken.remarks.len() == 1 && taken.remarks[0].contains(why), "{name}: {:?}", taken.remarks);
        lab.assert_clean();
        let source = source();
        let log = source.log();
        react();
        let options = CutOptions { freeze: Freeze::Require, ..options };
        let error = take_one(source, Vec::new(), &options).unwrap_err();
        assert!(error.to_string().contains("web1 cannot be frozen"), "{name}: {error}");
        assert_eq!(entries(&log), ["prepare", "finish Failed"], "{name}");
        lab.assert_clean();
    }
}

#[test]
fn a_guest_that_somebody_else_froze_is_left_frozen() {
    let lab = Lab::new();
    lab.agent.set_frozen(true);
    let taken = take_one(lab.source(), Vec::new(), &lab.options()).unwrap();
    assert!(taken.consistency == Consistency::Crash && taken.remarks[0].contains("by somebody else"));
    let options = CutOptions { freeze: Freeze::Require, ..lab.options() };
    assert_eq!(take_one(lab.source(), Vec::new(), &options).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(lab.agent.is_frozen() && lab.agent.log().is_empty());
    // Somebody comes in between the question and the freeze.
    lab.agent.react("guest-fsfreeze-status", [Reaction::Bytes(b"{\"return\":\"thawed\"}\n".to_vec())]);
    take_one(lab.source(), Vec::new(), &lab.options()).unwrap();
    assert!(lab.agent.is_frozen() && lab.agent.log().is_empty());
    lab.agent.set_frozen(false);
    lab.assert_clean();
}

#[test]
fn mount_points_are_frozen_by_choice_and_all_of_them_or_none() {
    let lab = Lab::new();
    let mut members = [member("web1", vec![lab.source()], Vec::new())];
    members[0].mount_points = vec!["/srv".to_owned()];
    let (taken, watch) = take(&mut members, &lab.options(), &around()).unwrap();
    watch.done().unwrap();
    assert_eq!(taken[0].consistency, Consistency::Filesystem);
    members[0].mount_points.push("/typo".to_owned());
    let (taken, watch) = take(&mut members, &lab.options(), &around()).unwrap();
    watch.done().unwrap();
    assert!(taken[0].consistency == Consistency::Crash && taken[0].remarks[0].contains("/srv, /typo"));
    assert!(!lab.agent.is_frozen());
}

#[test]
fn a_thaw_that_fails_is_tried_again() {
    let troubles = [
        Reaction::Error("GenericError", "not now"),
        Reaction::Bytes(b"?\n".to_vec()),
        Reaction::HangUp,
        Reaction::Late(Duration::from_millis(300)),
    ];
    for trouble in troubles {
        let lab = Lab::new();
        lab.agent.react("guest-fsfreeze-thaw", [trouble.clone()]);
        let taken = take_one(lab.source(), Vec::new(), &lab.options()).unwrap();
        // One whose first thaw was not heard of cannot be told from one that somebody else thawed before.
        let expected = match trouble {
            Reaction::HangUp => Consistency::Crash,
            _ => Consistency::Filesystem,
        };
        assert_eq!(taken.consistency, expected, "{trouble:?}: {:?}", taken.remarks);
        lab.assert_clean();
    }
}

#[test]
fn what_was_thawed_by_somebody_before_the_cut_is_not_claimed() {
    let lab = Lab::new();
    let thawing = || {
        let mut source = lab.source();
        let probe = lab.agent.clone();
        source.at_step = Some(Box::new(move |step| {
            if step == Step::Cut {
                probe.set_frozen(false);
            }
        }));
        source
    };
    let taken = take_one(thawing(), Vec::new(), &lab.options()).unwrap();
    assert!(
        taken.consistency == Consistency::Crash && taken.remarks[0].contains("0 still were"),
        "{:?}",
        taken.remarks
    );
    let options = CutOptions { freeze: Freeze::Require, ..lab.options() };
    take_one(thawing(), Vec::new(), &options).unwrap_err();
    lab.assert_clean();
}

#[test]
fn a_cut_that_takes_too_long_does_not_keep_the_guest_frozen() {
    let lab = Lab::new();
    let mut source = lab.source();
    let probe = lab.agent.clone();
    source.at_step = Some(Box::new(move |step| {
        if step == Step::Cut {
            until("the guest is thawed under a hanging cut", || !probe.is_frozen());
        }
    }));
    let options = CutOptions { frozen_limit: Duration::from_millis(100), ..lab.options() };
    let taken = take_one(source, Vec::new(), &options).unwrap();
    assert!(
        taken.consistency == Consistency::Crash && taken.remarks[0].contains("took too long"),
        "{:?}",
        taken.remarks
    );
    lab.assert_clean();
}

#[test]
fn a_source_that_fails_or_panics_anywhere_leaves_the_guest_running() {
    for step in [Step::Guest, Step::Prepare, Step::Tickets, Step::Cut] {
        for failure in [Failure::Error, Failure::Panic] {
            if failure == Failure::Error && matches!(step, Step::Guest | Step::Tickets) {
                continue;
            }
            let lab = Lab::new();
            let mut source = lab.source();
            source.failure = Some((step, failure));
            let log = source.log();
            let post = format!("echo $FIRN_OUTCOME >{}", lab.path("note").display());
            let hooks = vec![Hook::new(Place::Host, Phase::PostThaw, post)];
            let error = take_one(source, hooks, &lab.options()).unwrap_err();
            let expected = if failure == Failure::Panic { "panicked" } else { "told to fail" };
            assert!(error.to_string().contains(expected), "{step:?}: {error}");
            // One that was never asked to prepare has nothing to finish.
            let expected = (step != Step::Guest).then_some("finish Failed");
            assert_eq!(entries(&log).last().map(String::as_str), expected, "{step:?}");
            let got_there = matches!(step, Step::Tickets | Step::Cut);
            assert_eq!(words(&lab.path("note")), if got_there { "failed" } else { "" }, "{step:?}");
            lab.assert_clean();
        }
    }
    // One of two, and the clean-up as well: then the watchdog sweeps.
    let lab = Lab::new();
    let mut failing = lab.source();
    failing.failure = Some((Step::Finish, Failure::Panic));
    let mut second = lab.source();
    second.failure = Some((Step::Cut, Failure::Error));
    let mut members = [member("web1", vec![failing, second], Vec::new())];
    let error = take(&mut members, &lab.options(), &around()).unwrap_err();
    assert!(error.next_step().unwrap().contains("could not be removed"), "{error:?}");
    lab.assert_clean();
}

#[test]
fn a_guard_that_is_dropped_lets_the_watchdog_sweep() {
    let lab = Lab::new();
    let mut members = [member("web1", vec![lab.source()], Vec::new())];
    let (_, watch) = take(&mut members, &lab.options(), &around()).unwrap();
    assert_eq!((lab.things(), lab.records().len()), (1, 1));
    let source = lab.source();
    let log = source.log();
    let second = take(&mut [member("web1", vec![source], Vec::new())], &lab.options(), &around()).unwrap_err();
    // What is there is the first one's.
    assert!(entries(&log).is_empty() && lab.things() == 1);
    assert!(second.kind() == ErrorKind::Unavailable && second.to_string().contains("under way"), "{second}");
    drop(watch);
    lab.assert_clean();
}

#[test]
fn ctrl_c_ends_it_with_nothing_left() {
    let lab = Lab::new();
    let cancel = Arc::new(AtomicBool::new(false));
    let mut source = lab.source();
    let set = cancel.clone();
    source.at_step = Some(Box::new(move |_| set.store(true, Ordering::SeqCst)));
    let mut members = [member("web1", vec![source], Vec::new())];
    let around = Surroundings { cancel: &cancel, ..around() };
    assert_eq!(take(&mut members, &lab.options(), &around).unwrap_err().kind(), ErrorKind::Interrupted);
    lab.assert_clean();
}

#[test]
fn without_a_watchdog_nothing_is_frozen() {
    let lab = Lab::new();
    for program in ["/nowhere/firn", "/bin/true", "/bin/cat"] {
        let mut options = lab.options();
        options.watchdog.program = program.into();
        let error = take_one(lab.source(), Vec::new(), &options).unwrap_err();
        assert!(error.to_string().contains("start the thaw watchdog"), "{error}");
        assert!(lab.agent.log().is_empty());
        lab.assert_clean();
    }
}

#[test]
fn torn_is_torn_unless_its_own_guest_was_frozen() {
    let lab = Lab::new();
    let torn = |agent: bool| {
        let mut source = if agent { lab.source() } else { FakeSource::new(&lab.path("things"), None) };
        source.is_atomic = false;
        source
    };
    let options = CutOptions { freeze: Freeze::No, ..lab.options() };
    assert_eq!(take_one(torn(true), Vec::new(), &options).unwrap().consistency, Consistency::Torn);
    assert_eq!(take_one(torn(true), Vec::new(), &lab.options()).unwrap().consistency, Consistency::Filesystem);
    let mut members = [member("web1", vec![lab.source(), torn(false)], Vec::new())];
    let (taken, watch) = take(&mut members, &lab.options(), &around()).unwrap();
    watch.done().unwrap();
    assert_eq!(taken[0].consistency, Consistency::Torn);
}

/// Two machines, the second with a guest of its own.
fn group(lab: &Lab) -> (FakeAgent, [Member; 2]) {
    let second = FakeAgent::start(&lab.path("second.sock"));
    let source = FakeSource::new(&lab.path("things"), Some(second.socket()));
    let mut other = member("web2", vec![source], Vec::new());
    other.request.owner = "89ab".to_owned();
    (second, [member("web1", vec![lab.source()], Vec::new()), other])
}

#[test]
fn a_group_is_frozen_together_and_says_so_when_not() {
    let lab = Lab::new();
    let (second, mut members) = group(&lab);
    let (taken, watch) = take(&mut members, &lab.options(), &around()).unwrap();
    watch.done().unwrap();
    assert!(taken.iter().all(|taken| taken.consistency == Consistency::Filesystem && taken.remarks.is_empty()));
    assert!(taken[0].created == taken[1].created && second.log() == lab.agent.log());
    second.react("guest-fsfreeze-freeze", [Reaction::Error("GenericError", "no")]);
    let (taken, watch) = take(&mut members, &lab.options(), &around()).unwrap();
    watch.done().unwrap();
    assert_eq!(
        taken.iter().map(|it| it.consistency).collect::<Vec<_>>(),
        [Consistency::Filesystem, Consistency::Crash]
    );
    assert!(taken.iter().all(|it| it.remarks.iter().any(|line| line.contains("not of one instant: web2 ran on"))));
    second.react("guest-fsfreeze-freeze", [Reaction::Error("GenericError", "no")]);
    let options = CutOptions { freeze: Freeze::Require, ..lab.options() };
    let error = take(&mut members, &options, &around()).unwrap_err();
    assert!(error.to_string().contains("web2 cannot be frozen"), "{error}");
    lab.assert_clean();
    assert!(!second.is_frozen());
    let mut twice = [member("web1", vec![lab.source()], Vec::new()), member("web2", vec![lab.source()], Vec::new())];
    assert_eq!(take(&mut twice, &lab.options(), &around()).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn several_sources_without_a_freeze_are_not_one_instant() {
    let lab = Lab::new();
    let options = CutOptions { freeze: Freeze::No, ..lab.options() };
    let mut members = [member("web1", vec![lab.source(), lab.source()], Vec::new())];
    let (taken, watch) = take(&mut members, &options, &around()).unwrap();
    watch.done().unwrap();
    assert!(taken[0].remarks[0].starts_with("not one instant: 2 sources were cut"), "{:?}", taken[0].remarks);
    let mut past = lab.source();
    past.taken = Some(jiff::Timestamp::UNIX_EPOCH);
    let mut members = [member("web1", vec![lab.source(), past], Vec::new())];
    let (taken, watch) = take(&mut members, &lab.options(), &around()).unwrap();
    watch.done().unwrap();
    assert!(taken[0].remarks[0].contains("are of 1970-01-01"), "{:?}", taken[0].remarks);
}

#[test]
fn a_guest_that_does_not_thaw_is_left_to_the_watchdog() {
    let lab = Lab::new();
    // It freezes without saying so, and then does not hear for longer than the run has patience.
    lab.agent.react("guest-fsfreeze-freeze", [Reaction::Mute]);
    lab.agent.react("guest-fsfreeze-thaw", [Reaction::Ignore, Reaction::Ignore]);
    let mut members = [member("web1", vec![lab.source()], Vec::new())];
    let options = CutOptions { freeze_timeout: Duration::from_millis(1_000), ..lab.options() };
    let (taken, watch) = take(&mut members, &options, &around()).unwrap();
    assert_eq!(taken[0].consistency, Consistency::Crash);
    assert!(lab.agent.is_frozen());
    members[0].sources[0].finish(Outcome::Published).unwrap();
    watch.done().unwrap();
    // Nobody has to wait for that with the next run.
    let options = CutOptions { freeze: Freeze::No, ..lab.options() };
    take_one(lab.source(), Vec::new(), &options).unwrap();
    lab.assert_clean();
}

#[test]
fn a_machine_that_is_paused_for_too_long_runs_again() {
    let lab = Lab::new();
    let monitor = Monitor::start(&lab.path("qmp.sock"));
    let mut source = lab.source();
    source.tickets = vec![Ticket::Monitor { socket: lab.path("qmp.sock") }];
    let probe = monitor.clone();
    source.at_step = Some(Box::new(move |step| {
        if step == Step::Cut {
            probe.set_paused(true);
            until("the watchdog lets it run again", || !probe.is_paused());
        }
    }));
    let options = CutOptions { freeze: Freeze::No, frozen_limit: Duration::ZERO, ..lab.options() };
    take_one(source, Vec::new(), &options).unwrap();
    lab.assert_clean();
}
