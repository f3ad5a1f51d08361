//! Logs when the store lost its engine (its disk was full) and works again: what is in memory may differ from the disk,
//! since nobody knows what of the failed batch is there.
//!
//! A log whose state was read in an earlier generation of the store is *stale*: nothing is staged for it, no session
//! pulls it or turns Live in it, and confirmations move cursors in memory alone. It is read anew by whoever needs it
//! next, and by a task of the hub's at once: users with sessions first. Sessions stay, and go on from their positions.
//!
//! Rule: every write that follows from a log's state passes [`Hub::write`], [`Hub::write_counted`] or [`Hub::append`], which
//! name its generation. The store takes
//! it in that generation only, so that nothing from before slips in, however late it comes.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    Hub,
    log::LogState,
    user::{DeviceState, Member, User, UserState},
};
use crate::{
    metrics::{Failure, Fate},
    session::Log,
    store::{DeviceRow, Mailbox, Op, StoreError},
    types::{Offset, Topic, UnixMillis},
};

/// What of a user is in memory and not on disk.
#[derive(Default)]
struct Ahead {
    /// Rows that are newer.
    cursors: Vec<usize>,
    /// Devices that are not there.
    devices: Vec<usize>,
    /// Memberships of devices that are newer, or not there.
    members: Vec<(usize, Topic)>,
}

impl Hub {
    /// Stages a write that follows from a log's state and carries none of its counters; the caller holds its lock.
    pub(super) fn write(&self, state: &LogState, op: Op) {
        debug_assert!(
            op.counted().is_none(),
            "what is counted must be known to the log, which may take back what is before"
        );
        // Where it is refused, whoever waits for it is told so, and the log is read anew.
        let _ = self.0.store.stage_in(state.generation, op);
    }

    /// Stages a write that carries the log's counters; the caller holds its lock.
    pub(super) fn write_counted(&self, state: &mut LogState, op: Op) {
        let _ = self.0.store.stage_recallable(state.generation, op, &mut state.recallable);
    }

    /// Stages what joins a log; the caller holds its lock. Refused, where the engine was lost in this very moment: live
    /// sessions may have been handed it.
    pub(super) fn append(&self, state: &mut LogState, op: Op) -> Result<(), StoreError> {
        if self.0.store.stage_recallable(state.generation, op, &mut state.recallable) {
            self.metrics().fate(Fate::Stored, 1);
            return Ok(());
        }
        let lost = match self.0.store.health() {
            Err(error) => error,
            Ok(()) => StoreError::Recovering("it was opened again meanwhile".into()),
        };
        // As if it had been staged and lost.
        state.failed(&StoreError::Recovering("it was lost".into()));
        Err(lost)
    }

    /// Whether what is in memory of a log may differ from the disk, or nothing is.
    pub(super) fn is_stale(&self, state: &LogState) -> bool {
        state.generation != self.0.store.generation()
    }

    /// Refuses what would follow from a stale log.
    pub(super) fn ensure_fresh(&self, state: &LogState) -> Result<(), StoreError> {
        if self.is_stale(state) {
            return Err(StoreError::Recovering("it was opened again meanwhile".into()));
        }
        Ok(())
    }

    /// Refuses what would follow from a row that was seen and is not among what is staged, where its commit may have failed
    /// meanwhile: the engine was lost, or takes nothing any more.
    pub(super) fn ensure_durable(&self, state: &LogState) -> Result<(), StoreError> {
        self.ensure_fresh(state)?;
        self.0.store.health()
    }

    /// Reads a user, or reads him anew; the caller holds his `loading` lock.
    pub(super) async fn read_in(&self, user: &Arc<User>) -> Result<(), StoreError> {
        // Taken first: where the engine is lost during the read, he is stale again.
        let generation = self.0.store.generation();
        let mailbox = self.0.store.load(&user.id).await.inspect_err(|error| self.store_error(error))?;
        if let Some(damage) = &mailbox.damaged {
            self.metrics().failure(Failure::StoreDamage);
            tracing::error!(user = %user.id, %damage, "stored notifications are missing or damaged");
        }
        let mut guard = user.state();
        let state = &mut *guard;
        let ahead = state.merge(mailbox);
        let is_new = state.log.generation == 0;
        state.log.generation = generation;
        if !is_new {
            self.write_ahead(user, state, &ahead);
        }
        // What every device was past when a crash, or a full disk, cut off its deletion. How it ended is not known any
        // more.
        let entries = state.take_done();
        if !entries.is_empty() {
            self.delete(&user.log(), &mut state.log, &entries, None);
        }
        state.mark_confirmed();
        state.wake_pulling();
        Ok(())
    }

