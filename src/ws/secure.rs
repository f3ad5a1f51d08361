//! TLS of a session's socket. Whoever writes to a session encrypts and sends as well; what the kernel does not take is
//! held back here, encrypted, and the session's task writes it on when it can ([`Wire::finish`](crate::hub::Wire)).
//!
//! The lock is held while a record is made or taken apart and handed to the kernel or taken from it, never longer: neither
//! waits. It is taken under no other lock, and none is taken under it. Nothing is encrypted while something is held back,
//! so no more than [`limits::TLS_HELD_BACK_BYTES_MAX`] ever is.

use std::{
    io::{self, IoSlice, Read, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;
use rustls::ServerConnection;

use crate::limits;

/// The state of TLS on one connection. `raw` is the socket below it, of which neither direction waits.
pub struct Secure {
    connection: Mutex<ServerConnection>,
    /// What was decrypted was not all read.
    unread: AtomicBool,
    /// Something encrypted is held back.
    held_back: AtomicBool,
    /// The kernel has taken something since this was asked last.
    moved: AtomicBool,
}

impl std::fmt::Debug for Secure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secure")
    }
}

impl Secure {
    /// Takes over a connection whose handshake is done.
    pub fn new(mut connection: ServerConnection) -> Self {
        connection.set_buffer_limit(Some(limits::TLS_HELD_BACK_BYTES_MAX));
        Self {
            connection: Mutex::new(connection),
            // Whoever shook hands may have read more than he gave out.
            unread: AtomicBool::new(true),
            held_back: AtomicBool::new(true),
            moved: AtomicBool::new(false),
        }
    }

    /// Whether something decrypted may be there, whatever the socket says.
    pub fn has_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// Whether something may be held back.
    pub fn holds_back(&self) -> bool {
        self.held_back.load(Ordering::Acquire)
    }

    /// Whether the kernel has taken something since this was asked last.
    pub fn has_moved(&self) -> bool {
        self.moved.swap(false, Ordering::Relaxed)
    }

