//! An sshd that speaks to one client over a pipe, with files of our choice.

use std::path::{Path, PathBuf};

use super::keys::Key;
use super::{Admin, Asked};
use crate::observe::{Verdict, ask_sshd, sshd_program};
use crate::sshd::criteria::test_of;
use crate::sshd::reading::Reading;
use crate::sshd::syntax::Directive;
use crate::sshd::{ConfigTree, Effective, options};
use crate::sys::probe::{Login, login, sshd_takes};
use crate::sys::{Files, Result, SysError};

/// Why sshd keeps somebody out whose keys are in order otherwise.
const NONE: &str = "none of their own keys is accepted";
/// What the sshd of a login does not need, or is told otherwise.
const REPLACED: [&str; 4] = ["Port", "ListenAddress", "AddressFamily", "PidFile"];
/// And where it takes a key that was made for it.
const REPLACED_BY_KEY: [&str; 2] = ["AuthorizedKeysCommand", "AuthorizedKeysCommandUser"];

/// And where that key is of another algorithm; the older name is known to all releases.
const REPLACED_BY_ALGORITHM: [&str; 2] = ["PubkeyAcceptedKeyTypes", "PubkeyAcceptedAlgorithms"];

/// An sshd with one configuration.
pub(super) struct Door<'a> {
    pub(super) files: &'a Files,
    pub(super) asked: &'a Asked,
    pub(super) name: &'a str,
    pub(super) tree: &'a ConfigTree,
    pub(super) options: &'a [String],
}

