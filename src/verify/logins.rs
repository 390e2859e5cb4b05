//! A login, where a person is not asked to try one: does the planned configuration still let an
//! administrator in?
//!
//! An sshd of its own speaks to one client over a pipe (`sshd -i`), never to the network. It reads
//! the planned files and, besides them, knows one key that was made for this login and is never
//! written to anybody's authorized_keys. It is asked what the real sshd will be asked: users and
//! groups that are allowed, PAM, the account, its shell. Only who could log in before has to be
//! able to afterwards.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use super::{Fault, write_known_hosts};
use crate::error::Error;
use crate::observe::{Observed, Verdict, sshd_program};
use crate::sshd::tree::Line;
use crate::sshd::{ConfigTree, options};
use crate::sys::probe::{Login, login};
use crate::sys::users::{self, User};
use crate::sys::{Command, Files, SysError};

/// Who is tried, at most.
const MOST: usize = 4;
/// What the sshd of a login does not need, or is told otherwise.
const REPLACED: [&str; 6] = [
    "Port",
    "ListenAddress",
    "AddressFamily",
    "PidFile",
    "AuthorizedKeysCommand",
    "AuthorizedKeysCommandUser",
];

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
}

fn try_all(files: &Files, asked: &Asked) -> Answer {
    let note = |text: String| Ok((Vec::new(), vec![text]));
    if forces_a_command(&asked.candidate) || forces_a_command(&asked.before.config) {
        return note("no login was tried: it would run the ForceCommand of sshd_config".to_owned());
    }
    let admins = admins(files, asked)?;
    if admins.is_empty() {
        return note("no login was tried: no administrator has a key here".to_owned());
    }
    let known_hosts = write_known_hosts(files, &asked.folder, &asked.before)?;
    let new = Door { files, asked, name: "new", tree: &asked.candidate, options: &asked.options };
    let tried = new.knock(&admins, &known_hosts)?;
    if let Some(text) = let_in(&tried) {
        return note(text);
    }
    let options = asked.before.command_line.settings();
    let old = Door { files, asked, name: "old", tree: &asked.before.config, options: &options };
    let worked = old.knock(&admins, &known_hosts)?;
    // Nothing that happens once is held against the new configuration.
    let tried = new.knock(&admins, &known_hosts)?;
    if let Some(text) = let_in(&tried) {
        return note(text);
    }
    let shut_out = worked.iter().zip(&tried).filter_map(|((admin, before), (_, after))| {
        match (before, after) {
            (Login::In | Login::Partial, Login::Refused(why)) => {
                Some(format!("{} ({why})", admin.user.name))
            }
            _ => None,
        }
    });
    let shut_out = shut_out.collect::<Vec<_>>().join(", ");
    if !shut_out.is_empty() {
        let fault = format!("nobody could log in with a key any more: {shut_out}");
        return Ok((vec![fault], Vec::new()));
    }
    let why = worked.iter().find_map(|(_, login)| match login {
        Login::Refused(why) => Some(why.as_str()),
        _ => None,
    });
    let why = why.unwrap_or_default();
    note(format!("no login was tried: no administrator can log in with a key today ({why})"))
}

/// Who got in, as one sentence; `None` where nobody did.
fn let_in(tried: &[(&Admin, Login)]) -> Option<String> {
    let names = |wanted: Login| -> String {
        let who = tried.iter().filter(|(_, login)| *login == wanted);
        who.map(|(admin, _)| admin.user.name.as_str()).collect::<Vec<_>>().join(" and ")
    };
    let (entered, partly) = (names(Login::In), names(Login::Partial));
    if !entered.is_empty() {
        return Some(format!("{entered} can log in with a key under the new configuration"));
    }
    let partial = format!("the key of {partly} is accepted, and sshd asks for more than a key");
    Some(partial).filter(|_| !partly.is_empty())
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
        let Some(kind) = key_type(files, asked, &user) else { continue };
        let key = asked.folder.join(format!("login-{kind}"));
        if !files.exists(&key) {
            make_key(files, &key, kind)?;
        }
        admins.push(Admin { user, key });
    }
    Ok(admins)
}

