//! Whom a plan would lock out, before anything is changed: administrators have to be able to log in under
//! the planned configuration.
//!
//! sshd itself says what is in effect for each of them (`sshd -T -C`, on a copy of the planned files); here
//! it is held against their accounts and keys. That a login really goes through is proven later, at the
//! trial.

mod access;
mod edited;
mod host_keys;
mod keys;
mod pam;
mod session;
mod view;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use access::{Obstacle, obstacle};
pub use edited::{refuse_unread_files, shut_out_since};
pub use host_keys::lost as lost_host_keys;
use keys::Keys;
use view::{View, Way};

use crate::concern::sshd_config::own::{earlier_lines, is_own};
use crate::error::Refusal;
use crate::observe::{Listener, Observed, Verdict};
use crate::plan::Plan;
use crate::sshd::Effective;
use crate::sshd::keywords::same;
use crate::sshd::syntax::parse_line;
use crate::sys::process::{Process, Session};
use crate::sys::users::{self, LoggedIn, User};
use crate::sys::{self, Files};
use crate::validate::Scratch;

/// Somebody who would be locked out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Risk {
    /// Who, and why.
    pub message: String,
    /// What to do about it.
    pub fix: String,
}

/// Refuses risks, all of them named.
///
/// # Errors
/// A refusal where there are any.
pub fn refuse(risks: &[Risk]) -> Result<(), Refusal> {
    let Some(first) = risks.first() else { return Ok(()) };
    let all: Vec<&str> = risks.iter().map(|risk| risk.message.as_str()).collect();
    Err(Refusal::new(
        "lockout",
        all.join("\n"),
        format!("{}; --force-lockout-risk applies it all the same", first.fix),
    ))
}

/// An administrator.
#[derive(Debug, Clone)]
struct Admin {
    user: User,
    /// Where they come from, if that is known.
    from: Option<IpAddr>,
    /// Why they count.
    standing: Standing,
    /// How they are logged in, where they are.
    logged_in: Option<(Session, Process)>,
}

/// Why an administrator counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The spec names them.
    Listed,
    /// They are logged in.
    LoggedIn,
    /// They may have a way in.
    Possible,
}

impl Admin {
    fn is_listed(&self) -> bool {
        self.standing == Standing::Listed
    }

    /// Whether the sshd that runs has let them in since it has read its files, and where this session arrived too: not
    /// a trial's, nor one of somebody's own.
    fn is_let_in(&self, before: &Observed) -> bool {
        let Some((session, sshd)) = &self.logged_in else { return false };
        let Some(running) = Process::read(before.service.main_pid) else { return false };
        let port = session.server.port();
        let arrived = before.held().iter().any(|at| at.port() == port);
        // By clock ticks, which no step of the clock moves; a reload has only a time.
        let since_start = before.read > 0 && sshd.start > running.start;
        since_start && sshd.since() > before.read && arrived && Way::now(before).port() == port
    }
}

/// Whether the sshd that runs has let somebody in since it has read its files whom they turn away, and plainly: then it
/// has not read them as they are, whatever their times say (a folder that another one took the place of).
fn contradicts(before: &Observed, admins: &[Admin], now: &View, keys: &Keys) -> bool {
    let is_turned_away = |admin: &Admin| {
        let effective = now.of(admin);
        effective.is_some_and(|it| access::plain_obstacle(admin, &it, keys).is_some())
    };
    admins.iter().any(|admin| admin.is_let_in(before) && is_turned_away(admin))
}

/// Whether a plan may lock anybody out, as far as can be told: that sshd is asked, and it answers root alone.
pub fn is_asked(listed: &[String], before: &Observed, plan: &Plan) -> bool {
    let same = plan.expect.endpoints == before.held()
        && plan.candidate == before.config
        && plan.options == before.command_line.settings();
    sys::is_root() && !(same && listed.is_empty() && !before.is_unread())
}

/// What keeps a plan from locking anybody out. What sshd says is asked of a copy of the planned files.
pub struct Guards<'g> {
    before: &'g Observed,
    plan: &'g Plan,
    /// Whom the spec names.
    listed: &'g [String],
    /// Those, or else who is logged in now, and root where root gets in by key.
    admins: Vec<Admin>,
    now: View<'g>,
    then: View<'g>,
    keys: Keys<'g>,
}

