//! Drop-ins of the two units: harden's own for the socket, and others' that tie the two together.

use std::path::{Path, PathBuf};

use super::Planner;
use crate::concern::listening::configured;
use crate::error::Refusal;
use crate::observe::{Observed, UNIT_FOLDER, sessions_drop_in};
use crate::step::FileChange;
use crate::sys::files::Meta;
use crate::sys::units::directives;

/// Sorts behind generators' and packages' drop-ins, so that its `ListenStream=` reset counts.
const DROP_IN: &str = "zz-harden.conf";

impl Planner<'_> {
    /// Drop-ins that tie ssh.service to the socket, without the ties.
    pub(super) fn service_files(&self) -> Result<Vec<FileChange>, Refusal> {
        let (service, socket) = (&self.observed.service, &self.observed.socket);
        let mut files = Vec::new();
        for path in &service.drop_ins {
            let Some(file) = self.observed.unit_files.get(path) else { continue };
            let ties = |line: &str| {
                directives(line).iter().any(|(key, value)| {
                    matches!(*key, "Requires" | "BindsTo" | "Requisite") && *value == socket.name
                })
            };
            if !socket.exists() || !file.text.lines().any(ties) {
                continue;
            }
            if !path.starts_with(UNIT_FOLDER) {
                return Err(Refusal::new(
                    "shadowed",
                    format!("{} ties {} to {}", path.display(), service.name, socket.name),
                    "that drop-in is not the administrator's: remove the package or generator \
                     that makes it, or use `socket: enabled`",
                ));
            }
            let kept: String = file
                .text
                .split_inclusive('\n')
                .filter(|line| !ties(line))
                .filter(|line| line.trim() != format!("After={}", socket.name))
                .collect();
            let empty = directives(&kept).is_empty();
            files.push(FileChange {
                path: file.real.clone(),
                before: Some(file.text.clone()),
                after: (!empty).then_some(kept),
                meta: file.meta.clone(),
                concern: "units",
                reason: format!("It would start {} again with {}.", socket.name, service.name),
            });
        }
        files.extend(self.own_drop_in().map(|own| self.without(own)));
        files.extend(sparing_sessions(self.observed));
        Ok(files)
    }

    fn without(&self, (path, text, meta): (PathBuf, String, Meta)) -> FileChange {
        FileChange {
            path,
            before: Some(text),
            after: None,
            meta,
            concern: "units",
            reason: format!("{} no longer holds the port.", self.observed.socket.name),
        }
    }

    fn own_drop_in(&self) -> Option<(PathBuf, String, Meta)> {
        let path = self.drop_in_path();
        let file = self.observed.unit_files.get(&path)?;
        Some((path, file.text.clone(), file.meta.clone()))
    }

    fn drop_in_path(&self) -> PathBuf {
        Path::new(UNIT_FOLDER).join(format!("{}.d", self.observed.socket.name)).join(DROP_IN)
    }

    /// The socket's drop-in, where its own addresses are not the wanted ones.
    ///
    /// Each address stands alone with `BindIPv6Only=ipv6-only`, which is right for Debian's unit
    /// (one dual-stack `ListenStream=22`) as for Ubuntu's (one for each family).
    pub(super) fn socket_files(&self) -> Result<Vec<FileChange>, Refusal> {
        let own = self.own_drop_in();
        let wanted = &self.listening.endpoints;
        let socket = &self.observed.socket;
        let fails = !socket.is_active() && socket.collision().is_some();
        if own.is_none() && configured(self.observed) == *wanted && !fails {
            return Ok(Vec::new());
        }
        self.refuse_later_drop_in()?;
        let specific = wanted.iter().any(|endpoint| !endpoint.ip().is_unspecified());
        let mut text =
            "# Written by harden; `harden apply` replaces it. Change the spec instead.\n\
                        [Socket]\nListenStream=\nBindIPv6Only=ipv6-only\n"
                .to_owned();
        if specific {
            // Sockets are bound before the network is up (systemd.socket(5), FreeBind=).
            text.push_str("FreeBind=yes\n");
        }
        // systemd reads `%` as a specifier.
        let others = socket.not_of_ip().into_iter().map(|path| path.replace('%', "%%"));
        for endpoint in wanted.iter().map(ToString::to_string).chain(others) {
            text.push_str(&format!("ListenStream={endpoint}\n"));
        }
        let before = own.map(|(_, text, _)| text);
        if before.as_ref() == Some(&text) {
            return Ok(Vec::new());
        }
        Ok(vec![FileChange {
            path: self.drop_in_path(),
            before,
            after: Some(text),
            meta: Meta::root(0o644),
            concern: "units",
            reason: format!(
                "{} listens where its own unit says, whatever sshd_config says.",
                self.observed.socket.name
            ),
        }])
    }

    fn refuse_later_drop_in(&self) -> Result<(), Refusal> {
        let later = self.observed.socket.drop_ins.iter().find(|path| {
            let name = path.file_name().unwrap_or_default();
            let text = self.observed.unit_files.get(*path).map(|file| file.text.as_str());
            name > std::ffi::OsStr::new(DROP_IN)
                && directives(text.unwrap_or_default())
                    .iter()
                    .any(|(key, _)| *key == "ListenStream")
        });
        let Some(path) = later else { return Ok(()) };
        Err(Refusal::new(
            "shadowed",
            format!("{} is read after {DROP_IN} and sets ListenStream= too", path.display()),
            "rename it so that it sorts before zz-harden.conf, or remove it",
        ))
    }
}

/// Debian 11: a session that ssh.socket has started takes sshd's folder away when it ends, and ssh.service turns
/// everybody away from then on. Its sessions end with the boot, and so does this file.
pub(crate) fn sparing_sessions(observed: &Observed) -> Option<FileChange> {
    let Observed { socket, service, lingering, .. } = observed;
    let comes = socket.accept && (socket.is_active() || !lingering.is_empty());
    (comes && observed.has_run_folder()).then(|| FileChange {
        path: sessions_drop_in(&socket.name),
        before: None,
        after: Some(
            "# Written by harden, until the next boot.\n[Service]\nRuntimeDirectoryPreserve=yes\n"
                .to_owned(),
        ),
        meta: Meta::root(0o644),
        concern: "units",
        reason: format!(
            "A session of {} that ends would take /run/sshd away from {}.",
            socket.name, service.name
        ),
    })
}
