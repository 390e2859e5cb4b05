//! A login, where a person is not asked to try one: does the planned configuration still let an
//! administrator in?
//!
//! An sshd of its own speaks to one client over a pipe (`sshd -i`), never to the network, with the
//! planned files. It is asked twice. First a key that was made for this login, and is in nobody's
//! authorized_keys, opens a session: that takes users and groups that are allowed, PAM, the account
//! and its shell. Then the administrator's own public keys are shown to it, which needs no private
//! key (RFC 4252, section 7): it says whether it finds one and takes it. Only who could log in before
//! has to be able to afterwards.

mod compare;
mod door;
mod keys;

use std::net::IpAddr;
use std::path::PathBuf;
use std::thread::JoinHandle;

pub use self::compare::{Treated, compare};
use self::door::Door;
use self::keys::{Key, own_keys};
use super::{Fault, write_known_hosts};
use crate::error::Error;
use crate::observe::Observed;
use crate::sshd::ConfigTree;
use crate::sshd::criteria::Criterion;
use crate::sshd::reading::{Place, Reading};
use crate::sshd::syntax::Directive;
use crate::sys::probe::Login;
use crate::sys::users::{self, User};
use crate::sys::{Files, SysError};

/// Who is tried, at most, besides those whom the spec names.
const MOST: usize = 4;
/// What `sshd -T` prints of settings that decide nothing about who gets in.
const HARMLESS: [&str; 40] = [
    "acceptenv",
    "addressfamily",
    "allowagentforwarding",
    "allowstreamlocalforwarding",
    "allowtcpforwarding",
    "banner",
    "channeltimeout",
    "clientalivecountmax",
    "clientaliveinterval",
    "compression",
    "disableforwarding",
    "exposeauthinfo",
    "fingerprinthash",
    "gatewayports",
    "ipqos",
    "listenaddress",
    "logingracetime",
    "loglevel",
    "logverbose",
    "permitlisten",
    "permitopen",
    "permittty",
    "permittunnel",
    "permituserenvironment",
    "permituserrc",
    "pidfile",
    "port",
    "printlastlog",
    "printmotd",
    "rekeylimit",
    "setenv",
    "streamlocalbindmask",
    "streamlocalbindunlink",
    "subsystem",
    "syslogfacility",
    "tcpkeepalive",
    "unusedconnectiontimeout",
    "versionaddendum",
    "x11forwarding",
    "xauthlocation",
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
    /// Who runs harden.
    pub operator: Option<String>,
    /// Who has to be able to log in afterwards, as the spec has it.
    pub admins: Vec<String>,
    /// Where they come from.
    pub from: Option<IpAddr>,
    /// Whether sshd will listen elsewhere than now.
    pub moves: bool,
    /// Whether a person confirms, who can give what sshd asks for besides a key.
    pub attended: bool,
    /// A folder of the transaction's own, below /run.
    pub folder: PathBuf,
}

