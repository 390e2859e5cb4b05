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
