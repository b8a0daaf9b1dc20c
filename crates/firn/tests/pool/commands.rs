//! Help, completions, manual pages, the environment, and where output goes.

use crate::support::{Firn, check_failure, finish, have, tool};
use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;

#[test]
fn help_says_what_there_is_and_what_the_exit_codes_mean() {
    let firn = Firn::new();
    let help = firn.ok("--help");
    for word in ["init", "snap", "restore", "verify", "FIRN_POOL", "web1@latest~2", "Exit codes:", "3 damage was found"]
    {
        assert!(help.contains(word), "{word}: {help}");
    }
    // The long help of a command is more than its line in the list.
    let long: Vec<_> = firn.ok("verify --help").split_whitespace().map(str::to_owned).collect();
    assert!(long.join(" ").contains("Exit code 3 when damage was found"));
    assert!(firn.ok("--version").starts_with("firn "));
    for (arguments, part) in [
        ("", "Usage: firn"),
        ("fly", "unrecognized subcommand"),
        ("snap", "<MACHINE>"),
        ("restore web1", "<OUT>"),
        ("list --nothing", "unexpected argument"),
        ("verify --quick --scrub", "cannot be used with"),
        ("forget --keep-last many", "invalid value"),
        ("restore web1 out --format tar", "the formats are raw, qcow2"),
        ("completions tcsh", "possible values"),
    ] {
        let run = firn.run(arguments);
        assert_eq!(run.code, 2, "firn {arguments}: {}", run.stderr);
        assert!(run.stdout.is_empty() && run.stderr.contains(part), "firn {arguments}: {}", run.stderr);
    }
}

#[test]
fn completions_and_manual_pages_are_there_for_every_command() {
    let firn = Firn::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = firn.ok(&format!("completions {shell}"));
        assert!(script.contains("rebuild-index") && script.contains("allow-backing"), "{shell}");
        if shell == "bash" {
            firn.write("completions.bash", script);
            tool(firn.folder(), "bash", &["-n", "completions.bash"]);
        }
    }
    firn.ok("man pages");
    firn.ok("man pages");
    for (page, words) in [("firn.1", "FIRN_POOL"), ("firn-snap.1", "torn"), ("firn-key-add.1", "structure")] {
        let text = String::from_utf8(firn.read(&format!("pages/{page}"))).unwrap();
        assert!(text.contains(".TH ") && text.contains(words), "{page}: {text}");
    }
    firn.write("file", "");
    firn.fails(1, "man file", &["file"]);
}

#[test]
fn the_pool_is_named_on_the_command_line_or_in_the_environment() {
    let mut firn = Firn::new();
    firn.ok("init --no-password");
    firn.ok("init other --no-password");
    firn.ok("--pool other list");
    firn.ok("list --pool other");
    let info = |firn: &Firn, arguments: &str| firn.json(arguments)["pool"].as_str().unwrap().to_owned();
    assert_ne!(info(&firn, "pool info"), info(&firn, "pool info --pool other"));
    firn.fails(4, "list --pool nowhere", &["nowhere: there is no pool in this folder", "firn init nowhere"]);
    std::fs::create_dir(firn.path("empty")).unwrap();
    firn.fails(4, "list --pool empty", &["empty: there is no pool here", "firn init empty"]);
    firn.fails(7, "list --pool s3://bucket/x", &["s3", "name a folder"]);
    firn.set("FIRN_POOL", "");
    for arguments in ["list", "snap web1", "show web1", "verify", "verify --scrub", "key list", "init"] {
        firn.fails(2, arguments, &["no pool was named", "--pool POOL or in FIRN_POOL"]);
    }
    // It may have been meant as a file.
    firn.fails(4, "restore web1 out", &["there is no file web1, and no pool was named", "FIRN_POOL"]);
    // No pool is needed for an image, nor to be told what is missing.
    firn.write("a.raw", [1; 512]);
    firn.ok("restore a.raw b.raw");
    firn.fails(2, "forget", &["it is not said which snapshots"]);
}

#[test]
fn errors_are_one_document_when_asked_for_as_json() {
    let firn = Firn::with_pool();
    let run = firn.run("show web1 --json");
    assert_eq!(run.code, 4);
    let error: serde_json::Value = serde_json::from_str(run.stderr.trim()).unwrap();
    assert_eq!(error["error"]["kind"], "not-found");
    assert_eq!(error["error"]["message"], "there is no machine web1 in the pool");
    assert!(error["error"]["hint"].as_str().unwrap().contains("firn snap"));
}

