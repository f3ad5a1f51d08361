//! What is in a store.

use std::{cmp::Reverse, collections::BinaryHeap};

use uuid::Uuid;

use super::{
    super::{
        engine::{Engine, EngineError},
        keys::{self, Key},
        queries, record,
    },
    Own, Place, ToolError, walk,
};
use crate::{
    store::Totals,
    types::{LogId, Offset, UnixMillis, UserId},
};

/// The mailboxes that are named.
const TOP: usize = 10;

/// What one user has pending.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mailbox {
    /// Who.
    pub user: UserId,
    /// Pending notifications.
    pub count: u64,
    /// Their accounted bytes.
    pub bytes: u64,
}

/// What is in a store.
#[derive(Clone, Debug)]
pub struct Stats {
    /// The engine.
    pub engine: &'static str,
    /// The version of the format.
    pub format: u32,
    /// The store's identity.
    pub epoch: Uuid,
    /// Bytes of the engine's files.
    pub disk_bytes: u64,
    /// Users of whom something is known.
    pub users: u64,
    /// Their devices.
    pub devices: u64,
    /// Devices that users had.
    pub forgotten: u64,
    /// Pending notifications of users.
    pub notifications: Totals,
    /// Durable broadcasts that are pending.
    pub broadcasts: Totals,
    /// What was published to durable topics and is kept.
    pub topics: Totals,
    /// Devices in durable topics, each topic counted.
    pub members: u64,
    /// Remembered ids of callers.
    pub ids: u64,
    /// Tokens that are known to be void, by `jti` or user.
    pub revocations: u64,
    /// When the oldest pending one was accepted; `None` where there is none, or it cannot be read.
    pub oldest: Option<UnixMillis>,
    /// When the newest was.
    pub newest: Option<UnixMillis>,
    /// The fullest mailboxes by number, fullest first.
    pub by_count: Vec<Mailbox>,
    /// The fullest mailboxes by bytes, fullest first.
    pub by_bytes: Vec<Mailbox>,
}

/// Counts what is there. Rows that cannot be read are passed over: [`super::check()`] finds them.
pub fn stats(place: &Place) -> Result<Stats, ToolError> {
    place.with_store(false, |engine, own| count(engine, own).map_err(|error| ToolError::engine(&place.path, error)))
}

/// The best of all that were offered.
#[derive(Default)]
struct Best(BinaryHeap<Reverse<(u64, Mailbox)>>);

impl Best {
    fn offer(&mut self, by: u64, mailbox: &Mailbox) {
        if self.0.len() < TOP || self.0.peek().is_some_and(|Reverse((least, _))| by > *least) {
            self.0.push(Reverse((by, mailbox.clone())));
        }
        if self.0.len() > TOP {
            self.0.pop();
        }
    }

    fn best_first(self) -> Vec<Mailbox> {
        // The order of `Reverse`: highest first.
        self.0.into_sorted_vec().into_iter().map(|Reverse((_, mailbox))| mailbox).collect()
    }
}

#[derive(Default)]
struct Counting {
    users: u64,
    devices: u64,
    forgotten: u64,
    notifications: Totals,
    broadcasts: Totals,
    topics: Totals,
    members: u64,
    ids: u64,
    revocations: u64,
    last_user: Option<UserId>,
    mailbox: Option<Mailbox>,
    by_count: Best,
    by_bytes: Best,
    oldest: Option<(Offset, LogId)>,
    newest: Option<(Offset, LogId)>,
}

impl Counting {
    fn close_mailbox(&mut self) {
        if let Some(mailbox) = self.mailbox.take() {
            self.by_count.offer(mailbox.count, &mailbox);
            self.by_bytes.offer(mailbox.bytes, &mailbox);
        }
    }

    fn row(&mut self, engine: &dyn Engine, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        match Key::decode(key) {
            Some(Key::Counters(log)) => self.users += u64::from(log.user().is_some()),
            Some(Key::Device(user, _)) => {
                self.devices += 1;
                if self.last_user.as_ref() != Some(&user) {
                    let counters = Key::Counters(LogId::User(user.clone())).encode();
                    self.users += u64::from(engine.get(&counters)?.is_none());
                    self.last_user = Some(user);
                }
            }
            Some(Key::Forgotten(..)) => self.forgotten += 1,
            Some(Key::Member(..)) => self.members += 1,
            Some(Key::Head(log, offset)) => {
                if let Ok((head, _)) = record::decode_head(value) {
                    self.notification(log, offset, u64::from(head.bytes));
                }
            }
            Some(Key::Id(..)) => self.ids += 1,
            Some(Key::Revocation(_)) => self.revocations += 1,
            _ => {}
        }
        Ok(())
    }

    fn notification(&mut self, log: LogId, offset: Offset, bytes: u64) {
        let totals = match &log {
            LogId::User(user) => {
                if self.mailbox.as_ref().is_none_or(|mailbox| mailbox.user != *user) {
                    self.close_mailbox();
                    self.mailbox = Some(Mailbox { user: user.clone(), count: 0, bytes: 0 });
                }
                if let Some(mailbox) = &mut self.mailbox {
                    mailbox.count += 1;
                    mailbox.bytes += bytes;
                }
                &mut self.notifications
            }
            LogId::Broadcast => &mut self.broadcasts,
            LogId::Topic(_) => &mut self.topics,
        };
        totals.count += 1;
        totals.bytes += bytes;
        if self.oldest.as_ref().is_none_or(|(at, _)| offset < *at) {
            self.oldest = Some((offset, log.clone()));
        }
        if self.newest.as_ref().is_none_or(|(at, _)| offset > *at) {
            self.newest = Some((offset, log));
        }
    }
}

fn count(engine: &dyn Engine, own: &Own) -> Result<Stats, EngineError> {
    let mut counting = Counting::default();
    for range in keys::exported() {
        walk::each(engine, range, |(key, value)| counting.row(engine, &key, &value))?;
    }
    counting.close_mailbox();
    let accepted_at = |place: &Option<(Offset, LogId)>| {
        let Some((offset, log)) = place else { return Ok(None) };
        let Some(row) = engine.get(&Key::Head(log.clone(), *offset).encode())? else { return Ok(None) };
        Ok::<_, EngineError>(queries::record(engine, log, *offset, row)?.ok().map(|read| read.accepted_at))
    };
    Ok(Stats {
        engine: engine.name(),
        format: own.format,
        epoch: own.epoch,
        disk_bytes: engine.disk_bytes()?,
        users: counting.users,
        devices: counting.devices,
        forgotten: counting.forgotten,
        notifications: counting.notifications,
        broadcasts: counting.broadcasts,
        topics: counting.topics,
        members: counting.members,
        ids: counting.ids,
        revocations: counting.revocations,
        oldest: accepted_at(&counting.oldest)?,
        newest: accepted_at(&counting.newest)?,
        by_count: counting.by_count.best_first(),
        by_bytes: counting.by_bytes.best_first(),
    })
}
