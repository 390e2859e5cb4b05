//! An SSH session from outside.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout};
use std::time::Duration;

/// An SSH session that stays open; dropping it closes it.
pub(crate) struct Session {
    pub(super) child: Child,
    pub(super) input: ChildStdin,
    pub(super) output: BufReader<ChildStdout>,
}

impl Session {
    /// Sends a line and waits for its echo.
    pub(crate) fn lives(&mut self) -> bool {
        let mut line = String::new();
        writeln!(self.input, "alive").is_ok()
            && self.output.read_line(&mut line).is_ok()
            && line == "alive\n"
    }

    /// Sends a line.
    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// Waits for a line.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Waits for its end, ten seconds at most.
    pub(crate) fn ends(&mut self) -> bool {
        (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(100));
            self.child.try_wait().unwrap().is_some()
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
