//! What PAM asks of somebody who logs in (pam.d(5)).

use std::path::{Path, PathBuf};

use crate::sys::Files;

const FOLDER: &str = "/etc/pam.d";
/// Modules that ask for the password in /etc/shadow, or for nothing.
const PLAIN: [&str; 11] = [
    "pam_access",
    "pam_cap",
    "pam_deny",
    "pam_env",
    "pam_faildelay",
    "pam_faillock",
    "pam_nologin",
    "pam_permit",
    "pam_shells",
    "pam_succeed_if",
    "pam_unix",
];
/// How deep services include others, at most.
const DEPTH: usize = 8;

/// Whether the answers that sshd's PAM service takes are not for harden to know: one-time passwords,
/// passwords of a directory's.
pub(super) fn is_beyond_sight(files: &Files) -> bool {
    asks(files, "sshd", DEPTH)
}

fn asks(files: &Files, service: &str, depth: usize) -> bool {
    let path: PathBuf = Path::new(FOLDER).join(service);
    let Ok(Some(text)) = files.read(&path) else { return false };
    let text = String::from_utf8_lossy(&text).replace("\\\n", " ");
    text.lines().map(read).any(|line| match line {
        Line::Other => false,
        Line::Include(other) => depth > 0 && asks(files, &other, depth - 1),
        Line::Module(module) => {
            let name = Path::new(&module).file_stem().unwrap_or_default().to_string_lossy();
            !PLAIN.contains(&&*name)
        }
    })
}

/// What a line has to do with proving who one is.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Module(String),
    Include(String),
    Other,
}

fn read(line: &str) -> Line {
    let line = line.split('#').next().unwrap_or_default().trim();
    let (kind, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim_start();
    let first = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    if kind == "@include" {
        return Line::Include(first(rest));
    }
    if kind.trim_start_matches('-') != "auth" {
        return Line::Other;
    }
    // `[success=1 default=ignore]` has blanks of its own.
    let (control, rest) = match rest.split_once(']').filter(|_| rest.starts_with('[')) {
        Some((_, rest)) => ("", rest),
        None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
    };
    match control {
        "include" | "substack" => Line::Include(first(rest)),
        _ => Line::Module(first(rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_ask_who_one_is() {
        let module = |name: &str| Line::Module(name.to_owned());
        assert_eq!(read("@include common-auth"), Line::Include("common-auth".into()));
        assert_eq!(
            read("auth substack password-auth # all"),
            Line::Include("password-auth".into())
        );
        assert_eq!(
            read("auth\t[success=2 default=ignore]\tpam_unix.so nullok"),
            module("pam_unix.so")
        );
        assert_eq!(
            read("-auth required pam_google_authenticator.so"),
            module("pam_google_authenticator.so")
        );
        for other in ["account required pam_nologin.so", "# auth required pam_x.so", ""] {
            assert_eq!(read(other), Line::Other, "{other}");
        }
    }
}
