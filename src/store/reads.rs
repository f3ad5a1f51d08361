//! What is read from the store: logs, devices, ids and what is due, a page a job.

use super::{
    DeviceRow, Due, DueId, IndexEntry, Mailbox, Page, PageLimit, Remembered, Store, StoreError,
    embedded::{
        engine::{Engine, EngineError},
        queries,
    },
};
use crate::{
    store::Counters,
    types::{Device, LogId, NotificationId, Offset, Revocation, RevocationId, Topic, UnixMillis, UserId},
};

impl Store {
    /// What the store has of a user. Whoever calls it sees to it that nothing of the user is staged meanwhile, or
    /// ignores what it says of damage. Refused, as every read is, once the store has failed: what a read would show may
    /// not be durable.
    pub async fn load(&self, user: &UserId) -> Result<Mailbox, StoreError> {
        let generation = self.generation();
        let (wanted, log) = (user.clone(), LogId::User(user.clone()));
        let (profile, first) = self
            .read(generation, move |engine| {
                let first = queries::index(engine, &LogId::User(wanted.clone()), Offset::ZERO)?;
                Ok((queries::profile(engine, &wanted)?, first))
            })
            .await?;
        let (index, unreadable) = self.whole_index(generation, &log, first).await?;
        let (unreadable, forgotten) = (unreadable + profile.unreadable, profile.forgotten);
        let mut mailbox = Mailbox::of(profile.counters, profile.devices, forgotten, index, unreadable);
        mailbox.members = profile.members;
        self.0.shared.admit(mailbox.counters.last).await?;
        Ok(mailbox)
    }

    /// What the store has of a log that many read, the broadcast log or a topic's; its devices stand with their users.
    pub async fn load_shared(&self, log: &LogId) -> Result<Mailbox, StoreError> {
        let generation = self.generation();
        let of = log.clone();
        let read = move |engine: &dyn Engine| {
            Ok((queries::counters(engine, &of)?, queries::index(engine, &of, Offset::ZERO)?))
        };
        let (counters, first) = self.read(generation, read).await?;
        let (index, mut unreadable) = self.whole_index(generation, log, first).await?;
        unreadable += usize::from(matches!(counters, Some(Err(_))));
        let mailbox = Mailbox::of(counters.and_then(Result::ok), Vec::new(), Vec::new(), index, unreadable);
        self.0.shared.admit(mailbox.counters.last).await?;
        Ok(mailbox)
    }

    /// The rest of an index whose first part was read, and how many of its rows cannot be read.
    async fn whole_index(
        &self,
        generation: u64,
        log: &LogId,
        first: queries::IndexPage,
    ) -> Result<(Vec<IndexEntry>, usize), StoreError> {
        let (mut index, mut unreadable, mut next) = (first.entries, first.unreadable, first.next);
        while let Some(after) = next {
            let log = log.clone();
            let mut part = self.read(generation, move |engine| queries::index(engine, &log, after)).await?;
            index.append(&mut part.entries);
            unreadable += part.unreadable;
            next = part.next;
        }
        Ok((index, unreadable))
    }

    /// The records of a log with offsets in (`after`, `upto`]. `upto` should be at or below what was applied, or the
    /// page may show what is not durable yet.
    pub async fn page(&self, log: &LogId, after: Offset, upto: Offset, limit: PageLimit) -> Result<Page, StoreError> {
        let log = log.clone();
        self.read(self.generation(), move |engine| queries::page(engine, &log, after, upto, limit)).await
    }

    /// What a caller's own id stands for at `now`, as of the last commit.
    pub async fn remembered(
        &self,
        log: &LogId,
        id: &NotificationId,
        now: UnixMillis,
    ) -> Result<Option<Remembered>, StoreError> {
        let (log, id) = (log.clone(), id.clone());
        self.read(self.generation(), move |engine| queries::remembered(engine, &log, &id, now)).await
    }

    /// The durable topics that something is stored of with names that begin with `prefix`, by name from behind `after` on;
    /// at most `max`.
    pub async fn topics_after(
        &self,
        prefix: &str,
        after: Option<Topic>,
        max: usize,
    ) -> Result<Vec<(Topic, Counters)>, StoreError> {
        let prefix = prefix.to_owned();
        let read = move |engine: &dyn Engine| queries::topics_after(engine, &prefix, after.as_ref(), max);
        self.read(self.generation(), read).await
    }

    /// Devices of all users, in a stable order from behind `after` on; at most `max`.
    pub async fn devices_after(
        &self,
        after: Option<(UserId, Device)>,
        max: usize,
    ) -> Result<Vec<(UserId, Device, DeviceRow)>, StoreError> {
        self.read(self.generation(), move |engine| queries::devices_after(engine, after.as_ref(), max)).await
    }

    /// Own ids of callers that may be forgotten at `now`, oldest first, at most `max`. One is shown until
    /// [`super::Op::ForgetId`] is committed.
    pub async fn due_ids(&self, now: UnixMillis, max: usize) -> Result<Vec<DueId>, StoreError> {
        self.read(self.generation(), move |engine| queries::due_ids(engine, now, max)).await
    }

    /// Logs of which something may have expired at `now`, oldest first, at most `max`. A bucket is shown until
    /// [`super::Op::ForgetDue`] is committed, whether or not its records are still there, and only once all of it has expired.
    pub async fn due(&self, now: UnixMillis, max: usize) -> Result<Vec<Due>, StoreError> {
        self.read(self.generation(), move |engine| queries::due(engine, now, max)).await
    }

    /// Tokens that are void, in a stable order from behind `after` on; at most `max`.
    pub async fn revocations(
        &self,
        after: Option<RevocationId>,
        max: usize,
    ) -> Result<Vec<(RevocationId, Revocation)>, StoreError> {
        self.read(self.generation(), move |engine| queries::revocations(engine, after, max)).await
    }

    /// Reads from the engine of that generation, and from no other.
    async fn read<T, F>(&self, generation: u64, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Engine) -> Result<T, EngineError> + Send + 'static,
    {
        let shared = &self.0.shared;
        shared.serving()?;
        let found = self.0.readers.read(read).await;
        if matches!(found, Err(StoreError::Recovering(_))) {
            // Where the read met a full disk first: so does this commit.
            shared.queue.raise();
        }
        // A lost engine may show what is not on disk, or fail at what is.
        if shared.generation() == generation { found } else { Err(shared.refusal_of_late()) }
    }
}
