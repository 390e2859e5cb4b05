//! A configuration, as sshd has it for whoever comes in.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::Admin;
use crate::observe::{Observed, Verdict, ask_sshd, serves};
use crate::sshd::Effective;
use crate::sshd::criteria::{Client, test_of};
use crate::sys::names;
use crate::sys::process::Session;

/// Where somebody comes from, with the name that sshd would find.
pub(super) fn client(from: IpAddr, effective: &Effective) -> Client {
    let name = effective.looks_up_names().then(|| names::of(from)).flatten();
    Client { address: from, name }
}

/// A configuration, as sshd has it for anybody.
pub(super) struct View<'v> {
    /// The main file; the live one where there is none.
    main: Option<&'v Path>,
    /// sshd's command line.
    options: Vec<String>,
    way: Way,
    /// What sshd has said already, for whom and from where.
    said: RefCell<BTreeMap<(String, IpAddr), Verdict>>,
}

/// How people come in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    /// Where from, for those of whom it is not known.
    from: IpAddr,
    /// Where they arrive.
    to: SocketAddr,
}

impl Way {
    /// As they do now: as the session in which harden runs; where that is none, from an address that nobody
    /// has (RFC 5737) to the first one of this host that others reach.
    pub(super) fn now(before: &Observed) -> Self {
        let session = Session::present();
        let outside = before.addresses.iter().find(|address| !address.is_loopback());
        let here = outside.copied().unwrap_or(std::net::Ipv4Addr::LOCALHOST.into());
        let port = before.held().first().map_or(22, SocketAddr::port);
        let to = session.map_or(SocketAddr::new(here, port), |session| session.server);
        Self {
            from: session.map_or(IpAddr::from([198, 51, 100, 1]), |session| session.client.ip()),
            to: SocketAddr::new(to.ip().to_canonical(), to.port()),
        }
    }

    /// The port on which they arrive.
    pub(super) fn port(self) -> u16 {
        self.to.port()
    }

    /// As they will: where they do now, if sshd still listens there.
    pub(super) fn then(self, endpoints: &[SocketAddr]) -> Self {
        let serves = |at: &&SocketAddr| serves(&[**at], self.to.ip());
        let stays = endpoints.iter().filter(serves).any(|at| at.port() == self.to.port());
        match endpoints.iter().find(serves).or(endpoints.first()).filter(|_| !stays) {
            None => self,
            Some(at) => {
                let ip = if at.ip().is_unspecified() { self.to.ip() } else { at.ip() };
                Self { to: SocketAddr::new(ip, at.port()), ..self }
            }
        }
    }
}

impl<'v> View<'v> {
    pub(super) fn new(main: Option<&'v Path>, options: Vec<String>, way: Way) -> Self {
        Self { main, options, way, said: RefCell::default() }
    }

    /// What is in effect for a user; `None` where sshd does not say.
    pub(super) fn of(&self, admin: &Admin) -> Option<Effective> {
        self.ask(admin).valid().cloned()
    }

    /// What sshd says of a user's connection.
    pub(super) fn ask(&self, admin: &Admin) -> Verdict {
        let from = admin.from.unwrap_or(self.way.from);
        let whom = (admin.user.name.clone(), from);
        if let Some(said) = self.said.borrow().get(&whom) {
            return said.clone();
        }
        let ask = |client: &Client| {
            let options = test_of(&admin.user.name, client, self.way.to).into_iter();
            ask_sshd(self.main, &options.chain(self.options.iter().cloned()).collect::<Vec<_>>())
        };
        let mut said = ask(&from.into());
        // A block may be for the client's name.
        let client = said.valid().map(|effective| client(from, effective));
        if let Some(client) = client.filter(|client| client.name.is_some()) {
            said = ask(&client);
        }
        self.said.borrow_mut().insert(whom, said.clone());
        said
    }
}
