//! Ops folded into the rows of one commit, and who is to be told of it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    engine::{Engine, EngineError, Write},
    keys::{self, Key},
    queries, record, rows,
    shared::Permit,
};
use crate::{
    store::{Counters, Done, DueId, Hold, LogObserver, Op, Place, Remembered, StoreError},
    types::{LogId, NotificationId, Offset, UnixMillis, UserId},
};

/// Ops folded into one batch.
#[derive(Default)]
pub struct Batch {
    /// The rows.
    pub writes: Vec<Write>,
    /// The latest counters of each log.
    pub counters: HashMap<LogId, Counters>,
    /// Ids that this batch remembers.
    remembered: HashSet<(LogId, NotificationId)>,
    /// Ids that may be forgotten.
    due_ids: Vec<(DueId, UnixMillis)>,
    /// Users of whom nothing is to be left.
    gone: Vec<UserId>,
    /// Who is to be told.
    pub after: After,
}

/// What is to be told and let go of, once a batch's fate is known.
#[derive(Default)]
pub struct After {
    logs: HashMap<LogId, (Arc<dyn LogObserver>, Offset)>,
    done: Vec<Done>,
    permits: Vec<Permit>,
    holds: Vec<Hold>,
}

impl After {
    /// Whether something joins a log.
    pub fn has_records(&self) -> bool {
        !self.permits.is_empty()
    }

    /// Tells all of them.
    pub fn tell(self, fate: &Result<(), StoreError>) {
        for (observer, upto) in self.logs.into_values() {
            match fate {
                Ok(()) => observer.applied(upto),
                Err(error) => observer.failed(error),
            }
        }
        // Before the answers: whoever hears one may ask for the next permit at once, and must find this one's room free.
        drop(self.permits);
        for done in self.done {
            // Whoever asked may have gone.
            let _ = done.send(fate.clone());
        }
        drop(self.holds);
    }
}

impl Batch {
    /// The ops, in their order.
    pub fn of(ops: Vec<Op>) -> Self {
        let mut batch = Self::default();
        for op in ops {
            batch.add(op);
        }
        batch
    }

    /// Writes a row.
    pub fn put(&mut self, key: &Key, value: Vec<u8>) {
        self.writes.push((key.encode(), Some(value)));
    }

    fn remove(&mut self, key: &Key) {
        self.writes.push((key.encode(), None));
    }

    fn remove_record(&mut self, log: &LogId, place: Place) {
        self.remove(&Key::Head(log.clone(), place.offset));
        for index in 0..place.chunks {
            self.remove(&Key::Chunk(log.clone(), place.offset, index));
        }
    }

    fn remove_buckets(&mut self, log: &LogId, minutes: impl IntoIterator<Item = u64>) {
        for minute in minutes {
            self.remove(&Key::Expiry(minute, log.clone()));
        }
    }

