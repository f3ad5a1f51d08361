//! One thread of a fleet: an epoll over its share of the sessions, a heap of what is due, and one buffer for all.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    io,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
};

use rustix::{
    event::epoll::{self, EventData, EventFlags},
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec},
};

use super::{
    Command, Doing, Live, Mailbox, Target,
    slot::{End, Phase, Slot, Taken},
    tally::{Harvest, SlotReport, Tally},
};
use crate::stress::{track::Track, wire};

/// How long the other side's close frame is waited for.
const CLOSING_MICROS_MAX: u64 = 2_000_000;
/// What is read at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// The events that are taken at once.
const EVENTS: usize = 1024;
/// What wakes the thread that is no session: the mailbox and the timer.
const WAKE: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// What a session does at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// Give up on a connection that is no session yet.
    GiveUp,
    /// Drop a connection whose other side does not close.
    Drop,
    /// Send an echo.
    Echo,
    /// Go away.
    Leave,
    /// Come back.
    Return,
}

/// What is due, for which slot, in which of its connections.
type Due = Reverse<(u64, u32, u32, Act)>;

pub struct Shard {
    pub target: Target,
    pub slots: Vec<Slot>,
    mailbox: Arc<Mailbox>,
    pub live: Arc<Live>,
    pub epoll: OwnedFd,
    timer: OwnedFd,
    /// What the timer is set to.
    armed_micros: Option<u64>,
    due: BinaryHeap<Due>,
    /// Slots that are to connect, in order.
    pub to_connect: VecDeque<u32>,
    /// Connections that are no session yet, and how many there may be.
    pub opening: usize,
    pub max_opening: usize,
    /// Slots whose first connection [`Live::connecting`] counts.
    pub counted: Vec<bool>,
    run: u32,
    pub tally: Tally,
    pub doing: Option<Doing>,
    buffer: Vec<u8>,
    random: u64,
}

