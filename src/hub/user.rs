//! A user in memory: his log, his devices with their cursors, his sessions.
//!
//! The state's lock is his log's lock: under it offsets are assigned, records staged and handed to Live sessions, and
//! sessions change between Pulling and Live. No system call and no await happens under it.

use std::sync::{Arc, atomic::AtomicUsize};

use parking_lot::{Mutex, MutexGuard};

use super::{handle::Handle, log::LogState, shared_log::SharedLog};
use crate::{
    clock::Instant,
    session::{Log, PerMinute},
    store::{DeviceRow, IndexEntry, LogObserver, MemberRow, StoreError},
    types::{Device, LogId, Offset, Topic, UnixMillis, UserId},
};

/// A user. Kept in memory while he has sessions or writes under way, and a while longer.
pub struct User {
    /// Who.
    pub id: UserId,
    state: Mutex<UserState>,
    /// One load at a time.
    pub(super) loading: tokio::sync::Mutex<()>,
    /// What he weighs among those that may be forgotten; 0: he is not one of them. Changes with his shard locked.
    pub(super) idle_weight: AtomicUsize,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A device of a user.
#[derive(Clone, Debug)]
pub struct DeviceState {
    /// Its name.
    pub name: Device,
    /// What is stored of it.
    pub row: DeviceRow,
    /// Whether its creation is on disk.
    pub durable: bool,
    /// What it was handed and ended a live session over without an ack, and how often.
    pub attempts: Option<(Offset, u32)>,
    /// The durable topics that it is in.
    #[allow(clippy::box_collection, reason = "mostly not there, in every device's memory")]
    members: Option<Box<Vec<Member>>>,
}

/// A durable topic that a device is in.
#[derive(Clone, Debug)]
pub struct Member {
    /// Which.
    pub topic: Topic,
    /// What is stored of it.
    pub row: MemberRow,
    /// Whether that is on disk.
    pub durable: bool,
    /// Which attempt to make it one this is; 0: it was read from the store.
    pub attempt: u64,
}

impl DeviceState {
    /// A device that is in no topic.
    pub fn new(name: Device, row: DeviceRow, durable: bool) -> Self {
        Self { name, row, durable, attempts: None, members: None }
    }

    /// The durable topics that it is in.
    pub fn members(&self) -> &[Member] {
        self.members.as_ref().map_or(&[], |members| members)
    }

    /// The same, to be changed.
    pub fn members_mut(&mut self) -> &mut Vec<Member> {
        self.members.get_or_insert_default()
    }

    /// That topic, if it is in it.
    pub fn member(&mut self, topic: &Topic) -> Option<&mut Member> {
        self.members.as_mut()?.iter_mut().find(|member| member.topic == *topic)
    }

    /// Takes over what is newer in memory than on disk; of which topics.
    pub fn merge_members(&mut self, known: &[Member]) -> Vec<Topic> {
        let mut newer = Vec::new();
        // One whose creation failed is none: whoever asked for it has heard.
        for known in known.iter().filter(|known| known.durable) {
            match self.member(&known.topic) {
                Some(stored) if stored.row.cursor >= known.row.cursor => {}
                Some(stored) => {
                    stored.row.cursor = known.row.cursor;
                    newer.push(known.topic.clone());
                }
                None => {
                    self.members_mut().push(known.clone());
                    newer.push(known.topic.clone());
                }
            }
        }
        newer
    }

    /// Whether it lacks something of its durable topics for good that it was not told of: it made room for others.
    pub fn lacks_of(&self, logs: &[Arc<SharedLog>]) -> bool {
        self.members().iter().any(|member| {
            let log = logs.iter().find(|log| log.id.topic() == Some(&member.topic));
            log.is_some_and(|log| log.state().log.lost > member.row.cursor)
        })
    }

    /// Keeps it in those alone.
    pub fn retain_members(&mut self, kept: impl FnMut(&Member) -> bool) {
        if let Some(members) = &mut self.members {
            members.retain(kept);
            if members.is_empty() {
                self.members = None;
            }
        }
    }

    /// Whether its row says that it confirmed the notification of its user's log at `offset`. It did not where it began
    /// later; and what it was moved past, purged or given up, ends at `lost`.
    pub fn confirmed(&self, offset: Offset) -> bool {
        self.row.began < offset && self.row.lost < offset && offset <= self.row.cursor
    }

    /// Its cursor in a log, of which topic where it is one's; `None`: it does not read that.
    fn cursor_mut(&mut self, log: Log, topic: Option<&Topic>) -> Option<&mut Offset> {
        match log {
            Log::User => Some(&mut self.row.cursor),
            Log::Broadcast => Some(&mut self.row.broadcast),
            Log::Topic(_) => self.member(topic?).map(|member| &mut member.row.cursor),
        }
    }

    /// Whether it is past that offset.
    pub fn is_past(&mut self, log: Log, topic: Option<&Topic>, offset: Offset) -> bool {
        self.cursor_mut(log, topic).is_none_or(|cursor| *cursor >= offset)
    }

