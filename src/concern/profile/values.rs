//! The values of the profiles. docs/profiles.md says where each comes from.

use crate::spec::Profile;

/// One value of a profile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Value {
    /// Its keyword, as the newest sshd calls it.
    pub(super) keyword: &'static str,
    /// The first release of OpenSSH that has the keyword; where sshd can be asked, it is.
    pub(super) since: (u16, u16),
    /// The first release that has it no more as a keyword of its own.
    pub(super) until: Option<(u16, u16)>,
    /// What follows the keyword.
    pub(super) says: Says,
    /// Whom it shuts out or surprises, where it is new to the host.
    pub(super) costs: Option<&'static str>,
}

/// What follows a keyword.
#[derive(Debug, Clone, Copy)]
pub(super) enum Says {
    /// A word or several.
    Words(&'static str),
    /// Names of algorithms, the best first; those that this sshd does not know are left out.
    Algorithms(&'static [&'static str]),
}

const fn words(keyword: &'static str, value: &'static str) -> Value {
    Value { keyword, since: (8, 4), until: None, says: Says::Words(value), costs: None }
}

const fn algorithms(keyword: &'static str, names: &'static [&'static str]) -> Value {
    Value { keyword, since: (8, 4), until: None, says: Says::Algorithms(names), costs: None }
}

const fn costs(value: Value, what: &'static str) -> Value {
    Value { costs: Some(what), ..value }
}

const fn since(major: u16, minor: u16, value: Value) -> Value {
    Value { since: (major, minor), ..value }
}

const fn until(major: u16, minor: u16, value: Value) -> Value {
    Value { until: Some((major, minor)), ..value }
}

/// The values of a profile, each keyword once.
pub(super) fn values(profile: Profile) -> Vec<Value> {
    let own: &[Value] = match profile {
        Profile::Recommended => &[],
        Profile::Strict => &STRICT,
        Profile::PostQuantum => &POST_QUANTUM,
    };
    let is_own = |value: &&Value| own.iter().any(|other| other.keyword == value.keyword);
    own.iter().chain(RECOMMENDED.iter().filter(|value| !is_own(value))).copied().collect()
}

/// The best first: the first three withstand a quantum computer, the first five need no finite fields.
const KEX: &[&str] = &[
    "mlkem768x25519-sha256",
    "sntrup761x25519-sha512",
    "sntrup761x25519-sha512@openssh.com",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group18-sha512",
];

const KEYS: [&str; 8] = [
    "ssh-ed25519-cert-v01@openssh.com",
    "sk-ssh-ed25519-cert-v01@openssh.com",
    "rsa-sha2-512-cert-v01@openssh.com",
    "rsa-sha2-256-cert-v01@openssh.com",
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "rsa-sha2-512",
    "rsa-sha2-256",
];

/// What every host may have: it keeps out nobody who uses a client of the last ten years with a key.
const RECOMMENDED: [Value; 21] = [
    costs(
        algorithms("KexAlgorithms", KEX),
        "shuts out clients without Curve25519 and Diffie-Hellman group 16, as OpenSSH before 6.5 and PuTTY \
         before 0.68",
    ),
    algorithms(
        "Ciphers",
        &[
            "chacha20-poly1305@openssh.com",
            "aes256-gcm@openssh.com",
            "aes128-gcm@openssh.com",
            "aes256-ctr",
            "aes192-ctr",
            "aes128-ctr",
        ],
    ),
    costs(
        algorithms(
            "MACs",
            &[
                "hmac-sha2-512-etm@openssh.com",
                "hmac-sha2-256-etm@openssh.com",
                "umac-128-etm@openssh.com",
            ],
        ),
        "shuts out clients with neither an authenticated cipher nor encrypt-then-MAC, as OpenSSH before 6.2",
    ),
    costs(
        algorithms("HostKeyAlgorithms", &KEYS),
        "makes clients that know this host by its ECDSA key alone ask about another of its keys",
    ),
    since(9, 1, words("RequiredRSASize", "2048")),
    costs(words("PasswordAuthentication", "no"), "shuts out users who have no key here"),
    words("KbdInteractiveAuthentication", "no"),
    // Turns the former on, whatever that says.
    until(8, 7, words("ChallengeResponseAuthentication", "no")),
    words("PermitRootLogin", "prohibit-password"),
    words("PermitEmptyPasswords", "no"),
    words("HostbasedAuthentication", "no"),
    words("IgnoreRhosts", "yes"),
    words("PermitUserEnvironment", "no"),
    words("StrictModes", "yes"),
    words("LoginGraceTime", "60"),
    words("MaxStartups", "10:30:60"),
    words("ClientAliveInterval", "300"),
    words("ClientAliveCountMax", "3"),
    words("X11Forwarding", "no"),
    words("PermitTunnel", "no"),
    words("LogLevel", "VERBOSE"),
];

/// For hosts whose users are known, and have modern keys.
const STRICT: [Value; 11] = [
    costs(
        algorithms("KexAlgorithms", KEX.split_at(5).0),
        "shuts out clients without Curve25519, as OpenSSH before 6.5 and PuTTY before 0.68",
    ),
    costs(
        algorithms("PubkeyAcceptedAlgorithms", &KEYS),
        "shuts out users who have ECDSA keys alone",
    ),
    algorithms(
        "CASignatureAlgorithms",
        &["ssh-ed25519", "sk-ssh-ed25519@openssh.com", "rsa-sha2-512", "rsa-sha2-256"],
    ),
    since(
        9,
        1,
        costs(words("RequiredRSASize", "3072"), "shuts out users of RSA keys under 3072 bits"),
    ),
    costs(
        words("PermitRootLogin", "no"),
        "shuts out root: somebody else has to become root by sudo",
    ),
    words("MaxAuthTries", "4"),
    costs(
        words("AllowTcpForwarding", "no"),
        "shuts out whoever forwards ports (ssh -L, -R, -D, -J through this host)",
    ),
    words("AllowStreamLocalForwarding", "no"),
    costs(words("AllowAgentForwarding", "no"), "shuts out whoever forwards an agent (ssh -A)"),
    words("LoginGraceTime", "30"),
    words("MaxSessions", "10"),
];

const POST_QUANTUM: [Value; 1] = [costs(
    algorithms("KexAlgorithms", KEX.split_at(3).0),
    "shuts out every client without a post-quantum key exchange: OpenSSH before 8.5, PuTTY before 0.78, and \
     most client libraries",
)];