    /// Writes what of a stale user is newer in memory, and has his sessions pull from where they are.
    fn write_ahead(&self, user: &User, state: &mut UserState, ahead: &Ahead) {
        for index in &ahead.cursors {
            self.put_cursor(user, &state.devices[*index], &state.log);
        }
        for index in &ahead.devices {
            let DeviceState { name, row, .. } = &state.devices[*index];
            // Nobody waits for it: whoever did was told that it is durable.
            let (done, _) = oneshot::channel();
            let op = Op::PutDevice {
                user: user.id.clone(),
                device: name.clone(),
                row: *row,
                counters: state.log.counters(),
                hold: Arc::clone(&state.log.hold),
                done,
            };
            self.write_counted(&mut state.log, op);
        }
        for (index, topic) in &ahead.members {
            self.put_member_cursor(user, &state.devices[*index], topic, &state.log);
        }
        for session in &state.sessions {
            let mut core = session.core();
            core.session.delivery.pull(Log::User);
            session.note_flow(Log::User, &core.session.delivery);
        }
        state.maybe_pulling = !state.sessions.is_empty();
    }

    /// Reads all that is in memory anew whenever the store works again.
    pub(super) async fn run_recovery(&self) {
        let mut opened = self.0.store.opened();
        while opened.changed().await.is_ok() {
            self.metrics().failure(Failure::DiskFull);
            if let Err(error) = self.broadcasts().await {
                self.not_read_anew(&error, "the broadcast log");
            }
            for log in self.0.topic_logs.all() {
                if let Err(error) = self.load_shared(&log).await {
                    self.not_read_anew(&error, "the log of a topic");
                }
            }
            let mut users = self.0.users.all();
            users.retain(|user| user.is_loaded());
            users.sort_by_key(|user| user.state().sessions.is_empty());
            let count = users.len();
            for user in users {
                match self.user(&user.id).await {
                    Ok(_) => {}
                    // There will be another time.
                    Err(StoreError::Recovering(_) | StoreError::Closed) => break,
                    Err(error) => self.not_read_anew(&error, user.id.as_str()),
                }
            }
            tracing::info!(users = count, "users were read anew");
        }
        // The store's end is followed by the daemon's.
        std::future::pending().await
    }

    fn not_read_anew(&self, error: &StoreError, what: &str) {
        if !matches!(error, StoreError::Recovering(_) | StoreError::Closed) {
            tracing::error!(what, %error, "a log could not be read anew");
        }
    }
}

impl UserState {
    /// Takes over what is on disk, but for what is newer in memory.
    fn merge(&mut self, mut mailbox: Mailbox) -> Ahead {
        let mut ahead = Ahead::default();
        let known = std::mem::take(&mut self.devices);
        let durable = |(name, row)| DeviceState::new(name, row, true);
        self.devices = std::mem::take(&mut mailbox.devices).into_iter().map(durable).collect();
        for (name, topic, row) in std::mem::take(&mut mailbox.members) {
            // One without its device is left over from a device that was forgotten.
            if let Some(device) = self.device(&name) {
                device.members_mut().push(Member { topic, row, durable: true, attempt: 0 });
            }
        }
        for known in known {
            match self.devices.iter_mut().enumerate().find(|(_, stored)| stored.name == known.name) {
                Some((index, stored)) => {
                    stored.attempts = known.attempts;
                    let newer = stored.merge_members(known.members());
                    ahead.members.extend(newer.into_iter().map(|topic| (index, topic)));
                    let newest = newest(&stored.row, &known.row);
                    if newest != stored.row {
                        stored.row = newest;
                        ahead.cursors.push(index);
                    }
                }
                None if known.durable => {
                    let topics = known.members().iter().filter(|member| member.durable);
                    ahead.members.extend(topics.map(|member| (self.devices.len(), member.topic.clone())));
                    ahead.devices.push(self.devices.len());
                    self.devices.push(known);
                }
                // Its creation failed, which whoever asked for it has heard.
                None => {}
            }
        }
        self.forgotten = std::mem::take(&mut mailbox.forgotten);
        self.forgotten.sort_by_key(|(_, at): &(_, UnixMillis)| *at);
        let cursor = self.devices.iter().map(|device| device.row.cursor).max().unwrap_or(Offset::ZERO);
        self.log.last = self.log.last.max(cursor);
        self.log.load_mailbox(&mut mailbox);
        ahead
    }
}

fn newest(stored: &DeviceRow, known: &DeviceRow) -> DeviceRow {
    DeviceRow {
        cursor: stored.cursor.max(known.cursor),
        broadcast: stored.broadcast.max(known.broadcast),
        began: stored.began.max(known.began),
        lost: stored.lost.max(known.lost),
        last_seen: stored.last_seen.max(known.last_seen),
        ..*stored
    }
}
