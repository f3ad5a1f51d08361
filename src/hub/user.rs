//! A user in memory: his devices with their cursors, what of his log waits, his sessions.
//!
//! The state's lock is the log's lock: under it offsets are assigned, records staged and handed to Live sessions, and
//! sessions change between Pulling and Live. No system call and no await happens under it.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};

use super::handle::Handle;
use crate::{
    clock::Instant,
    store::{Counters, DeviceRow, Hold, IndexEntry, LogObserver, Mailbox, StoreError},
    types::{Device, Offset, UnixMillis, UserId},
};

/// A user. Kept in memory while he has sessions or writes under way, and a while longer.
pub struct User {
    /// Who.
    pub id: UserId,
    state: Mutex<UserState>,
    /// One load at a time.
    pub(super) loading: tokio::sync::Mutex<()>,
    /// See [`User::generation`].
    generation: AtomicU64,
    /// Whether it waits in the queue of those that may be forgotten.
    pub(super) idle: AtomicBool,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A device of a user.
#[derive(Debug)]
pub struct DeviceState {
    /// Its name.
    pub name: Device,
    /// What is stored of it.
    pub row: DeviceRow,
    /// Whether its creation is on disk.
    pub durable: bool,
}

/// See [`User`].
#[derive(Debug, Default)]
pub struct UserState {
    /// The last assigned offset.
    pub last: Offset,
    /// Everything up to here is on disk and readable.
    pub applied: Offset,
    /// His devices.
    pub devices: Vec<DeviceState>,
    /// What waits, by offset: staged or stored, and not yet confirmed by every device.
    pub index: VecDeque<IndexEntry>,
    /// The bytes of what waits.
    pub bytes: u64,
    /// His sessions on this node.
    pub sessions: Vec<Arc<Handle>>,
    /// Whether consumers were told that he is online.
    pub online: bool,
    /// When his last session left.
    pub left_at: Option<Instant>,
    /// Cloned into every write of his that is under way.
    pub hold: Hold,
    /// Whether a session may be Pulling. True is a hint, false a fact.
    pub maybe_pulling: bool,
}

impl User {
    /// A user of whom nothing is known yet.
    pub fn new(id: UserId) -> Self {
        Self {
            id,
            state: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            generation: AtomicU64::new(0),
            idle: AtomicBool::new(false),
        }
    }

    /// His state. Without a [`User::generation`] it is empty.
    pub fn state(&self) -> MutexGuard<'_, UserState> {
        self.state.lock()
    }

    /// The generation of the store that his state was read in; 0: it was not read. Where it is not the store's, he is
    /// stale: what is in memory may differ from the disk. Changes under the state's lock.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// His state is that of this generation; the caller holds its lock.
    pub(super) fn set_generation(&self, generation: u64) {
        self.generation.store(generation, Ordering::Release);
    }

    /// Takes over what the store has of him, of whom nothing is in memory.
    pub(super) fn load(&self, mailbox: Mailbox, generation: u64) {
        let mut state = self.state.lock();
        state.last = mailbox.counters.last;
        state.applied = mailbox.counters.last;
        state.devices =
            mailbox.devices.into_iter().map(|(name, row)| DeviceState { name, row, durable: true }).collect();
        state.bytes = mailbox.index.iter().map(|entry| u64::from(entry.bytes)).sum();
        state.index = mailbox.index.into();
        self.set_generation(generation);
    }

    /// Whether nothing of him is under way; the caller makes sure that nobody else holds him.
    pub fn is_forgettable(&self) -> bool {
        let state = self.state.lock();
        state.sessions.is_empty() && !state.online && Arc::strong_count(&state.hold) == 1
    }

    /// What he weighs in memory, in index entries.
    pub fn weight(&self) -> usize {
        16 + self.state.lock().index.len()
    }
}

