//! The outbox of one session, reached as replies and broadcasts reach it: through the session's handle, over a real TCP
//! connection of loopback. The peer reads between the measured stretches, never within one, so that what is counted is
//! the pusher's own work and the kernel's, and no other thread takes part.

use std::{
    io::{self, IoSlice, Read as _},
    net::{TcpListener, TcpStream as Peer},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use pushgate::{
    clock::Clock,
    hub::{self, Hub, Wire},
    limits::Limits,
    protocol::server::Draft,
    session::HeartbeatConfig,
    store::{self, Store},
    types::{ByteSize, Offset},
};
use rustix::net::sockopt;
use tokio::{net::TcpStream, runtime::Runtime};

use super::made::{self, json_notification};

/// Frames that leave in one write.
const PENDING: usize = 32;
/// What is written before the peer reads, in frames: it stays well below the sockets' buffers.
const STRETCH: u64 = 128;
/// What is appended while nothing is written, in frames.
const STALLED_STRETCH: u64 = 1024;
/// Enough of it that the kernel cannot take it all.
const STOPPER_BYTES: usize = 1024 * 1024;
/// What the kernel is asked to hold of a connection at either end, where a stretch must fit in; it may give less.
const ROOMY_BYTES: usize = 1024 * 1024;
/// The same, where little must fit in.
const TIGHT_BYTES: usize = 16 * 1024;
const TOO_SMALL: &str = "the kernel's buffers are too small for a stretch";

/// A socket as the daemon writes to it, with a count of the writes.
#[derive(Clone)]
struct Line {
    stream: Arc<TcpStream>,
    writes: Arc<AtomicU64>,
}

impl Wire for Line {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        match slices {
            [one] => self.stream.try_write(one),
            many => self.stream.try_write_vectored(many),
        }
    }
}

/// A connection, the daemon's end and the client's.
struct Pair {
    runtime: Runtime,
    line: Line,
    peer: Peer,
    /// Bytes that the peer has read.
    read: u64,
    buffer: Vec<u8>,
}

impl Pair {
    /// `buffer_bytes` is what the kernel is asked to hold at either end.
    fn new(buffer_bytes: usize) -> io::Result<Pair> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let peer = Peer::connect(listener.local_addr()?)?;
        peer.set_read_timeout(Some(Duration::from_secs(10)))?;
        let (stream, _) = listener.accept()?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        sockopt::set_socket_send_buffer_size(&stream, buffer_bytes)?;
        sockopt::set_socket_recv_buffer_size(&peer, buffer_bytes)?;
        let stream = {
            let _entered = runtime.enter();
            Arc::new(TcpStream::from_std(stream)?)
        };
        runtime.block_on(stream.writable())?;
        let line = Line { stream, writes: Arc::default() };
        Ok(Pair { runtime, line, peer, read: 0, buffer: vec![0; 256 * 1024] })
    }

    /// One write of all that is in `slices`, as the outbox would do it. Returns its bytes.
    fn write(&self, slices: &[IoSlice<'_>]) -> u64 {
        let written = self.line.try_write(slices).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(written, slices.iter().map(|slice| slice.len()).sum::<usize>(), "{TOO_SMALL}");
        written as u64
    }

    /// Has the peer read until it has had `total` bytes in all.
    fn read_up_to(&mut self, total: u64) -> io::Result<()> {
        while self.read < total {
            match self.peer.read(&mut self.buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => self.read += bytes as u64,
            }
        }
        Ok(())
    }
}

/// A session over such a connection.
struct Session {
    pair: Pair,
    handle: Arc<hub::Handle>,
    _hub: Hub,
}

impl Session {
    fn new(buffer_bytes: usize) -> io::Result<Session> {
        let pair = Pair::new(buffer_bytes)?;
        // More than the daemon's own bound: a stalled session is to be measured, not to be closed. What goes through here
        // is never stored.
        let limits = Limits { outbox_bytes: ByteSize::mib(16), ..Limits::default() };
        let store = Store::open_memory(&store::Config::default(), Clock::system());
        let hub = made::hub(store, limits, HeartbeatConfig::default()).map_err(io::Error::other)?;
        let granted = made::granted(&hub, "somebody").map_err(io::Error::other)?;
        let peer = hub::Peer { remote: pair.peer.local_addr()?, user_agent: None };
        let attached = pair.runtime.block_on(hub.attach(granted, peer, Arc::new(pair.line.clone())));
        let handle = attached.map_err(io::Error::other)?;
        let mut session = Session { pair, handle, _hub: hub };
        session.drain()?;
        Ok(session)
    }

    fn is_empty(&self) -> bool {
        self.handle.core().outbox.is_empty()
    }

    fn is_stalled(&self) -> bool {
        self.handle.core().outbox.stalled_since().is_some()
    }