impl<'g> Guards<'g> {
    /// For the administrators of a spec.
    pub fn new(
        files: &'g Files,
        listed: &'g [String],
        before: &'g Observed,
        plan: &'g Plan,
        scratch: &'g Scratch,
    ) -> Self {
        let way = Way::now(before);
        let then = way.then(&plan.expect.endpoints);
        Self {
            before,
            plan,
            listed,
            admins: admins(listed),
            now: View::new(None, before.command_line.settings(), way),
            then: View::new(Some(scratch.main()), plan.options.clone(), then),
            keys: Keys::new(files, scratch.folder(), &before.release),
        }
    }

    /// What sshd says of the planned files for an administrator whom no Match block means: then it says that
    /// for everybody, and need not be asked twice.
    pub fn ask_for_everybody(&self) -> Option<Verdict> {
        let unmatched =
            |admin: &&Admin| !self.plan.candidate.may_match(&admin.user.name, &self.before.release);
        let admin = self.admins.first().filter(unmatched)?;
        let keys = &self.keys;
        std::thread::scope(|scope| {
            // Most plans leave the keys where they are.
            if let Some(now) = self.before.effective.valid() {
                scope.spawn(|| keys.read_ahead(&admin.user, now));
            }
            Some(self.then.ask(admin))
        })
    }

    /// Whom the plan would lock out.
    pub fn risks(self) -> Vec<Risk> {
        let Self { before, plan, listed, admins, now, then, keys } = self;
        if let Some(risk) = loopback(before, plan) {
            return vec![risk];
        }
        let mut risks: Vec<Risk> = unknown(listed).chain(other_family(plan)).collect();
        let unread = before.is_unread() || contradicts(before, &admins, &now, &keys);
        let is_let_in = |admin: &Admin| admin.is_let_in(before);
        // What keeps such a one out as far as can be told is none today; of what keeps them out then, anything else is.
        let stays_in = |admin: &Admin, found: &Obstacle| {
            let today = |effective| obstacle(admin, &effective, &keys);
            is_let_in(admin) && now.of(admin).and_then(today).as_ref() == Some(found)
        };
        let lets_in = |view: &View| admins.iter().any(|admin| gets_in(admin, view, &keys));
        let nobody_enters = unread && !(lets_in(&then) && lets_in(&now));
        // Who does not get in today is not the plan's to let in. By files that sshd has not read that does not show
        // of those who are in.
        let may_enter = |admin: &Admin| {
            let is_in = admin.standing == Standing::LoggedIn || is_let_in(admin);
            unread && (is_in || nobody_enters)
        };
        let counts = |admin: &Admin, found: &Obstacle| {
            let asked_for = admin.is_listed() || is_let_in(admin) || gets_in(admin, &now, &keys);
            may_enter(admin) || asked_for && !stays_in(admin, found)
        };
        let (enters, lost) = sorted(&admins, &then, &keys, counts);
        let told: Vec<String> = lost.iter().map(|(admin, _)| admin.user.name.clone()).collect();
        let stuck =
            unread.then(|| edited::unread_shut_out(&admins, &now, &keys, may_enter)).flatten();
        if stuck.is_none() {
            let lost = lost.into_iter();
            risks.extend(lost.map(|(admin, found)| shut_out(admin, found, &then, &keys)));
        }
        risks.extend(stuck);
        for admin in
            enters.iter().filter(|admin| admin.is_listed() && !users::becomes_root(&admin.user))
        {
            let name = &admin.user.name;
            risks.push(Risk {
                message: format!(
                    "{name} of `safety.admins` could not become root (sudo -l -U {name})"
                ),
                fix: format!(
                    "let {name} use sudo: usermod -aG sudo {name}, and give {name} a password"
                ),
            });
        }
        let may_be_lost = |admin: &Admin| {
            !told.contains(&admin.user.name) && (unread || gets_in(admin, &now, &keys))
        };
        risks.extend(session::risk(&admins, (&now, &then), &keys, may_be_lost));
        if is_about_passwords(before, plan) {
            risks.extend(passwords(&admins, &now, &then, &keys, stays_in));
        }
        // Who is logged in from several places is told once.
        let mut seen = BTreeSet::new();
        risks.retain(|risk| seen.insert(risk.message.clone()));
        risks
    }
}

