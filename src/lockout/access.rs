//! What keeps a user out under a configuration, as sshd(8) would check it (auth.c, `allowed_user`).

use std::path::Path;

use super::keys::Keys;
use super::view::client;
use super::{Admin, host_keys, pam};
use crate::sshd::Effective;
use crate::sshd::criteria::{comes_from, fits};
use crate::sys::users::{self, Aged, Password};
use crate::sys::{self, command::shell_word};

/// While it is there, only root comes in (nologin(5)). The one below /run is the boot's, and goes.
const NO_LOGIN: &str = "/etc/nologin";

/// What keeps somebody out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Obstacle {
    pub(super) why: String,
    pub(super) fix: String,
}

fn because(why: impl Into<String>, fix: impl Into<String>) -> Option<Obstacle> {
    Some(Obstacle { why: why.into(), fix: fix.into() })
}

fn value<'e>(effective: &'e Effective, keyword: &str) -> &'e str {
    effective.get(keyword).first().map_or("", String::as_str)
}

fn is(effective: &Effective, keyword: &str, wanted: &str) -> bool {
    value(effective, keyword).eq_ignore_ascii_case(wanted)
}

/// The first thing that keeps a user out; `None` where nothing does.
pub(super) fn obstacle(admin: &Admin, effective: &Effective, keys: &Keys) -> Option<Obstacle> {
    connection(effective, keys)
        .or_else(|| account(admin, effective))
        .or_else(|| user_lists(admin, effective))
        .or_else(|| group_lists(admin, effective))
        .or_else(|| root(admin, effective))
        .or_else(|| credentials(admin, effective, keys))
        .or_else(|| command(effective))
}

/// What keeps a user out whatever else may be true, and as long as sshd's files stay as they are: who is let in all the
/// same is so by an sshd that has not read them.
pub(super) fn plain_obstacle(
    admin: &Admin,
    effective: &Effective,
    keys: &Keys,
) -> Option<Obstacle> {
    connection(effective, keys)
        .or_else(|| user_lists(admin, effective))
        .or_else(|| root(admin, effective))
}

/// Whether there is a connection at all: it may be refused (from 9.9 on), or the two have nothing in common.
fn connection(effective: &Effective, keys: &Keys) -> Option<Obstacle> {
    if is(effective, "refuseconnection", "yes") {
        let fix = "remove it, or narrow the Match block that it stands in";
        return because("RefuseConnection yes", fix);
    }
    for keyword in ["MaxAuthTries", "PerSourceMaxStartups"] {
        if is(effective, keyword, "0") {
            return because(
                format!("{keyword} 0 lets nobody in"),
                format!("set {keyword} to more"),
            );
        }
    }
    let kinds = host_keys::kinds(keys.files, effective)?;
    if kinds.iter().any(|kind| host_keys::is_shown(kind, effective)) {
        return None;
    }
    because(
        format!("HostKeyAlgorithms has none for a key of this host ({})", kinds.join(", ")),
        "add the algorithm of a host key, or make a key that it takes: ssh-keygen -A",
    )
}

/// The account and its shell.
fn account(admin: &Admin, effective: &Effective) -> Option<Obstacle> {
    let user = &admin.user;
    let name = &user.name;
    if user.password() == Password::Locked && is(effective, "usepam", "no") {
        return because(
            format!("{name}'s account is locked, and with UsePAM no that counts for keys too"),
            format!("usermod -p '*' {name}, or leave UsePAM on"),
        );
    }
    if user.has_expired() {
        return because(format!("{name}'s account has expired"), format!("chage -E -1 {name}"));
    }
    let change = format!("chage -M -1 -d \"$(date +%F)\" {name}");
    match user.aged() {
        Some(Aged::TooLate) => {
            return because(
                format!("{name}'s password ended too long ago (chage -l {name})"),
                change,
            );
        }
        Some(Aged::MustChange) if user.password() != Password::Set => {
            return because(format!("{name} has to change a password first, and has none"), change);
        }
        _ => {}
    }
    if user.uid != 0 && Path::new(NO_LOGIN).exists() {
        return because(format!("{NO_LOGIN} lets nobody in but root"), format!("rm {NO_LOGIN}"));
    }
    let shell = user.shell.display().to_string();
    let refuses = ["nologin", "false", "/true", "/sync"].iter().any(|end| shell.ends_with(end));
    let missing = !shell.is_empty() && !user.shell.exists();
    let no_program = !shell.is_empty() && !sys::is_program(&user.shell);
    if refuses || no_program {
        let what = match (missing, no_program) {
            (true, _) => "does not exist",
            (_, true) => "is no program",
            _ => "lets nobody in",
        };
        return because(
            format!("{name}'s shell {shell} {what}"),
            format!("chsh -s /bin/bash {name}"),
        );
    }
    None
}

