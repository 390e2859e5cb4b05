//! Every promise on booted systems: real systemd, real sshd, driven over SSH from outside.
//!
//! Run by `vm-tests/test`, which makes the trees and builds the release binary.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used
)]

mod along;
mod bench;
mod campaign;
mod contract;
mod differential;
mod dirty;
mod doctor;
mod durability;
mod effective;
mod faults;
mod gap;
mod handover;
mod hostile;
mod keys;
mod lockout;
mod login;
mod machine;
mod moves;
mod operator;
mod others;
mod people;
mod playbooks;
mod points;
mod profiles;
mod random;
mod reset;
mod rollback;
mod root;
mod session;
mod socket;
mod spoilt;
mod state;
mod ubuntu;
mod unread;
mod vm;
mod wayback;

/// Makes a test of each named case for each of the Debian suites.
#[macro_export]
macro_rules! on_debian {
    ($($case:ident),* $(,)?) => { $(
        mod $case {
            use $crate::machine::Suite;
            #[test] fn bullseye() { super::cases::$case(Suite::Bullseye); }
            #[test] fn bookworm() { super::cases::$case(Suite::Bookworm); }
            #[test] fn trixie() { super::cases::$case(Suite::Trixie); }
            #[test] fn testing() { super::cases::$case(Suite::Testing); }
        }
    )* };
}