/// Whom a configuration lets in, and of those that count whom it shuts out and nobody replaces.
fn sorted<'a>(
    admins: &'a [Admin],
    view: &View,
    keys: &Keys,
    counts: impl Fn(&Admin, &Obstacle) -> bool,
) -> (Vec<&'a Admin>, Vec<(&'a Admin, Obstacle)>) {
    let mut enters: Vec<&Admin> = Vec::new();
    let mut lost = Vec::new();
    for admin in admins {
        let Some(effective) = view.of(admin) else { continue };
        match obstacle(admin, &effective, keys) {
            None => enters.push(admin),
            Some(found) if counts(admin, &found) => lost.push((admin, found)),
            Some(_) => {}
        }
    }
    let becomes_root = |admin: &Admin| admin.user.uid != 0 && users::becomes_root(&admin.user);
    // Who gets in from elsewhere does not take their own place.
    let is_replaced = |admin: &Admin| {
        admin.user.uid == 0
            && !admin.is_listed()
            && (enters.iter().any(|other| becomes_root(other))
                || in_place_of(admin).any(|other| gets_in(&other, view, keys)))
    };
    lost.retain(|(admin, _)| !is_replaced(admin));
    (enters, lost)
}

/// Those who may take root's place, from where root comes.
fn in_place_of(root: &Admin) -> impl Iterator<Item = Admin> {
    let others = users::administrators().into_iter().chain(users::people());
    let others = others.filter(|user| user.uid != 0 && users::becomes_root(user));
    others.map(|user| Admin {
        user,
        from: root.from,
        standing: Standing::Possible,
        logged_in: None,
    })
}

/// Who would be shut out, and why; of root also why nobody takes root's place who could.
fn shut_out(admin: &Admin, found: Obstacle, then: &View, keys: &Keys) -> Risk {
    let Obstacle { why, fix } = found;
    let message = format!("{} could not log in any more: {why}", admin.user.name);
    let is_root = admin.user.uid == 0 && !admin.is_listed();
    let other = in_place_of(admin).filter(|_| is_root).find_map(|other| {
        let found = obstacle(&other, &then.of(&other)?, keys)?;
        Some((other.user.name, found))
    });
    match other {
        None => Risk { message, fix },
        Some((name, Obstacle { why, fix })) => {
            Risk { message: format!("{message}; {name}, who does, neither: {why}"), fix }
        }
    }
}

fn gets_in(admin: &Admin, view: &View, keys: &Keys) -> bool {
    view.of(admin).is_some_and(|effective| obstacle(admin, &effective, keys).is_none())
}

/// sshd would listen on loopback alone, and did not before; unless this very session came in there, through
/// a tunnel.
pub fn loopback(before: &Observed, plan: &Plan) -> Option<Risk> {
    let is_loopback = |at: &SocketAddr| at.ip().to_canonical().is_loopback();
    let mut then = plan.expect.endpoints.iter();
    let ssh = before.listeners.iter().filter(|listener| listener.ssh);
    let shuts = !plan.expect.endpoints.is_empty()
        && then.all(is_loopback)
        && ssh.flat_map(Listener::serves).any(|at| !is_loopback(&at));
    if !shuts || Session::present().is_some_and(|session| is_loopback(&session.server)) {
        return None;
    }
    let addresses: Vec<String> = plan.expect.endpoints.iter().map(ToString::to_string).collect();
    Some(Risk {
        message: format!(
            "nobody could log in from outside any more: sshd would listen on {} alone",
            addresses.join(" and ")
        ),
        fix: "add an address that others reach to `listen`".to_owned(),
    })
}

/// Whoever runs harden comes in over a family of addresses that sshd would leave out.
fn other_family(plan: &Plan) -> Option<Risk> {
    let client = Session::present()?.client.ip().to_canonical();
    let serves = |at: &SocketAddr| {
        let ip = at.ip().to_canonical();
        ip.is_ipv4() == client.is_ipv4() && !ip.is_loopback()
    };
    let endpoints = &plan.expect.endpoints;
    if client.is_loopback() || endpoints.is_empty() || endpoints.iter().any(serves) {
        return None;
    }
    let (own, other) = if client.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
    Some(Risk {
        message: format!(
            "this session came in over {own}, and sshd would listen for {other} alone"
        ),
        fix: format!("add an {own} address to `listen`, or come in over {other} to apply it"),
    })
}

