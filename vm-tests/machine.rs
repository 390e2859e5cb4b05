//! One booted Debian system: a container with its own network, seen from outside.
//!
//! The tree is shared and read-only; each machine has a layer of its own on top, which a reboot
//! keeps. Two network namespaces, joined by a cable: the machine's, and the one that its owner
//! logs in from.

use std::fs;
use std::io::BufReader;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) use crate::root::Root;
pub(crate) use crate::session::Session;

/// A tree that `vm-tests/prepare` made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suite {
    Bullseye,
    Bookworm,
    Trixie,
    Testing,
    /// Debian 12 with the unit shape and the generator of Ubuntu 24.04.
    UbuntuLike,
    /// Debian 13 with Debian's cloud-init.
    Cloud,
}

impl Suite {
    pub(crate) fn tree(self) -> PathBuf {
        let name = match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Testing => "testing",
            Self::UbuntuLike => "ubuntu-like",
            Self::Cloud => "cloud",
        };
        cache().join(format!("tree-{name}"))
    }
}

pub(crate) fn cache() -> PathBuf {
    std::env::var_os("CACHE").map_or_else(|| "/var/cache/harden-vm-tests".into(), PathBuf::from)
}

/// The release binary under test.
pub(crate) fn binary() -> PathBuf {
    let path = std::env::var_os("HARDEN_BIN").expect("HARDEN_BIN: run these by vm-tests/test");
    PathBuf::from(path)
}

/// What a command left behind.
#[derive(Debug, Clone)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Everything that was said, in one line.
    pub(crate) fn unwrapped(&self) -> String {
        let words = self.stdout.split_whitespace().chain(self.stderr.split_whitespace());
        words.collect::<Vec<_>>().join(" ")
    }

    /// Standard output of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }

    /// Asserts the exit code.
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }
}

/// The address of the machine on its cable.
pub(crate) const V4: &str = "10.77.0.2";
pub(crate) const V6: &str = "fd77::2";

/// A booted system. Dropping it pulls the plug and clears everything away.
pub(crate) struct Machine {
    id: String,
    folder: PathBuf,
    nspawn: Option<Child>,
    leader: u32,
}

impl Machine {
    /// Lays the tree out, lets `prepare` change its files, and boots it.
    pub(crate) fn boot(suite: Suite, prepare: impl FnOnce(&Root)) -> Self {
        let mut machine = Self::lay_out(suite);
        prepare(&machine.root());
        machine.start();
        machine
    }

    fn lay_out(suite: Suite) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("hv{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = cache().join("machines").join(&id);
        let _ = fs::remove_dir_all(&folder);
        for part in ["upper", "work", "root"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        let at = |part: &str| folder.join(part).display().to_string();
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            suite.tree().display(),
            at("upper"),
            at("work")
        );
        run("mount", &["-t", "overlay", "overlay", "-o", &layers, &at("root")]);
        let machine = Self { id, folder, nspawn: None, leader: 0 };
        machine.connect_cable();
        machine.add_keys();
        // In a container systemd now and then misses that a session's last process is gone.
        let brisk = "[Manager]\nDefaultTimeoutStopSec=4s\n";
        machine.root().write("/etc/systemd/system.conf.d/brisk.conf", brisk);
        let brisk = "[Service]\nTimeoutStopSec=1s\n";
        machine.root().write("/etc/systemd/system/user@.service.d/brisk.conf", brisk);
        machine.root().install(&binary(), "/usr/local/bin/harden");
        machine
    }

    fn connect_cable(&self) {
        let (server, client) = (self.server_net(), self.client_net());
        for net in [&server, &client] {
            run("ip", &["netns", "add", net]);
            run("ip", &["-n", net, "link", "set", "lo", "up"]);
        }
        run(
            "ip",
            &[
                "link", "add", "cable", "netns", &server, "type", "veth", "peer", "name", "cable",
                "netns", &client,
            ],
        );
        for (net, v4, v6) in
            [(&server, "10.77.0.2/24", "fd77::2/64"), (&client, "10.77.0.1/24", "fd77::1/64")]
        {
            run("ip", &["-n", net, "address", "add", v4, "dev", "cable"]);
            run("ip", &["-n", net, "address", "add", v6, "dev", "cable", "nodad"]);
            run("ip", &["-n", net, "link", "set", "cable", "up"]);
        }
    }

