//! Mounts, as proc_pid_mountinfo(5) shows them.

use std::path::{Path, PathBuf};

use super::Files;

/// Whether systemd sees a folder when it starts: on the root file system or on /usr, which the initial RAM
/// disk mounts. What is mounted later, or leads to what is, comes too late for a unit.
pub fn is_early(files: &Files, folder: &Path) -> bool {
    let there = folder.ancestors().find(|path| files.exists(path)).unwrap_or(folder);
    is_early_among(&table(), &files.resolve(there))
}

/// Whether something is mounted at that very path: no other file can take its place (rename(2), EBUSY).
pub fn is_mount_point(files: &Files, path: &Path) -> bool {
    let real = files.resolve(path);
    points(&table()).any(|point| point == real)
}

fn table() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

fn points(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    let point = |line: &str| Some(PathBuf::from(line.split(' ').nth(4)?.replace("\\040", " ")));
    mountinfo.lines().filter_map(point)
}

fn is_early_among(mountinfo: &str, path: &Path) -> bool {
    let holds = points(mountinfo).filter(|point| path.starts_with(point));
    let nearest = holds.max_by_key(|point| point.components().count());
    nearest.is_none_or(|point| [Path::new("/"), Path::new("/usr")].contains(&point.as_path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_of_its_own_comes_later() {
        let table = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 8:2 / /usr ro - ext4 /dev/sda2 ro\n\
                     31 30 8:1 /srv/ul /usr/local rw - ext4 /dev/sda1 rw\n32 22 0:5 / /opt/a\\040b rw - tmpfs x rw\n";
        let is_early = |path: &str| is_early_among(table, Path::new(path));
        assert!(is_early("/usr/lib/systemd") && is_early("/etc") && is_early("/usr/locally"));
        assert!(!is_early("/usr/local/lib") && !is_early("/usr/local") && !is_early("/opt/a b/c"));
        assert!(is_early_among("", Path::new("/usr/local")));
    }
}
