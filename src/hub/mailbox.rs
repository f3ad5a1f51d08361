//! What operators and services ask about a user's mailbox: what waits, for which device; and have cleared or forgotten.

use tokio::sync::oneshot;

use super::{
    Hub,
    ends::Why,
    send::CloseFilter,
    user::{DeviceState, Member, UserState},
};
use crate::{
    protocol::close::CloseCode,
    session::Log,
    store::{DeviceRow, IndexEntry, Op, PageLimit, StoreError},
    types::{Device, DropReason, EventBody, ForgetReason, Notification, Offset, Topic, UserId},
};

/// How long a purge waits for a store that is opened again.
const PURGE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

type Written = oneshot::Receiver<Result<(), StoreError>>;

/// The bytes of records that one page of a list reads at most.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why a mailbox could not be looked into or changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MailboxError {
    /// The store fails.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The user has no such device.
    #[error("this user has no such device")]
    NoSuchDevice,
}

/// A page of what waits for a user.
#[derive(Clone, Debug, Default)]
pub struct PendingPage {
    /// By offset; each with the devices that have yet to confirm it.
    pub notifications: Vec<(Offset, Notification, Vec<Device>)>,
    /// Where the next page starts; `None`: this was the last.
    pub next: Option<Offset>,
}

/// A device of a user, as lists show it.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Its name.
    pub name: Device,
    /// What is stored of it.
    pub row: DeviceRow,
    /// Its sessions on this node.
    pub sessions: u32,
    /// What waits for it in its user's log.
    pub pending: u32,
    /// What waits for it in the broadcast log.
    pub broadcasts: u32,
    /// The durable topics that it is in, by name; its cursor in each, and what waits for it there.
    pub topics: Vec<(Topic, Offset, u32)>,
    /// Whether it lacks something for good that it was not told of.
    pub gap: bool,
}

/// What is to be cleared.
#[derive(Clone, Debug, Default)]
pub struct Purge {
    /// Only what waits for this device, which is then past it.
    pub device: Option<Device>,
    /// Without it, it is only counted.
    pub force: bool,
}

impl Hub {
    /// What waits for a user, or for one device of his, above `after`; at most `max`, and as much as is durable.
    pub async fn pending(
        &self,
        id: &UserId,
        device: Option<&Device>,
        after: Offset,
        max: usize,
    ) -> Result<PendingPage, MailboxError> {
        let user = self.user(id).await?;
        let (from, upto) = {
            let mut state = user.state();
            self.expire(&user, &mut state);
            let from = match device {
                Some(name) => state.device(name).ok_or(MailboxError::NoSuchDevice)?.row.cursor,
                None => Offset::ZERO,
            };
            (from.max(after), state.log.applied)
        };
        let limit = PageLimit { records: max, bytes: PAGE_BYTES_MAX };
        let page =
            self.0.store.page(&user.log(), from, upto, limit).await.inspect_err(|error| self.store_error(error))?;
        let read = page.records.last().map(|(offset, _)| *offset).max(page.damaged.last().copied());
        let state = user.state();
        let mut listed = PendingPage { notifications: Vec::new(), next: read.filter(|_| !page.complete) };
        for (offset, notification) in page.records {
            // It may have left since the page was read.
            if state.log.entry(offset).is_some() {
                let waiting = state.devices.iter().filter(|known| known.row.cursor < offset);
                let devices = waiting.map(|known| known.name.clone()).collect();
                listed.notifications.push((offset, notification, devices));
            }
        }
        Ok(listed)
    }

    /// Clears what waits for a user, or for one device of his. Returns how many notifications that were or, without
    /// `force`, would be. Once it returns that is durable.
    pub async fn purge(&self, id: &UserId, purge: &Purge) -> Result<u32, MailboxError> {
        let mut opened = self.0.store.opened();
        opened.mark_unchanged();
        let mut purged = 0;
        loop {
            match self.purge_once(id, purge).await {
                Ok(count) => return Ok(count.max(purged)),
                // A full disk: the room kept for that is let go, and the store opened again. A purge makes more.
                Err((count, MailboxError::Store(error @ StoreError::Recovering(_)))) => {
                    purged = count.max(purged);
                    let changed = tokio::time::timeout(PURGE_PATIENCE, opened.changed()).await;
                    if !matches!(changed, Ok(Ok(()))) {
                        return Err(error.into());
                    }
                }
                Err((_, error)) => return Err(error),
            }
        }
    }

