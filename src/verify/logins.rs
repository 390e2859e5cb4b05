//! A login, where a person is not asked to try one: does the planned configuration still let an
//! administrator in?
//!
//! An sshd of its own speaks to one client over a pipe (`sshd -i`), never to the network, with the
//! planned files. It is asked twice. First a key that was made for this login, and is in nobody's
//! authorized_keys, opens a session: that takes users and groups that are allowed, PAM, the account
//! and its shell. Then the administrator's own public keys are shown to it, which needs no private
//! key (RFC 4252, section 7): it says whether it finds one and takes it. Only who could log in before
//! has to be able to afterwards.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use super::{Fault, write_known_hosts};
use crate::error::Error;
use crate::observe::{Observed, Verdict, ask_sshd, sshd_program};
use crate::sshd::tree::Line;
use crate::sshd::{ConfigTree, options};
use crate::sys::probe::{Login, is_taken, login};
use crate::sys::users::{self, User};
use crate::sys::{Command, Files, SysError};

/// Who is tried, at most.
const MOST: usize = 4;
/// How many of one's own keys are shown, at most.
const MOST_KEYS: usize = 6;
/// What the sshd of a login does not need, or is told otherwise.
const REPLACED: [&str; 4] = ["Port", "ListenAddress", "AddressFamily", "PidFile"];
/// And where it takes a key that was made for it.
const REPLACED_BY_KEY: [&str; 2] = ["AuthorizedKeysCommand", "AuthorizedKeysCommandUser"];

/// What a login is tried with.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The host as it was.
    pub before: Observed,
    /// The planned configuration.
    pub candidate: ConfigTree,
    /// sshd's planned command line.
    pub options: Vec<String>,
    /// Somebody to try first.
    pub operator: Option<String>,
    /// A folder of the transaction's own, below /run.
    pub folder: PathBuf,
}

/// Faults, and notes.
pub type Answer = Result<(Vec<Fault>, Vec<String>), Error>;

/// Tries the logins meanwhile.
pub fn begin(files: &Files, asked: Asked) -> JoinHandle<Answer> {
    let files = files.clone();
    std::thread::spawn(move || try_all(&files, &asked))
}

/// An administrator who has a key.
#[derive(Debug, Clone)]
struct Admin {
    user: User,
    /// A key of the type that the user's own first key has.
    key: PathBuf,
    /// The user's own keys: public ones, a file each.
    own: Vec<PathBuf>,
}

fn try_all(files: &Files, asked: &Asked) -> Answer {
    let admins = admins(files, asked)?;
    let known_hosts = write_known_hosts(files, &asked.folder, &asked.before)?;
    let new = Door { files, asked, name: "new", tree: &asked.candidate, options: &asked.options };
    let options = asked.before.command_line.settings();
    let old = Door { files, asked, name: "old", tree: &asked.before.config, options: &options };
    let tried = new.knock(&admins, &known_hosts)?;
    if !tried.is_empty() && tried.iter().all(|access| *access == Login::In) {
        return Ok(judge(&admins, &tried, &tried, None));
    }
    let worked = old.knock(&admins, &known_hosts)?;
    if worked.iter().all(|access| matches!(access, Login::Refused(_))) {
        return without_keys(&old, &new, &worked);
    }
    // Nothing that happens once is held against the new configuration.
    let tried = new.knock(&admins, &known_hosts)?;
    Ok(judge(&admins, &worked, &tried, asked.operator.as_deref()))
}

/// Who is lost, and whether that may be: whoever runs harden has to get in, unless it is root and
/// somebody else who can become root does; and somebody has to.
fn judge(
    admins: &[Admin],
    worked: &[Login],
    tried: &[Login],
    operator: Option<&str>,
) -> (Vec<Fault>, Vec<String>) {
    let mut entered: Vec<&str> = Vec::new();
    let mut lost = Vec::new();
    for ((admin, before), after) in admins.iter().zip(worked).zip(tried) {
        let name = admin.user.name.as_str();
        match (before, after) {
            (_, Login::In) => entered.push(name),
            (Login::In, Login::Partial) => {
                lost.push((name, "sshd asks for more than a key".to_owned()));
            }
            (Login::In | Login::Partial, Login::Refused(why)) => lost.push((name, why.clone())),
            (Login::Partial | Login::Refused(_), _) => {}
        }
    }
    let told = lost.iter().map(|(name, why)| format!("{name} ({why})")).collect::<Vec<_>>();
    let told = told.join(", ");
    if entered.is_empty() && !lost.is_empty() {
        return (vec![format!("nobody could log in with a key any more: {told}")], Vec::new());
    }
    let outside = |(name, _): &&(&str, String)| *name != "root" && Some(*name) == operator;
    if let Some((name, why)) = lost.iter().find(outside) {
        let fault =
            format!("{name}, who runs harden, could not log in with a key any more ({why})");
        return (vec![fault], Vec::new());
    }
    let mut notes = Vec::new();
    if !entered.is_empty() {
        let names = entered.join(" and ");
        notes.push(format!("{names} can log in with a key under the new configuration"));
    }
    if !lost.is_empty() {
        notes.push(format!("no longer able to log in with a key: {told}"));
    }
    (Vec::new(), notes)
}

