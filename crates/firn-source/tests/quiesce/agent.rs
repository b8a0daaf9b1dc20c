//! The client of the guest agent, against one that answers wrong, late, or not at all.

use crate::support::{Lab, SOON, until};
use firn_disk::ErrorKind;
use firn_source::quiesce::{AgentGuest, Ended, Guest};
use firn_source::testing::Reaction;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

/// Time enough for an answer of the fake.
const ENOUGH: Duration = Duration::from_secs(30);
/// For what is not answered.
const SHORT: Duration = Duration::from_secs(1);

fn guest(lab: &Lab) -> AgentGuest {
    AgentGuest::new(lab.agent.socket().to_path_buf())
}

#[test]
fn freezes_thaws_and_tells() {
    let lab = Lab::new();
    let guest = guest(&lab);
    assert!(!guest.is_frozen(ENOUGH).unwrap());
    assert_eq!(guest.freeze(&[], ENOUGH).unwrap(), 2);
    assert!(guest.is_frozen(ENOUGH).unwrap() && lab.agent.is_frozen());
    assert_eq!(guest.thaw(ENOUGH).unwrap(), 2);
    assert_eq!(guest.thaw(ENOUGH).unwrap(), 0);
    assert_eq!(guest.freeze(&["/srv".to_owned()], ENOUGH).unwrap(), 1);
    assert_eq!(guest.thaw(ENOUGH).unwrap(), 2);
    assert_eq!(lab.agent.log(), ["freeze / /srv", "thaw", "thaw", "freeze /srv", "thaw"]);
    assert!(guest.commands(ENOUGH).unwrap().contains(&"guest-exec".to_owned()));
}

#[test]
fn commands_run_with_their_environment_and_their_output_is_bounded() {
    let lab = Lab::new();
    let guest = guest(&lab);
    let environment = [("FIRN_MACHINE".to_owned(), "it's web1".to_owned()), ("B".to_owned(), "$HOME `x`".to_owned())];
    let script = "echo \"$FIRN_MACHINE, $B\"; command -v sh >/dev/null || exit 9; echo no >&2; exit 3";
    let ended = guest.run(script, &environment, ENOUGH).unwrap();
    assert_eq!(ended, Ended { code: 3, output: "it's web1, $HOME `x`\nno\n".to_owned() });
    assert_eq!(guest.run("kill -9 $$", &[], ENOUGH).unwrap().code, 137);
    let long = guest.run("yes 0123456 | head -c 5000000; echo end", &[], SOON).unwrap();
    assert!(long.output.len() == 64 << 10 && long.output.ends_with("end\n"), "{}", long.output.len());
    // One that does not end is killed as far as that goes, and nobody waits for it.
    let began = Instant::now();
    let error = guest.run("exec sleep 600", &[], SHORT).unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && began.elapsed() < SOON, "{error}");
    let last = || lab.agent.log().pop().unwrap();
    assert!(last().starts_with("exec kill ") && !last().contains('$'), "{}", last());
}

