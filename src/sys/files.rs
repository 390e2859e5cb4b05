//! Files as images: read whole, replaced atomically, restored to the byte.

use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Result, SysError};

/// Everything that makes a path what it is, so that it can be put back exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Image {
    /// Nothing is there.
    Absent,
    /// A regular file.
    File {
        /// Content.
        #[serde(with = "bytes")]
        content: Vec<u8>,
        /// Owner, mode and extended attributes.
        meta: Meta,
    },
    /// A symbolic link and where it points, as written.
    Symlink {
        /// The link's text.
        target: PathBuf,
    },
    /// A directory (its content is not part of the image).
    Directory {
        /// Owner, mode and extended attributes.
        meta: Meta,
    },
}

impl Image {
    /// Whether two images differ in nothing that somebody may have edited: labels that the system
    /// gives by itself (SELinux) do not count.
    pub fn is_like(&self, other: &Self) -> bool {
        let plain = |meta: &Meta| (meta.mode, meta.uid, meta.gid);
        match (self, other) {
            (Self::File { content: a, meta: m }, Self::File { content: b, meta: n }) => {
                a == b && plain(m) == plain(n)
            }
            (Self::Directory { .. }, Self::Directory { .. }) => true,
            (a, b) => a == b,
        }
    }

    /// Whether a unit is masked so (systemd.unit(5)).
    pub fn is_mask(&self) -> bool {
        matches!(self, Self::Symlink { target } if target == Path::new("/dev/null"))
    }
}

/// Owner, mode and extended attributes of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Permission bits (`st_mode & 07777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes, ACLs and SELinux labels among them (xattr(7)).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Meta {
    /// Owner root, the given mode, no extended attributes: for files that did not exist before.
    pub fn root(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0, xattrs: Vec::new() }
    }

    /// The given mode, and the owner that this process is.
    pub fn of_this_process(mode: u32) -> Self {
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        Self { mode, uid, gid, xattrs: Vec::new() }
    }
}

/// File content in a journal: text where it is text, hexadecimal where it is not.
mod bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Content {
        Text(String),
        Hex(String),
    }

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Content::Text(text.to_owned()),
            Err(_) => Content::Hex(bytes.iter().map(|b| format!("{b:02x}")).collect()),
        }
        .serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        match Content::deserialize(from)? {
            Content::Text(text) => Ok(text.into_bytes()),
            Content::Hex(hex) => hex
                .as_bytes()
                .chunks(2)
                .map(|pair| {
                    std::str::from_utf8(pair)
                        .ok()
                        .filter(|pair| pair.len() == 2)
                        .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                        .ok_or_else(|| D::Error::custom("odd hexadecimal in a file image"))
                })
                .collect(),
        }
    }
}