/// Allow and Deny lists of users.
fn user_lists(admin: &Admin, effective: &Effective) -> Option<Obstacle> {
    let name = &admin.user.name;
    // One name a line, without quotes.
    let list = |keyword: &str| effective.get(keyword).to_vec();
    let denies = |pattern: &&String| takes_user(admin, pattern, effective) == Some(true);
    if let Some(pattern) = list("denyusers").iter().find(denies) {
        return because(format!("DenyUsers {pattern}"), format!("take {name} off DenyUsers"));
    }
    let allowed = list("allowusers");
    let may = |pattern: &String| takes_user(admin, pattern, effective) != Some(false);
    if !allowed.is_empty() && !allowed.iter().any(may) {
        let by_place = |pattern: &String| {
            pattern.rsplit_once('@').is_some_and(|(user, _)| fits(name.as_bytes(), user.as_bytes()))
        };
        let fix = match admin.from.filter(|_| allowed.iter().any(by_place)) {
            Some(from) => format!("let AllowUsers take {name} from {from}"),
            None => format!("add {name} to AllowUsers"),
        };
        return because(format!("not listed in AllowUsers ({})", allowed.join(" ")), fix);
    }
    None
}

/// And of groups, which sshd asks next.
fn group_lists(admin: &Admin, effective: &Effective) -> Option<Obstacle> {
    let name = &admin.user.name;
    let groups = admin.user.groups();
    let in_group =
        |pattern: &&String| groups.iter().any(|group| fits(group.as_bytes(), pattern.as_bytes()));
    let list = |keyword: &str| effective.get(keyword).to_vec();
    if let Some(pattern) = list("denygroups").iter().find(in_group) {
        return because(
            format!("DenyGroups {pattern}"),
            format!("take {name} out of the group, or the group off DenyGroups"),
        );
    }
    let allowed = list("allowgroups");
    if !allowed.is_empty() && !allowed.iter().any(|pattern| in_group(&pattern)) {
        let group = allowed.iter().find(|group| users::has_group(group));
        return because(
            format!("in no group of AllowGroups ({})", allowed.join(" ")),
            match group {
                Some(group) => format!("usermod -aG {} {name}", shell_word(group)),
                None => format!("create the group, with {name} in it, or correct AllowGroups"),
            },
        );
    }
    None
}

/// Whether a pattern takes a user, with where the user comes from behind an `@` (auth.c, `match_user`);
/// `None` where it depends on that, and it is not known.
fn takes_user(admin: &Admin, pattern: &str, effective: &Effective) -> Option<bool> {
    let name = admin.user.name.as_bytes();
    let Some((user, host)) = pattern.rsplit_once('@') else {
        return Some(fits(name, pattern.as_bytes()));
    };
    if !fits(name, user.as_bytes()) {
        return Some(false);
    }
    if host == "*" {
        return Some(true);
    }
    Some(comes_from(&client(admin.from?, effective), host))
}

fn root(admin: &Admin, effective: &Effective) -> Option<Obstacle> {
    let value = value(effective, "permitrootlogin");
    if admin.user.uid != 0 || !["no", "forced-commands-only"].contains(&value) {
        return None;
    }
    because(
        format!("PermitRootLogin {value}, and nobody else who gets in becomes root by sudo"),
        "set up a user with a key and sudo, and name them in `safety.admins`; or set PermitRootLogin \
         prohibit-password",
    )
}

/// Whether a configuration takes passwords at all.
pub(super) fn takes_passwords(effective: &Effective) -> bool {
    ["password", "keyboard-interactive"].iter().any(|method| is_on(method, effective))
}

/// Whether a method that asks for a password is on; on the keyboard only PAM asks.
fn is_on(method: &str, effective: &Effective) -> bool {
    match method {
        "password" => is(effective, "passwordauthentication", "yes"),
        _ => is(effective, "kbdinteractiveauthentication", "yes") && is(effective, "usepam", "yes"),
    }
}

/// A key, a password, or something that cannot be seen from here.
fn credentials(admin: &Admin, effective: &Effective, keys: &Keys) -> Option<Obstacle> {
    let lists = words(effective, "authenticationmethods");
    let one_by_one = ["publickey", "password", "keyboard-interactive"].map(str::to_owned).to_vec();
    let lists = if lists.is_empty() || lists == ["any"] { one_by_one } else { lists };
    let mut found = None;
    for list in &lists {
        let parts: Vec<&str> =
            list.split(',').map(|part| part.split(':').next().unwrap_or(part)).collect();
        let times = parts.iter().filter(|part| **part == "publickey").count();
        let too_few = || few_keys(times, admin, effective, keys);
        let lacking = parts.iter().find_map(|method| lacks(method, admin, effective, keys));
        match lacking.or_else(too_few) {
            None => return None,
            Some(obstacle) => {
                found.get_or_insert(obstacle);
            }
        }
    }
    found
}