/// Nobody logs in with a key today: then passwords must stay where they are the way in.
fn without_keys(old: &Door, new: &Door, worked: &[Login]) -> Answer {
    if old.takes_passwords()? && !new.takes_passwords()? {
        let fault = "no administrator can log in with a key, and passwords would be turned off; \
                     put a key in place first (ssh-copy-id)";
        return Ok((vec![fault.to_owned()], Vec::new()));
    }
    let why = worked.iter().find_map(|login| match login {
        Login::Refused(why) => {
            Some(format!("no administrator can log in with a key today ({why})"))
        }
        _ => None,
    });
    let why = why.unwrap_or_else(|| "no administrator has a key here".to_owned());
    Ok((Vec::new(), vec![format!("no login was tried: {why}")]))
}

/// A command of the administrator's own that a login would run.
fn forces_a_command(tree: &ConfigTree) -> bool {
    let forced = |line: &Line| {
        let directive = &line.directive;
        directive.is("ForceCommand") && directive.args.first().is_some_and(|arg| arg != "none")
    };
    tree.lines().iter().any(forced)
}

/// Administrators who log in with a key today, the operator first, each with a key to try.
fn admins(files: &Files, asked: &Asked) -> Result<Vec<Admin>, SysError> {
    let operator = asked.operator.as_deref().and_then(users::named);
    let mut admins: Vec<Admin> = Vec::new();
    for user in operator.into_iter().chain(users::administrators()) {
        if admins.len() == MOST || admins.iter().any(|known| known.user.name == user.name) {
            continue;
        }
        let lines = own_keys(files, asked, &user);
        let Some(kind) = lines.iter().find_map(|line| key_type_of(line)) else { continue };
        let key = asked.folder.join(format!("login-{kind}"));
        if !files.exists(&key) {
            make_key(files, &key, kind)?;
        }
        let mut own = Vec::new();
        for (number, line) in lines.iter().take(MOST_KEYS).enumerate() {
            let path = asked.folder.join(format!("own-{}-{number}.pub", user.uid));
            files.scratch(&path, format!("{line}\n").as_bytes())?;
            own.push(path);
        }
        admins.push(Admin { user, key, own });
    }
    Ok(admins)
}

/// The keys in the user's files that open a session of the user's choice: type and key, without
/// options and comment (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
fn own_keys(files: &Files, asked: &Asked, user: &User) -> Vec<String> {
    let Verdict::Valid(effective) = &asked.before.effective else { return Vec::new() };
    let patterns = effective.get("authorizedkeysfile").iter().flat_map(|line| line.split(' '));
    let texts = patterns
        .filter(|pattern| *pattern != "none")
        .filter_map(|pattern| files.read(&key_file(pattern, user)).ok()?);
    texts
        .flat_map(|text| {
            let text = String::from_utf8_lossy(&text).into_owned();
            text.lines().filter_map(free_key).collect::<Vec<_>>()
        })
        .collect()
}

/// The key of a line, unless its options tie it to a command or to an authority.
fn free_key(line: &str) -> Option<String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let mut quoted = false;
    let options = if key_type_of(line.split_whitespace().next()?).is_some() {
        0
    } else {
        line.find(|c: char| {
            quoted ^= c == '"';
            c.is_whitespace() && !quoted
        })?
    };
    let (options, rest) = line.split_at(options);
    let options = options.to_ascii_lowercase();
    let tied =
        |option: &str| options.starts_with(option) || options.contains(&format!(",{option}"));
    if tied("command=") || tied("cert-authority") {
        return None;
    }
    let mut words = rest.split_whitespace();
    let (kind, key) = (words.next()?, words.next()?);
    key_type_of(kind).map(|_| format!("{kind} {key}"))
}

