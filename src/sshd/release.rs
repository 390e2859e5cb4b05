//! Releases of OpenSSH, as far as they read sshd_config(5) differently.
//!
//! Distributions backport, so a release says how lines are read, not which values a build accepts: for
//! those sshd is asked (`sshd -t`, `ssh -Q`).

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// A release, by what a program says of itself: `OpenSSH_9.2p1 Debian-2+deb12u7, OpenSSL …`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Before the point.
    pub major: u16,
    /// Behind the point.
    pub minor: u16,
    /// The name that `Match version` is compared with: `OpenSSH_9.2p1`.
    pub name: String,
}

impl Release {
    /// One that reads as the newest known one does.
    pub const LATEST: Self = Self { major: 10, minor: 6, name: String::new() };

    /// Finds the release in what `sshd -V` says.
    pub fn parse(output: &str) -> Option<Self> {
        let (_, rest) = output.split_once("OpenSSH_")?;
        let end = rest.find([' ', ',', '\n']).unwrap_or(rest.len());
        let name = rest.get(..end)?;
        let (major, rest) = name.split_once('.')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        Some(Self {
            major: major.parse().ok()?,
            minor: rest.get(..digits)?.parse().ok()?,
            name: format!("OpenSSH_{name}"),
        })
    }

    /// Whether it is this one or a later one.
    pub fn is_at_least(&self, major: u16, minor: u16) -> bool {
        (self.major, self.minor) >= (major, minor)
    }

    /// From 8.7 on arguments are split as a shell would (`argv_split`), before that at each blank or `=`,
    /// with double quotes alone (`strdelim`).
    pub fn splits_like_a_shell(&self) -> bool {
        self.is_at_least(8, 7)
    }

    /// From 9.9 on `Match` splits its criteria so too.
    pub fn splits_criteria_like_a_shell(&self) -> bool {
        self.is_at_least(9, 9)
    }
}

impl Default for Release {
    fn default() -> Self {
        Self::LATEST
    }
}

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.name.as_str() {
            "" => Cow::Owned(format!("OpenSSH_{}.{}", self.major, self.minor)),
            name => Cow::Borrowed(name),
        };
        f.write_str(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_from_what_programs_say() {
        let release = |text| Release::parse(text).map(|r| (r.major, r.minor, r.name));
        let old =
            "unknown option -- V\nOpenSSH_8.4p1 Debian-5+deb11u7, OpenSSL 1.1.1w  11 Sep 2023";
        assert_eq!(release(old), Some((8, 4, "OpenSSH_8.4p1".to_owned())));
        assert_eq!(release("OpenSSH_9.2, OpenSSL 3"), Some((9, 2, "OpenSSH_9.2".to_owned())));
        assert_eq!(release("dropbear"), None);
    }
}
