//! Users, as the name service has them (getpwnam(3), getgrnam(3)), and their sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use nix::unistd::{Gid, Group, User as Account};

use super::command::{Command, Output, shell_word};
use super::process::{Process, Session};

/// Groups whose members may become root where sudo is set up as distributions do.
const ADMINISTRATORS: [&str; 3] = ["sudo", "wheel", "admin"];
/// The first user id of people (login.defs(5), `UID_MIN`).
const FIRST: u32 = 1000;
/// The user id of nobody.
const NOBODY: u32 = 65_534;

/// A user who may log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// The group of the account.
    pub gid: u32,
    /// Home folder.
    pub home: PathBuf,
    /// Login shell.
    pub shell: PathBuf,
}

/// What shadow(5) says of a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Password {
    /// There is one.
    Set,
    /// None can be right (`*`), or none is known.
    Impossible,
    /// The account is locked (`!` in front).
    Locked,
}

impl User {
    fn of(account: Account) -> Self {
        Self {
            name: account.name,
            uid: account.uid.as_raw(),
            gid: account.gid.as_raw(),
            home: account.dir,
            shell: account.shell,
        }
    }

    /// The ids of the groups that the user is in.
    pub fn group_ids(&self) -> Vec<u32> {
        let Ok(name) = CString::new(self.name.as_str()) else { return Vec::new() };
        let ids = nix::unistd::getgrouplist(&name, Gid::from_raw(self.gid)).unwrap_or_default();
        ids.into_iter().map(Gid::as_raw).collect()
    }

    /// Their names.
    pub fn groups(&self) -> Vec<String> {
        let named = |id: u32| Group::from_gid(Gid::from_raw(id)).ok().flatten();
        self.group_ids().into_iter().filter_map(named).map(|group| group.name).collect()
    }

    /// A field of the user's line in shadow(5).
    fn shadow(&self, field: usize) -> Option<String> {
        let shadow = fs::read_to_string("/etc/shadow").unwrap_or_default();
        let of_user = |line: &&str| line.split(':').next() == Some(&self.name);
        shadow.lines().find(of_user)?.split(':').nth(field).map(str::to_owned)
    }

    /// A field of that line that counts days.
    fn days(&self, field: usize) -> Option<u64> {
        self.shadow(field)?.parse().ok()
    }

    /// Whether the account has ended (shadow(5), account expiration date, in days since 1970).
    pub fn has_expired(&self) -> bool {
        self.days(7).is_some_and(|ends| ends <= today())
    }

    /// Whether the password is older than it may be, and what follows from it (shadow(5), maximum password
    /// age and password inactivity period).
    pub fn aged(&self) -> Option<Aged> {
        let last = self.days(2)?;
        if last == 0 {
            return Some(Aged::MustChange);
        }
        let until = last.checked_add(self.days(4)?)?;
        let too_late = self.days(6).is_some_and(|days| until.saturating_add(days) < today());
        match (until < today(), too_late) {
            (false, _) => None,
            (true, true) => Some(Aged::TooLate),
            (true, false) => Some(Aged::MustChange),
        }
    }

    /// What is known of the user's password.
    pub fn password(&self) -> Password {
        match self.shadow(1) {
            Some(field) if field.starts_with('!') => Password::Locked,
            Some(field) if field.starts_with('$') || field.starts_with('_') => Password::Set,
            _ => Password::Impossible,
        }
    }
}

/// What follows from the age of a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aged {
    /// It has to be changed before anything else.
    MustChange,
    /// It cannot be changed any more: nobody comes in, not by key either.
    TooLate,
}

/// Today, in days since 1970.
fn today() -> u64 {
    super::now_usec() / 1_000_000 / 86_400
}

/// Whether a user is the only one in a group, and in it at all (the group that useradd(8) makes for each).
pub fn is_alone_in(user: &User, group: u32) -> bool {
    let Some(found) = Group::from_gid(Gid::from_raw(group)).ok().flatten() else { return false };
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let primary = |line: &str| {
        let mut fields = line.split(':');
        let (name, gid) = (fields.next()?, fields.nth(2)?);
        (gid.parse() == Ok(group)).then(|| name.to_owned())
    };
    let mut members = passwd.lines().filter_map(primary).chain(found.mem).peekable();
    members.peek().is_some() && members.all(|member| member == user.name)
}

/// Who runs harden, behind sudo(8) too.
pub fn operator() -> String {
    std::env::var("SUDO_USER").unwrap_or_else(|_| "root".to_owned())
}

/// Whether there is a group of this name.
pub fn has_group(name: &str) -> bool {
    Group::from_name(name).ok().flatten().is_some()
}

/// A user by name.
pub fn named(name: &str) -> Option<User> {
    Account::from_name(name).ok().flatten().map(User::of)
}

