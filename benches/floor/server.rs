//! The floor under every push gateway: a bare epoll loop that writes a ready frame to each socket. Nothing is checked,
//! stored, confirmed or timed; what it costs is what the kernel costs.
//!
//! It shakes hands as RFC 6455 asks, so that the same clients can hold on to it, and takes its orders over a second
//! connection: a byte (what), four (to whom), four (how long), and the bytes to write as they are. `one` writes to one
//! socket, `all` to each, `usage` answers with the CPU time in ns and the resident bytes, eight bytes each.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::OwnedFd,
};

use rustix::event::epoll::{self, EventData, EventFlags};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

pub const ONE: u8 = 0;
pub const ALL: u8 = 1;
pub const USAGE: u8 = 2;

const LISTENER: u64 = u64::MAX;
const ORDERS: u64 = u64::MAX - 1;

struct Peer {
    stream: TcpStream,
    open: bool,
    /// The head of the request, so far.
    head: Vec<u8>,
    /// What the kernel did not take.
    left: Vec<u8>,
}

struct Floor {
    epoll: OwnedFd,
    peers: Vec<Option<Peer>>,
    /// Peers in the order in which they became sessions.
    sessions: Vec<usize>,
    buffer: Vec<u8>,
}

/// Runs until its orders end. Prints the two ports.
pub fn serve() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let orders = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{} {}", listener.local_addr()?.port(), orders.local_addr()?.port());
    let (mut orders, _) = orders.accept()?;
    orders.set_nodelay(true)?;
    listener.set_nonblocking(true)?;
    // A bare loop still has to take connections as fast as they come.
    rustix::net::listen(&listener, 4096)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    epoll::add(&epoll, &orders, EventData::new_u64(ORDERS), EventFlags::IN)?;
    let mut floor = Floor { epoll, peers: Vec::new(), sessions: Vec::new(), buffer: vec![0; 64 * 1024] };
    let mut events = Vec::with_capacity(1024);
    let mut pending = Vec::new();
    loop {
        events.clear();
        match epoll::wait(&floor.epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            match event.data.u64() {
                LISTENER => floor.accept(&listener)?,
                ORDERS => {
                    let count = orders.read(&mut floor.buffer)?;
                    if count == 0 {
                        return Ok(());
                    }
                    pending.extend_from_slice(&floor.buffer[..count]);
                    let done = floor.obey(&pending, &mut orders)?;
                    pending.drain(..done);
                }
                index => floor.ready(index as usize, event.flags),
            }
        }
    }
}

impl Floor {
    fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        while let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            epoll::add(&self.epoll, &stream, EventData::new_u64(self.peers.len() as u64), EventFlags::IN)?;
            self.peers.push(Some(Peer { stream, open: false, head: Vec::new(), left: Vec::new() }));
        }
        Ok(())
    }

    /// Carries out every order that is whole. How many bytes they had.
    fn obey(&mut self, orders: &[u8], answer: &mut TcpStream) -> io::Result<usize> {
        let mut done = 0;
        while let Some(head) = orders[done..].first_chunk::<9>() {
            let whom = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let length = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) as usize;
            let Some(frame) = orders.get(done + 9..done + 9 + length) else { break };
            match head[0] {
                ONE => {
                    if let Some(index) = self.sessions.get(whom).copied() {
                        self.write(index, frame);
                    }
                }
                ALL => (0..self.sessions.len()).for_each(|session| self.write(self.sessions[session], frame)),
                _ => {
                    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
                    let nanos = cpu.tv_sec as u64 * 1_000_000_000 + cpu.tv_nsec as u64;
                    let statm = std::fs::read_to_string("/proc/self/statm")?;
                    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
                    answer.write_all(&nanos.to_be_bytes())?;
                    answer.write_all(&(pages * rustix::param::page_size() as u64).to_be_bytes())?;
                }
            }
            done += 9 + length;
        }
        Ok(done)
    }

    fn write(&mut self, index: usize, frame: &[u8]) {
        let Some(peer) = &mut self.peers[index] else { return };
        if !peer.left.is_empty() {
            return peer.left.extend_from_slice(frame);
        }
        let written = match peer.stream.write(frame) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            // Its end shows when it is read.
            Err(_) => return,
        };
        if written < frame.len() {
            peer.left.extend_from_slice(&frame[written..]);
            self.watch(index, EventFlags::IN | EventFlags::OUT);
        }
    }

    fn watch(&self, index: usize, flags: EventFlags) {
        if let Some(peer) = &self.peers[index] {
            // Its own descriptor, which is there.
            let _ = epoll::modify(&self.epoll, &peer.stream, EventData::new_u64(index as u64), flags);
        }
    }

    fn ready(&mut self, index: usize, flags: EventFlags) {
        if flags.contains(EventFlags::OUT) {
            let left = self.peers[index].as_mut().map(|peer| std::mem::take(&mut peer.left)).unwrap_or_default();
            self.watch(index, EventFlags::IN);
            self.write(index, &left);
        }
        let Some(peer) = &mut self.peers[index] else { return };
        match peer.stream.read(&mut self.buffer) {
            Ok(0) => self.gone(index),
            Ok(_) if peer.open => {}
            Ok(count) => {
                peer.head.extend_from_slice(&self.buffer[..count]);
                if peer.head.ends_with(b"\r\n\r\n") {
                    self.greet(index);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.gone(index),
        }
    }

    fn greet(&mut self, index: usize) {
        let Some(peer) = &mut self.peers[index] else { return };
        let head = String::from_utf8_lossy(&peer.head).into_owned();
        let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap_or_default();
        let accept = derive_accept_key(key.as_bytes());
        peer.open = true;
        peer.head = Vec::new();
        let number = self.sessions.len();
        let hello = format!("{{\"type\":\"auth_success\",\"userId\":\"{number}\"}}");
        let mut answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        )
        .into_bytes();
        answer.extend([0x81, hello.len() as u8]);
        answer.extend_from_slice(hello.as_bytes());
        self.sessions.push(index);
        self.write(index, &answer);
    }

    fn gone(&mut self, index: usize) {
        self.peers[index] = None;
    }
}
