//! Names of clients, as sshd looks them up (canohost.c, `remote_hostname`; sshd_config(5), UseDNS).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Command;

/// How long the name service may take: somewhat longer than resolv.conf(5) has it wait.
const LOOKUP: Duration = Duration::from_secs(15);

static KNOWN: Mutex<BTreeMap<IpAddr, Option<String>>> = Mutex::new(BTreeMap::new());

/// The name of an address, in lower case; `None` where it has none, or one that does not lead back to the address.
pub fn of(address: IpAddr) -> Option<String> {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.entry(address).or_insert_with(|| look_up(address)).clone()
}

fn look_up(address: IpAddr) -> Option<String> {
    let ask = |database: &str, key: &str| {
        let getent = Command::new(Path::new("/usr/bin/getent")).timeout(LOOKUP);
        Some(getent.args([database, key]).run().ok()?.stdout)
    };
    let found = ask("hosts", &address.to_string())?;
    let name = found.split_whitespace().nth(1)?.to_ascii_lowercase();
    let leads_back = ask("ahosts", &name)?
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse::<IpAddr>().ok())
        .any(|found| found.to_canonical() == address.to_canonical());
    (leads_back && name.parse::<IpAddr>().is_err()).then_some(name)
}
