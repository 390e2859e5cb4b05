//! The kernel's table of listening TCP sockets, and the processes that hold them.
//!
//! Read over sock_diag(7), which also tells whether an IPv6 socket serves IPv4
//! (`IPV6_V6ONLY`); systemd's `Listen` property is configuration, not reality.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::process::{Process, held_sockets, holders_of};
use super::{Result, SysError};

/// One listening TCP socket as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Local address; unspecified (`0.0.0.0`, `::`) for all addresses.
    pub address: IpAddr,
    /// Local port.
    pub port: u16,
    /// Address of the other end; unspecified for a listening socket.
    peer: IpAddr,
    /// `IPV6_V6ONLY`; true for IPv4 sockets.
    pub v6only: bool,
    /// Inode of the socket: what `/proc/PID/fd` links to.
    pub inode: u64,
    /// Processes that hold it open; empty where this process may not look.
    pub holders: Vec<Process>,
}

const HEADER: usize = 16;
const DIAG_MESSAGE: usize = 72;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const INET_DIAG_SKV6ONLY: u16 = 11;
const TCP_ESTABLISHED_STATE: u32 = 1 << 1;
const TCP_LISTEN_STATE: u32 = 1 << 10;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// All listening TCP sockets of this network namespace, with their holders.
pub fn listening() -> Result<Vec<Socket>> {
    let mut sockets = table()?;
    let mut holders: BTreeMap<u64, Vec<Process>> =
        holders_of(&sockets.iter().map(|socket| socket.inode).collect());
    for socket in &mut sockets {
        socket.holders = holders.remove(&socket.inode).unwrap_or_default();
    }
    sockets.sort_by_key(|socket| (socket.port, socket.address));
    Ok(sockets)
}

/// The same without the holders, which take longer to find.
pub fn table() -> Result<Vec<Socket>> {
    let mut sockets = dump(AF_INET, TCP_LISTEN_STATE)?;
    sockets.extend(dump(AF_INET6, TCP_LISTEN_STATE)?);
    Ok(sockets)
}

/// Who is at the other end of the connections that any of these processes has on any of these local
/// ports.
pub fn peers(pids: &[u32], ports: &BTreeSet<u16>) -> Result<Vec<IpAddr>> {
    let mut connections = dump(AF_INET, TCP_ESTABLISHED_STATE)?;
    connections.extend(dump(AF_INET6, TCP_ESTABLISHED_STATE)?);
    connections.retain(|connection| ports.contains(&connection.port));
    let inodes = connections.iter().map(|connection| connection.inode).collect();
    let held: BTreeSet<u64> = pids.iter().flat_map(|pid| held_sockets(*pid, &inodes)).collect();
    let held = connections.iter().filter(|connection| held.contains(&connection.inode));
    Ok(held.map(|connection| connection.peer.to_canonical()).collect())
}

/// Where one process listens.
pub fn held_by(pid: u32) -> Result<Vec<SocketAddr>> {
    let held = listening()?
        .into_iter()
        .filter(|socket| socket.holders.iter().any(|holder| holder.pid == pid));
    Ok(held.map(|socket| SocketAddr::new(socket.address, socket.port)).collect())
}

/// The listening sockets that one process holds, by inode; none where systemd holds them too.
pub fn inodes_of(pid: u32) -> Result<BTreeSet<u64>> {
    let held = listening()?.into_iter().filter(|socket| {
        let holds = |pid: u32| socket.holders.iter().any(|holder| holder.pid == pid);
        holds(pid) && !holds(1)
    });
    Ok(held.map(|socket| socket.inode).collect())
}

