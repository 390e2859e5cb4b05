//! Running a system program with a deadline.

use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::{Result, SysError};

/// A program to run: fixed path, C locale, no standard input, and a deadline.
#[derive(Debug, Clone)]
pub struct Command {
    program: PathBuf,
    args: Vec<String>,
    timeout: Duration,
}

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status; a signal counts as 128 plus its number.
    pub status: i32,
    /// Standard output, invalid UTF-8 replaced.
    pub stdout: String,
    /// Standard error, invalid UTF-8 replaced.
    pub stderr: String,
}

impl Command {
    /// Prepares `program`; the deadline is 30 seconds until [`Command::timeout`] says otherwise.
    pub fn new(program: &Path) -> Self {
        Self { program: program.to_owned(), args: Vec::new(), timeout: Duration::from_secs(30) }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: Into<String>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets the deadline.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs to the end, or kills the program at the deadline and reports that as an error.
    pub fn run(&self) -> Result<Output> {
        use std::os::unix::process::{CommandExt, ExitStatusExt};
        let what = || format!("cannot run {}", self.program.display());
        let child = Process::new(&self.program)
            .args(&self.args)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: Ctrl-C on the terminal is not meant for a probe.
            .process_group(0)
            .spawn()
            .map_err(|error| SysError::new(what(), error))?;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        let output = match receiver.recv_timeout(self.timeout) {
            Ok(output) => output.map_err(|error| SysError::new(what(), error))?,
            Err(_) => {
                // Not reaped yet: the waiting thread still holds the child, so the id is ours.
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                let seconds = self.timeout.as_secs();
                return Err(SysError::new(what(), format!("no end after {seconds} s; killed")));
            }
        };
        let status = output
            .status
            .code()
            .unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default());
        Ok(Output {
            status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// A word as a shell reads it back, quoted where that is needed (sh(1), "Quoting").
pub fn shell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::shell_word;

    #[test]
    fn a_shell_reads_words_as_they_are() {
        assert_eq!(shell_word("a b'$c"), r"'a b'\''$c'");
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word("/usr/sbin/sshd"), "/usr/sbin/sshd");
    }
}