/// What the logins have shown.
#[derive(Debug, Default)]
pub struct Answer {
    /// Who would be shut out.
    pub faults: Vec<Fault>,
    /// Why it could not be tried who still gets in, where that is not known.
    pub unproven: Option<String>,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// Tries the logins meanwhile.
pub fn begin(files: &Files, asked: Asked) -> JoinHandle<Result<Answer, Error>> {
    let files = files.clone();
    std::thread::spawn(move || try_all(&files, &asked))
}

/// An administrator who has a key.
#[derive(Debug, Clone)]
struct Admin {
    user: User,
    /// Keys of the user's own.
    own: Vec<Key>,
    /// Whether this is root, or somebody who can become root.
    becomes_root: bool,
    /// Whether the spec names them.
    listed: bool,
}

fn try_all(files: &Files, asked: &Asked) -> Result<Answer, Error> {
    let new = Door { files, asked, name: "new", tree: &asked.candidate, options: &asked.options };
    let options = asked.before.command_line.settings();
    let old = Door { files, asked, name: "old", tree: &asked.before.config, options: &options };
    if let Some(why) = by_address(asked) {
        return Ok(Answer { unproven: Some(why), ..Answer::default() });
    }
    let admins = admins(files, asked)?;
    let known_hosts = write_known_hosts(files, &asked.folder, &asked.before)?;
    let forced = old.forced(&admins)?;
    let knock = || {
        let tried = new.knock(&admins, &forced, &known_hosts)?;
        let enters = |login| match login {
            Login::Partial if asked.attended => Login::In,
            other => other,
        };
        Ok::<Vec<Login>, Error>(tried.into_iter().map(enters).collect())
    };
    let tried = knock()?;
    let operator = asked.operator.as_deref();
    let stranger = operator
        .filter(|name| *name != "root" && !admins.iter().any(|admin| admin.user.name == *name));
    if !tried.is_empty() && stranger.is_none() && tried.iter().all(|access| *access == Login::In) {
        let (faults, notes) = judge(&admins, &tried, &tried, operator);
        return Ok(Answer { faults, notes, unproven: None });
    }
    let worked = old.knock(&admins, &forced, &known_hosts)?;
    // Nothing that happens once is held against the new configuration.
    let tried = knock()?;
    let (faults, mut notes) = judge(&admins, &worked, &tried, operator);
    let mut unproven = None;
    if let Some(why) = unknown(&admins, &worked, &tried, stranger.or(operator)) {
        let moved = moved(&old, &new)?;
        if asked.before.is_unread() {
            // Whom the sshd that runs lets in, its files do not say.
            unproven = Some(format!(
                "{why}, and sshd has not read its files since they were changed (systemctl restart {} \
                 has it read them)",
                asked.before.service.name
            ));
        } else if moved.is_empty() {
            notes.push(format!("no login was tried for them: {why}"));
        } else {
            unproven = Some(format!("{why}, and the change is about {}", moved.join(", ")));
        }
    }
    Ok(Answer { faults, unproven, notes })
}

/// Why a probe, which comes from nowhere and arrives nowhere, says nothing: what tells people apart by where
/// they come from was not there before; or what does so by where they arrive was, and that changes.
fn by_address(asked: &Asked) -> Option<String> {
    // sshd has accepted both.
    let read = |tree| Reading::new(tree, asked.before.release.clone()).ok();
    let (before, after) = (read(&asked.before.config)?, read(&asked.candidate)?);
    // Names mean something else where sshd looks them up, or does not any more.
    let known = if asked.before.is_unread() {
        Vec::new()
    } else if looks_up_names(&before) == looks_up_names(&after) {
        by_place(&before, Criterion::asks_for_address)
    } else {
        deciding(&before, |criterion| criterion.asks_for_address() && !criterion.asks_for_name())
    };
    let mut found = by_place(&after, Criterion::asks_for_address).into_iter();
    if let Some(found) = found.find(|found| !known.contains(found)) {
        return Some(format!("whom `{found}` means depends on where they come from or arrive"));
    }
    let found = deciding(&after, Criterion::asks_for_arrival).into_iter().next();
    let found = found.filter(|_| asked.moves)?;
    Some(format!("whom `{found}` means depends on where they arrive, and that changes"))
}

/// What tells people apart by where they come from, or by such a criterion.
fn by_place(reading: &Reading, is_it: fn(&Criterion) -> bool) -> Vec<String> {
    let lists = ["AllowUsers", "DenyUsers"].map(|list| reading.everywhere(list));
    let patterns = lists.into_iter().flatten().flat_map(|line| &line.args);
    let patterns = patterns.filter(|arg| arg.contains('@')).cloned();
    patterns.chain(deciding(reading, is_it)).collect()
}

fn looks_up_names(reading: &Reading) -> bool {
    let globally = reading.globally();
    globally.is_ok_and(|all| {
        all.first_args("UseDNS").first().is_some_and(|is| is.eq_ignore_ascii_case("yes"))
    })
}

/// Lines that decide who gets in and stand in a Match block with such a criterion.
fn deciding(reading: &Reading, is_it: fn(&Criterion) -> bool) -> Vec<String> {
    let Ok(blocks) = reading.blocks() else { return Vec::new() };
    let asks = |place: &&Place| {
        let criteria = place.block.map(|block| block.criteria).unwrap_or_default();
        criteria.iter().any(is_it)
    };
    let decides = |place: &&Place| !HARMLESS.iter().any(|harmless| place.directive.is(harmless));
    let lines = blocks.lines().filter(asks).filter(decides).map(|place| {
        let block = place.block.map(|block| block.directive.rest.clone()).unwrap_or_default();
        let Directive { keyword, args, .. } = place.directive;
        format!("Match {}: {keyword} {}", block.trim(), args.join(" "))
    });
    lines.collect()
}

/// Why nothing is known of those who matter: nobody, or not the one who runs harden, gets in over a pipe
/// under the old configuration, though they may over the network (`from=`, `Match Address`,
/// certificates, keys from a command, passwords).
fn unknown(
    admins: &[Admin],
    worked: &[Login],
    tried: &[Login],
    operator: Option<&str>,
) -> Option<String> {
    let known = |(before, after): (&Login, &Login)| {
        !matches!(before, Login::Refused(_)) || *after == Login::In
    };
    let pairs = || worked.iter().zip(tried);
    let refusal = worked.iter().find_map(|login| match login {
        Login::Refused(why) => Some(why.as_str()),
        _ => None,
    });
    if !pairs().any(known) {
        return Some(match refusal {
            Some(why) => format!("no administrator can log in with a key today ({why})"),
            None => "no administrator has a key here".to_owned(),
        });
    }
    let listed = admins.iter().zip(pairs()).find(|(admin, pair)| admin.listed && !known(*pair));
    if let Some((admin, _)) = listed {
        return Some(format!("{} cannot log in with a key today", admin.user.name));
    }
    let operator = operator.filter(|name| *name != "root")?;
    match admins.iter().position(|admin| admin.user.name == operator) {
        Some(at) if pairs().nth(at).is_some_and(known) => None,
        Some(_) => Some(format!("{operator} cannot log in with a key today")),
        None => Some(format!("{operator} has no key here")),
    }
}

/// What the change is about, of all that may decide who gets in.
fn moved(old: &Door, new: &Door) -> Result<Vec<String>, SysError> {
    let (Some(before), Some(after)) = (old.effective()?, new.effective()?) else {
        return Ok(vec!["a configuration that sshd does not show".to_owned()]);
    };
    let decides = |keyword: &String| !HARMLESS.contains(&keyword.as_str());
    let mut moved: Vec<String> = before.differences(&after).into_iter().filter(decides).collect();
    let blocks = |door: &Door| {
        let reading = Reading::new(door.tree, door.asked.before.release.clone());
        reading.map(|reading| deciding(&reading, |_| true)).unwrap_or_default()
    };
    let (was, is) = (blocks(old), blocks(new));
    let gone = was.iter().filter(|line| !is.contains(line));
    moved.extend(gone.chain(is.iter().filter(|line| !was.contains(line))).cloned());
    moved.dedup();
    Ok(moved)
}

/// Who is lost, and whether that may be: whoever runs harden has to get in, unless it is root and
/// somebody else does who can become root; and somebody has to.
fn judge(
    admins: &[Admin],
    worked: &[Login],
    tried: &[Login],
    operator: Option<&str>,
) -> (Vec<Fault>, Vec<String>) {
    let mut entered: Vec<&Admin> = Vec::new();
    let mut lost = Vec::new();
    for ((admin, before), after) in admins.iter().zip(worked).zip(tried) {
        match (before, after) {
            (_, Login::In) => entered.push(admin),
            (Login::In, Login::Partial) => {
                lost.push((admin, "sshd asks for more than a key".to_owned()));
            }
            (Login::In | Login::Partial, Login::Refused(why)) => lost.push((admin, why.clone())),
            (Login::Partial | Login::Refused(_), _) => {}
        }
    }
    let told = lost.iter().map(|(admin, why)| format!("{} ({why})", admin.user.name));
    let told = told.collect::<Vec<_>>().join(", ");
    let fault = |text: String| (vec![text], Vec::new());
    if entered.is_empty() && !lost.is_empty() {
        return fault(format!("nobody could log in with a key any more: {told}"));
    }
    let is_needed = |admin: &Admin| match admin.user.uid {
        0 if !admin.listed => !entered.iter().any(|admin| admin.becomes_root),
        _ => admin.listed || Some(admin.user.name.as_str()) == operator,
    };
    if let Some((admin, why)) = lost.iter().find(|(admin, _)| is_needed(admin)) {
        let name = &admin.user.name;
        return fault(if admin.user.uid == 0 {
            format!(
                "{name} could not log in with a key any more ({why}), and nobody else who gets in can \
                 become root (sudo -l)"
            )
        } else {
            let who = if admin.listed { "whom `safety.admins` names" } else { "who runs harden" };
            format!("{name}, {who}, could not log in with a key any more ({why})")
        });
    }
    let mut notes = Vec::new();
    if !entered.is_empty() {
        let names = entered.iter().map(|admin| admin.user.name.as_str());
        let names = names.collect::<Vec<_>>().join(" and ");
        notes.push(format!("{names} can log in with a key under the new configuration"));
    }
    if !lost.is_empty() {
        notes.push(format!("no longer able to log in with a key: {told}"));
    }
    (Vec::new(), notes)
}

/// Administrators who have keys here.
fn admins(files: &Files, asked: &Asked) -> Result<Vec<Admin>, SysError> {
    let mut admins: Vec<Admin> = Vec::new();
    for user in who(asked) {
        if admins.len() == MOST + asked.admins.len() {
            break;
        }
        let own = own_keys(files, asked, &user)?;
        if !own.is_empty() {
            let becomes_root = users::becomes_root(&user);
            let listed = asked.admins.contains(&user.name);
            admins.push(Admin { user, own, becomes_root, listed });
        }
    }
    Ok(admins)
}

/// Administrators, those first who matter most.
fn who(asked: &Asked) -> Vec<User> {
    let operator = asked.operator.as_deref().and_then(users::named);
    let listed = asked.admins.iter().filter_map(|name| users::named(name));
    let mut all: Vec<User> = Vec::new();
    for user in listed.chain(operator).chain(users::administrators()) {
        if all.iter().all(|known| known.name != user.name) {
            all.push(user);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admin(name: &str) -> Admin {
        let uid = if name == "root" { 0 } else { 1000 };
        let (home, shell) = ("/".into(), "/bin/sh".into());
        let user = User { name: name.into(), uid, gid: uid, home, shell };
        Admin { user, own: Vec::new(), becomes_root: name != "eve", listed: false }
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
        let eve = [admin("root"), admin("eve")];
        assert_eq!(judge(&eve, &both, &[no(), Login::In], Some("root")).0.len(), 1);
        let partial = [Login::Partial, Login::Partial];
        assert_eq!(judge(&admins, &partial, &partial, None).0, Vec::<String>::new());
    }
}