    /// Has everything written that waits, and read.
    fn drain(&mut self) -> io::Result<()> {
        loop {
            let written = self.handle.core().counts.bytes_sent;
            self.pair.read_up_to(written)?;
            if self.is_empty() {
                return Ok(());
            }
            if self.handle.is_closing() {
                return Err(io::Error::other("the session was closed"));
            }
            self.pair.runtime.block_on(self.pair.line.stream.writable())?;
            self.handle.resume();
        }
    }

    fn writes(&self) -> u64 {
        self.pair.line.writes.load(Ordering::Relaxed)
    }
}

/// Times `iterations` of `work` in stretches of `most`, with `between` untimed behind each.
fn in_stretches<T>(
    state: &mut T,
    iterations: u64,
    most: u64,
    mut work: impl FnMut(&mut T),
    mut between: impl FnMut(&mut T) -> io::Result<()>,
) -> Duration {
    let (mut left, mut took) = (iterations, Duration::ZERO);
    while left > 0 {
        let stretch = left.min(most);
        let began = Instant::now();
        for _ in 0..stretch {
            work(state);
        }
        took += began.elapsed();
        between(state).unwrap_or_else(|error| panic!("{error}"));
        left -= stretch;
    }
    took
}

/// The bare write.
struct Floor {
    pair: Pair,
    sent: u64,
}

impl Floor {
    fn time(&mut self, iterations: u64, stretch: u64, slices: &[IoSlice<'_>]) -> Duration {
        let work = |floor: &mut Floor| floor.sent += floor.pair.write(slices);
        in_stretches(self, iterations, stretch, work, |floor| floor.pair.read_up_to(floor.sent))
    }
}

impl Session {
    fn push(&self, frame: &Bytes) {
        self.handle.reply(Bytes::clone(frame));
    }

    /// `pushes` frames and a flush, each time.
    fn time(&mut self, iterations: u64, pushes: usize, frame: &Bytes) -> Duration {
        let before = self.writes();
        let work = |session: &mut Session| {
            for _ in 0..pushes {
                session.push(frame);
            }
            session.handle.flush();
        };
        let took = in_stretches(self, iterations, STRETCH / pushes as u64, work, |session| {
            assert!(session.is_empty(), "{TOO_SMALL}");
            session.drain()
        });
        assert_eq!(self.writes() - before, iterations, "what was pending did not leave in one write");
        took
    }

    /// Pushes and flushes to a socket of which the kernel takes nothing.
    fn time_stalled(&mut self, iterations: u64, frame: &Bytes, stopper: &Bytes) -> io::Result<Duration> {
        let stall = |session: &mut Session| {
            session.drain()?;
            session.push(stopper);
            session.handle.flush();
            assert!(session.is_stalled(), "the kernel took everything");
            Ok::<_, io::Error>(session.writes())
        };
        let mut writes = stall(self)?;
        let work = |session: &mut Session| {
            session.push(frame);
            session.handle.flush();
        };
        let took = in_stretches(self, iterations, STALLED_STRETCH, work, |session| {
            assert_eq!(session.writes(), writes, "a stalled socket was written to");
            writes = stall(session)?;
            Ok(())
        });
        Ok(took)
    }
}

/// The bare write, and what the outbox makes of it.
pub fn outbox(c: &mut Criterion) {
    let failed = |error: io::Error| -> ! { panic!("{error}") };
    let frame = Draft::text(&json_notification(256), false, false).seal(Offset::ZERO);
    let mut floor = Floor { pair: Pair::new(ROOMY_BYTES).unwrap_or_else(|error| failed(error)), sent: 0 };
    let mut session = Session::new(ROOMY_BYTES).unwrap_or_else(|error| failed(error));
    let mut stalled = Session::new(TIGHT_BYTES).unwrap_or_else(|error| failed(error));

    let mut group = c.benchmark_group("outbox");
    group.throughput(Throughput::Elements(1));
    let one = [IoSlice::new(&frame)];
    group.bench_function("floor/write", |b| b.iter_custom(|n| floor.time(n, STRETCH, &one)));
    group.bench_function("idle", |b| b.iter_custom(|n| session.time(n, 1, &frame)));

    group.throughput(Throughput::Elements(PENDING as u64));
    let many = [IoSlice::new(&frame); PENDING];
    let stretch = STRETCH / PENDING as u64;
    group.bench_function("floor/writev_of_32", |b| b.iter_custom(|n| floor.time(n, stretch, &many)));
    group.bench_function("32_in_one_write", |b| b.iter_custom(|n| session.time(n, PENDING, &frame)));

    // What is timed is a small part of what this takes: the socket has to be read empty again and again.
    group.throughput(Throughput::Elements(1)).measurement_time(Duration::from_millis(200));
    let stopper = Bytes::from(vec![b'x'; STOPPER_BYTES]);
    group.bench_function("stalled", |b| {
        b.iter_custom(|n| stalled.time_stalled(n, &frame, &stopper).unwrap_or_else(|error| failed(error)));
    });
    group.finish();
}
