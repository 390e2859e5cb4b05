//! The causes, each with its evidence and its remedy.

mod configuration;
mod listeners;
mod units;

use std::net::SocketAddr;

pub(super) use configuration::{configuration, folder_gone, other_file, shadowed};
pub(super) use listeners::{listeners, one_interface, orphans};
pub(super) use units::{blocked, not_enabled, other_at_boot};

use super::{Finding, Fix, Sight};
use crate::sshd::reading::Place;

/// Keywords that decide where sshd listens.
pub(super) const LISTENING: [&str; 3] = ["Port", "ListenAddress", "AddressFamily"];

fn finding(
    cause: &'static str,
    message: impl Into<String>,
    evidence: Vec<String>,
    fix: Fix,
) -> Finding {
    Finding { cause, message: message.into(), evidence, fix }
}

fn command(text: impl Into<String>) -> Fix {
    Fix::Command(text.into())
}

pub(super) fn shown(place: &Place) -> String {
    format!("{} {}", place.directive.keyword, place.directive.args.join(" "))
}

/// Where the files want sshd.
fn says(sight: &Sight) -> String {
    let lines = match sight.lines.as_slice() {
        [] => "sshd's defaults".to_owned(),
        lines => lines.join(", "),
    };
    format!("the configuration wants {}: {lines}", list(&sight.wanted))
}

/// Where sshd is.
fn does(sight: &Sight) -> String {
    let held: Vec<String> = sight
        .case
        .observed
        .listeners
        .iter()
        .filter(|listener| listener.ssh)
        .flat_map(|listener| {
            listener
                .serves()
                .into_iter()
                .map(|at| format!("{at} ({})", listener.owner))
                .collect::<Vec<_>>()
        })
        .collect();
    if held.is_empty() {
        "no sshd listens".to_owned()
    } else {
        format!("sshd listens on {}", held.join(", "))
    }
}

fn list(endpoints: &[SocketAddr]) -> String {
    if endpoints.is_empty() {
        return "nothing".to_owned();
    }
    endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}