/// A user by id.
pub fn with_id(uid: u32) -> Option<User> {
    Account::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten().map(User::of)
}

/// Whether a user becomes root by sudo(8): without a password, or with one that the user has
/// (shadow(5)). Where sudo cannot be asked, nobody does.
pub fn becomes_root(user: &User) -> bool {
    if user.uid == 0 {
        return true;
    }
    let ask = |of: &[&str]| ask_sudo(&[&["-n", "-l", "-U", &user.name], of].concat());
    let Some(Rule { free, own, command }) = ask(&[]).and_then(|listed| rule_of(&listed.stdout))
    else {
        return false;
    };
    // Whether a rule is over (sudoers(5), NOTAFTER=) sudo knows.
    let command: Vec<&str> = ["-u", "root"].into_iter().chain(command.split(' ')).collect();
    let may = || ask(&command).is_some_and(|asked| asked.status == 0);
    (free || (own && user.password() == Password::Set)) && may()
}

/// What sudo(8) says. Where it speaks to terminals alone (sudoers(5), requiretty), script(1) gives it one.
fn ask_sudo(args: &[&str]) -> Option<Output> {
    let sudo = super::find_program(&["/usr/bin/sudo"])?;
    let asked = Command::new(&sudo).args(args.iter().copied()).run().ok()?;
    if asked.status == 0 || !asked.stderr.contains("must have a tty") {
        return Some(asked);
    }
    let sudo = sudo.display().to_string();
    let words = [sudo.as_str()].into_iter().chain(args.iter().copied()).map(shell_word);
    let script = super::find_program(&["/usr/bin/script"])?;
    let command = words.collect::<Vec<_>>().join(" ");
    Command::new(&script).args(["-q", "-e", "-c", &command, "/dev/null"]).run().ok()
}

/// By what somebody becomes root, and what sudo asks for before.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    /// Nothing.
    free: bool,
    /// The user's own password, not somebody else's.
    own: bool,
    /// A shell of root's.
    command: String,
}

/// The rule by which a user may run everything as root, from `sudo -l`: the last one that fits counts
/// (sudoers(5)).
fn rule_of(listed: &str) -> Option<Rule> {
    let others = ["targetpw", "rootpw", "runaspw"];
    let is_others = |word: &str| others.contains(&word.trim_matches([',', ' ']));
    let own = !listed.split_whitespace().any(is_others);
    let unasked = listed.split_whitespace().any(|word| word.trim_matches(',') == "!authenticate");
    // Of each command the last word counts: what denies all of them takes back what stands before.
    let mut found = None;
    for line in listed.lines() {
        let Some((run_as, commands)) =
            line.trim().strip_prefix('(').and_then(|l| l.split_once(')'))
        else {
            continue;
        };
        if !is_as_root(run_as.split(':').next().unwrap_or(run_as)) {
            continue;
        }
        let free = unasked || commands.contains("NOPASSWD:");
        for command in commands.split(',') {
            let command = command.rsplit(": ").next().unwrap_or(command).trim();
            let rule = |command: &str| Some(Rule { free, own, command: command.to_owned() });
            match command {
                "ALL" => found = rule("/bin/sh"),
                "!ALL" => found = None,
                shell if is_shell(shell) => found = found.or(rule(shell)),
                denied if denied.strip_prefix('!').is_some_and(is_shell) => found = None,
                _ => {}
            }
        }
    }
    found
}

/// Whether a list of users to run something as has root: the last name that fits counts.
fn is_as_root(users: &str) -> bool {
    let root = ["ALL", "root", "#0"];
    let says = |name: &str| match name.trim().strip_prefix('!') {
        Some(name) => root.contains(&name).then_some(false),
        None => root.contains(&name.trim()).then_some(true),
    };
    users.split(',').filter_map(says).next_back().unwrap_or(false)
}

/// Whether a command is a shell of root's, with any arguments.
fn is_shell(command: &str) -> bool {
    let shells = ["bash", "dash", "fish", "ksh", "sh", "su", "zsh"];
    let whole = command.strip_suffix(" -").unwrap_or(command);
    whole.starts_with('/') && shells.iter().any(|shell| whole.ends_with(&format!("bin/{shell}")))
}

/// root, and the members of the groups that sudo usually knows.
pub fn administrators() -> Vec<User> {
    let groups = ADMINISTRATORS.iter().filter_map(|name| Group::from_name(name).ok().flatten());
    let mut names = vec!["root".to_owned()];
    for name in groups.flat_map(|group| group.mem) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.iter().filter_map(|name| named(name)).collect()
}

/// The people of this host: those that passwd(5) itself has.
pub fn people() -> Vec<User> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let names = passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?.parse::<u32>().ok()?);
        (id >= FIRST && id != NOBODY).then_some(name)
    });
    names.filter_map(named).collect()
}

