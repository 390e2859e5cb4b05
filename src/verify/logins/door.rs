//! An sshd that speaks to one client over a pipe, with files of our choice.

use std::path::{Path, PathBuf};

use super::{Admin, Asked};
use crate::observe::{Verdict, ask_sshd, sshd_program};
use crate::sshd::tree::Line;
use crate::sshd::{ConfigTree, options};
use crate::sys::probe::{Login, is_taken, login};
use crate::sys::{Files, SysError};

/// What the sshd of a login does not need, or is told otherwise.
const REPLACED: [&str; 4] = ["Port", "ListenAddress", "AddressFamily", "PidFile"];
/// And where it takes a key that was made for it.
const REPLACED_BY_KEY: [&str; 2] = ["AuthorizedKeysCommand", "AuthorizedKeysCommandUser"];

/// A command of the administrator's own that a login would run.
fn forces_a_command(tree: &ConfigTree) -> bool {
    let forced = |line: &Line| {
        let directive = &line.directive;
        directive.is("ForceCommand") && directive.args.first().is_some_and(|arg| arg != "none")
    };
    tree.lines().iter().any(forced)
}

/// An sshd with one configuration.
pub(super) struct Door<'a> {
    pub(super) files: &'a Files,
    pub(super) asked: &'a Asked,
    pub(super) name: &'a str,
    pub(super) tree: &'a ConfigTree,
    pub(super) options: &'a [String],
}

impl Door<'_> {
    /// Everybody tries at the same time.
    pub(super) fn knock(
        &self,
        admins: &[Admin],
        known_hosts: &Path,
    ) -> Result<Vec<Login>, SysError> {
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
    pub(super) fn takes_passwords(&self) -> Result<bool, SysError> {
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