    /// Moves its cursor in a log up, of which topic where it is one's; false where it is there or beyond, or does not read
    /// that log any more.
    pub fn confirm(&mut self, log: Log, topic: Option<&Topic>, offset: Offset) -> bool {
        let Some(cursor) = self.cursor_mut(log, topic) else { return false };
        let moves = offset > *cursor;
        *cursor = offset.max(*cursor);
        moves
    }
}

/// See [`User`].
#[derive(Debug, Default)]
pub struct UserState {
    /// His log.
    pub log: LogState,
    /// His devices.
    pub devices: Vec<DeviceState>,
    /// Devices that he had, oldest first, and when each was forgotten.
    pub forgotten: Vec<(Device, UnixMillis)>,
    /// His sessions on this node.
    pub sessions: Vec<Arc<Handle>>,
    /// Whether consumers were told that he is online.
    pub online: bool,
    /// When his last session left.
    pub left_at: Option<Instant>,
    /// Whether a session may be Pulling. True is a hint, false a fact.
    pub maybe_pulling: bool,
    /// What he has sent to others lately that is stored.
    sent: Option<Box<PerMinute>>,
}

impl User {
    /// A user of whom nothing is known yet.
    pub fn new(id: UserId) -> Self {
        Self { id, state: Mutex::default(), loading: tokio::sync::Mutex::default(), idle_weight: AtomicUsize::new(0) }
    }

    /// His log's name.
    pub fn log(&self) -> LogId {
        LogId::User(self.id.clone())
    }

    /// His state. Without [`User::is_loaded`] it is empty.
    pub fn state(&self) -> MutexGuard<'_, UserState> {
        self.state.lock()
    }

    /// Whether his state was read from the store.
    pub fn is_loaded(&self) -> bool {
        self.state().log.generation != 0
    }

    /// Whether nothing of him is under way; the caller makes sure that nobody else holds him.
    pub fn is_forgettable(&self) -> bool {
        let state = self.state.lock();
        state.sessions.is_empty() && !state.online && state.log.is_quiet()
    }

    /// Whether he has sessions here.
    pub fn has_sessions(&self) -> bool {
        !self.state.lock().sessions.is_empty()
    }

    /// What he weighs in memory: an index entry or a membership two, and he himself sixteen; some fifty bytes each.
    pub fn weight(&self) -> usize {
        let state = self.state.lock();
        let members: usize = state.devices.iter().map(|device| device.members().len()).sum();
        16 + 2 * (state.log.index.len() + members)
    }
}

impl UserState {
    /// Counts one more message of his to others that is stored; whether it is within so many a minute.
    pub fn sends(&mut self, most: usize, now: Instant) -> bool {
        self.sent.get_or_insert_default().admit(most, now)
    }

    /// A device, by name.
    pub fn device(&mut self, name: &Device) -> Option<&mut DeviceState> {
        self.devices.iter_mut().find(|device| device.name == *name)
    }

    /// Marks what some device confirmed, as far as their rows say, in a log that was just read.
    pub fn mark_confirmed(&mut self) {
        for entry in &mut self.log.index {
            entry.confirmed = self.devices.iter().any(|device| device.confirmed(entry.offset));
        }
    }

    /// Whether a device lacks something for good that it was not told of: dropped for want of room, purged, tried too
    /// often, or from a time when the device was forgotten.
    pub fn lacks(&self, device: &DeviceState) -> bool {
        let row = &device.row;
        self.log.lost > row.cursor || (row.lost > Offset::ZERO && row.lost >= row.cursor)
    }

    /// Takes out what every device is past and no session has yet to take. (Where another session of its device was
    /// faster, one that still pulls finds what it lacks only in the store.) Without a device that is on disk all of it
    /// waits: the creation of one may yet fail.
    pub fn take_done(&mut self) -> Vec<IndexEntry> {
        if !self.devices.iter().any(|device| device.durable) {
            return Vec::new();
        }
        let Some(mut least) = self.devices.iter().map(|device| device.row.cursor).min() else { return Vec::new() };
        if self.maybe_pulling {
            for session in self.sessions.iter().filter(|session| session.is_pulling(Log::User)) {
                least = least.min(session.core().session.delivery.position(Log::User));
            }
        }
        self.log.take_through(least)
    }

    /// Takes out at most `count` of the oldest that at least one device has confirmed.
    pub fn take_oldest_confirmed(&mut self, count: usize) -> Vec<IndexEntry> {
        self.log.take_first(count, |entry| entry.confirmed)
    }

    /// Wakes the tasks of sessions that pull.
    pub(super) fn wake_pulling(&mut self) {
        if !self.maybe_pulling {
            return;
        }
        self.maybe_pulling = false;
        for session in self.sessions.iter().filter(|session| session.is_pulling(Log::User)) {
            self.maybe_pulling = true;
            session.wake();
        }
    }
}

impl LogObserver for User {
    /// More of the log is readable: sessions that pull look again.
    fn applied(&self, upto: Offset) {
        let mut state = self.state.lock();
        state.log.applied(upto);
        state.wake_pulling();
    }

    /// What was staged is not on disk and never will be (or that is found when he is read anew): sessions that wait for
    /// it look again.
    fn failed(&self, error: &StoreError) {
        let mut state = self.state.lock();
        state.log.failed(error);
        state.wake_pulling();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of each user who is online there is one: with its two counters it fills a size class of the allocator.
    #[test]
    fn a_user_stays_small() {
        let bytes = size_of::<User>() + 2 * size_of::<usize>();
        assert!(bytes <= 320, "{bytes} bytes; what is only there while something waits belongs into `Busy` of his log");
    }
}