impl Shard {
    pub fn new(target: Target, slots: Vec<Slot>, mailbox: Arc<Mailbox>, live: Arc<Live>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &mailbox.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self {
            counted: vec![false; slots.len()],
            target,
            slots,
            mailbox,
            live,
            epoll,
            timer,
            armed_micros: None,
            due: BinaryHeap::new(),
            to_connect: VecDeque::new(),
            opening: 0,
            max_opening: 1,
            run: 0,
            tally: Tally::default(),
            doing: None,
            buffer: vec![0; BUFFER_BYTES],
            // Must not be zero.
            random: u64::from_le_bytes(seed) | 1,
        })
    }

    /// Runs until it is told to end.
    pub fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            self.arm();
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    // Nothing can be received any more: what is missing is reported as lost.
                    tracing::error!(%error, "a thread of the fleet ends");
                    return;
                }
            }
            let (mut told, mut fired) = (false, false);
            for event in &events {
                match { event.data }.u64() {
                    WAKE => told = true,
                    TIMER => fired = true,
                    data => self.ready(data as u32, (data >> 32) as u32, event.flags),
                }
            }
            if told && !self.obey() {
                return;
            }
            self.act(fired);
            self.connect_more();
        }
    }

    /// Sets the timer to what is due next.
    fn arm(&mut self) {
        let next = self.due.peek().map(|Reverse((at, ..))| *at);
        if next == self.armed_micros {
            return;
        }
        let wait = next.map_or(0, |at| at.saturating_sub(self.live.now_micros()).max(1));
        let span = |micros: u64| Timespec {
            tv_sec: i64::try_from(micros / 1_000_000).unwrap_or(i64::MAX),
            tv_nsec: (micros % 1_000_000 * 1000) as _,
        };
        let timer = Itimerspec { it_interval: span(0), it_value: span(wait) };
        // A descriptor of our own and a sound span: it cannot be refused.
        let _ = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer);
        self.armed_micros = next;
    }

    /// Does what is due.
    fn act(&mut self, fired: bool) {
        if fired {
            let mut expirations = [0; 8];
            let _ = rustix::io::read(&self.timer, &mut expirations);
            self.armed_micros = None;
        }
        let now = self.live.now_micros();
        while let Some(Reverse((at, index, generation, act))) = self.due.peek().copied() {
            if at > now {
                break;
            }
            self.due.pop();
            let index = index as usize;
            if self.slots[index].generation != generation {
                continue;
            }
            match act {
                Act::GiveUp => self.give_up(index),
                Act::Drop => self.gone(index),
                Act::Echo => self.echo_is_due(index, at),
                Act::Leave => self.leave(index),
                Act::Return => self.to_connect.push_back(index as u32),
            }
        }
    }

    /// Has a slot do something at a time, in its present connection.
    pub fn at(&mut self, micros: u64, index: usize, act: Act) {
        self.due.push(Reverse((micros, index as u32, self.slots[index].generation, act)));
    }

    /// Takes commands. `false`: to end.
    fn obey(&mut self) -> bool {
        let mut counter = [0; 8];
        let _ = rustix::io::read(&self.mailbox.wake, &mut counter);
        let commands = std::mem::take(&mut *self.mailbox.commands.lock());
        for command in commands {
            match command {
                Command::Begin { run, lanes } => self.begin(run, lanes),
                Command::Connect { max_concurrent } => {
                    self.max_opening = max_concurrent;
                    (0..self.slots.len()).for_each(|index| self.wanted(index));
                }
                Command::Close => {
                    self.doing = None;
                    self.to_connect.clear();
                    (0..self.slots.len()).for_each(|index| self.close(index));
                }
                Command::Expect(counts) => {
                    for slot in &mut self.slots {
                        slot.expected = counts.get(slot.index).copied().filter(|count| *count > 0);
                    }
                }
                Command::Do(doing) => self.start(doing),
                Command::Collect { tell, keep } => {
                    let tally = if keep { Tally::default() } else { std::mem::take(&mut self.tally) };
                    let _ = tell.send(Harvest { slots: self.slot_reports(), tally });
                }
                Command::End => return false,
            }
        }
        true
    }

    fn begin(&mut self, run: u32, lanes: usize) {
        (self.run, self.tally, self.doing) = (run, Tally::default(), None);
        for slot in &mut self.slots {
            slot.tracks = vec![Default::default(); lanes];
            (slot.echoes, slot.echoes_back, slot.overdue_micros, slot.expected) = (0, 0, None, None);
        }
    }

    fn slot_reports(&self) -> Vec<SlotReport> {
        let slots = self.slots.iter().map(|slot| SlotReport {
            index: slot.index,
            open: slot.is_open(),
            user: slot.user.clone(),
            device: slot.device.clone(),
            echoes: slot.echoes,
            overdue_micros: slot.overdue_micros,
            tracks: slot.tracks.clone(),
        });
        slots.collect()
    }

    /// Something happened on a session's socket.
    fn ready(&mut self, index: u32, generation: u32, flags: EventFlags) {
        let index = index as usize;
        if self.slots[index].generation != generation {
            return;
        }
        let Some(conn) = &mut self.slots[index].conn else { return };
        if conn.phase == Phase::Connecting {
            match rustix::net::sockopt::socket_error(&conn.stream) {
                Ok(Ok(())) if flags.contains(EventFlags::OUT) => self.upgrade(index),
                Ok(Ok(())) => {}
                Ok(Err(error)) | Err(error) => self.failed(index, &io::Error::from(error).to_string()),
            }
            return;
        }
        if flags.contains(EventFlags::OUT) {
            self.flush(index);
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            self.read(index);
        }
    }

    fn read(&mut self, index: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = self.slots[index].conn.as_mut().map(|conn| conn.read(&mut buffer));
        match read {
            Some(Ok(Some(0)) | Err(_)) => self.lost(index),
            Some(Ok(Some(count))) => {
                let now = self.live.now_micros();
                let taken = self.slots[index].take(&buffer[..count], self.run, now, &mut self.tally);
                self.taken(index, taken, now);
            }
            Some(Ok(None)) | None => {}
        }
        self.buffer = buffer;
    }

    fn taken(&mut self, index: usize, taken: Taken, now: u64) {
        if taken.opened {
            self.opened(index, now);
        }
        if taken.heard > 0 {
            self.live.heard_micros.store(now, Ordering::Relaxed);
        }
        if taken.new > 0 {
            self.live.last_micros.store(now, Ordering::Relaxed);
            self.live.came.fetch_add(taken.new, Ordering::Release);
            let slot = &mut self.slots[index];
            let count = slot.tracks.first().map_or(0, Track::count);
            if slot.expected.is_some_and(|expected| count >= expected) {
                slot.expected = None;
                let began = slot.conn.as_ref().map_or(now, |conn| conn.began_micros);
                self.tally.replay.saturating_record((now - began).max(1));
            }
            self.echo_more(index);
        }
        let (mask, acks) = (self.mask(), self.target.client_acks);
        let Some(conn) = &mut self.slots[index].conn else { return };
        // Nothing follows a close frame (RFC 6455 section 5.5.1).
        let closing = conn.phase == Phase::Closing;
        if let Some(pong) = taken.pong.as_ref().filter(|_| !closing) {
            conn.say(wire::PONG, mask, pong);
        }
        if let Some(offset) = taken.ack.filter(|_| acks && !closing) {
            conn.say(wire::TEXT, mask, format!("{{\"type\":\"ack\",\"offset\":{offset}}}").as_bytes());
        }
        match taken.end {
            None => self.flush(index),
            Some(End::Closed(code)) => {
                if !closing {
                    let back = code.to_be_bytes();
                    // 1005 stands for no code, and is never sent.
                    conn.say(wire::CLOSE, mask, if code == 1005 { &[] } else { &back });
                    // It ends with this, whether or not the answer gets out.
                    let _ = conn.flush();
                }
                self.ended(index, (!closing).then_some(code));
            }
            Some(End::Wrong(wrong)) => self.failed(index, &wrong.to_string()),
            Some(End::Refused(code)) => self.failed(index, &code),
        }
    }

    /// Writes what is queued, and asks for room where it does not all fit.
    pub fn flush(&mut self, index: usize) {
        let Some(conn) = &mut self.slots[index].conn else { return };
        match conn.flush() {
            Ok(done) if conn.wants_room == done => {
                conn.wants_room = !done;
                let data = EventData::new_u64(u64::from(self.slots[index].generation) << 32 | index as u64);
                let room = if done { EventFlags::empty() } else { EventFlags::OUT };
                let Some(conn) = &self.slots[index].conn else { return };
                if epoll::modify(&self.epoll, conn, data, EventFlags::IN | room).is_err() {
                    self.lost(index);
                }
            }
            Ok(_) => {}
            Err(_) => self.lost(index),
        }
    }

    /// Closes a session in order; a connection that is none yet, at once.
    pub fn close(&mut self, index: usize) {
        let mask = self.mask();
        let Some(conn) = &mut self.slots[index].conn else { return };
        match conn.phase {
            Phase::Open => {
                conn.say(wire::CLOSE, mask, &1000u16.to_be_bytes());
                conn.phase = Phase::Closing;
                let now = self.live.now_micros();
                self.at(now + CLOSING_MICROS_MAX, index, Act::Drop);
                self.flush(index);
            }
            Phase::Closing => {}
            _ => self.failed(index, "given up"),
        }
    }

    /// The connection broke.
    pub fn lost(&mut self, index: usize) {
        match self.slots[index].conn.as_ref().map(|conn| &conn.phase) {
            Some(Phase::Open) => self.ended(index, Some(1006)),
            Some(Phase::Closing) => self.ended(index, None),
            Some(_) => self.failed(index, "the connection was lost"),
            None => {}
        }
    }

    /// A connection ended; `code`, where it was not asked to.
    pub fn ended(&mut self, index: usize, code: Option<u16>) {
        let phase = self.slots[index].conn.as_ref().map(|conn| &conn.phase);
        if phase.is_some_and(|phase| !matches!(phase, Phase::Open | Phase::Closing)) {
            let code = code.unwrap_or_default();
            return self.failed(index, &format!("closed with {code}"));
        }
        if let Some(code) = code {
            self.tally.left.push(self.live.now_micros());
            *self.tally.closes.entry(code).or_default() += 1;
        }
        self.gone(index);
    }

    /// Drops a connection, whatever it is at.
    pub fn gone(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if slot.conn.as_ref().is_some_and(|conn| matches!(conn.phase, Phase::Open | Phase::Closing)) {
            self.live.open.fetch_sub(1, Ordering::Release);
        }
        // Closing its descriptor takes it out of the epoll.
        slot.conn = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.came_off(index);
    }

    /// What marks this run.
    pub fn run_tag(&self) -> u32 {
        self.run
    }

    /// The next random number (xorshift64*; masks and pauses need no better one).
    pub fn next_random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A masking key.
    pub fn mask(&mut self) -> [u8; 4] {
        ((self.next_random() >> 32) as u32).to_le_bytes()
    }
}