/// `%h`, `%u`, `%U` and `%%`; what is not absolute is below the home folder (sshd_config(5),
/// AuthorizedKeysFile).
fn key_file(pattern: &str, user: &User) -> PathBuf {
    let named = pattern
        .replace("%%", "\0")
        .replace("%h", &user.home.to_string_lossy())
        .replace("%u", &user.name)
        .replace("%U", &user.uid.to_string())
        .replace('\0', "%");
    user.home.join(named)
}

/// What `ssh-keygen -t` calls the type of a key; a key in hardware is of a type of its own, which only
/// the hardware can make.
fn key_type_of(key: &str) -> Option<&'static str> {
    match key.split_whitespace().next()? {
        "ssh-ed25519" | "sk-ssh-ed25519@openssh.com" => Some("ed25519"),
        "ssh-rsa" => Some("rsa"),
        word if word.starts_with("ecdsa-sha2-") || word.starts_with("sk-ecdsa-") => Some("ecdsa"),
        _ => None,
    }
}

fn make_key(files: &Files, key: &Path, kind: &str) -> Result<(), SysError> {
    files.create_folders(key.parent().unwrap_or(key), 0o700)?;
    let keygen = Command::new(Path::new("/usr/bin/ssh-keygen"))
        .args(["-q", "-t", kind, "-N", "", "-C", "harden-probe", "-f"])
        .arg(key.display().to_string());
    let made = keygen.run()?;
    if made.status == 0 {
        return Ok(());
    }
    Err(SysError::new("cannot make a key for a login", made.stderr.trim()))
}

/// An sshd with one configuration.
struct Door<'a> {
    files: &'a Files,
    asked: &'a Asked,
    name: &'a str,
    tree: &'a ConfigTree,
    options: &'a [String],
}

impl Door<'_> {
    /// Everybody tries at the same time.
    fn knock(&self, admins: &[Admin], known_hosts: &Path) -> Result<Vec<Login>, SysError> {
        let main = self.lay_out("own", &REPLACED, "")?;
        let with_own = self.sshd(&main);
        let mut tries = Vec::new();
        for admin in admins {
            let forced = self.forces_a_command(&main, &admin.user.name);
            let with_made = (!forced).then(|| self.sshd_for(&admin.key)).transpose()?;
            tries.push((admin, with_made));
        }
        let lost = |_| SysError::new("cannot log in", "the probe is lost");
        std::thread::scope(|scope| {
            let trying: Vec<_> = tries
                .iter()
                .map(|(admin, with_made)| {
                    let with_own = &with_own;
                    scope.spawn(move || access(admin, with_made.as_deref(), with_own, known_hosts))
                })
                .collect();
            trying.into_iter().map(|access| access.join().map_err(lost)).collect()
        })
    }

    /// Whether sshd would run somebody's own command in place of what is asked for (sshd_config(5),
    /// ForceCommand): then no session is opened.
    fn forces_a_command(&self, main: &Path, user: &str) -> bool {
        if !forces_a_command(self.tree) {
            return false;
        }
        let connection =
            format!("user={user},host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22");
        let options = ["-C".to_owned(), connection].into_iter().chain(self.options.iter().cloned());
        match ask_sshd(Some(main), &options.collect::<Vec<_>>()) {
            Verdict::Valid(effective) => {
                effective.get("forcecommand").iter().any(|command| command != "none")
            }
            _ => true,
        }
    }

    /// Whether a password is a way in.
    fn takes_passwords(&self) -> Result<bool, SysError> {
        let main = self.lay_out("own", &REPLACED, "")?;
        let Verdict::Valid(effective) = ask_sshd(Some(&main), self.options) else {
            return Ok(false);
        };
        let says_yes = |keyword: &str| effective.get(keyword).iter().any(|value| value == "yes");
        Ok([
            "passwordauthentication",
            "kbdinteractiveauthentication",
            "challengeresponseauthentication",
        ]
        .into_iter()
        .any(says_yes))
    }

    /// The command line of an sshd that lets a key in which was made for this login.
    fn sshd_for(&self, key: &Path) -> Result<Vec<String>, SysError> {
        let kind = key.file_name().unwrap_or_default().to_string_lossy();
        let public = self.files.read(&key.with_extension("pub"))?.unwrap_or_default();
        let public = String::from_utf8_lossy(&public).trim().to_owned();
        // The first value wins, and no file has one any more.
        let first =
            format!("AuthorizedKeysCommand /bin/echo {public}\nAuthorizedKeysCommandUser root\n");
        let replaced = [&REPLACED[..], &REPLACED_BY_KEY[..]].concat();
        Ok(self.sshd(&self.lay_out(&kind, &replaced, &first)?))
    }

    /// Copies of the files, the main one with something in front; returns where that is.
    fn lay_out(&self, name: &str, replaced: &[&str], first: &str) -> Result<PathBuf, SysError> {
        let folder = self.asked.folder.join(format!("{}-{name}", self.name));
        let (copies, main) = self.tree.mirrored(&folder, replaced);
        for (path, text) in copies {
            let text = if path == main { format!("{first}{text}") } else { text };
            self.files.scratch(&path, text.as_bytes())?;
        }
        Ok(main)
    }

    fn sshd(&self, main: &Path) -> Vec<String> {
        let sshd = sshd_program().unwrap_or_else(|| PathBuf::from("/usr/sbin/sshd"));
        let mut words = vec![sshd.display().to_string()];
        words.extend(["-i", "-e", "-f"].map(str::to_owned));
        words.push(main.display().to_string());
        words.extend(["-o".to_owned(), "PidFile=none".to_owned()]);
        words.extend(options::without(self.options, &REPLACED.map(str::to_owned)));
        words
    }
}