/// The type of the first key in the user's files (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
fn key_type(files: &Files, asked: &Asked, user: &User) -> Option<&'static str> {
    let Verdict::Valid(effective) = &asked.before.effective else { return None };
    let patterns = effective.get("authorizedkeysfile").iter().flat_map(|line| line.split(' '));
    patterns.filter(|pattern| *pattern != "none").find_map(|pattern| {
        let text = files.read(&key_file(pattern, user)).ok()??;
        String::from_utf8_lossy(&text).lines().find_map(key_type_of)
    })
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

/// What `ssh-keygen -t` calls the type of a line's key.
fn key_type_of(line: &str) -> Option<&'static str> {
    if line.trim_start().starts_with('#') {
        return None;
    }
    line.split_whitespace().find_map(|word| match word {
        "ssh-ed25519" | "sk-ssh-ed25519@openssh.com" => Some("ed25519"),
        "ssh-rsa" => Some("rsa"),
        word if word.starts_with("ecdsa-sha2-") || word.starts_with("sk-ecdsa-") => Some("ecdsa"),
        _ => None,
    })
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

/// An sshd with one configuration that lets the keys of this login in.
struct Door<'a> {
    files: &'a Files,
    asked: &'a Asked,
    name: &'a str,
    tree: &'a ConfigTree,
    options: &'a [String],
}

impl Door<'_> {
    /// Everybody tries at the same time.
    fn knock<'a>(
        &self,
        admins: &'a [Admin],
        known_hosts: &Path,
    ) -> Result<Vec<(&'a Admin, Login)>, SysError> {
        let mut sshds = Vec::new();
        for admin in admins {
            sshds.push((admin, self.sshd(&admin.key)?));
        }
        std::thread::scope(|scope| {
            let trying: Vec<_> = sshds
                .into_iter()
                .map(|(admin, sshd)| {
                    let name = &admin.user.name;
                    (admin, scope.spawn(move || login(name, &admin.key, known_hosts, &sshd)))
                })
                .collect();
            let lost = |_| SysError::new("cannot log in", "the probe is lost");
            trying
                .into_iter()
                .map(|(admin, login)| Ok((admin, login.join().map_err(lost)??)))
                .collect()
        })
    }

    /// The command line of the sshd for one key.
    fn sshd(&self, key: &Path) -> Result<Vec<String>, SysError> {
        let sshd = sshd_program().ok_or_else(|| SysError::new("cannot log in", "no sshd"))?;
        let kind = key.file_name().unwrap_or_default().to_string_lossy();
        let folder = self.asked.folder.join(format!("{}-{kind}", self.name));
        let (copies, main) = self.tree.mirrored(&folder, &REPLACED);
        let public = self.files.read(&key.with_extension("pub"))?.unwrap_or_default();
        let public = String::from_utf8_lossy(&public).trim().to_owned();
        for (path, text) in copies {
            // The first value wins, and no file has one any more.
            let first = format!(
                "AuthorizedKeysCommand /bin/echo {public}\nAuthorizedKeysCommandUser root\n"
            );
            let text = if path == main { format!("{first}{text}") } else { text };
            self.files.scratch(&path, text.as_bytes())?;
        }
        let mut words = vec![sshd.display().to_string()];
        words.extend(["-i", "-e", "-f"].map(str::to_owned));
        words.push(main.display().to_string());
        words.extend(["-o".to_owned(), "PidFile=none".to_owned()]);
        words.extend(options::without(self.options, &REPLACED.map(str::to_owned)));
        Ok(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_of_a_key_is_found_behind_its_options() {
        assert_eq!(key_type_of("ssh-ed25519 AAAA me@here"), Some("ed25519"));
        let line = "command=\"/bin/x y\",no-pty ecdsa-sha2-nistp256 AAAA";
        assert_eq!(key_type_of(line), Some("ecdsa"));
        assert_eq!(key_type_of("ssh-rsa AAAA"), Some("rsa"));
        assert_eq!(key_type_of("# ssh-rsa AAAA"), None);
        assert_eq!(key_type_of(""), None);
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
