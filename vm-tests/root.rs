//! The files of a machine, as the host sees them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::machine::{Suite, run};

/// The machine's root folder, as the host sees it.
pub(crate) struct Root(pub(super) PathBuf);

impl Root {
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn append(&self, path: &str, text: &str) {
        let mut file =
            fs::OpenOptions::new().append(true).create(true).open(self.path(path)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_default()
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok()
    }

    /// Puts a program of the host's there.
    pub(crate) fn install(&self, program: &Path, path: &str) {
        let there = self.path(path).display().to_string();
        run("install", &["-m", "755", &program.display().to_string(), &there]);
    }

    /// Makes a file a program.
    pub(crate) fn make_program(&self, path: &str) {
        run("chmod", &["755", &self.path(path).display().to_string()]);
    }

    pub(crate) fn remove(&self, path: &str) {
        let _ = fs::remove_file(self.path(path));
    }

    pub(crate) fn link(&self, path: &str, target: &str) {
        self.remove(path);
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, path).unwrap();
    }

    /// ssh.socket owns port 22 from the next boot on, as on a fresh Ubuntu.
    pub(crate) fn socket_owns_port(&self, suite: Suite) {
        self.remove("/etc/systemd/system/multi-user.target.wants/ssh.service");
        self.remove("/etc/systemd/system/sshd.service");
        let unit = "/lib/systemd/system/ssh.socket";
        self.link("/etc/systemd/system/sockets.target.wants/ssh.socket", unit);
        if suite == Suite::UbuntuLike {
            self.link("/etc/systemd/system/ssh.service.requires/ssh.socket", unit);
        }
    }

    /// Every path below /etc: kind, mode, owner, extended attributes, content.
    pub(crate) fn state_of_etc(&self) -> Vec<String> {
        let etc = self.path("/etc");
        let mut lines = Vec::new();
        walk(&etc, &etc, &mut lines);
        lines.sort();
        lines
    }
}

fn walk(top: &Path, folder: &Path, lines: &mut Vec<String>) {
    use std::os::unix::fs::MetadataExt;
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(top).unwrap().display();
        let what = if meta.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if meta.is_file() {
            format!("{:?}", String::from_utf8_lossy(&fs::read(&path).unwrap()))
        } else {
            String::new()
        };
        let extended: Vec<_> = xattr::list(&path).into_iter().flatten().collect();
        let (mode, uid, gid) = (meta.mode(), meta.uid(), meta.gid());
        lines.push(format!("{name} {mode:o} {uid}:{gid} {extended:?} {what}"));
        if meta.is_dir() {
            walk(top, &path, lines);
        }
    }
}