impl Door<'_> {
    /// Everybody tries at the same time. Of whom `forced` knows a command, no session is opened.
    pub(super) fn knock(
        &self,
        admins: &[Admin],
        forced: &[Option<String>],
        known_hosts: &Path,
    ) -> Result<Vec<Login>> {
        let plain = self.plain()?;
        let now = self.forced(admins)?;
        let lost = |_| SysError::new("cannot log in", "the probe is lost");
        std::thread::scope(|scope| {
            let mut trying = Vec::new();
            for ((admin, before), now) in admins.iter().zip(forced).zip(now) {
                let plain = &plain;
                trying.push(scope.spawn(move || match now {
                    Some(command) if before.as_ref() != Some(&command) => {
                        Login::Refused(format!("ForceCommand {command} takes the place of a shell"))
                    }
                    now => self.access(admin, plain, now.is_none(), known_hosts),
                }));
            }
            trying.into_iter().map(|access| access.join().map_err(lost)).collect()
        })
    }

    /// Removes what an earlier door of that name has left.
    pub(super) fn clear(&self) -> Result<()> {
        self.files.remove_tree(&self.asked.folder.join(format!("{}-own", self.name)))
    }

    /// The command line of an sshd with these files.
    pub(super) fn plain(&self) -> Result<Vec<String>> {
        Ok(self.sshd(&self.lay_out("own", &REPLACED, "")?, &REPLACED))
    }

    /// A session, and a look whether one of the user's own keys is taken. What does not come to an end
    /// is no access.
    fn access(&self, admin: &Admin, plain: &[String], session: bool, known_hosts: &Path) -> Login {
        let name = &admin.user.name;
        let is_taken = |key: &&Key| {
            sshd_takes(name, &key.path, known_hosts, plain).is_ok_and(|taken| taken == Some(true))
        };
        let taken = admin.own.iter().find(is_taken);
        // Where none is taken, the session tells why.
        let Some(key) = taken.or(admin.own.first()) else { return Login::Refused(NONE.to_owned()) };
        let opened = if session { self.session(name, key, known_hosts) } else { Ok(Login::In) };
        match (opened, taken) {
            (Err(error), _) => Login::Refused(error.to_string()),
            (Ok(Login::In), None) => Login::Refused(NONE.to_owned()),
            (Ok(other), _) => other,
        }
    }

    /// A session with a key that is made for it, of the kind of the user's own.
    fn session(&self, name: &str, key: &Key, known_hosts: &Path) -> Result<Login> {
        let (twin, other) = key.twin(self.files)?;
        login(name, &twin, known_hosts, &self.sshd_for(&twin, other)?)
    }

    /// For each administrator, the command of somebody's own that sshd would run in place of what is
    /// asked for (sshd_config(5), ForceCommand).
    pub(super) fn forced(&self, admins: &[Admin]) -> Result<Vec<Option<String>>> {
        let is_forced = |line: &Directive| line.args.first().is_some_and(|arg| arg != "none");
        let reading = Reading::new(self.tree, self.asked.before.release.clone());
        if reading.is_ok_and(|reading| !reading.everywhere("ForceCommand").any(is_forced)) {
            return Ok(vec![None; admins.len()]);
        }
        let main = self.lay_out("own", &REPLACED, "")?;
        let address = self.asked.from.unwrap_or(std::net::Ipv4Addr::LOCALHOST.into());
        let of = |admin: &Admin| {
            let name = &admin.user.name;
            let options =
                test_of(name, &address.into(), (std::net::Ipv4Addr::LOCALHOST, 22).into());
            let options = options.into_iter().chain(self.options.iter().cloned());
            match ask_sshd(Some(&main), &options.collect::<Vec<_>>()) {
                Verdict::Valid(effective) => effective
                    .get("forcecommand")
                    .first()
                    .filter(|command| *command != "none")
                    .cloned(),
                _ => Some("that sshd does not show".to_owned()),
            }
        };
        Ok(admins.iter().map(of).collect())
    }

    /// What is in effect outside any Match block.
    pub(super) fn effective(&self) -> Result<Option<Effective>> {
        let main = self.lay_out("own", &REPLACED, "")?;
        Ok(ask_sshd(Some(&main), self.options).valid().cloned())
    }

    /// The command line of an sshd that lets a key in which was made for this login; of another algorithm
    /// where the user's own is nothing that can be made.
    fn sshd_for(&self, key: &Path, other: Option<&str>) -> Result<Vec<String>> {
        let public = self.files.read(&PathBuf::from(format!("{}.pub", key.display())))?;
        let public = String::from_utf8_lossy(&public.unwrap_or_default()).trim().to_owned();
        // The first value wins, and no file has one any more.
        let mut first =
            format!("AuthorizedKeysCommand /bin/echo {public}\nAuthorizedKeysCommandUser root\n");
        let mut replaced = [&REPLACED[..], &REPLACED_BY_KEY[..]].concat();
        if let Some(algorithm) = other {
            first.push_str(&format!("{} {algorithm}\n", REPLACED_BY_ALGORITHM[0]));
            replaced.extend(REPLACED_BY_ALGORITHM);
        }
        let name = key.file_name().unwrap_or_default().to_string_lossy();
        Ok(self.sshd(&self.lay_out(&name, &replaced, &first)?, &replaced))
    }

    /// Copies of the files, the main one with something in front; returns where that is.
    fn lay_out(&self, name: &str, replaced: &[&str], first: &str) -> Result<PathBuf> {
        let folder = self.asked.folder.join(format!("{}-{name}", self.name));
        let (copies, main) = self.tree.mirrored(&folder, replaced);
        for (path, text) in copies {
            let text = if path == main { format!("{first}{text}") } else { text };
            self.files.scratch(&path, text.as_bytes())?;
        }
        Ok(main)
    }

    fn sshd(&self, main: &Path, replaced: &[&str]) -> Vec<String> {
        let replaced: Vec<String> = replaced.iter().map(|keyword| (*keyword).to_owned()).collect();
        let sshd = sshd_program().unwrap_or_else(|| PathBuf::from("/usr/sbin/sshd"));
        let mut words = vec![sshd.display().to_string()];
        words.extend(["-i", "-e", "-f"].map(str::to_owned));
        words.push(main.display().to_string());
        words.extend(["-o".to_owned(), "PidFile=none".to_owned()]);
        words.extend(options::without(self.options, &replaced));
        words
    }
}