    fn add_keys(&self) {
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &self.key()]);
        let public = fs::read_to_string(format!("{}.pub", self.key())).unwrap();
        for (home, owner) in [("/root", "0:0"), ("/home/deploy", "1000:1000")] {
            let folder = self.root().path(home).join(".ssh");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("authorized_keys"), &public).unwrap();
            let folder = folder.display().to_string();
            run("chown", &["-R", owner, &folder]);
            run("chmod", &["700", &folder]);
        }
    }

    pub(crate) fn server_net(&self) -> String {
        format!("{}s", self.id)
    }

    pub(crate) fn client_net(&self) -> String {
        format!("{}c", self.id)
    }

    /// Puts a file beside the key with which it is logged in from outside.
    pub(crate) fn present(&self, suffix: &str, content: &str) {
        std::fs::write(format!("{}{suffix}", self.key()), content).unwrap();
    }

    fn key(&self) -> String {
        self.folder.join("key").display().to_string()
    }

    /// The machine's files, seen from outside.
    pub(crate) fn root(&self) -> Root {
        Root(self.folder.join("root"))
    }

    /// The control group that is the machine's own: in a shared one, systemd in one container would
    /// kill and await the processes of all (cgroups(7)).
    fn cgroup(&self) -> PathBuf {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let unified = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then_some(path)
        });
        Path::new(unified.expect("no cgroup2 is mounted")).join(&self.id)
    }

    /// Boots and waits until the boot is complete, without touching the network.
    pub(crate) fn start(&mut self) {
        self.start_and_wait(20);
    }

    fn start_and_wait(&mut self, seconds: u64) {
        let console = fs::File::create(self.folder.join("console")).unwrap();
        let cgroup = self.cgroup();
        fs::create_dir_all(&cgroup).unwrap();
        let child = Command::new("sh")
            .args(["-c", "echo $$ > \"$0/cgroup.procs\"; exec \"$@\""])
            .arg(&cgroup)
            .args([
                "systemd-nspawn",
                "--quiet",
                "--boot",
                "--register=no",
                "--keep-unit",
                "--hostname=vps",
            ])
            .args(["--console=pipe", "--capability=CAP_NET_ADMIN,CAP_NET_RAW"])
            .arg(format!("--machine={}", self.id))
            .arg(format!("--directory={}", self.folder.join("root").display()))
            .arg(format!("--network-namespace-path=/run/netns/{}", self.server_net()))
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .stdin(Stdio::null())
            .stdout(console.try_clone().unwrap())
            .stderr(console)
            .process_group(0)
            .spawn()
            .unwrap();
        self.nspawn = Some(child);
        self.wait_for_boot(seconds);
        // A container's init now and then fails to start a service ("Failed to spawn executor"), and
        // tries again by itself a moment later.
        self.exec(
            "for i in $(seq 100); do [ $(systemctl is-active ssh.service) = activating ] || exit; \
             sleep 0.1; done",
        );
    }

    fn wait_for_boot(&mut self, seconds: u64) {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            let leader = self.find_leader();
            if leader != 0 {
                self.leader = leader;
                let state = self.exec("systemctl is-system-running 2>/dev/null").stdout;
                if matches!(state.trim(), "running" | "degraded") {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "no boot: {}", self.console());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn console(&self) -> String {
        fs::read_to_string(self.folder.join("console")).unwrap_or_default()
    }

    fn find_leader(&self) -> u32 {
        let Some(nspawn) = &self.nspawn else { return 0 };
        let pid = nspawn.id();
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
            .ok()
            .and_then(|children| children.split_whitespace().next()?.parse().ok())
            .unwrap_or_default()
    }

    /// Runs a shell command as root inside, without SSH.
    pub(crate) fn exec(&self, command: &str) -> Ran {
        let output = Command::new("nsenter")
            .args(["--target", &self.leader.to_string(), "--all"])
            .args([
                "/usr/bin/env",
                "-i",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            ])
            .args(["HOME=/root", "/bin/sh", "-c", &format!("cd /root; {command}")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Ran::of(&output)
    }

    /// A command that must succeed; returns what it printed.
    #[track_caller]
    pub(crate) fn sh(&self, command: &str) -> String {
        self.exec(command).ok()
    }

    /// The `ssh` command line to this machine from outside.
    pub(crate) fn ssh_args(&self, host: &str, port: u16, user: &str) -> Vec<String> {
        let mut args: Vec<String> =
            ["netns", "exec", &self.client_net(), "ssh", "-F", "/dev/null", "-i", &self.key()]
                .map(str::to_owned)
                .into();
        for option in [
            "BatchMode=yes",
            "ConnectTimeout=10",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
        ] {
            args.extend(["-o".to_owned(), option.to_owned()]);
        }
        args.extend(["-p".to_owned(), port.to_string(), "-l".to_owned(), user.to_owned()]);
        args.push(host.to_owned());
        args
    }

    /// Runs a command over SSH from outside, as root.
    pub(crate) fn ssh(&self, port: u16, command: &str) -> Ran {
        self.ssh_to(V4, port, command)
    }

    /// The same to one of its addresses.
    pub(crate) fn ssh_to(&self, host: &str, port: u16, command: &str) -> Ran {
        Self::over(&self.ssh_args(host, port, "root"), command)
    }

    /// The same as somebody else.
    pub(crate) fn ssh_as(&self, user: &str, port: u16, command: &str) -> Ran {
        Self::over(&self.ssh_args(V4, port, user), command)
    }

    fn over(ssh: &[String], command: &str) -> Ran {
        let output =
            Command::new("ip").args(ssh).arg(command).stdin(Stdio::null()).output().unwrap();
        Ran::of(&output)
    }

    /// Opens a session that stays open.
    #[track_caller]
    pub(crate) fn session(&self, port: u16) -> Session {
        self.session_of("root", V4, port)
    }

    /// The same for a user, to one of its addresses.
    #[track_caller]
    pub(crate) fn session_of(&self, user: &str, host: &str, port: u16) -> Session {
        // Debian 11's ssh@.service takes /run/sshd away when a connection ends, under the next one.
        for _ in 0..3 {
            let mut session = self.open(user, host, port, "cat");
            if session.lives() {
                return session;
            }
        }
        panic!("the session did not open")
    }

    /// Opens a session that runs a command.
    pub(crate) fn session_with(&self, port: u16, command: &str) -> Session {
        self.open("root", V4, port, command)
    }

    fn open(&self, user: &str, host: &str, port: u16, command: &str) -> Session {
        let mut child = Command::new("ip")
            .args(self.ssh_args(host, port, user))
            .arg(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Session { child, input, output }
    }

    /// Writes a spec to /root/spec.yaml.
    pub(crate) fn spec(&self, text: &str) {
        self.root().write("/root/spec.yaml", text);
    }

    /// Applies /root/spec.yaml without SSH and without asking.
    pub(crate) fn apply(&self) -> Ran {
        self.exec("harden apply --yes /root/spec.yaml")
    }

    /// Starts an apply that a person has to confirm, and waits until it waits for that.
    pub(crate) fn apply_in_background(&self, timeout: &str) {
        self.start_apply(&format!("--confirm operator --timeout {timeout}"));
        self.wait_for("the confirmation", "harden status | grep -q 'to confirm:'");
    }

    /// Starts an apply that goes on by itself; its output is in /root/apply.log.
    pub(crate) fn start_apply(&self, options: &str) {
        self.root().remove("/root/apply.end");
        self.sh(&format!(
            "setsid sh -c 'harden apply -y {options} spec.yaml; echo $? > apply.end.new; \
             mv apply.end.new apply.end' > apply.log 2>&1 < /dev/null &"
        ));
    }

    /// The exit code of the apply that was started.
    #[track_caller]
    pub(crate) fn background_end(&self) -> i32 {
        self.wait_for("the end of the apply", "test -e apply.end");
        self.root().read("/root/apply.end").trim().parse().unwrap()
    }

    /// What the operator is asked to run, without the `ssh` part.
    pub(crate) fn confirm_command(&self) -> String {
        let status = self.sh("harden status");
        let at = status.find("harden confirm ").unwrap();
        status[at..].lines().next().unwrap().to_owned()
    }

    /// Waits until a command succeeds, a minute at most.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, command: &str) {
        let waiting =
            format!("for i in $(seq 600); do {{ {command}; }} && exit; sleep 0.1; done; exit 1");
        let came = self.exec(&waiting).code == 0;
        let log = || self.root().read("/root/apply.log");
        assert!(came, "no {what}: {}\n{}", log(), self.exec("harden history").stdout);
    }

    /// A clean reboot.
    pub(crate) fn reboot(&mut self) {
        self.exec("systemctl reboot --no-block");
        let mut nspawn = self.nspawn.take().unwrap();
        // With --keep-unit the container manager leaves the restart to whoever started it. In a
        // container a shutdown now and then hangs on a session; then the plug is pulled.
        let deadline = Instant::now() + Duration::from_secs(20);
        while nspawn.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                eprintln!("the shutdown hangs: {}", self.exec("systemctl list-jobs").stdout);
                run("kill", &["-9", &self.leader.to_string()]);
                nspawn.wait().unwrap();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.start();
    }

    /// The power is cut, and comes back.
    pub(crate) fn cut_power(&mut self) {
        self.cut_power_and_wait(20);
    }

    /// The same, where the boot may take longer.
    pub(crate) fn cut_power_and_wait(&mut self, seconds: u64) {
        self.pull_the_plug();
        self.start_and_wait(seconds);
    }

    /// Kills the worker of the open transaction, once.
    pub(crate) fn kill_worker(&self) {
        self.sh("pkill -9 -f '[.]harden worker'");
    }

    /// Kills the worker for good: systemd cannot start it again.
    pub(crate) fn stop_worker(&self) {
        let workers = "systemctl list-units --no-legend --all 'harden-2*.service'";
        self.sh("cd /var/lib/harden; mv *.harden away; pkill -9 -f '[.]harden worker'");
        self.wait_for("end of the worker", &format!("[ -z \"$({workers})\" ]"));
        self.sh(
            "cd /var/lib/harden; id=$(ls *.journal | tail -n 1); mv away ${id%.journal}.harden",
        );
    }

    /// Waits until no transaction is open.
    #[track_caller]
    pub(crate) fn wait_for_the_end(&self) {
        self.wait_for("end", "harden status | grep -q 'no transaction is open'");
    }

    /// Keeps its owner's packets from a port, outside the machine.
    pub(crate) fn block_outside(&self, port: u16) {
        let port = port.to_string();
        let rule = ["rule", "add", "ipproto", "tcp", "dport", &port, "prohibit"];
        run("ip", &[&["-n", &self.client_net()], &rule[..]].concat());
    }

    fn pull_the_plug(&mut self) {
        if let Some(mut nspawn) = self.nspawn.take() {
            // The leader is the container's init: with it everything inside dies.
            if self.leader != 0 {
                run("kill", &["-9", &self.leader.to_string()]);
            }
            let _ = nspawn.wait();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.leader = self.find_leader();
        if std::thread::panicking() {
            eprintln!(
                "journal:\n{}",
                self.exec("journalctl -b -n 120 --no-pager -o short-precise").stdout
            );
        }
        self.pull_the_plug();
        let _ = Command::new("umount").arg("-l").arg(self.folder.join("root")).status();
        for net in [self.server_net(), self.client_net()] {
            let _ = Command::new("ip").args(["netns", "delete", &net]).status();
        }
        let _ = fs::remove_dir_all(&self.folder);
        remove_cgroups(&self.cgroup());
    }
}

/// Removes a control group and those below it, which must be empty of processes.
fn remove_cgroups(cgroup: &Path) {
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.path().is_dir()) {
        remove_cgroups(&entry.path());
    }
    let _ = fs::remove_dir(cgroup);
}

/// Runs a tool of the host that must succeed.
#[track_caller]
pub(crate) fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}: {status}");
}
