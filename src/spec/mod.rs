//! The spec: what the owner of the machine wants, as a strict YAML schema.

mod parse;
mod schema;

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use parse::{Source, parse, parse_duration};

use crate::error::SpecError;

/// The largest spec that is read, in bytes.
pub const MAX_SIZE: u64 = 256 * 1024;

/// Everything that a spec can ask for today.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// sshd: where it listens, who holds the socket, its settings.
    pub ssh: Ssh,
    /// How the change is confirmed.
    pub safety: Safety,
    /// The text it came from, for messages that point into it.
    pub source: Source,
}

/// The `safety` section.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Safety {
    /// Who confirms that the new listener works; `None` leaves it to where harden runs.
    pub confirm: Option<Confirm>,
    /// How long a transaction may wait for that before it is undone.
    pub timeout: Option<Duration>,
    /// Who must be able to log in and become root afterwards; empty leaves that to who does now.
    pub admins: Vec<String>,
}

/// Who confirms that the new listener lets its owner in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confirm {
    /// A person, from a new session through the new listener.
    Operator,
    /// harden itself.
    Probe,
}

/// The `ssh` section.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ssh {
    /// Ports to listen on; `None` leaves them as they are.
    pub ports: Option<Vec<u16>>,
    /// Addresses to listen on; `None` leaves them as they are.
    pub listen: Option<Vec<IpAddr>>,
    /// Who holds the listening socket.
    pub socket: SocketMode,
    /// Values that harden knows to be good; `settings` win over them.
    pub profile: Option<Choice>,
    /// sshd_config settings, in the order of the spec.
    pub settings: Vec<Setting>,
    /// Settings for some connections only, in the order of the spec: the first block that applies wins.
    pub matches: Vec<MatchBlock>,
}

/// Keywords, and the lines of each.
pub type Values = Vec<(String, Vec<String>)>;

fn values(settings: &[Setting]) -> Values {
    settings.iter().map(|setting| (setting.keyword.clone(), setting.lines.clone())).collect()
}

impl Ssh {
    /// What is set for everybody.
    pub fn values(&self) -> Values {
        values(&self.settings)
    }

    /// The keywords that a profile has set.
    pub fn of_profile(&self) -> Vec<String> {
        let at = self.profile.map(|choice| choice.at);
        let set = self.settings.iter().filter(|setting| Some(setting.at) == at);
        set.map(|setting| setting.keyword.clone()).collect()
    }

    /// What is set for some: what stands behind `Match`, and the values.
    pub fn blocks(&self) -> Vec<(String, Values)> {
        let block = |block: &MatchBlock| (block.asks(), values(&block.settings));
        self.matches.iter().map(block).collect()
    }
}

/// `ssh.profile`, and where it stands in the spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Which one.
    pub profile: Profile,
    /// Where it stands.
    pub at: Span,
}

/// A set of values for sshd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Keeps out nobody who has a key and a client of the last ten years.
    Recommended,
    /// For hosts whose users are known, and have modern keys.
    Strict,
    /// As `Recommended`, and every key exchange withstands a quantum computer.
    PostQuantum,
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Recommended => "recommended",
            Self::Strict => "strict",
            Self::PostQuantum => "post-quantum",
        })
    }
}

/// Settings for the connections that meet some criteria.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatchBlock {
    /// What it asks of a connection.
    pub criteria: Vec<Criterion>,
    /// Its settings, in the order of the spec.
    pub settings: Vec<Setting>,
}

impl MatchBlock {
    /// What stands behind `Match`.
    pub fn asks(&self) -> String {
        let texts: Vec<&str> = self.criteria.iter().map(|one| one.text.as_str()).collect();
        texts.join(" ")
    }
}

/// A criterion of a Match block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Criterion {
    /// As sshd_config has it.
    pub text: String,
    /// Where it stands in the spec.
    pub at: Span,
}

/// `ssh.socket`: which unit owns the port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SocketMode {
    /// ssh.service binds the port itself.
    Disabled,
    /// ssh.socket holds the port and starts sshd.
    Enabled,
    /// Whichever does it now.
    #[default]
    Keep,
}

/// One sshd_config setting of the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The keyword as the spec writes it.
    pub keyword: String,
    /// What follows the keyword, for each line that it needs.
    pub lines: Vec<String>,
    /// Where it stands in the spec.
    pub at: Span,
}

/// A range of bytes in the spec's text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Spec {
    /// An error that points at a setting: sshd refuses it.
    pub fn setting_error(
        &self,
        setting: &Setting,
        message: &str,
        label: &str,
        hint: Option<&str>,
    ) -> SpecError {
        self.source.error(setting.at, message, label, hint)
    }

    /// An error that points at a place of the spec.
    pub fn error(&self, at: Span, message: &str, label: &str) -> SpecError {
        self.source.error(at, message, label, None)
    }
}