/// The file system below one root folder: `/` on a host, a temporary folder in a test.
#[derive(Debug, Clone)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// Paths given to the methods are absolute and are looked up below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where `path` really is.
    pub fn real(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Content of a regular file, following symbolic links; `None` where nothing is there. Pipes and devices, which
    /// users may put where files of theirs are read, are not waited for; /dev/null is empty.
    pub fn read(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        match read_regular(&self.real(path)) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(SysError::new(format!("cannot read {}", path.display()), error)),
        }
    }

    /// Like [`Files::read`], at most `limit` bytes, together with the opened file's metadata.
    pub fn read_limited(&self, path: &Path, limit: u64) -> Result<(Vec<u8>, fs::Metadata)> {
        let failed = |error| SysError::new(format!("cannot read {}", path.display()), error);
        let file = fs::File::open(self.real(path)).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let mut content = Vec::new();
        file.take(limit).read_to_end(&mut content).map_err(failed)?;
        Ok((content, meta))
    }

    /// The last bytes of a regular file, at most `most`; none where nothing is there.
    pub fn read_end(&self, path: &Path, most: u64) -> Result<Vec<u8>> {
        let failed = |error| SysError::new(format!("cannot read {}", path.display()), error);
        let mut file = match fs::File::open(self.real(path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let length = file.metadata().map_err(failed)?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(most))).map_err(failed)?;
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(failed)?;
        Ok(content)
    }

    /// Metadata of what a path leads to; `None` where nothing is there.
    pub fn metadata(&self, path: &Path) -> Option<fs::Metadata> {
        fs::metadata(self.real(path)).ok()
    }

    /// Metadata of what is at the path itself, be it a symbolic link.
    pub fn own_metadata(&self, path: &Path) -> Option<fs::Metadata> {
        fs::symlink_metadata(self.real(path)).ok()
    }

    /// Whether nothing can be written there, whoever asks (access(2), EROFS).
    pub fn is_read_only(&self, path: &Path) -> bool {
        let writes = nix::unistd::access(&self.real(path), nix::unistd::AccessFlags::W_OK);
        writes == Err(nix::errno::Errno::EROFS)
    }

    /// Whether what is there lives in memory, and is gone with the boot (tmpfs(5)).
    pub fn is_volatile(&self, path: &Path) -> bool {
        use nix::sys::statfs::{TMPFS_MAGIC, statfs};
        statfs(&self.real(path)).is_ok_and(|is| is.filesystem_type() == TMPFS_MAGIC)
    }

    /// Whether a symbolic link is at the path.
    pub fn is_link(&self, path: &Path) -> bool {
        self.own_metadata(path).is_some_and(|meta| meta.is_symlink())
    }

    /// The path with symbolic links resolved; the path itself where nothing is there.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        fs::canonicalize(self.real(path))
            .ok()
            .and_then(|real| Some(Path::new("/").join(real.strip_prefix(&self.root).ok()?)))
            .unwrap_or_else(|| path.to_owned())
    }

    /// Whether anything is at the path, a dangling symbolic link included.
    pub fn exists(&self, path: &Path) -> bool {
        fs::symlink_metadata(self.real(path)).is_ok()
    }

    /// Names in a folder, sorted by byte value; empty where there is no such folder.
    pub fn list(&self, folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.real(folder)).into_iter().flatten().flatten();
        let mut paths: Vec<_> = entries.map(|entry| folder.join(entry.file_name())).collect();
        paths.sort();
        paths
    }

    /// Files that a glob(7) pattern names, in the order of glob(3) in the C locale.
    pub fn glob(&self, pattern: &str) -> Vec<PathBuf> {
        let below_root = self.real(Path::new(pattern));
        let options =
            glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
        let Ok(found) = glob::glob_with(&below_root.to_string_lossy(), options) else {
            return Vec::new();
        };
        let mut paths: Vec<_> = found
            .flatten()
            .filter_map(|path| Some(Path::new("/").join(path.strip_prefix(&self.root).ok()?)))
            .collect();
        paths.sort();
        paths
    }

    /// Takes the image of a path, symbolic links not followed.
    pub fn image(&self, path: &Path) -> Result<Image> {
        let real = self.real(path);
        let failed = |error| SysError::new(format!("cannot read {}", path.display()), error);
        let meta = match fs::symlink_metadata(&real) {
            Ok(meta) => meta,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Image::Absent),
            Err(error) => return Err(failed(error)),
        };
        if meta.is_symlink() {
            return Ok(Image::Symlink { target: fs::read_link(&real).map_err(failed)? });
        }
        let saved = Meta {
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            xattrs: xattrs(&real),
        };
        if meta.is_dir() {
            return Ok(Image::Directory { meta: saved });
        }
        if !meta.is_file() {
            return Err(SysError::new(
                format!("cannot replace {}", path.display()),
                "it is not a regular file",
            ));
        }
        Ok(Image::File { content: fs::read(&real).map_err(failed)?, meta: saved })
    }

    /// Makes a path equal to an image: the whole thing or nothing, and on disk when it returns.
    ///
    /// Files are written beside their place, given owner, mode and extended attributes, fsynced
    /// and renamed; then the folder is fsynced (rename(2), fsync(2)).
    pub fn put(&self, path: &Path, image: &Image) -> Result<()> {
        let real = self.real(path);
        let what = || format!("cannot write {}", path.display());
        let failed = |error: std::io::Error| SysError::new(what(), error);
        let folder = real.parent().ok_or_else(|| SysError::new(what(), "it has no folder"))?;
        self.clear_beside(path);
        match image {
            Image::Absent => {
                let removed = match fs::symlink_metadata(&real) {
                    Ok(meta) if meta.is_dir() => fs::remove_dir(&real),
                    Ok(_) => fs::remove_file(&real),
                    Err(error) => Err(error),
                };
                match removed {
                    Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                    other => other.map_err(failed)?,
                }
            }
            Image::Directory { meta } => {
                match fs::create_dir(&real) {
                    Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                        return Err(failed(error));
                    }
                    _ => {}
                }
                apply_meta(&real, meta).map_err(failed)?;
            }
            Image::Symlink { target } => {
                let beside = beside(&real);
                std::os::unix::fs::symlink(target, &beside).map_err(failed)?;
                fs::rename(&beside, &real).map_err(failed)?;
            }
            Image::File { content, meta } => {
                replace(&real, content, meta).map_err(failed)?;
            }
        }
        sync_folder(folder).map_err(failed)
    }

    /// Puts one path back. A folder that was absent goes only when it is empty again.
    pub fn put_back(&self, path: &Path, image: &Image) -> Result<()> {
        self.clear_beside(path);
        let now = self.image(path)?;
        if now == *image {
            return Ok(());
        }
        if *image == Image::Absent
            && matches!(now, Image::Directory { .. })
            && !self.list(path).is_empty()
        {
            return Ok(());
        }
        self.put(path, image)
    }

    /// Removes what a write that was killed may have left beside a path.
    pub fn clear_beside(&self, path: &Path) {
        let _ = fs::remove_file(beside(&self.real(path)));
    }

    /// Creates the missing folders above and at `path` with the given mode.
    pub fn create_folders(&self, path: &Path, mode: u32) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(self.real(path))
            .map_err(|error| SysError::new(format!("cannot create {}", path.display()), error))
    }

    /// From now on, until this process ends, makes a folder (root's, mode 0755) again as soon as
    /// somebody removes it (inotify(7)).
    pub fn keep_folder(&self, path: &Path) -> Result<()> {
        use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
        use std::os::unix::fs::DirBuilderExt;
        let failed = |error| SysError::new(format!("cannot watch {}", path.display()), error);
        let real = self.real(path);
        let watch = Inotify::init(InitFlags::IN_CLOEXEC).map_err(failed)?;
        let above = real.parent().unwrap_or(Path::new("/"));
        let gone = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
        watch.add_watch(above, gone).map_err(failed)?;
        std::thread::spawn(move || {
            while let Ok(events) = watch.read_events() {
                let removed =
                    |name: &std::ffi::OsString| real.file_name() == Some(name.as_os_str());
                if events.iter().any(|event| event.name.as_ref().is_some_and(removed)) {
                    let _ = fs::DirBuilder::new().mode(0o755).create(&real);
                }
            }
        });
        Ok(())
    }

    /// Removes a folder and all below it; nothing there is fine.
    pub fn remove_tree(&self, path: &Path) -> Result<()> {
        match fs::remove_dir_all(self.real(path)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(SysError::new(format!("cannot remove {}", path.display()), error))
            }
            _ => Ok(()),
        }
    }

    /// Opens a file for appending, creating it with mode 0600.
    pub fn append(&self, path: &Path) -> Result<fs::File> {
        fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(self.real(path))
            .map_err(|error| SysError::new(format!("cannot open {}", path.display()), error))
    }

    /// Puts a folder's entries on disk (fsync(2) of the folder).
    pub fn sync_folder(&self, folder: &Path) -> Result<()> {
        sync_folder(&self.real(folder))
            .map_err(|error| SysError::new(format!("cannot fsync {}", folder.display()), error))
    }

    /// Creates a file with its whole content, or leaves the one that is there alone: of several
    /// processes exactly one succeeds, and a crash leaves all of it or nothing (link(2)).
    ///
    /// Returns whether this call made it.
    pub fn create_exclusively(&self, path: &Path, content: &[u8]) -> Result<bool> {
        let real = self.real(path);
        let failed = |error| SysError::new(format!("cannot create {}", path.display()), error);
        let Some(folder) = real.parent() else { return Ok(false) };
        let unique = format!("{}.{}", beside(&real).display(), super::random_hex(4)?);
        let unique = Path::new(&unique);
        let made = replace(unique, content, &Meta::of_this_process(0o600))
            .and_then(|()| match fs::hard_link(unique, &real) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(error),
            })
            .and_then(|made| sync_folder(folder).map(|()| made));
        let _ = fs::remove_file(unique);
        made.map_err(failed)
    }

    /// Writes a file without the care of [`Files::put`]: for scratch copies that nobody keeps.
    pub fn scratch(&self, path: &Path, content: &[u8]) -> Result<()> {
        if let Some(folder) = path.parent() {
            self.create_folders(folder, 0o700)?;
        }
        fs::write(self.real(path), content)
            .map_err(|error| SysError::new(format!("cannot write {}", path.display()), error))
    }

    /// Takes an exclusive lock on a file (flock(2)), or `None` where another process holds it.
    ///
    /// The kernel drops the lock when the returned file is closed, so a dead holder never blocks. On a file system
    /// that has become read-only a file that is there can be locked all the same.
    pub fn try_lock(&self, path: &Path) -> Result<Option<fs::File>> {
        let file = match self.append(path) {
            Err(_) if self.is_read_only(path) => fs::File::open(self.real(path))
                .map_err(|error| SysError::new(format!("cannot open {}", path.display()), error))?,
            file => file?,
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => {
                Err(SysError::new(format!("cannot lock {}", path.display()), error))
            }
        }
    }

    /// The process that holds the lock on a file, where the kernel tells it (`proc_locks(5)`).
    pub fn lock_holder(&self, path: &Path) -> Option<u32> {
        let meta = fs::metadata(self.real(path)).ok()?;
        let (major, minor) = (nix::sys::stat::major(meta.dev()), nix::sys::stat::minor(meta.dev()));
        let file = format!("{major:02x}:{minor:02x}:{}", meta.ino());
        let locks = fs::read_to_string("/proc/locks").ok()?;
        holder(&locks, &file)
    }
}