/// A method that is asked for several times takes another key each time.
fn few_keys(times: usize, admin: &Admin, effective: &Effective, keys: &Keys) -> Option<Obstacle> {
    if times < 2 || has_unseen_keys(effective, keys) {
        return None;
    }
    let name = &admin.user.name;
    let has = keys.accepted(admin, effective).len();
    let why = format!("AuthenticationMethods asks for {times} keys, and {name} has {has}");
    let fix = format!("give {name} another key first, or leave AuthenticationMethods alone");
    if has < times { because(why, fix) } else { None }
}

/// Whether there may be keys that cannot be seen from here.
pub(super) fn has_unseen_keys(effective: &Effective, keys: &Keys) -> bool {
    ["authorizedkeyscommand", "trustedusercakeys"].iter().any(|keyword| {
        let path = value(effective, keyword).split(' ').next().unwrap_or_default();
        path.starts_with('/') && keys.files.exists(Path::new(path))
    })
}

/// Whether a user has a key that is taken, or may have one that cannot be seen from here.
pub(super) fn has_key(admin: &Admin, effective: &Effective, keys: &Keys) -> bool {
    lacks("publickey", admin, effective, keys).is_none()
}

/// Why a user cannot use a method.
fn lacks(method: &str, admin: &Admin, effective: &Effective, keys: &Keys) -> Option<Obstacle> {
    let name = &admin.user.name;
    match method {
        "publickey" if !is(effective, "pubkeyauthentication", "yes") => because(
            format!("PubkeyAuthentication no rules out keys, and {name} has no other way in"),
            "leave PubkeyAuthentication on",
        ),
        "publickey" if has_unseen_keys(effective, keys) => None,
        "publickey" => {
            let (why, fix) = keys.obstacle(admin, effective)?;
            because(why, fix)
        }
        "password" | "keyboard-interactive" => no_password(method, admin, effective, keys),
        "none" => because(
            "AuthenticationMethods none takes empty passwords alone",
            "leave AuthenticationMethods alone",
        ),
        _ => None,
    }
}

/// Why a user has no password to give.
fn no_password(
    method: &str,
    admin: &Admin,
    effective: &Effective,
    keys: &Keys,
) -> Option<Obstacle> {
    let name = &admin.user.name;
    if !is_on(method, effective) {
        let keywords = match method {
            "password" => "PasswordAuthentication",
            _ => "KbdInteractiveAuthentication and UsePAM",
        };
        return because(
            format!("AuthenticationMethods asks for {method}, which is switched off"),
            format!("leave {keywords} on, or AuthenticationMethods alone"),
        );
    }
    let value = value(effective, "permitrootlogin");
    if admin.user.uid == 0 && value != "yes" {
        return because(
            format!(
                "AuthenticationMethods asks for {method}, and PermitRootLogin {value} takes none of root's"
            ),
            "set PermitRootLogin to yes, or leave AuthenticationMethods alone for root",
        );
    }
    let is_unseen = || is(effective, "usepam", "yes") && pam::is_beyond_sight(keys.files);
    if admin.user.password() == Password::Set || is_unseen() {
        return None;
    }
    because(
        format!("AuthenticationMethods asks for a password, which {name} has not got"),
        format!("passwd {name}, or leave AuthenticationMethods alone"),
    )
}

/// A command in place of a shell, or no session at all.
fn command(effective: &Effective) -> Option<Obstacle> {
    if is(effective, "maxsessions", "0") {
        return because("MaxSessions 0 opens no session", "set MaxSessions to 1 or more");
    }
    let is_set = |value: &str| !matches!(value.to_ascii_lowercase().as_str(), "" | "none");
    let folder = value(effective, "chrootdirectory");
    if is_set(folder) {
        return because(
            format!("ChrootDirectory {folder} leaves nothing of the host in reach"),
            "remove the ChrootDirectory, or leave them out of it",
        );
    }
    let command = value(effective, "forcecommand");
    if !is_set(command) {
        return None;
    }
    because(
        format!("ForceCommand {command} takes the place of a shell"),
        "remove the ForceCommand, or leave them out of it",
    )
}

fn words(effective: &Effective, keyword: &str) -> Vec<String> {
    effective.get(keyword).iter().flat_map(|line| crate::sshd::syntax::split_args(line)).collect()
}