impl UserState {
    /// The counters as they are now.
    pub fn counters(&self) -> Counters {
        Counters { count: u32::try_from(self.index.len()).unwrap_or(u32::MAX), bytes: self.bytes, last: self.last }
    }

    /// A device, by name.
    pub fn device(&mut self, name: &Device) -> Option<&mut DeviceState> {
        self.devices.iter_mut().find(|device| device.name == *name)
    }

    /// How many wait above `position`.
    pub fn pending_above(&self, position: Offset) -> usize {
        self.index.len() - self.index.partition_point(|entry| entry.offset <= position)
    }

    /// Takes out what every device has confirmed and no session has yet to take. (Where another session of its device
    /// was faster, one that still pulls finds what it lacks only in the store.)
    pub fn take_confirmed(&mut self) -> Vec<IndexEntry> {
        let Some(mut least) = self.devices.iter().map(|device| device.row.cursor).min() else { return Vec::new() };
        if self.maybe_pulling {
            for session in self.sessions.iter().filter(|session| session.is_pulling()) {
                least = least.min(session.core().session.delivery.position());
            }
        }
        let count = self.index.partition_point(|entry| entry.offset <= least);
        self.take(0..count)
    }

    /// Takes out at most `count` of the oldest that at least one device has confirmed.
    pub fn take_oldest_confirmed(&mut self, count: usize) -> Vec<IndexEntry> {
        let Some(most) = self.devices.iter().map(|device| device.row.cursor).max() else { return Vec::new() };
        let confirmed = self.index.partition_point(|entry| entry.offset <= most);
        self.take(0..confirmed.min(count))
    }

    /// Takes out what has expired.
    pub fn take_expired(&mut self, now: UnixMillis) -> Vec<IndexEntry> {
        self.take_if(|entry| entry.expires_at <= now)
    }

    /// Takes out these; `offsets` ascend.
    pub fn take_offsets(&mut self, offsets: &[Offset]) -> Vec<IndexEntry> {
        self.take_if(|entry| offsets.binary_search(&entry.offset).is_ok())
    }

    /// Wakes the tasks of sessions that pull.
    pub(super) fn wake_pulling(&mut self) {
        if !self.maybe_pulling {
            return;
        }
        self.maybe_pulling = false;
        for session in self.sessions.iter().filter(|session| session.is_pulling()) {
            self.maybe_pulling = true;
            session.wake();
        }
    }

    fn take_if(&mut self, wanted: impl Fn(&IndexEntry) -> bool) -> Vec<IndexEntry> {
        let mut taken = Vec::new();
        self.index.retain(|entry| {
            let take = wanted(entry);
            if take {
                taken.push(*entry);
            }
            !take
        });
        self.bytes -= taken.iter().map(|entry| u64::from(entry.bytes)).sum::<u64>();
        taken
    }

    fn take(&mut self, range: std::ops::Range<usize>) -> Vec<IndexEntry> {
        let taken: Vec<_> = self.index.drain(range).collect();
        self.bytes -= taken.iter().map(|entry| u64::from(entry.bytes)).sum::<u64>();
        if self.index.is_empty() {
            self.index = VecDeque::new();
        }
        taken
    }
}

impl LogObserver for User {
    /// More of the log is readable: sessions that pull look again.
    fn applied(&self, upto: Offset) {
        let mut state = self.state.lock();
        state.applied = state.applied.max(upto);
        state.wake_pulling();
    }

    /// What was staged is not on disk and never will be (or that is found when he is read anew): sessions that wait for it
    /// look again.
    fn failed(&self, error: &StoreError) {
        let mut state = self.state.lock();
        let applied = state.applied;
        if !matches!(error, StoreError::Recovering(_)) {
            state.last = applied;
        }
        while state.index.back().is_some_and(|entry| entry.offset > applied) {
            if let Some(entry) = state.index.pop_back() {
                state.bytes -= u64::from(entry.bytes);
            }
        }
        state.wake_pulling();
    }
}
