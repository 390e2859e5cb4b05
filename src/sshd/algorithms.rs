//! What the installed OpenSSH can do (ssh(1), `-Q`): a name that it does not know is fatal to sshd.

use serde::{Deserialize, Serialize};

/// Names of algorithms, by what they are for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Algorithms {
    /// Key exchanges.
    pub kex: Vec<String>,
    /// Ciphers.
    pub ciphers: Vec<String>,
    /// Message authentication codes.
    pub macs: Vec<String>,
    /// Signatures by keys of hosts and of users.
    pub keys: Vec<String>,
    /// Signatures by certification authorities.
    pub signatures: Vec<String>,
}

impl Algorithms {
    /// The queries of `ssh -Q` that tell each of them, in the order of the fields.
    pub const QUERIES: [&str; 5] = ["kex", "cipher", "mac", "HostKeyAlgorithms", "sig"];

    /// From the answers to [`Algorithms::QUERIES`].
    pub fn parse(answers: [String; 5]) -> Self {
        let names = |text: String| text.lines().map(|line| line.trim().to_owned()).collect();
        let [kex, ciphers, macs, keys, signatures] = answers.map(names);
        Self { kex, ciphers, macs, keys, signatures }
    }

    /// Those that a keyword lists; `None` for a keyword that lists none.
    pub fn of(&self, keyword: &str) -> Option<&[String]> {
        match super::keywords::canonical(keyword).as_str() {
            "kexalgorithms" => Some(&self.kex),
            "ciphers" => Some(&self.ciphers),
            "macs" => Some(&self.macs),
            "hostkeyalgorithms" | "pubkeyacceptedalgorithms" => Some(&self.keys),
            "casignaturealgorithms" => Some(&self.signatures),
            _ => None,
        }
    }
}
