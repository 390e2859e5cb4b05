//! What systemd and a service of its own say to each other: signs of life (sd_notify(3)), and the wish
//! that it ends (systemd.kill(5)).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use super::{Result, SysError};

/// Whether systemd, or somebody at its controls, wants this service to end.
#[derive(Debug, Clone, Default)]
pub struct StopRequest(Arc<AtomicBool>);

impl StopRequest {
    /// Whether it was asked to end.
    pub fn is_made(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// From now on gives signs of life, where systemd wants them, and holds SIGTERM: a request to end is
/// noted, so that what has begun is ended in order. Only where the whole system goes down, as
/// `going_down` has it, does the process end at once. Who has not come to an end after `longest` hangs:
/// there are no more signs of it (systemd.service(5), `WatchdogSec=`).
///
/// Has to come before the first thread: a signal goes to any thread that does not hold it.
///
/// # Errors
/// Where the signal cannot be held.
pub fn attend(
    longest: Duration,
    going_down: impl Fn() -> bool + Send + 'static,
) -> Result<StopRequest> {
    let mut held = SigSet::empty();
    held.add(Signal::SIGTERM);
    held.thread_block().map_err(|error| SysError::new("cannot hold SIGTERM", error))?;
    let request = StopRequest::default();
    let noted = request.clone();
    std::thread::spawn(move || {
        while held.wait().is_ok() {
            if going_down() {
                std::process::exit(1);
            }
            noted.0.store(true, Ordering::Relaxed);
        }
    });
    if let Some((address, pause)) = wanted_signs() {
        std::thread::spawn(move || give_signs(&address, pause, longest));
    }
    Ok(request)
}

/// Where signs of life go, and how often: twice as often as they have to.
fn wanted_signs() -> Option<(SocketAddr, Duration)> {
    let within: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    let socket = std::env::var("NOTIFY_SOCKET").ok()?;
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&socket),
    };
    Some((address.ok()?, Duration::from_micros(within / 2)))
}

fn give_signs(address: &SocketAddr, pause: Duration, longest: Duration) {
    let Ok(socket) = UnixDatagram::unbound() else { return };
    let begun = Instant::now();
    while begun.elapsed() < longest {
        // systemd may be executing itself anew; the next sign reaches it.
        let _ = socket.send_to_addr(b"WATCHDOG=1", address);
        std::thread::sleep(pause);
    }
}