/// Somebody who is logged in over SSH.
#[derive(Debug, Clone)]
pub struct LoggedIn {
    /// Who.
    pub user: User,
    /// The session, if it shows.
    pub session: Option<Session>,
    /// The sshd that took the connection.
    pub sshd: Process,
}

/// Who is logged in over SSH now: each once from each place, by the last session.
pub fn logged_in() -> Vec<LoggedIn> {
    let processes: Vec<Process> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Process::read(entry.file_name().to_str()?.parse().ok()?))
        .collect();
    let is_sshd = |process: &&Process| process.program.starts_with("sshd");
    let mut found: BTreeMap<(String, Option<IpAddr>), LoggedIn> = BTreeMap::new();
    for sshd in processes.iter().filter(is_sshd).filter(|sshd| !sshd.is_contained()) {
        let title = session_of(&sshd.args.join(" "));
        let Some(user) = title.as_deref().and_then(named) else { continue };
        let children = processes.iter().filter(|process| process.parent == sshd.pid);
        let session = children.filter_map(Session::of).next();
        // It has begun with the connection; of everybody but root, one with fewer rights has taken over since.
        let is_monitor = |process: &&Process| {
            process.pid == sshd.parent && process.args.join(" ").ends_with("[priv]")
        };
        let sshd = processes.iter().filter(is_sshd).find(is_monitor).unwrap_or(sshd).clone();
        let place = (user.name.clone(), session.map(|session| session.client.ip()));
        let is_last = found.get(&place).is_none_or(|known| known.sshd.start < sshd.start);
        if is_last {
            found.insert(place, LoggedIn { user, session, sshd });
        }
    }
    // Where one session shows from where it is, one that does not is no other place.
    let shows = |(name, from): &(String, Option<IpAddr>)| from.map(|_| name.clone());
    let shown: BTreeSet<String> = found.keys().filter_map(shows).collect();
    found.retain(|(name, from), _| from.is_some() || !shown.contains(name));
    found.into_values().collect()
}

/// The user of a session, from the title that sshd gives the process that carries it: `sshd: ada@pts/0`,
/// from 9.8 on `sshd-session: ada@notty`. Before the login it is another one.
fn session_of(title: &str) -> Option<String> {
    let (program, rest) = title.split_once(": ")?;
    let (name, terminal) = rest.rsplit_once('@')?;
    let known = ["pts/", "tty", "notty"].iter().any(|start| terminal.starts_with(start));
    (program.starts_with("sshd") && known && !name.contains(' ')).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_that_fits_counts() {
        let by = |free, own, command: &str| Some(Rule { free, own, command: command.to_owned() });
        let rule = |free, own| by(free, own, "/bin/sh");
        assert_eq!(rule_of("    (ALL : ALL) ALL\n"), rule(false, true));
        assert_eq!(rule_of("    (ALL) NOPASSWD: ALL\n    (ALL : ALL) ALL\n"), rule(false, true));
        assert_eq!(rule_of("    (ALL : ALL) ALL\n    (root) NOPASSWD: ALL\n"), rule(true, true));
        assert_eq!(rule_of("    env_reset, !authenticate\n\n    (ALL) ALL\n"), rule(true, true));
        assert_eq!(rule_of("    env_reset, targetpw\n\n    (ALL) ALL\n"), rule(false, false));
        let taken = "    (ALL : ALL) NOPASSWD: ALL\n    (ALL : ALL) !ALL\n";
        assert_eq!(rule_of("    (ALL) NOPASSWD: ALL, !/usr/bin/passwd root\n"), rule(true, true));
        let su = "    (root) NOPASSWD: /usr/bin/id, /usr/bin/su -\n";
        assert_eq!(rule_of(su), by(true, true, "/usr/bin/su -"));
        assert_eq!(rule_of("    (www-data, #0) NOPASSWD: ALL\n"), rule(true, true));
        for none in [
            "(www-data) NOPASSWD: ALL",
            "(root) /bin/ls",
            "(ALL) ALL, !/bin/sh",
            "(ALL, !root) NOPASSWD: ALL",
            "",
            taken,
        ] {
            assert_eq!(rule_of(none), None, "{none}");
        }
    }

    #[test]
    fn sessions_are_told_from_logins() {
        assert_eq!(session_of("sshd: ada@pts/0"), Some("ada".to_owned()));
        assert_eq!(session_of("sshd: ada@corp.example@pts/1"), Some("ada@corp.example".to_owned()));
        assert_eq!(session_of("sshd-session: root@notty"), Some("root".to_owned()));
        for other in
            ["sshd: root [priv]", "sshd: ada [net]", "sshd: /usr/sbin/sshd -D", "vi a@pts/0"]
        {
            assert_eq!(session_of(other), None, "{other}");
        }
    }
}
