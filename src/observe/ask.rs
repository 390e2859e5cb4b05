//! sshd itself, asked what a configuration amounts to.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{PRIVSEP, Verdict};
use crate::sshd::Effective;
use crate::sshd::algorithms::Algorithms;
use crate::sshd::release::Release;
use crate::sys::files::Meta;
use crate::sys::{self, Command, Files, Image};

/// sshd, asked before anybody waits for the answers: that takes the longest of all that is observed, so it
/// runs beside the rest.
#[derive(Debug)]
pub struct Ahead {
    verdict: JoinHandle<Verdict>,
    release: JoinHandle<Option<Release>>,
    algorithms: Option<JoinHandle<Algorithms>>,
    had_folder: bool,
}

/// After how long somebody before a terminal wants to know what is waited for.
const LONG: Duration = Duration::from_secs(3);

/// What sshd and ssh said.
pub(super) struct Said {
    /// Which release it is.
    pub(super) release: Release,
    /// What it can do.
    pub(super) algorithms: Algorithms,
    /// What its configuration amounts to, when it has said so.
    pub(super) verdict: JoinHandle<Verdict>,
    /// Whether its folder was there before it was asked, which takes it to be there.
    pub(super) had_folder: bool,
}

impl Ahead {
    /// Asks now.
    pub fn ask() -> Self {
        let had_folder = Files::at("/").exists(Path::new(PRIVSEP));
        let release = std::thread::spawn(ask_release);
        let verdict = std::thread::spawn(|| ask_sshd(None, &[]));
        Self { verdict, release, algorithms: None, had_folder }
    }

    /// Asks now, and for the algorithms that OpenSSH has too.
    pub fn ask_all() -> Self {
        let algorithms = std::thread::spawn(ask_algorithms);
        Self { algorithms: Some(algorithms), ..Self::ask() }
    }

    pub(super) fn said(self) -> Said {
        let algorithms = self.algorithms.and_then(|asked| asked.join().ok()).unwrap_or_default();
        // Where it does not say which release it is, the newest is as good a guess as any.
        let release = self.release.join().ok().flatten().unwrap_or_default();
        Said { release, algorithms, verdict: self.verdict, had_folder: self.had_folder }
    }
}

/// What it said. Where that takes long, somebody may sit before a terminal.
pub(super) fn answer(asked: JoinHandle<Verdict>) -> Verdict {
    let begun = Instant::now();
    while !asked.is_finished() && begun.elapsed() < LONG {
        std::thread::sleep(Duration::from_micros(200));
    }
    if !asked.is_finished() {
        tracing::warn!(
            "sshd has not said yet what it makes of its files: waiting half a minute at most"
        );
    }
    asked.join().unwrap_or_else(|_| Verdict::Unseen("sshd gave no answer".into()))
}

fn ask_release() -> Option<Release> {
    // Before 9.3 `-V` is no option, and the answer is the usage, which begins with the release.
    let said = Command::new(&sshd_program()?).arg("-V").run().ok()?;
    Release::parse(&said.stderr)
}

fn ask_algorithms() -> Algorithms {
    let ssh = sys::find_program(&["/usr/bin/ssh"]).unwrap_or_default();
    let ask = |query: &str| Command::new(&ssh).args(["-Q", query]).run();
    Algorithms::parse(
        Algorithms::QUERIES.map(|query| ask(query).map(|said| said.stdout).unwrap_or_default()),
    )
}

/// sshd by fixed path, never by `PATH`.
pub fn sshd_program() -> Option<PathBuf> {
    sys::find_program(&["/usr/sbin/sshd", "/usr/bin/sshd", "/usr/local/sbin/sshd"])
}

/// Why nobody can be asked where no package has sshd any more.
pub(super) const NO_SSHD: &str = "there is no sshd";
/// What sshd says where /run/sshd is not there.
pub(crate) const NO_FOLDER: &str = "Missing privilege separation directory";
/// What sshd says where a Match block asks for something that `-T` alone leaves open.
const UNSPECIFIED: &str = "not in connection test specification";
/// A connection that no block but one for everybody can mean.
const NO_CONNECTION: &str =
    "user=,host=,addr=255.255.255.255,laddr=255.255.255.255,lport=65535,rdomain=";

/// Asks sshd what a configuration amounts to: the live one, or another main file.
pub fn ask_sshd(main: Option<&Path>, settings: &[String]) -> Verdict {
    let Some(program) = sshd_program() else { return Verdict::Unseen(NO_SSHD.into()) };
    if !sys::is_root() {
        return Verdict::Unseen("`sshd -T` reads host keys, and that needs root".into());
    }
    let mut command = Command::new(&program).arg("-T").args(settings.iter().cloned());
    if let Some(main) = main {
        command = command.arg("-f").arg(main.to_string_lossy());
    }
    let mut specified = settings.iter().any(|setting| setting == "-C");
    // On Debian 11 the folder goes with every connection's own sshd, between two looks too.
    for _ in 0..10 {
        prepare_run_folder();
        match command.run() {
            Ok(output) if output.status == 0 => {
                return Verdict::Valid(Effective::parse(&output.stdout));
            }
            Ok(output) if output.stderr.contains(NO_FOLDER) => {}
            // `Match LocalPort` and its like: no connection has these.
            Ok(output) if output.stderr.contains(UNSPECIFIED) && !specified => {
                command = command.args(["-C", NO_CONNECTION]);
                specified = true;
            }
            Ok(output) => return Verdict::Invalid(output.stderr.trim().to_owned()),
            Err(error) => return Verdict::Unseen(error.to_string()),
        }
    }
    Verdict::Unseen("its folder /run/sshd vanishes again and again".into())
}

/// sshd insists on /run/sshd, which systemd removes when ssh.service stops (Debian 11, 12).
fn prepare_run_folder() {
    let files = Files::at("/");
    let folder = Path::new(PRIVSEP);
    if !files.exists(folder) {
        let made = files.put(folder, &Image::Directory { meta: Meta::root(0o755) });
        if let Err(error) = made {
            tracing::debug!(%error, "cannot create /run/sshd");
        }
    }
}
