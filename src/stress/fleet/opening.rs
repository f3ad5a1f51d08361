//! From a slot's turn to its session: the socket, the handshake, `auth_success`; and what went wrong.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::atomic::Ordering,
};

use rustix::{
    event::epoll::{self, EventData, EventFlags},
    net::{AddressFamily, SocketFlags, SocketType},
};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

use super::{
    SOURCES, Target,
    shard::{Act, Shard},
    slot::{Conn, Phase},
};

/// How long a connection may take to become a session.
const OPENING_MICROS_MAX: u64 = 15_000_000;

impl Shard {
    /// A slot is to have a session; [`Live::connecting`](super::Live::connecting) has counted it.
    pub(super) fn wanted(&mut self, index: usize) {
        self.counted[index] = true;
        match self.slots[index].conn.as_ref().map(|conn| &conn.phase) {
            Some(Phase::Open) => self.settled(index),
            // It was to go, and waits for nothing but the other side's word.
            Some(Phase::Closing) => {
                self.gone(index);
                self.to_connect.push_back(index as u32);
            }
            Some(_) => {}
            None => self.to_connect.push_back(index as u32),
        }
    }

    /// Begins further connections, as far as they may be under way at once.
    pub(super) fn connect_more(&mut self) {
        while self.opening < self.max_opening {
            let Some(index) = self.to_connect.pop_front() else { return };
            let index = index as usize;
            if self.slots[index].conn.is_some() {
                continue;
            }
            self.slots[index].generation = self.slots[index].generation.wrapping_add(1);
            self.opening += 1;
            match self.socket(index) {
                Ok(stream) => {
                    let now = self.live.now_micros();
                    self.slots[index].conn = Some(Conn::new(stream, now));
                    self.at(now + OPENING_MICROS_MAX, index, Act::GiveUp);
                }
                Err(error) => self.failed(index, &error.to_string()),
            }
        }
    }

    /// A socket that connects, watched by epoll.
    fn socket(&self, index: usize) -> io::Result<TcpStream> {
        let address = self.target.address;
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        let slot = &self.slots[index];
        if let IpAddr::V4(to) = address.ip()
            && to.is_loopback()
        {
            let source = (slot.index as u32).wrapping_add(slot.generation) % SOURCES;
            let from = Ipv4Addr::from_bits(u32::from(Ipv4Addr::LOCALHOST) + source);
            rustix::net::bind(&socket, &SocketAddr::from((from, 0)))?;
        }
        rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let data = EventData::new_u64(u64::from(slot.generation) << 32 | index as u64);
        epoll::add(&self.epoll, &socket, data, EventFlags::IN | EventFlags::OUT)?;
        Ok(socket.into())
    }

    pub(super) fn upgrade(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let Some(conn) = &mut slot.conn else { return };
        let key = generate_key();
        let Target { path, host, .. } = &self.target;
        let join = if path.contains('?') { '&' } else { '?' };
        let acks = if self.target.client_acks { "client" } else { "transport" };
        let device = slot.place.device.as_ref().map_or_else(String::new, |device| format!("&device={device}"));
        let request = format!(
            "GET {path}{join}ackMode={acks}{device} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\
             Authorization: Bearer {}\r\nUser-Agent: pushgate-stress/{}\r\n\r\n",
            slot.place.token,
            env!("CARGO_PKG_VERSION")
        );
        conn.out.extend_from_slice(request.as_bytes());
        conn.phase = Phase::Upgrading(key);
        self.flush(index);
    }

    pub(super) fn opened(&mut self, index: usize, now: u64) {
        self.opening -= 1;
        self.tally.connected += 1;
        if let Some(conn) = &self.slots[index].conn {
            self.tally.connect.saturating_record((now - conn.began_micros).max(1));
        }
        self.live.open.fetch_add(1, Ordering::Relaxed);
        self.settled(index);
        self.take_part(index, now);
    }

    /// The attempt that was asked for has come to something.
    fn settled(&mut self, index: usize) {
        if std::mem::take(&mut self.counted[index]) {
            self.live.connecting.fetch_sub(1, Ordering::Release);
        }
    }

    /// A connection had its time to become a session.
    pub(super) fn give_up(&mut self, index: usize) {
        let phase = self.slots[index].conn.as_ref().map(|conn| &conn.phase);
        if phase.is_some_and(|phase| !matches!(phase, Phase::Open | Phase::Closing)) {
            self.failed(index, "timed out");
        }
    }

    /// An attempt to connect failed; or a session's other side breaks the protocol, which is no failed attempt.
    pub(super) fn failed(&mut self, index: usize, reason: &str) {
        let phase = self.slots[index].conn.as_ref().map(|conn| &conn.phase);
        let (open, closing) = (phase == Some(&Phase::Open), phase == Some(&Phase::Closing));
        if open || closing {
            *self.tally.errors.entry(reason.to_owned()).or_default() += 1;
            return self.ended(index, open.then_some(1002));
        }
        *self.tally.failures.entry(reason.to_owned()).or_default() += 1;
        self.opening -= 1;
        self.settled(index);
        self.gone(index);
    }
}