/// A session with the key that was made, and a look whether one of the user's own is taken. What does
/// not come to an end is no access.
fn access(
    admin: &Admin,
    with_made: Option<&[String]>,
    with_own: &[String],
    known_hosts: &Path,
) -> Login {
    let name = &admin.user.name;
    if let Some(sshd) = with_made {
        match login(name, &admin.key, known_hosts, sshd) {
            Ok(Login::In) => {}
            Ok(other) => return other,
            Err(error) => return Login::Refused(error.to_string()),
        }
    }
    let taken = |key: &PathBuf| is_taken(name, key, known_hosts, with_own).unwrap_or(false);
    if admin.own.iter().any(taken) {
        return Login::In;
    }
    Login::Refused("none of their own keys is accepted".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_behind_their_options() {
        let plain = Some("ssh-ed25519 AAAA".to_owned());
        assert_eq!(free_key("ssh-ed25519 AAAA me@here"), plain);
        assert_eq!(free_key("no-pty,from=\"10.0.0.0/8, ::1\" ssh-ed25519 AAAA me"), plain);
        assert_eq!(free_key("command=\"/bin/x y\",no-pty ecdsa-sha2-nistp256 AAAA"), None);
        assert_eq!(free_key("no-pty,Command=\"echo no\" ssh-rsa AAAA"), None);
        assert_eq!(free_key("cert-authority ssh-rsa AAAA"), None);
        for nothing in ["# ssh-rsa AAAA", "", "ssh-rsa", "no-pty ssh-new AAAA", "\"open"] {
            assert_eq!(free_key(nothing), None, "{nothing}");
        }
        assert_eq!(key_type_of("sk-ecdsa-sha2-nistp256@openssh.com AAAA"), Some("ecdsa"));
    }

    fn admin(name: &str) -> Admin {
        let user = User { name: name.into(), uid: 0, home: "/".into() };
        Admin { user, key: PathBuf::new(), own: Vec::new() }
    }

    #[test]
    fn who_may_be_lost_depends_on_who_runs_harden() {
        let admins = [admin("root"), admin("ada")];
        let no = || Login::Refused("no".into());
        let both = [Login::In, Login::In];
        let faults = |tried: [Login; 2], operator| judge(&admins, &both, &tried, operator).0;
        assert_eq!(faults([no(), Login::In], Some("root")), Vec::<String>::new());
        assert_eq!(faults([no(), Login::In], Some("ada")), Vec::<String>::new());
        assert_eq!(faults([Login::In, no()], Some("root")), Vec::<String>::new());
        assert_eq!(faults([Login::In, no()], Some("ada")).len(), 1);
        assert_eq!(faults([Login::Partial, Login::Partial], None).len(), 1);
        let partial = [Login::Partial, Login::Partial];
        assert_eq!(judge(&admins, &partial, &partial, None).0, Vec::<String>::new());
    }

    #[test]
    fn the_places_of_keys_are_those_of_the_manual() {
        let user = User { name: "ada".into(), uid: 1001, home: "/home/ada".into() };
        let of = |pattern| key_file(pattern, &user).display().to_string();
        assert_eq!(of(".ssh/authorized_keys"), "/home/ada/.ssh/authorized_keys");
        assert_eq!(of("/etc/keys/%u-%U/100%%u"), "/etc/keys/ada-1001/100%u");
        assert_eq!(of("%h/k"), "/home/ada/k");
    }
}
