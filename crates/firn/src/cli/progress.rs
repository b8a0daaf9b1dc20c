//! Progress of long work on stderr: a bar on a terminal, a plain line now and then elsewhere.

use super::context::Context;
use super::output;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// How often a bar is drawn anew.
const DRAW: Duration = Duration::from_millis(200);
/// How often a plain line is printed.
const LINE: Duration = Duration::from_secs(30);

/// What is known of the work at one moment.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all; 0 while that is not known.
    pub total: u64,
    /// A few words more.
    pub words: String,
}

/// Watches work that goes on in this scope until it is dropped.
#[derive(Debug)]
pub struct Watch<'scope> {
    stop: Option<Sender<()>>,
    thread: Option<ScopedJoinHandle<'scope, ()>>,
}

impl<'scope> Watch<'scope> {
    /// Shows what `status` answers, under the name `doing`.
    pub fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        context: &Context,
        doing: &'static str,
        status: impl Fn() -> Status + Send + 'scope,
    ) -> Self {
        if context.quiet {
            return Self { stop: None, thread: None };
        }
        let (stop, stopped) = channel();
        let on_terminal = std::io::stderr().is_terminal();
        let thread = scope.spawn(move || {
            let began = Instant::now();
            let bar = on_terminal.then(|| bar(doing));
            let pause = if on_terminal { DRAW } else { LINE };
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let status = status();
                match &bar {
                    Some(bar) => {
                        bar.set_length(status.total.max(status.done));
                        bar.set_position(status.done);
                        bar.set_message(status.words);
                    }
                    None => eprintln!("{}", plain_line(doing, &status, began.elapsed())),
                }
            }
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A bar that panicked is no reason to fail the work.
            let _ = thread.join();
        }
    }
}

fn bar(doing: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(
        "{prefix} {bar:30} {percent:>3}% {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left  {msg}",
    );
    // The template is constant; a test below reads it.
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(doing);
    bar
}

fn plain_line(doing: &str, status: &Status, elapsed: Duration) -> String {
    let mut line = format!("{doing}: {}", output::size(status.done));
    if let Some(percent) = status.done.saturating_mul(100).checked_div(status.total) {
        line += &format!(" of {} ({percent} %)", output::size(status.total));
    }
    if let Some(rate) = status.done.checked_div(elapsed.as_secs()).filter(|rate| *rate > 0) {
        line += &format!(", {}/s", output::size(rate));
        let left = status.total.saturating_sub(status.done) / rate;
        if status.total > 0 {
            line += &format!(", {} left", output::duration(left * 1000));
        }
    }
    if !status.words.is_empty() {
        line += &format!(", {}", status.words);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_and_the_line_say_how_far_how_fast_and_how_long() {
        ProgressStyle::with_template(
            "{prefix} {bar:30} {percent:>3}% {binary_bytes}/{binary_total_bytes} {eta} left {msg}",
        )
        .unwrap();
        let status = Status { done: 1 << 20, total: 4 << 20, words: "3 new".into() };
        let line = plain_line("reading", &status, Duration::from_secs(2));
        assert_eq!(line, "reading: 1.0 MiB of 4.0 MiB (25 %), 512.0 KiB/s, 6.0 s left, 3 new");
        assert_eq!(plain_line("reading", &Status::default(), Duration::ZERO), "reading: 0 B");
    }
}