#[test]
fn what_others_left_in_the_channel_is_skipped() {
    let lab = Lab::new();
    let guest = guest(&lab);
    // The answers to a client that has gone come to the next one.
    lab.agent.react("guest-fsfreeze-status", [Reaction::Late(Duration::from_millis(2_500))]);
    assert_eq!(guest.is_frozen(SHORT).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(!guest.is_frozen(ENOUGH).unwrap());
    // Half a line, something that is no JSON, and an answer of another client's, before our own.
    let mut stale = b"{\"return\": 7}\nrubbish\n{\"return\": {\"x\"".to_vec();
    stale.extend([0xFF, b'\n']);
    lab.agent.react("guest-fsfreeze-status", [Reaction::Bytes(stale)]);
    assert!(guest.is_frozen(ENOUGH).is_err());
    assert_eq!(guest.freeze(&[], ENOUGH).unwrap(), 2);
    assert_eq!(guest.thaw(ENOUGH).unwrap(), 2);
}

#[test]
fn nonsense_is_an_error_and_never_a_panic() {
    let lab = Lab::new();
    let guest = guest(&lab);
    let answers: [&[u8]; 9] = [
        b"\n",
        b"{}\n",
        b"[]\n",
        b"{\"return\":\"maybe\"}\n",
        b"{\"return\":-1}\n",
        b"{\"return\":1e99}\n",
        b"{\"error\":{}}\n",
        b"{\"error\":\"no\"}\n",
        b"\xF0\x28\n",
    ];
    for answer in answers {
        lab.agent.react("guest-fsfreeze-status", [Reaction::Bytes(answer.to_vec())]);
        lab.agent.react("guest-fsfreeze-freeze", [Reaction::Bytes(answer.to_vec())]);
        lab.agent.react("guest-exec", [Reaction::Bytes(answer.to_vec())]);
        lab.agent.react("guest-fsfreeze-thaw", [Reaction::Bytes(answer.to_vec())]);
        assert_eq!(guest.is_frozen(ENOUGH).unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(guest.freeze(&[], ENOUGH).unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(guest.run("true", &[], ENOUGH).unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(guest.thaw(ENOUGH).unwrap_err().kind(), ErrorKind::Io);
    }
    for status in ["{}", "{\"exited\":true}", "{\"exited\":true,\"exitcode\":0,\"out-data\":\"?\"}", "{\"exited\":1}"] {
        let answer = format!("{{\"return\":{status}}}\n").into_bytes();
        lab.agent.react("guest-exec-status", [Reaction::Bytes(answer)]);
        assert_eq!(guest.run("true", &[], ENOUGH).unwrap_err().kind(), ErrorKind::Io, "{status}");
    }
    // A line without an end.
    lab.agent.react("guest-fsfreeze-status", [Reaction::Bytes(vec![b'x'; 2 << 20])]);
    assert!(guest.is_frozen(ENOUGH).unwrap_err().to_string().contains("longer than"));
    lab.agent.react("guest-fsfreeze-status", [Reaction::HangUp]);
    assert_eq!(guest.is_frozen(ENOUGH).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(!guest.is_frozen(ENOUGH).unwrap());
}

#[test]
fn what_does_not_answer_is_unavailable_in_time() {
    let lab = Lab::new();
    let began = Instant::now();
    let kind = |path: &std::path::Path| AgentGuest::new(path.to_path_buf()).is_frozen(SHORT).unwrap_err().kind();
    assert_eq!(kind(&lab.path("nothing")), ErrorKind::NotFound);
    assert_eq!(kind("/dev/null".as_ref()), ErrorKind::Unavailable);
    std::fs::write(lab.path("file"), b"").unwrap();
    assert_eq!(kind(&lab.path("file")), ErrorKind::Unavailable);
    drop(UnixListener::bind(lab.path("dead")).unwrap());
    assert_eq!(kind(&lab.path("dead")), ErrorKind::Unavailable);
    // Another client is connected, and QEMU serves one at a time; in the end even its queue is full.
    let _listener = UnixListener::bind(lab.path("busy")).unwrap();
    let other = AgentGuest::new(lab.path("busy")).is_frozen(SHORT).unwrap_err();
    assert!(other.kind() == ErrorKind::Unavailable && other.next_step().unwrap().contains("no other program"));
    let mut waiting = Vec::new();
    let queue_full = || {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let connected = socket.connect(&socket2::SockAddr::unix(lab.path("busy")).unwrap());
        waiting.push(socket);
        connected.is_err()
    };
    until("the queue is full", queue_full);
    assert_eq!(kind(&lab.path("busy")), ErrorKind::Unavailable);
    lab.agent.react("guest-sync-delimited", [Reaction::Ignore]);
    assert_eq!(kind(lab.agent.socket()), ErrorKind::Unavailable);
    assert!(began.elapsed() < SOON);
}

#[test]
fn a_freeze_that_the_guest_forbids_says_what_to_do() {
    let lab = Lab::new();
    lab.agent.forbid("guest-fsfreeze-freeze");
    let error = guest(&lab).freeze(&[], ENOUGH).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.next_step().unwrap().contains("settings forbid"), "{error:?}");
    lab.agent.set_frozen(true);
    let error = guest(&lab).run("true", &[], ENOUGH).unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.next_step().unwrap().contains("frozen already"));
    lab.agent.set_frozen(false);
    lab.agent.react("guest-exec", [Reaction::Error("GenericError", "no such shell")]);
    let error = guest(&lab).run("true", &[], ENOUGH).unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("no such shell"), "{error}");
}

#[test]
fn a_freeze_that_comes_late_is_followed_by_the_thaw() {
    let lab = Lab::new();
    let guest = guest(&lab);
    lab.agent.react("guest-fsfreeze-freeze", [Reaction::Late(Duration::from_millis(2_500))]);
    assert_eq!(guest.freeze(&[], SHORT).unwrap_err().kind(), ErrorKind::Unavailable);
    // Nobody waits for this one to be answered: it is in the agent's queue.
    assert_eq!(guest.thaw(SHORT).unwrap_err().kind(), ErrorKind::Unavailable);
    until("the late freeze is thawed", || lab.agent.log() == ["freeze / /srv", "thaw"]);
    assert!(!lab.agent.is_frozen() && !guest.is_frozen(ENOUGH).unwrap());
}