/// Waits until none of these sockets is there any more, at most `limit`; says whether that came.
///
/// An sshd that ends may leave a child that it has just forked for a connection, and that has not
/// closed the listener yet: the port is taken until it has.
pub fn await_closed(inodes: &BTreeSet<u64>, limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        if !table()?.iter().any(|socket| inodes.contains(&socket.inode)) {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn dump(family: u8, states: u32) -> Result<Vec<Socket>> {
    let failed = |error: nix::Error| SysError::new("cannot read the kernel's socket table", error);
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )
    .map_err(failed)?;
    use std::os::fd::AsRawFd;
    send(netlink.as_raw_fd(), &request(family, states), MsgFlags::empty()).map_err(failed)?;
    let mut sockets = Vec::new();
    let mut buffer = vec![0_u8; 1 << 16];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(failed)?;
        if length == 0 {
            return Ok(sockets);
        }
        if read_messages(buffer.get(..length).unwrap_or_default(), &mut sockets)? {
            return Ok(sockets);
        }
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2` (linux/inet_diag.h).
fn request(family: u8, states: u32) -> Vec<u8> {
    const IPPROTO_TCP: u8 = 6;
    const REQUEST: usize = 56;
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(u32::try_from(HEADER + REQUEST).unwrap_or_default().to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, IPPROTO_TCP, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.resize(HEADER + REQUEST, 0);
    bytes
}

/// Reads the messages of one datagram; true when the dump is complete.
fn read_messages(mut bytes: &[u8], sockets: &mut Vec<Socket>) -> Result<bool> {
    while bytes.len() >= HEADER {
        let length = u32_at(bytes, 0) as usize;
        if length < HEADER || length > bytes.len() {
            break;
        }
        let (message, rest) = bytes.split_at(length);
        match u16_at(message, 4) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = i32::from_ne_bytes(u32_at(message, HEADER).to_ne_bytes());
                let error = std::io::Error::from_raw_os_error(-errno);
                return Err(SysError::new("cannot read the kernel's socket table", error));
            }
            _ => sockets.extend(read_socket(message.get(HEADER..).unwrap_or_default())),
        }
        bytes = rest.get(length.next_multiple_of(4) - length..).unwrap_or_default();
    }
    Ok(false)
}

/// `struct inet_diag_msg` and the attributes behind it.
fn read_socket(message: &[u8]) -> Option<Socket> {
    if message.len() < DIAG_MESSAGE {
        return None;
    }
    let port = u16::from_be_bytes([*message.get(4)?, *message.get(5)?]);
    let address_at = |at: usize| -> Option<IpAddr> {
        match *message.first()? {
            AF_INET => Some(<[u8; 4]>::try_from(message.get(at..at + 4)?).ok()?.into()),
            AF_INET6 => Some(<[u8; 16]>::try_from(message.get(at..at + 16)?).ok()?.into()),
            _ => None,
        }
    };
    let (address, peer) = (address_at(8)?, address_at(24)?);
    let inode = u64::from(u32_at(message, 68));
    let mut v6only = address.is_ipv4();
    let mut attributes = message.get(DIAG_MESSAGE..)?;
    while attributes.len() >= 4 {
        let length = usize::from(u16_at(attributes, 0));
        if length < 4 {
            break;
        }
        if u16_at(attributes, 2) == INET_DIAG_SKV6ONLY {
            v6only = attributes.get(4).is_some_and(|value| *value != 0);
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Socket { address, port, peer, v6only, inode, holders: Vec::new() })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn finds_a_listener_of_this_very_process() {
        let v4 = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = v4.local_addr().unwrap().port();
        let found = listening().unwrap().into_iter().find(|socket| socket.port == port).unwrap();
        assert_eq!(found.address, IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert!(found.v6only);
        assert_eq!(found.holders.first().unwrap().pid, std::process::id());
    }

    #[test]
    fn finds_the_other_end_of_a_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let _client = std::net::TcpStream::connect(at).unwrap();
        let _served = listener.accept().unwrap();
        let ports = BTreeSet::from([at.port()]);
        let found = peers(&[std::process::id()], &ports).unwrap();
        assert_eq!(found, vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        assert_eq!(peers(&[1], &ports).unwrap(), Vec::<IpAddr>::new());
    }

    #[test]
    fn garbage_from_the_kernel_is_no_panic() {
        let mut sockets = Vec::new();
        for length in 0..200_u8 {
            let bytes: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(37)).collect();
            let _ = read_messages(&bytes, &mut sockets);
            let _ = read_socket(&bytes);
        }
    }
}