    /// Reads what is there; `WouldBlock` where nothing is, 0 where the peer has ended TLS.
    pub fn read(&self, raw: &mut (impl Read + Write), buffer: &mut [u8]) -> io::Result<usize> {
        let mut connection = self.connection.lock();
        loop {
            match connection.reader().read(buffer) {
                Ok(count) => {
                    self.unread.store(count == buffer.len(), Ordering::Relaxed);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Cut off without a goodbye.
                Err(error) => return Err(error),
            }
            self.unread.store(false, Ordering::Relaxed);
            connection.read_tls(raw)?;
            let processed = connection.process_new_packets();
            // An alert, or an answer to new keys. What is not taken now is the session's task's to write.
            let flushed = self.flush(&mut connection, raw);
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            flushed?;
        }
    }

    /// Encrypts and writes; `WouldBlock` where something is held back that the kernel does not take.
    pub fn write(&self, raw: &mut (impl Read + Write), slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut connection = self.connection.lock();
        if !self.flush(&mut connection, raw)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = connection.writer().write_vectored(slices)?;
        self.flush(&mut connection, raw)?;
        Ok(taken)
    }

    /// Writes what is held back; `WouldBlock` where the kernel does not take all of it.
    pub fn finish(&self, raw: &mut (impl Read + Write)) -> io::Result<()> {
        if !self.holds_back() {
            return Ok(());
        }
        match self.flush(&mut self.connection.lock(), raw)? {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Says that nothing more is written, as far as the kernel takes that.
    pub fn say_goodbye(&self, raw: &mut (impl Read + Write)) {
        let mut connection = self.connection.lock();
        connection.send_close_notify();
        // The connection ends in any case.
        let _ = self.flush(&mut connection, raw);
    }

    /// Whether nothing is held back any more.
    fn flush(&self, connection: &mut ServerConnection, raw: &mut (impl Read + Write)) -> io::Result<bool> {
        let done = loop {
            if !connection.wants_write() {
                break Ok(true);
            }
            match connection.write_tls(raw) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => self.moved.store(true, Ordering::Relaxed),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.held_back.store(!matches!(done, Ok(true)), Ordering::Release);
        done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        ClientConfig, ClientConnection, RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    };

    use super::*;

    /// A line that takes so many bytes, then none.
    #[derive(Default)]
    struct Line {
        room: usize,
        sent: Vec<u8>,
        coming: Vec<u8>,
    }

    impl Read for Line {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = buffer.len().min(self.coming.len());
            if count == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            buffer[..count].copy_from_slice(&self.coming[..count]);
            self.coming.drain(..count);
            Ok(count)
        }
    }

    impl Write for Line {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.room -= count;
            self.sent.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Both ends, their handshake done.
    fn pair() -> (ClientConnection, Secure) {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let der: CertificateDer<'static> = certified.cert.der().clone();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let server = server.unwrap().with_no_client_auth().with_single_cert(vec![der.clone()], key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(der).unwrap();
        let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from("localhost").unwrap()).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            let mut coming = &wire[..];
            while !coming.is_empty() {
                server.read_tls(&mut coming).unwrap();
                server.process_new_packets().unwrap();
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            let mut coming = &wire[..];
            while !coming.is_empty() {
                client.read_tls(&mut coming).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        (client, Secure::new(server))
    }

    fn decrypted(client: &mut ClientConnection, mut wire: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        while !wire.is_empty() {
            client.read_tls(&mut wire).unwrap();
            client.process_new_packets().unwrap();
            let mut part = [0; 65_536];
            while let Ok(count @ 1..) = client.reader().read(&mut part) {
                text.extend_from_slice(&part[..count]);
            }
        }
        text
    }

    #[test]
    fn what_the_kernel_does_not_take_is_held_back_and_bounded() {
        let (mut client, secure) = pair();
        let mut line = Line { room: 100, ..Line::default() };
        let text: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        let slices =
            |from: usize| [IoSlice::new(&text[from..150_000.max(from)]), IoSlice::new(&text[150_000.max(from)..])];
        let mut taken = secure.write(&mut line, &slices(0)).unwrap();
        assert!(taken > 0 && taken <= limits::TLS_HELD_BACK_BYTES_MAX, "{taken}");
        assert!(secure.holds_back() && secure.has_moved() && !secure.has_moved());
        let blocked = secure.write(&mut line, &slices(taken)).unwrap_err();
        assert_eq!(blocked.kind(), io::ErrorKind::WouldBlock);
        assert!(!secure.has_moved(), "nothing of it was taken");
        // By small parts, as a slow peer takes it.
        while taken < text.len() {
            line.room += 5000;
            match secure.write(&mut line, &slices(taken)) {
                Ok(more) => taken += more,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        while let Err(error) = secure.finish(&mut line) {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            line.room += 5000;
        }
        assert!(!secure.holds_back());
        assert!(decrypted(&mut client, &line.sent) == text, "every byte once, in order");
    }

    #[test]
    fn what_is_decrypted_and_did_not_fit_is_known_to_be_there() {
        let (mut client, secure) = pair();
        let mut line = Line::default();
        client.writer().write_all(&[7; 1000]).unwrap();
        client.write_tls(&mut line.coming).unwrap();
        assert!(secure.has_unread(), "it may be, from the handshake");
        let mut buffer = [0; 600];
        assert_eq!(secure.read(&mut line, &mut buffer).unwrap(), 600);
        assert!(secure.has_unread() && line.coming.is_empty(), "the socket would not tell");
        assert_eq!(secure.read(&mut line, &mut buffer).unwrap(), 400);
        assert!(!secure.has_unread());
        assert_eq!(secure.read(&mut line, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn junk_is_an_error_and_a_goodbye_is_an_end() {
        let (mut client, secure) = pair();
        let mut line = Line { room: usize::MAX, ..Line::default() };
        client.send_close_notify();
        client.write_tls(&mut line.coming).unwrap();
        assert_eq!(secure.read(&mut line, &mut [0; 10]).unwrap(), 0);
        let (_, secure) = pair();
        let mut line = Line { room: usize::MAX, coming: b"GET / HTTP/1.1\r\n\r\n".to_vec(), ..Line::default() };
        assert_eq!(secure.read(&mut line, &mut [0; 10]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(!line.sent.is_empty(), "an alert");
    }
}
