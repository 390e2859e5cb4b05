//! One virtual machine: Debian 13 under QEMU, emulated, so that it runs anywhere. Unlike a container it
//! has a disk of its own, so that a power cut loses what was not fsynced, and a clock of its own.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::machine::{Ran, binary, cache, run};
use crate::operator::MOVE;

/// sshd's two ports inside.
const PORTS: [u16; 2] = [22, 2222];

pub(crate) struct Vm {
    folder: PathBuf,
    qemu: Option<Child>,
    /// Where [`PORTS`] are on the host's loopback.
    forwarded: [u16; 2],
    boots: u32,
}

impl Vm {
    /// Makes a disk on which ssh.socket owns port 22, and boots from it.
    pub(crate) fn boot(name: &str) -> Self {
        let folder = cache().join("machines").join(format!("vm{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        for part in ["upper", "work", "root"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        let mut vm = Self { folder, qemu: None, forwarded: [free_port(), free_port()], boots: 0 };
        vm.make_disk();
        vm.start();
        vm
    }

    fn at(&self, part: &str) -> String {
        self.folder.join(part).display().to_string()
    }

    fn tree() -> String {
        cache().join("tree-vm").display().to_string()
    }

    fn make_disk(&self) {
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &self.at("key")]);
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            Self::tree(),
            self.at("upper"),
            self.at("work")
        );
        let root = self.at("root");
        run("mount", &["-t", "overlay", "overlay", "-o", &layers, &root]);
        let script = r#"
            set -e; cd "$1"
            install -D -m 600 "$2/key.pub" root/.ssh/authorized_keys; chmod 700 root/.ssh
            install -m 755 "$3" usr/local/bin/harden
            printf '%s' "$4" > root/spec.yaml
            echo vps > etc/hostname
            echo '/dev/vda / ext4 defaults 0 1' > etc/fstab
            printf '[Match]\nName=e*\n[Network]\nAddress=10.0.2.15/24\n' > etc/systemd/network/10.network
            ln -sf /lib/systemd/system/systemd-networkd.service etc/systemd/system/multi-user.target.wants/
            rm -f etc/systemd/system/multi-user.target.wants/ssh.service etc/systemd/system/sshd.service
            mkdir -p etc/systemd/system/sockets.target.wants
            ln -sf /lib/systemd/system/ssh.socket etc/systemd/system/sockets.target.wants/
            truncate -s 1G "$2/disk"
            mke2fs -q -t ext4 -d . "$2/disk""#;
        let harden = binary().display().to_string();
        run("sh", &["-c", script, "make", &root, &self.at(""), &harden, MOVE]);
        run("umount", &[&root]);
    }

    fn start(&mut self) {
        let boot = format!("{}/boot", Self::tree());
        let newest = |prefix: &str| {
            let names = fs::read_dir(&boot).unwrap().flatten().map(|entry| entry.path());
            let is =
                |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(prefix);
            names.filter(is).max().unwrap().display().to_string()
        };
        let forward = |number: usize| {
            format!(",hostfwd=tcp:127.0.0.1:{}-:{}", self.forwarded[number], PORTS[number])
        };
        self.boots += 1;
        let child = Command::new("qemu-system-x86_64")
            .args(["-machine", "q35,accel=tcg", "-cpu", "max", "-m", "512"])
            .args(["-nodefaults", "-display", "none"])
            .arg("-serial")
            .arg(format!("file:{}", self.at(&format!("console-{}", self.boots % 3))))
            .args(["-kernel", &newest("vmlinuz"), "-initrd", &newest("initrd")])
            .args(["-append", "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0"])
            .arg("-drive")
            .arg(format!("file={},if=virtio,format=raw,cache=writeback", self.at("disk")))
            .arg("-netdev")
            .arg(format!("user,id=net,restrict=on{}{}", forward(0), forward(1)))
            .args(["-device", "virtio-net-pci,netdev=net"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.qemu = Some(child);
        let deadline = Instant::now() + Duration::from_secs(300);
        while !PORTS.iter().any(|port| self.ssh(*port, "true").code == 0) {
            let ended = self.qemu.as_mut().and_then(|qemu| qemu.try_wait().unwrap());
            assert!(ended.is_none(), "QEMU ended: {ended:?}");
            assert!(Instant::now() < deadline, "nobody can log in: {}", self.console());
        }
    }

    pub(crate) fn console(&self) -> String {
        fs::read_to_string(self.at(&format!("console-{}", self.boots % 3))).unwrap_or_default()
    }

    /// Runs a command as root, over a connection that is kept for the next one.
    pub(crate) fn ssh(&self, port: u16, command: &str) -> Ran {
        let forwarded = self.forwarded[PORTS.iter().position(|other| *other == port).unwrap()];
        let output = Command::new("ssh")
            .args(["-F", "/dev/null", "-i", &self.at("key"), "-p", &forwarded.to_string()])
            .args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "LogLevel=ERROR"])
            .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"])
            .args(["-o", "ControlMaster=auto", "-o", "ControlPersist=30"])
            .arg("-o")
            .arg(format!("ControlPath={}", self.at(&format!("control-{port}"))))
            .args(["root@127.0.0.1", command])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Ran::of(&output)
    }

    /// A command that has to succeed, through whichever port answers.
    #[track_caller]
    pub(crate) fn sh(&self, command: &str) -> String {
        let ports = PORTS.iter().find(|port| self.ssh(**port, "true").code == 0);
        self.ssh(*ports.expect("nobody can log in"), command).ok()
    }

    /// The power is cut: what the guest had not written to its disk is lost.
    pub(crate) fn reset(&mut self) {
        self.pull_the_plug();
        self.start();
    }

    fn pull_the_plug(&mut self) {
        if let Some(mut qemu) = self.qemu.take() {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
        for port in PORTS {
            let control = self.at(&format!("control-{port}"));
            let _ = Command::new("ssh")
                .args(["-o", &format!("ControlPath={control}"), "-O", "exit", "none"])
                .stderr(Stdio::null())
                .status();
            let _ = fs::remove_file(control);
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.console());
        }
        self.pull_the_plug();
        let _ =
            Command::new("umount").arg("-l").arg(self.at("root")).stderr(Stdio::null()).status();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
