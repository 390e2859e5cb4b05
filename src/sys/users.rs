//! Users, as the name service has them (getpwnam(3), getgrnam(3)).

use std::path::PathBuf;

use nix::unistd::{Group, User as Account};

/// Groups whose members may become root where sudo is set up as distributions do.
const ADMINISTRATORS: [&str; 3] = ["sudo", "wheel", "admin"];

/// A user who may log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Home folder.
    pub home: PathBuf,
}

/// A user by name.
pub fn named(name: &str) -> Option<User> {
    let account = Account::from_name(name).ok().flatten()?;
    Some(User { name: account.name, uid: account.uid.as_raw(), home: account.dir })
}

/// Whether a user becomes root by sudo(8): without a password, or with one that the user has
/// (shadow(5)). Where sudo cannot be asked, nobody does.
pub fn becomes_root(user: &User) -> bool {
    if user.uid == 0 {
        return true;
    }
    let Some(sudo) = super::find_program(&["/usr/bin/sudo"]) else { return false };
    let listed = super::Command::new(&sudo).args(["-n", "-l", "-U", &user.name]).run();
    let Ok(listed) = listed else { return false };
    let rules = || listed.stdout.lines().map(str::trim).filter(|line| line.starts_with('('));
    let all = |line: &str| line.ends_with("ALL") && !line.contains('!');
    let free = rules().any(|line| line.contains("NOPASSWD:") && all(line));
    free || (rules().any(all) && has_password(&user.name))
}

fn has_password(name: &str) -> bool {
    let shadow = std::fs::read_to_string("/etc/shadow").unwrap_or_default();
    let of_user = |line: &&str| line.split(':').next() == Some(name);
    let field = shadow.lines().find(of_user).and_then(|line| line.split(':').nth(1));
    field.is_some_and(|field| field.starts_with('$') || field.starts_with('_'))
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
