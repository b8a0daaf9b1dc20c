//! A program for the tests in `tests/quiesce`, which kill it: it takes a snapshot of a fake machine, or is the watchdog.
//!
//! ```text
//!   quiesce_child take STATE FOLDER SOCKET [COMMAND]   COMMAND as a post-thaw hook; says where it is (prepare, cut, taken,
//!                                                      finish, done) and goes on with each line on stdin
//!                                                      $FROZEN_LIMIT_MILLISECONDS is the limit, else two minutes
//!   quiesce_child recover STATE                        as at every start of firn
//!   quiesce_child __watchdog RECORD                    as firn's
//! ```

use firn_disk::{Error, Result};
use firn_source::quiesce::{self, CutOptions, Hook, Member, Phase, Place, Surroundings};
use firn_source::testing::{FakeSource, Step};
use firn_source::{Outcome, Request, Source};
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let tell = |line: &str| eprintln!("{line}");
    let result = match words[..] {
        ["__watchdog", record] => quiesce::watch(Path::new(record), &FakeSource::open, &tell),
        ["recover", state] => quiesce::recover(Path::new(state), &FakeSource::open, &tell),
        ["take", state, folder, socket] => take(state, folder, socket, None),
        ["take", state, folder, socket, command] => take(state, folder, socket, Some(command)),
        _ => Err(Error::invalid("see the source")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn take(state: &str, folder: &str, socket: &str, command: Option<&str>) -> Result<()> {
    let request =
        Request { machine: "web1".to_owned(), owner: "0123".to_owned(), run: "4567".to_owned(), ..Request::default() };
    let mut source = FakeSource::new(Path::new(folder), Some(Path::new(socket)));
    source.at_step = Some(Box::new(|step| match step {
        Step::Prepare => wait("prepare"),
        Step::Cut => wait("cut"),
        _ => wait("finish"),
    }));
    let hooks = command.map(|command| Hook::new(Place::Host, Phase::PostThaw, command));
    let sources: Vec<Box<dyn Source>> = vec![Box::new(source)];
    let member = Member {
        machine: "web1".to_owned(),
        request,
        sources,
        hooks: hooks.into_iter().collect(),
        mount_points: Vec::new(),
    };
    let mut members = [member];
    let mut options = CutOptions::new(PathBuf::from(state));
    let limit = std::env::var("FROZEN_LIMIT_MILLISECONDS").ok().and_then(|limit| limit.parse().ok());
    options.frozen_limit = Duration::from_millis(limit.unwrap_or(120_000));
    options.freeze_timeout = Duration::from_secs(60);
    let started = Instant::now();
    let around = Surroundings { now: &Timestamp::now, elapsed: &|| started.elapsed(), cancel: &AtomicBool::new(false) };
    let (taken, watch) = quiesce::take(&mut members, &options, &around)?;
    for taken in taken {
        eprintln!("{}: {:?}", taken.consistency.as_str(), taken.remarks);
        wait(&format!("taken {}", taken.consistency.as_str()));
    }
    members[0].sources[0].finish(Outcome::Published)?;
    watch.done()?;
    println!("done");
    Ok(())
}

/// Says where it is and waits to be told to go on.
fn wait(place: &str) {
    println!("{place}");
    drop(std::io::stdin().read_line(&mut String::new()));
}
