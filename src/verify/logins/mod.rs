//! A login, where a person is not asked to try one: does the planned configuration still let an
//! administrator in?
//!
//! An sshd of its own speaks to one client over a pipe (`sshd -i`), never to the network, with the
//! planned files. It is asked twice. First a key that was made for this login, and is in nobody's
//! authorized_keys, opens a session: that takes users and groups that are allowed, PAM, the account
//! and its shell. Then the administrator's own public keys are shown to it, which needs no private
//! key (RFC 4252, section 7): it says whether it finds one and takes it. Only who could log in before
//! has to be able to afterwards.

mod door;
mod keys;

use std::path::PathBuf;
use std::thread::JoinHandle;

use self::door::Door;
use self::keys::{key_type_of, make_key, own_keys};
use super::{Fault, write_known_hosts};
use crate::error::Error;
use crate::observe::Observed;
use crate::sshd::ConfigTree;
use crate::sys::probe::Login;
use crate::sys::users::{self, User};
use crate::sys::{Files, SysError};

/// Who is tried, at most.
const MOST: usize = 4;
/// How many of one's own keys are shown, at most.
const MOST_KEYS: usize = 6;
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
