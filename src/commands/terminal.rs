//! The person at the terminal: questions, progress, the countdown, Ctrl-C.

use std::io::{BufRead, IsTerminal};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use harden::error::{Error, Refusal};
use harden::report::human;
use harden::step::Step;
use harden::sys::Files;
use harden::transaction::decision::{self, Verdict};
use harden::transaction::follow::Watcher;
use harden::transaction::journal::Terms;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::tell;

/// How wide the countdown is: on 80 columns a terminal has room for its `^C` behind it.
const WIDTH: usize = 76;

/// Signals by which a terminal ends a program.
fn held() -> SigSet {
    let mut held = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGTERM, Signal::SIGQUIT] {
        held.add(signal);
    }
    held
}

/// Holds those signals, so that they are read where they mean something. Has to come before the
/// first thread: a signal goes to any thread that does not hold it.
pub(super) fn hold_signals() {
    mask(SigmaskHow::SIG_BLOCK);
}

fn mask(how: SigmaskHow) {
    if let Err(error) = nix::sys::signal::pthread_sigmask(how, Some(&held()), None) {
        tracing::warn!(%error, "signals are not held");
    }
}

/// Whether a person is there; what is said may go through a pipe to them (`| tee log`).
pub(super) fn is_attended() -> bool {
    std::io::stdin().is_terminal()
}

/// Ctrl-C while it was planned counts, though no prompt was there to take it.
///
/// # Errors
/// A refusal where it was pressed.
pub(super) fn refuse_interrupted() -> Result<(), Refusal> {
    let pending = SignalFd::with_flags(&held(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .ok()
        .and_then(|signals| signals.read_signal().ok().flatten());
    if pending.is_none() {
        return Ok(());
    }
    Err(Refusal::new("interrupted", "interrupted; nothing was changed", "run it again"))
}

/// Asks on the terminal; anything but yes changes nothing.
pub(super) fn ask() -> Result<(), Error> {
    if !std::io::stdin().is_terminal() {
        return Err(Refusal::new(
            "no-terminal",
            "there is no terminal to ask on",
            "look at the plan, then run it with --yes",
        )
        .into());
    }
    tell(|out| {
        write!(out, "\nApply these changes? [y/N] ")?;
        out.flush()
    });
    let mut answer = String::new();
    mask(SigmaskHow::SIG_UNBLOCK);
    let read = std::io::stdin().lock().read_line(&mut answer);
    mask(SigmaskHow::SIG_BLOCK);
    if read.is_ok() && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(Refusal::new("declined", "not applied; nothing was changed", "answer y to apply").into())
}

/// Shows a transaction on standard error; a terminal that has gone away is no reason to stop.
pub(super) struct Terminal {
    files: Files,
    signals: Option<SignalFd>,
    /// Standard error is a terminal, so a countdown can be overwritten.
    live: bool,
    /// When the countdown was last drawn, and whether it stands on the last line.
    drawn: Option<Instant>,
    /// The answer that is waited for, after Ctrl-C.
    answer: Option<mpsc::Receiver<String>>,
}

impl Terminal {
    pub(super) fn new(files: &Files) -> Self {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Self {
            files: files.clone(),
            signals: SignalFd::with_flags(&held(), flags).ok(),
            live: std::io::stderr().is_terminal(),
            drawn: None,
            answer: None,
        }
    }

    /// Writes a line, over the countdown where that stands.
    fn line(&mut self, text: &str) {
        // Blanks, not an escape: NO_COLOR takes those away.
        let clear = self.drawn.take().map_or(String::new(), |_| format!("\r{:WIDTH$}\r", ""));
        tell(|out| writeln!(out, "{clear}{text}"));
    }

    fn countdown(&mut self, left: Duration) {
        let due = self.drawn.is_none_or(|drawn| drawn.elapsed() >= Duration::from_secs(1));
        if !self.live || !due || self.answer.is_some() {
            return;
        }
        self.drawn = Some(Instant::now());
        let left = human::time(left);
        tell(|out| {
            let text = format!("waiting for the confirmation: {left} left (Ctrl-C to decide)");
            write!(out, "\r{text:WIDTH$}")?;
            out.flush()
        });
    }

    fn interrupted(&mut self, left: Option<Duration>) -> bool {
        if self.answer.is_some() {
            self.line("\nno longer watching; `harden status` shows how it goes on");
            return false;
        }
        let Some(left) = left else {
            self.line("this finishes or is taken back by itself; `harden status` shows it");
            return true;
        };
        if !std::io::stdin().is_terminal() {
            self.line("no longer watching; `harden status` shows how it goes on");
            return false;
        }
        let left = human::time(left);
        self.line(&format!(
            "\nr + Enter: roll back now. Enter: leave it to the countdown ({left} left)."
        ));
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut answer = String::new();
            if std::io::stdin().lock().read_line(&mut answer).is_ok() {
                let _ = sender.send(answer);
            }
        });
        self.answer = Some(receiver);
        true
    }

    fn answered(&mut self, id: &str) {
        let Some(Ok(answer)) = self.answer.as_ref().map(mpsc::Receiver::try_recv) else { return };
        self.answer = None;
        if !matches!(answer.trim().to_ascii_lowercase().as_str(), "r" | "rollback" | "roll back") {
            self.line("left to the countdown");
            return;
        }
        let why = decision::WANTED_BACK;
        match decision::decide(&self.files, id, Verdict::Rollback, why) {
            Ok(stands) if stands.verdict == Verdict::Commit => {
                self.line("too late: it has been confirmed");
            }
            Ok(_) => {}
            Err(error) => self.line(&error.to_string()),
        }
    }
}

impl Watcher for Terminal {
    fn step(&mut self, number: usize, total: usize, step: &Step) {
        self.line(&human::progress(number, total, step));
    }

    fn note(&mut self, text: &str) {
        self.line(&human::note(text));
    }

    fn waiting(&mut self, id: &str, terms: &Terms, left: Duration) {
        self.line(&human::instructions(id, terms, left));
    }

    fn tick(&mut self, id: &str, left: Option<Duration>) -> bool {
        self.answered(id);
        let signal = self.signals.as_ref().and_then(|signals| signals.read_signal().ok().flatten());
        let go_on = match signal.and_then(|signal| i32::try_from(signal.ssi_signo).ok()) {
            Some(number) if number == Signal::SIGINT as i32 => self.interrupted(left),
            // The terminal is gone, or somebody wants this process gone: the worker goes on.
            Some(_) => {
                self.line("no longer watching; `harden status` shows how it goes on");
                false
            }
            None => true,
        };
        if let Some(left) = left.filter(|_| go_on) {
            self.countdown(left);
        }
        go_on
    }
}
