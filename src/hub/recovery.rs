//! Users when the store lost its engine (its disk was full) and works again: what is in memory may differ from the disk,
//! since nobody knows what of the failed batch is there.
//!
//! A user whose state was read in an earlier generation of the store is *stale*: nothing is staged for him, no session of
//! his pulls or turns Live, and confirmations move cursors in memory alone. He is read anew by whoever needs him next,
//! and by a task of the hub's at once: those with sessions first. His sessions stay, and go on from their positions.
//!
//! Rule: every write of a user passes [`Hub::write`], which names the generation of his state. The store takes it in that
//! generation only, so that nothing from before slips in, however late it comes.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    Hub,
    user::{DeviceState, User, UserState},
};
use crate::{
    metrics::Failure,
    session::Flow,
    store::{DeviceRow, Mailbox, Op, StoreError},
    types::Offset,
};

/// What of a user is in memory and not on disk.
#[derive(Default)]
struct Ahead {
    /// Rows that are newer.
    cursors: Vec<usize>,
    /// Devices that are not there.
    devices: Vec<usize>,
}

impl Hub {
    /// Stages a write that follows from the user's state; the caller holds its lock.
    pub(super) fn write(&self, user: &User, op: Op) {
        self.0.store.stage_in(user.generation(), op);
    }

    /// Whether what is in memory of the user may differ from the disk, or nothing is.
    pub(super) fn is_stale(&self, user: &User) -> bool {
        user.generation() != self.0.store.generation()
    }

    /// Reads a user, or reads him anew; the caller holds his `loading` lock.
    pub(super) async fn read_in(&self, user: &Arc<User>) -> Result<(), StoreError> {
        // Taken first: where the engine is lost during the read, he is stale again.
        let generation = self.0.store.generation();
        let mailbox = self.0.store.load(&user.id).await.inspect_err(|_| self.metrics().failure(Failure::StoreError))?;
        if let Some(damage) = &mailbox.damaged {
            self.metrics().failure(Failure::StoreDamage);
            tracing::error!(user = %user.id, %damage, "stored notifications are missing or damaged");
        }
        match user.generation() {
            0 => user.load(mailbox, generation),
            _ => self.load_anew(user, mailbox, generation),
        }
        Ok(())
    }

    /// Takes over what the store has of a stale user.
    fn load_anew(&self, user: &Arc<User>, mailbox: Mailbox, generation: u64) {
        let mut guard = user.state();
        let state = &mut *guard;
        let Ahead { cursors, devices } = state.merge(mailbox);
        user.set_generation(generation);
        for index in cursors {
            self.put_cursor(user, &state.devices[index], &state.hold);
        }
        for index in devices {
            let DeviceState { name, row, .. } = &state.devices[index];
            // Nobody waits for it: whoever did was told that it is durable.
            let (done, _) = oneshot::channel();
            let op = Op::PutDevice {
                user: user.id.clone(),
                device: name.clone(),
                row: *row,
                counters: state.counters(),
                hold: Arc::clone(&state.hold),
                done,
            };
            self.write(user, op);
        }
        for session in &state.sessions {
            let mut core = session.core();
            core.session.delivery.pull();
            session.note_flow(Flow::Pulling);
        }
        state.maybe_pulling = !state.sessions.is_empty();
        self.drop_confirmed(user, state);
        state.wake_pulling();
    }

    /// Reads all users in memory anew whenever the store works again.
    pub(super) async fn run_recovery(&self) {
        let mut opened = self.0.store.opened();
        while opened.changed().await.is_ok() {
            self.metrics().failure(Failure::DiskFull);
            let mut users = self.0.users.all();
            users.retain(|user| user.generation() != 0);
            users.sort_by_key(|user| user.state().sessions.is_empty());
            let count = users.len();
            for user in users {
                match self.user(&user.id).await {
                    Ok(_) => {}
                    // There will be another time.
                    Err(StoreError::Recovering(_) | StoreError::Closed) => break,
                    Err(error) => tracing::error!(user = %user.id, %error, "a user could not be read anew"),
                }
            }
            tracing::info!(users = count, "users were read anew");
        }
        // The store's end is followed by the daemon's.
        std::future::pending().await
    }
}

impl UserState {
    /// Takes over what is on disk, but for what is newer in memory.
    fn merge(&mut self, mailbox: Mailbox) -> Ahead {
        let mut ahead = Ahead::default();
        let known = std::mem::take(&mut self.devices);
        self.devices =
            mailbox.devices.into_iter().map(|(name, row)| DeviceState { name, row, durable: true }).collect();
        for known in known {
            match self.devices.iter_mut().enumerate().find(|(_, stored)| stored.name == known.name) {
                Some((index, stored)) => {
                    let newest = newest(&stored.row, &known.row);
                    if newest != stored.row {
                        stored.row = newest;
                        ahead.cursors.push(index);
                    }
                }
                None if known.durable => {
                    ahead.devices.push(self.devices.len());
                    self.devices.push(known);
                }
                // Its creation failed, which whoever asked for it has heard.
                None => {}
            }
        }
        let cursor = self.devices.iter().map(|device| device.row.cursor).max().unwrap_or(Offset::ZERO);
        self.last = self.last.max(mailbox.counters.last).max(cursor);
        // Nothing is under way.
        self.applied = self.last;
        self.bytes = mailbox.index.iter().map(|entry| u64::from(entry.bytes)).sum();
        self.index = mailbox.index.into();
        ahead
    }
}

fn newest(stored: &DeviceRow, known: &DeviceRow) -> DeviceRow {
    DeviceRow {
        cursor: stored.cursor.max(known.cursor),
        lost: stored.lost.max(known.lost),
        last_seen: stored.last_seen.max(known.last_seen),
        ..*stored
    }
}
