//! systemd's own D-Bus socket, which root may use without a bus in between (`systemctl` does).
//!
//! systemd signs its messages there with a well-known name, where the specification has unique
//! names only, and zbus refuses them: a relay puts a unique name of the same length in its place.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// Where systemd listens (sd-bus, `RUNTIME_DIRECTORY/systemd/private`).
const PRIVATE: &str = "/run/systemd/private";
/// A header field as it stands in a message: code 7 (SENDER), signature `s`, length, text.
const SIGNED: &[u8] = b"\x07\x01s\0\x18\0\0\0org.freedesktop.systemd1\0";
const RENAMED: &[u8] = b"\x07\x01s\0\x18\0\0\0:1.000000000000000000000\0";
/// The longest line of the authentication.
const LINE: usize = 4096;
/// The fixed part of a message's header.
const HEADER: usize = 16;
/// The longest message (D-Bus specification, "Message Format").
const LONGEST: usize = 128 << 20;

/// Connects; the stream takes authentication and messages as a bus's would.
pub(super) fn connect() -> Result<UnixStream> {
    let mut systemd = UnixStream::connect(PRIVATE)?;
    let (ours, mut theirs) = UnixStream::pair()?;
    let (mut from_us, mut to_systemd) = (theirs.try_clone()?, systemd.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_us, &mut to_systemd);
        let _ = to_systemd.shutdown(Shutdown::Both);
    });
    std::thread::spawn(move || {
        while relay(&mut systemd, &mut theirs).is_ok() {}
        let _ = theirs.shutdown(Shutdown::Both);
    });
    Ok(ours)
}

/// Passes one message on, or one line of the authentication before them: those begin with a
/// capital that is no message's byte order (D-Bus specification, "Authentication Protocol").
fn relay(from: &mut UnixStream, to: &mut UnixStream) -> Result<()> {
    let mut message = vec![0; 1];
    from.read_exact(&mut message)?;
    if !message.starts_with(b"l") && !message.starts_with(b"B") {
        while !message.ends_with(b"\n") && message.len() < LINE {
            let mut byte = [0];
            from.read_exact(&mut byte)?;
            message.extend(byte);
        }
        return to.write_all(&message);
    }
    message.resize(HEADER, 0);
    from.read_exact(message.get_mut(1..).unwrap_or_default())?;
    let (fields, whole) = sizes(&message)
        .ok_or_else(|| Error::new(ErrorKind::InvalidData, "this is no D-Bus message"))?;
    message.resize(whole, 0);
    from.read_exact(message.get_mut(HEADER..).unwrap_or_default())?;
    rename(message.get_mut(..HEADER + fields).unwrap_or_default());
    to.write_all(&message)
}

/// The length of the header's fields, and of the whole message.
fn sizes(header: &[u8]) -> Option<(usize, usize)> {
    let number = |at: usize| -> Option<usize> {
        let bytes: [u8; 4] = header.get(at..at + 4)?.try_into().ok()?;
        let number = match header.first()? {
            b'l' => u32::from_le_bytes(bytes),
            _ => u32::from_be_bytes(bytes),
        };
        usize::try_from(number).ok().filter(|number| *number <= LONGEST)
    };
    let (body, fields) = (number(4)?, number(12)?);
    Some((fields, HEADER + fields.next_multiple_of(8) + body))
}

fn rename(header: &mut [u8]) {
    let at = header.windows(SIGNED.len()).position(|window| window == SIGNED);
    if let Some(field) = at.and_then(|at| header.get_mut(at..at + SIGNED.len())) {
        field.copy_from_slice(RENAMED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_is_renamed_and_nothing_else() {
        assert_eq!(SIGNED.len(), RENAMED.len());
        let (mut systemd, mut relayed) = UnixStream::pair().unwrap();
        let (mut out, mut zbus) = UnixStream::pair().unwrap();
        let body = b"org.freedesktop.systemd1";
        let mut message = vec![b'l', 2, 1, 1, 24, 0, 0, 0, 1, 0, 0, 0, 33, 0, 0, 0];
        message.extend(SIGNED);
        message.extend([0; 7]);
        message.extend(body);
        systemd.write_all(b"OK 1f2\r\n").unwrap();
        systemd.write_all(&message).unwrap();
        relay(&mut relayed, &mut out).unwrap();
        relay(&mut relayed, &mut out).unwrap();
        let mut line = [0; 8];
        zbus.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"OK 1f2\r\n");
        let mut passed = vec![0; message.len()];
        zbus.read_exact(&mut passed).unwrap();
        assert!(passed.windows(RENAMED.len()).any(|window| window == RENAMED));
        assert!(passed.ends_with(body));
    }

    #[test]
    fn garbage_is_no_panic() {
        for length in 0..64_u8 {
            let mut bytes: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(91)).collect();
            let _ = sizes(&bytes);
            rename(&mut bytes);
        }
    }
}