#[test]
fn a_full_or_closed_stdout_is_told_apart() {
    let firn = Firn::with_pool();
    firn.write("a.raw", vec![7; 8 << 20]);
    firn.ok("snap web1 a.raw");
    for arguments in ["list", "list --json", "show web1", "restore web1 -", "completions bash", "pool info"] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = firn.command(arguments.split(' '));
        let run = finish(command.stdout(full).spawn().unwrap());
        check_failure(&run, 6, arguments, &["stdout"]);
    }
    // Whoever reads a listing may stop early; half a disk is a failure.
    for (arguments, code) in [("restore web1 -", 1), ("completions zsh", 0)] {
        let mut child = firn.command(arguments.split(' ')).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 1]).unwrap();
        drop(stdout);
        let run = finish(child);
        assert!(run.code == code || code == 0 && run.stderr.is_empty(), "{arguments}: {} {}", run.code, run.stderr);
    }
}

#[test]
fn nobody_is_asked_for_a_password_without_a_terminal() {
    let firn = Firn::new();
    let secret = firn.write("secret", "correct horse\n");
    firn.ok("init pool --password-file secret");
    // What stands on stdin is data, not an answer.
    let mut command = firn.command(["list"]);
    let run = finish(command.stdin(File::open(&secret).unwrap()).spawn().unwrap());
    check_failure(&run, 5, "list", &["needs a password", "--password-file"]);
    firn.fails(2, "init other", &["no terminal to ask on", "--password-file FILE, --key-file FILE or --no-password"]);
    firn.fails(2, "key add --password-file secret", &["no terminal", "--password-file FILE"]);
    assert!(!firn.exists("other"));
}

/// A shell's command line on a terminal, under `script`: at each prompt in turn what belongs to it is typed, and after
/// the last there is nobody any more.
fn on_terminal(firn: &Firn, line: &str, typed: &[(&str, &str)]) -> (i32, String) {
    let mut command = std::process::Command::new("script");
    firn.prepare(&mut command);
    let line = format!("tty >terminal; {line}");
    let mut child = command.args(["-qefc", &line, "/dev/null"]).stdin(Stdio::piped()).spawn().unwrap();
    let (mut screen, mut byte) = (Vec::new(), [0]);
    let mut stdout = child.stdout.take().unwrap();
    let mut stdin = child.stdin.take();
    let mut typed = typed.iter().peekable();
    while stdout.read(&mut byte).unwrap() > 0 {
        screen.push(byte[0]);
        if let Some((_, answer)) = typed.next_if(|(prompt, _)| screen.ends_with(prompt.as_bytes())) {
            // The prompt is there a moment before the terminal is ready for the answer.
            let terminal = String::from_utf8(firn.read("terminal")).unwrap();
            let settings = || tool(firn.folder(), "stty", &["-a", "-F", terminal.trim()]);
            assert!((0..5000).any(|_| settings().contains("-echo ")), "the echo is never turned off: {}", settings());
            stdin.as_mut().unwrap().write_all(answer.as_bytes()).unwrap();
        }
        if typed.peek().is_none() {
            stdin = None;
        }
    }
    (finish(child).code, String::from_utf8(screen).unwrap())
}

#[test]
fn on_a_terminal_the_password_is_asked_for_without_echo() {
    if !have("on_a_terminal_the_password_is_asked_for_without_echo", &["script", "stty"]) {
        return;
    }
    let mut firn = Firn::new();
    let program = env!("CARGO_BIN_EXE_firn");
    let (new, again, old) = ("New password: ", "Once more: ", "of the pool pool: ");
    for (second, code) in [("two\n", 2), ("\u{3}", 130), ("horse\n", 0)] {
        let (got, screen) = on_terminal(&firn, &format!("{program} init pool"), &[(new, "horse\n"), (again, second)]);
        assert!(got == code && firn.exists("pool") == (code == 0), "{second:?}: {got}: {screen}");
    }
    firn.set("FIRN_PASSWORD", "horse");
    firn.ok("list");
    firn.set("FIRN_PASSWORD", "");
    let (code, screen) = on_terminal(&firn, &format!("{program} list"), &[(old, "horse\n")]);
    assert!(code == 0 && screen.contains("no snapshots") && !screen.contains("horse"), "{code}: {screen}");
    let (code, screen) = on_terminal(&firn, &format!("{program} list"), &[(old, "staple\n")]);
    assert!(code == 5 && screen.contains("the password is wrong") && !screen.contains("staple"), "{code}: {screen}");
    // Ctrl-C works, and afterwards one sees again what one types.
    let line = format!("trap : INT; {program} list; echo $?; stty -a");
    let (_, screen) = on_terminal(&firn, &line, &[(old, "batt\u{3}")]);
    assert!(screen.contains("stopped before there was a password") && screen.contains("130"), "{screen}");
    assert!(screen.contains(" echo ") && !screen.contains("-echo "), "{screen}");
}