    fn add(&mut self, op: Op) {
        match op {
            Op::Append { log, offset, notification, replaces, emptied, remember, counters, permit, observer, done } => {
                if let Some(place) = replaces {
                    self.remove_record(&log, place);
                }
                self.remove_buckets(&log, emptied);
                let (head, chunks) = record::encode(&notification, remember.is_some());
                for (index, chunk) in (0..=u16::MAX).zip(chunks) {
                    self.put(&Key::Chunk(log.clone(), offset, index), chunk);
                }
                self.put(&Key::Head(log.clone(), offset), head);
                if let Some(moment) = notification.expires_at {
                    self.put(&Key::Expiry(keys::expiry_minute(moment), log.clone()), Vec::new());
                }
                if let Some((until, digest, sessions)) = remember {
                    let id = notification.id.clone();
                    let row = rows::encode_remembered(&Remembered { offset, digest, until, sessions });
                    self.put(&Key::Id(log.clone(), id.clone()), row);
                    self.put(&Key::IdEnd(keys::expiry_minute(until), log.clone(), id.clone()), Vec::new());
                    self.remembered.insert((log.clone(), id));
                }
                self.counters.insert(log.clone(), counters);
                let log = self.after.logs.entry(log).or_insert_with(|| (Arc::clone(&observer), offset));
                *log = (observer, log.1.max(offset));
                self.after.permits.push(permit);
                self.after.done.extend(done);
            }
            Op::Delete { log, places, emptied, counters, hold, done } => {
                for place in places {
                    self.remove_record(&log, place);
                }
                self.remove_buckets(&log, emptied);
                self.counters.insert(log, counters);
                self.after.holds.push(hold);
                self.after.done.extend(done);
            }
            Op::Cursor { user, device, row, hold } => {
                self.put(&Key::Device(user, device), rows::encode_device(&row));
                self.after.holds.push(hold);
            }
            Op::PutDevice { user, device, row, counters, hold, done } => {
                self.remove(&Key::Forgotten(user.clone(), device.clone()));
                self.put(&Key::Device(user.clone(), device), rows::encode_device(&row));
                self.counters.insert(LogId::User(user), counters);
                self.after.holds.push(hold);
                self.after.done.push(done);
            }
            Op::PutMember { user, device, topic, row, hold, done } => {
                self.put(&Key::Member(user, device, topic), rows::encode_member(&row));
                self.after.holds.push(hold);
                self.after.done.extend(done);
            }
            Op::RemoveMember { user, device, topic, hold, done } => {
                self.remove(&Key::Member(user, device, topic));
                self.after.holds.push(hold);
                self.after.done.extend(done);
            }
            Op::RemoveDevice { user, device, at, unremembered, topics, hold, done } => {
                for topic in topics {
                    self.remove(&Key::Member(user.clone(), device.clone(), topic));
                }
                for device in unremembered {
                    self.remove(&Key::Forgotten(user.clone(), device));
                }
                self.put(&Key::Forgotten(user.clone(), device.clone()), rows::encode_forgotten(at));
                self.remove(&Key::Device(user, device));
                self.after.holds.push(hold);
                self.after.done.extend(done);
            }
            Op::ForgetUser { user, hold, done } => {
                self.gone.push(user);
                self.after.holds.push(hold);
                self.after.done.push(done);
            }
            Op::ForgetDue { due, done } => {
                self.remove(&Key::Expiry(due.minute, due.log));
                self.after.done.extend(done);
            }
            Op::ForgetId { due, now, done } => {
                self.due_ids.push((due, now));
                self.after.done.extend(done);
            }
            Op::Revoke { revoked, done } => {
                let row = |(id, one)| (Key::Revocation(id).encode(), Some(rows::encode_revocation(&one)));
                self.writes.extend(revoked.into_iter().map(row));
                self.after.done.push(done);
            }
            Op::ForgetRevocations { ids } => ids.iter().for_each(|id| self.remove(&Key::Revocation(*id))),
        }
    }

    /// Removes the rows of ids that may be forgotten, and were not remembered anew.
    pub fn forget_ids(&mut self, engine: &dyn Engine) -> Result<(), EngineError> {
        for (DueId { minute, log, id }, now) in std::mem::take(&mut self.due_ids) {
            let pair = (log, id);
            if !self.remembered.contains(&pair) {
                let key = Key::Id(pair.0.clone(), pair.1.clone());
                let row = engine.get(&key.encode())?;
                // One that cannot be read stands for nothing.
                let stands = |row: &[u8]| rows::decode_remembered(row).is_ok_and(|id| id.until > now);
                if row.is_some_and(|row| !stands(&row)) {
                    self.remove(&key);
                }
            }
            self.remove(&Key::IdEnd(minute, pair.0, pair.1));
        }
        Ok(())
    }

    /// Removes all that is written of those who are to be forgotten. Such a batch holds nothing else.
    pub fn forget_users(&mut self, engine: &dyn Engine) -> Result<(), EngineError> {
        for user in std::mem::take(&mut self.gone) {
            let keys = queries::keys_of(engine, &user)?;
            self.writes.extend(keys.into_iter().map(|key| (key, None)));
            self.counters.insert(LogId::User(user), Counters::default());
        }
        Ok(())
    }
}