    /// One try. An error comes with how many it would have been.
    async fn purge_once(&self, id: &UserId, purge: &Purge) -> Result<u32, (u32, MailboxError)> {
        let (count, written) = match self.begin_purge(id, purge).await {
            Ok((count, Some(written))) => (count, written),
            Ok((count, None)) => return Ok(count),
            Err(error) => return Err((0, error)),
        };
        let written = written.await.unwrap_or(Err(StoreError::Closed));
        written.inspect_err(|error| self.store_error(error)).map_err(|error| (count, error.into()))?;
        Ok(count)
    }

    /// Takes out what is to be cleared, and stages its deletion.
    async fn begin_purge(&self, id: &UserId, purge: &Purge) -> Result<(u32, Option<Written>), MailboxError> {
        let user = self.user(id).await?;
        let (count, written) = {
            let mut guard = user.state();
            let state = &mut *guard;
            self.ensure_fresh(&state.log)?;
            self.expire(&user, state);
            let from = match &purge.device {
                Some(name) => state.device(name).ok_or(MailboxError::NoSuchDevice)?.row.cursor,
                None => Offset::ZERO,
            };
            let count = u32::try_from(state.log.pending_above(from)).unwrap_or(u32::MAX);
            if !purge.force || count == 0 {
                return Ok((count, None));
            }
            let entries = match &purge.device {
                None => state.log.take_through(Offset::MAX),
                Some(name) => self.purge_for(&user, state, name, from),
            };
            if let Some(last) = entries.last() {
                if purge.device.is_none() {
                    state.log.lost = state.log.lost.max(last.offset);
                }
                self.ended(&user.log(), &mut state.log, &entries, Why::Dropped(DropReason::Purged));
            }
            let (done, written) = oneshot::channel();
            self.delete(&user.log(), &mut state.log, &entries, Some(done));
            (count, written)
        };
        Ok((count, Some(written)))
    }

    /// Moves one device past all that waits for it. Returns what then waits for nobody and was confirmed by nobody.
    fn purge_for(
        &self,
        user: &super::user::User,
        state: &mut UserState,
        name: &Device,
        from: Offset,
    ) -> Vec<IndexEntry> {
        let waiting: Vec<IndexEntry> = state.log.index.iter().filter(|entry| entry.offset > from).cloned().collect();
        let Some(last) = waiting.last().map(|entry| entry.offset) else { return Vec::new() };
        let Some(known) = state.device(name) else { return Vec::new() };
        known.confirm(Log::User, None, last);
        known.row.lost = last;
        let known: DeviceState = known.clone();
        self.put_cursor(user, &known, &state.log);
        for session in state.sessions.iter().filter(|session| session.device == *name) {
            // What it has yet to pull is purged as well.
            if session.is_pulling(Log::User) {
                session.core().session.delivery.advance(Log::User, last);
                session.wake();
            }
        }
        let gone = state.take_done();
        let is_gone = |entry: &IndexEntry| gone.binary_search_by_key(&entry.offset, |gone| gone.offset).is_ok();
        for entry in &waiting {
            // Those that end altogether, unconfirmed, are reported with their end.
            if !is_gone(entry) || entry.confirmed {
                let device = Some((user.id.clone(), name.clone()));
                self.dropped(user.log(), device, entry, DropReason::Purged);
            }
        }
        let (confirmed, unconfirmed): (Vec<_>, Vec<_>) = gone.into_iter().partition(|entry| entry.confirmed);
        self.end(user, state, &confirmed, Why::Done);
        unconfirmed
    }

