//! Promise 1: at every instant somebody listens. The kernel's own table is polled, from a thread in
//! the machine's network namespace, and a prober connects from outside.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use crate::machine::{Machine, Suite, V4};
use crate::on_debian;
use crate::operator::socket_system;

on_debian!(somebody_listens_at_every_instant);

/// What one watch saw.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    /// How often was looked.
    looks: u64,
    /// How often nobody listened.
    deaf: u64,
    /// The times between two looks at which somebody listened and between which was a deaf one.
    pub(crate) gaps: Vec<Duration>,
}

/// A look that is repeated until the watch is over.
pub(crate) struct Watch {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Watch {
    /// Repeats a look in a network namespace; it says whether somebody listened.
    fn start(namespace: &str, look: impl Fn() -> bool + Send + 'static) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (ended, path) = (over.clone(), format!("/run/netns/{namespace}"));
        let thread = std::thread::spawn(move || {
            setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            let mut seen = Seen::default();
            let mut heard = Instant::now();
            let mut deaf = false;
            while !ended.load(Ordering::Relaxed) {
                let before = Instant::now();
                seen.looks += 1;
                if look() {
                    if deaf {
                        seen.gaps.push(before - heard);
                    }
                    (heard, deaf) = (before, false);
                } else {
                    seen.deaf += 1;
                    deaf = true;
                }
            }
            seen
        });
        Self { over, thread }
    }

    /// Polls the kernel's table (sock_diag(7)) for a listener on any of the ports.
    pub(crate) fn table(machine: &Machine, ports: &'static [u16]) -> Self {
        Self::start(&machine.server_net(), move || {
            // Whoever looks without a pause takes a core from those who are watched.
            std::thread::sleep(Duration::from_micros(100));
            let table = harden::sys::sockets::table().unwrap();
            table.iter().any(|socket| ports.contains(&socket.port))
        })
    }

    /// Connects from outside to each of the ports in turn.
    fn prober(machine: &Machine, ports: &'static [u16]) -> Self {
        Self::start(&machine.client_net(), move || {
            // Below systemd's limit for activations (systemd.socket(5), TriggerLimitBurst=), also where those
            // that have waited are counted with the others.
            std::thread::sleep(Duration::from_millis(40));
            ports.iter().any(|port| {
                let at = SocketAddr::new(V4.parse().unwrap(), *port);
                TcpStream::connect_timeout(&at, Duration::from_secs(1)).is_ok()
            })
        })
    }

    pub(crate) fn end(self) -> Seen {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Moves there and back again, under watch.
fn moves(machine: &Machine, times: usize) -> (Seen, Seen) {
    const PORTS: &[u16] = &[22, 2222];
    // Connects that say nothing are not to count against their address.
    machine.root().append("/etc/ssh/sshd_config", "MaxStartups 1000\n");
    machine.exec(
        "sshd -T 2>&1 | grep -qi persourcepenalties && \
                  echo 'PerSourcePenalties no' >> /etc/ssh/sshd_config; systemctl stop ssh.service",
    );
    let (table, prober) = (Watch::table(machine, PORTS), Watch::prober(machine, PORTS));
    for _ in 0..times {
        machine.apply().code(0);
        machine.exec("harden rollback -y").code(0);
    }
    (table.end(), prober.end())
}

mod cases {
    use super::*;

    pub(super) fn somebody_listens_at_every_instant(suite: Suite) {
        let machine = socket_system(suite);
        let (table, prober) = moves(&machine, 2);
        assert!(table.looks > 100 && prober.looks > 50, "{table:?} {prober:?}");
        assert_eq!((table.deaf, prober.deaf), (0, 0), "{table:?} {prober:?}");
    }
}

/// The long form: at least a hundred moves.
#[test]
#[ignore = "a benchmark: run it with vm-tests/bench"]
fn moves_a_hundred_times() {
    let machine = socket_system(Suite::Trixie);
    let (table, prober) = moves(&machine, 50);
    println!("100 moves: {} looks at the table, {} of them deaf", table.looks, table.deaf);
    println!("100 moves: {} connects from outside, {} of them refused", prober.looks, prober.deaf);
}

/// The gap of each hand-over on an unchanged port, of the port to the trial and of the port to ssh.service,
/// against that of a plain restart, turn by turn.
#[test]
#[ignore = "a benchmark: run it with vm-tests/bench"]
fn on_the_same_port() {
    let machine = Machine::boot(Suite::Trixie, |_| {});
    let mut gaps = [Vec::new(), Vec::new(), Vec::new()];
    for number in 0..100 {
        let watch = Watch::table(&machine, &[22]);
        machine.sh("systemctl reset-failed ssh.service; systemctl restart ssh.service");
        let restart = watch.end().gaps;
        let tries = number % 2 + 3;
        machine.spec(&format!("version: 1\nssh: {{settings: {{MaxAuthTries: {tries}}}}}\n"));
        let watch = Watch::table(&machine, &[22]);
        machine.apply().code(0);
        let apply = watch.end().gaps;
        assert_eq!((restart.len(), apply.len()), (1, 2));
        for (all, gap) in gaps.iter_mut().zip(restart.into_iter().chain(apply)) {
            all.push(gap);
        }
    }
    let [restart, trial, service] = gaps.map(|mut gaps| {
        gaps.sort();
        [50, 90].map(|percent| gaps[gaps.len() * percent / 100].as_secs_f64() * 1000.0)
    });
    for (name, ours) in [("the trial", trial), ("ssh.service", service)] {
        println!(
            "same port, to {name}: median {:.1} ms / restart {:.1} ms = {:.2}; 90 of 100: {:.1} / {:.1} \
             = {:.2}",
            ours[0],
            restart[0],
            ours[0] / restart[0],
            ours[1],
            restart[1],
            ours[1] / restart[1]
        );
    }
}