/// Names of the spec that no account has.
fn unknown(listed: &[String]) -> impl Iterator<Item = Risk> {
    listed.iter().filter(|name| users::named(name).is_none()).map(|name| Risk {
        message: format!("there is no user {name}, whom `safety.admins` names"),
        fix: "correct the name, or create the user with a key first".to_owned(),
    })
}

fn admins(listed: &[String]) -> Vec<Admin> {
    let sessions = users::logged_in();
    if !listed.is_empty() {
        let of = |name: &String| {
            let user = users::named(name)?;
            let own = sessions.iter().filter(|session| session.user.name == *name);
            let mut own: Vec<_> = own.map(|own| admin(own, Standing::Listed)).collect();
            if own.is_empty() {
                own.push(Admin { user, from: None, standing: Standing::Listed, logged_in: None });
            }
            Some(own)
        };
        return listed.iter().filter_map(of).flatten().collect();
    }
    let mut admins: Vec<Admin> =
        sessions.iter().map(|session| admin(session, Standing::LoggedIn)).collect();
    if !admins.iter().any(|admin| admin.user.uid == 0)
        && let Some(user) = users::named("root")
    {
        admins.push(Admin { user, from: None, standing: Standing::Possible, logged_in: None });
    }
    admins
}

fn admin(session: &LoggedIn, standing: Standing) -> Admin {
    let LoggedIn { user, session, sshd } = session;
    Admin {
        user: user.clone(),
        from: session.map(|session| session.client.ip()),
        standing,
        logged_in: session.map(|session| (session, sshd.clone())),
    }
}

/// Whether a plan sets, or takes back, what decides whether passwords are taken.
fn is_about_passwords(before: &Observed, plan: &Plan) -> bool {
    const DECIDE: [&str; 4] = [
        "PasswordAuthentication",
        "KbdInteractiveAuthentication",
        "UsePAM",
        "AuthenticationMethods",
    ];
    let expect = &plan.expect;
    let blocks = expect.matches.iter().flat_map(|(_, values)| values);
    let values = expect.settings.iter().chain(blocks).map(|(keyword, _)| keyword.clone());
    // Also in the blocks of an earlier spec.
    let own = before.config.files.iter().filter(|file| is_own(&file.path));
    let own = own.flat_map(|file| file.text.lines().filter_map(parse_line));
    let earlier = earlier_lines(&before.config).into_iter().chain(own).map(|line| line.keyword);
    values.chain(earlier).any(|keyword| DECIDE.iter().any(|other| same(other, &keyword)))
}

/// Passwords go, and nobody has a key.
fn passwords(
    admins: &[Admin],
    now: &View,
    then: &View,
    keys: &Keys,
    stays_in: impl Fn(&Admin, &Obstacle) -> bool,
) -> Option<Risk> {
    let others = users::named("root").into_iter().chain(users::administrators());
    let others = others.chain(users::people());
    let standing = Standing::Possible;
    let others = others.map(|user| Admin { user, from: None, standing, logged_in: None });
    let everybody: Vec<Admin> = admins.iter().cloned().chain(others).collect();
    let takes = |view: &View, admin: &Admin| {
        view.of(admin).is_some_and(|effective| access::takes_passwords(&effective))
    };
    let loses = |admin: &Admin| takes(now, admin) && !takes(then, admin);
    if !everybody.iter().any(loses) {
        return None;
    }
    // A key that cannot be seen from here may be one where that is how people get in today.
    let has_key = |admin: &Admin, effective: &Effective| {
        let today = |now: &Effective| access::has_unseen_keys(now, keys);
        access::has_key(admin, effective, keys)
            && (!keys.accepted(admin, effective).is_empty()
                || now.of(admin).as_ref().is_some_and(today))
    };
    // A key of somebody who cannot become root is none for the host's sake.
    let by_key = |admin: &Admin| {
        users::becomes_root(&admin.user)
            && then.of(admin).is_some_and(|effective| {
                has_key(admin, &effective)
                    && obstacle(admin, &effective, keys).is_none_or(|found| stays_in(admin, &found))
            })
    };
    if everybody.iter().any(by_key) {
        return None;
    }
    Some(Risk {
        message: "passwords would not be taken any more, and nobody who can become root has a key \
                  here that would be (who only knows root's password does not count)"
            .to_owned(),
        fix: "put a key of root's, or of somebody who may run sudo, on the host first: \
              ssh-copy-id USER@HOST"
            .to_owned(),
    })
}