    /// The devices of a user, by name.
    pub async fn devices(&self, id: &UserId) -> Result<Vec<DeviceInfo>, MailboxError> {
        let user = self.user(id).await?;
        self.broadcasts().await?;
        let mut members: Vec<Topic> = {
            let state = user.state();
            state.devices.iter().flat_map(|known| known.members()).map(|member| member.topic.clone()).collect()
        };
        members.sort_unstable();
        members.dedup();
        let mut logs = Vec::with_capacity(members.len());
        for topic in &members {
            logs.push(self.topic_log(topic).await?);
        }
        let mut guard = user.state();
        let state = &mut *guard;
        self.expire(&user, state);
        self.forget_unseen(&user, state);
        let broadcasts = self.0.broadcasts.state();
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let topics = |known: &DeviceState| {
            let mut topics: Vec<_> = known
                .members()
                .iter()
                .map(|Member { topic, row, .. }| {
                    let log = logs.iter().find(|log| log.id.topic() == Some(topic));
                    let pending = log.map_or(0, |log| log.state().log.pending_above(row.cursor));
                    (topic.clone(), row.cursor, number(pending))
                })
                .collect();
            topics.sort_unstable();
            topics
        };
        let info = |known: &DeviceState| DeviceInfo {
            name: known.name.clone(),
            row: known.row,
            sessions: number(state.sessions.iter().filter(|session| session.device == known.name).count()),
            pending: number(state.log.pending_above(known.row.cursor)),
            broadcasts: number(broadcasts.log.pending_above(known.row.broadcast)),
            topics: topics(known),
            gap: state.lacks(known) || known.lacks_of(&logs),
        };
        let mut devices: Vec<_> = state.devices.iter().filter(|known| known.durable).map(info).collect();
        devices.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(devices)
    }

    /// Forgets a device, durably, and closes its sessions. If it returns it is new, and told that it lacks something.
    pub async fn forget_device(&self, id: &UserId, device: &Device) -> Result<(), MailboxError> {
        let user = self.user(id).await?;
        let (done, written) = oneshot::channel();
        {
            let mut state = user.state();
            self.ensure_fresh(&state.log)?;
            if !self.forget(&user, &mut state, device, ForgetReason::Caller, Some(done)) {
                return Err(MailboxError::NoSuchDevice);
            }
        }
        let filter = CloseFilter { device: Some(device.clone()), ..CloseFilter::default() };
        self.close_sessions(id, &filter, CloseCode::NORMAL, "device forgotten");
        written.await.unwrap_or(Err(StoreError::Closed)).inspect_err(|error| self.store_error(error))?;
        Ok(())
    }

    /// Erases all that is stored for a user, durably, and closes his sessions. Returns how many notifications and
    /// devices went.
    pub async fn forget_user(&self, id: &UserId) -> Result<(u32, u32), MailboxError> {
        let user = self.user(id).await?;
        let (done, written) = oneshot::channel();
        let (notifications, devices) = {
            let mut guard = user.state();
            let state = &mut *guard;
            self.ensure_fresh(&state.log)?;
            let entries = state.log.take_through(Offset::MAX);
            // Their rows go with all others.
            let _ = state.log.emptied(&entries);
            state.log.lost = Offset::ZERO;
            self.ended(&user.log(), &mut state.log, &entries, Why::Dropped(DropReason::UserForgotten));
            state.log.forget_ids();
            state.forgotten.clear();
            let devices = std::mem::take(&mut state.devices);
            let hold = state.log.hold.clone();
            self.write(&state.log, Op::ForgetUser { user: id.clone(), hold, done });
            for known in &devices {
                let (user, device) = (id.clone(), known.name.clone());
                self.0.events.emit(EventBody::DeviceForgotten { user, device, reason: ForgetReason::Caller });
            }
            (entries.len(), devices.len())
        };
        self.close_sessions(id, &CloseFilter::default(), CloseCode::NORMAL, "user forgotten");
        written.await.unwrap_or(Err(StoreError::Closed)).inspect_err(|error| self.store_error(error))?;
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Ok((number(notifications), number(devices)))
    }
}