/// Who holds a lock by flock(2) in a table of locks; nobody that this process cannot see has a number.
fn holder(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, process, locked, ..] = *words else { return None };
        (locked == file).then(|| process.parse().ok()).flatten().filter(|process| *process > 0)
    })
}

/// A name in the same folder that neither sshd's `*.conf` nor systemd's `*.conf` picks up.
fn beside(real: &Path) -> PathBuf {
    let name = real.file_name().unwrap_or_default().to_string_lossy();
    real.with_file_name(format!(".{name}.harden-new"))
}

fn replace(real: &Path, content: &[u8], meta: &Meta) -> std::io::Result<()> {
    let beside = beside(real);
    let _ = fs::remove_file(&beside);
    let written = (|| {
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(content)?;
        apply_meta(&beside, meta)?;
        file.sync_all()?;
        fs::rename(&beside, real)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn apply_meta(real: &Path, meta: &Meta) -> std::io::Result<()> {
    // Owner first: chown(2) clears the set-user-ID bits, so the mode has to come after it.
    std::os::unix::fs::chown(real, Some(meta.uid), Some(meta.gid))?;
    for (name, value) in &meta.xattrs {
        xattr::set(real, name, value)?;
    }
    fs::set_permissions(real, fs::Permissions::from_mode(meta.mode))
}

/// The number of /dev/null (null(4)).
const NULL: u64 = nix::sys::stat::makedev(1, 3);

fn read_regular(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    let kind = meta.file_type();
    let mut content = Vec::new();
    if kind.is_file() || kind.is_dir() {
        file.read_to_end(&mut content)?;
    } else if meta.rdev() != NULL {
        return Err(std::io::Error::other("it is no regular file"));
    }
    Ok(content)
}

/// Extended attributes; a file system without them has none.
fn xattrs(real: &Path) -> Vec<(String, Vec<u8>)> {
    let names = xattr::list(real).into_iter().flatten();
    let mut pairs: Vec<_> = names
        .filter_map(|name| {
            let value = xattr::get(real, &name).ok()??;
            Some((name.to_str()?.to_owned(), value))
        })
        .collect();
    pairs.sort();
    pairs
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_read() {
        let locks = "1: POSIX  ADVISORY  WRITE 17 00:19:5 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 19 00:19:5 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 18 00:19:5 0 EOF\n";
        assert_eq!(holder(locks, "00:19:5"), Some(18));
        assert_eq!(holder(locks, "00:19:6"), None);
        assert_eq!(holder("2: FLOCK  ADVISORY  WRITE 0 00:19:5 0 EOF\n", "00:19:5"), None);
    }

    #[test]
    fn an_image_puts_a_file_back_to_the_byte() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::at(folder.path());
        let path = Path::new("/sshd_config");
        fs::write(folder.path().join("sshd_config"), b"Port 22\n\xff").unwrap();
        fs::set_permissions(folder.path().join("sshd_config"), fs::Permissions::from_mode(0o640))
            .unwrap();
        let labelled = xattr::set(folder.path().join("sshd_config"), "user.test", b"kept").is_ok();
        let before = files.image(path).unwrap();

        let Image::File { meta, .. } = before.clone() else { panic!("a file") };
        files.put(path, &Image::File { content: b"Port 2222\n".to_vec(), meta }).unwrap();
        assert_eq!(fs::read(folder.path().join("sshd_config")).unwrap(), b"Port 2222\n");
        if labelled {
            let kept = xattr::get(folder.path().join("sshd_config"), "user.test").unwrap();
            assert_eq!(kept.as_deref(), Some(&b"kept"[..]));
        }
        let journaled: Image =
            serde_json::from_str(&serde_json::to_string(&before).unwrap()).unwrap();
        files.put(path, &journaled).unwrap();
        assert_eq!(files.image(path).unwrap(), before);
        assert_eq!(files.list(Path::new("/")).len(), 1, "nothing left beside it");
    }

    #[test]
    fn absence_and_links_are_images_too() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::at(folder.path());
        let link = Path::new("/a.service");
        assert_eq!(files.image(link).unwrap(), Image::Absent);
        files.put(link, &Image::Symlink { target: "/dev/null".into() }).unwrap();
        assert_eq!(files.image(link).unwrap(), Image::Symlink { target: "/dev/null".into() });
        files.put(link, &Image::Absent).unwrap();
        assert!(!files.exists(link));
    }

    #[test]
    fn glob_is_sorted_and_skips_hidden_files() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.conf", "a.conf", "B.conf", ".x.conf", "c.txt"] {
            fs::write(folder.path().join(name), b"").unwrap();
        }
        let found = Files::at(folder.path()).glob("/*.conf");
        let expected: Vec<PathBuf> = ["/B.conf", "/a.conf", "/b.conf"].map(PathBuf::from).into();
        assert_eq!(found, expected);
    }
}
