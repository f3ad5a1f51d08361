//! Which logs a session pulls, readable without its lock; and the durable topics that it is in.

use std::sync::{Arc, atomic::Ordering};

use super::{Aside, Core, Handle};
use crate::{
    hub::shared_log::SharedLog,
    session::{Delivery, Flow, Log},
    types::{Offset, Topic},
};

/// A durable topic that a session is in.
#[derive(Debug)]
pub struct Followed {
    /// Its log.
    log: Arc<SharedLog>,
    /// Whether it is in the list of those that are woken when more of the log is readable.
    waits: bool,
}

/// The logs of which it is noted whether a session pulls them; topics together are one.
pub(super) const PLACES: usize = 3;

fn place(log: Log) -> usize {
    match log {
        Log::User => 0,
        Log::Broadcast => 1,
        Log::Topic(_) => 2,
    }
}

impl Aside {
    /// Whether it is in no durable topic.
    pub fn follows_none(&self) -> bool {
        self.followed.is_none()
    }
}

impl Core {
    fn all_followed(&self) -> &[Followed] {
        self.aside.as_ref().and_then(|aside| aside.followed.as_ref()).map_or(&[], |followed| followed)
    }

    /// It is in a durable topic, of whose log it has all up to `cursor`.
    pub fn follow(&mut self, log: &Arc<SharedLog>, cursor: Offset) {
        self.aside().followed.get_or_insert_default().push(Followed { log: Arc::clone(log), waits: false });
        self.session.delivery.start(log.of, cursor);
    }

    /// It is in that topic no more, or never was. Which log that was.
    pub fn unfollow(&mut self, topic: &Topic) -> Option<Log> {
        let followed = &mut self.aside.as_mut()?.followed;
        let logs = followed.as_mut()?;
        let at = logs.iter().position(|one| one.log.id.topic() == Some(topic))?;
        let of = logs.swap_remove(at).log.of;
        if logs.is_empty() {
            *followed = None;
        }
        self.session.delivery.stop(of);
        Some(of)
    }
}

impl Handle {
    /// Whether it is Pulling a log; of a topic: any of its topics.
    pub fn is_pulling(&self, log: Log) -> bool {
        self.pulling[place(log)].load(Ordering::Acquire)
    }

    /// Whether it is Pulling any log.
    pub fn is_behind(&self) -> bool {
        self.pulling.iter().any(|pulling| pulling.load(Ordering::Acquire))
    }

    /// Follows the core's flow in a log, under the core's lock.
    pub fn note_flow(&self, log: Log, delivery: &Delivery) {
        let pulling = match log {
            Log::User | Log::Broadcast => delivery.flow(log) == Flow::Pulling,
            Log::Topic(_) => delivery.pulled_topics().next().is_some(),
        };
        self.pulling[place(log)].store(pulling, Ordering::Release);
    }

    /// Notes whether it is in the list of those that are woken when more of a log is readable; whether it was. With no core
    /// held.
    pub fn note_waiting(&self, log: Log, waits: bool) -> bool {
        match log {
            Log::User => false,
            Log::Broadcast => self.waits_for_broadcasts.swap(waits, Ordering::AcqRel),
            Log::Topic(_) => {
                let mut core = self.core();
                let followed = core
                    .aside
                    .as_mut()
                    .and_then(|aside| aside.followed.as_mut()?.iter_mut().find(|one| one.log.of == log));
                // One that it is not in any more wakes nobody.
                followed.is_none_or(|one| std::mem::replace(&mut one.waits, waits))
            }
        }
    }

    /// Passes what came from this very session, and is not for it.
    pub fn pass(&self, log: Log, offset: Offset) {
        self.core().session.delivery.pass(log, offset);
    }

    /// The logs of the durable topics that it pulls.
    pub fn pulled_topics(&self) -> Vec<Arc<SharedLog>> {
        if !self.pulling[place(Log::Topic(0))].load(Ordering::Acquire) {
            return Vec::new();
        }
        let core = self.core();
        let pulled = |one: &&Followed| core.session.delivery.flow(one.log.of) == Flow::Pulling;
        core.all_followed().iter().filter(pulled).map(|one| Arc::clone(&one.log)).collect()
    }

    /// The logs of the durable topics that it is in.
    pub fn followed_logs(&self) -> Vec<Arc<SharedLog>> {
        let core = self.core();
        core.all_followed().iter().map(|one| Arc::clone(&one.log)).collect()
    }

    /// The log of a durable topic that it is in.
    pub fn followed(&self, log: Log) -> Option<Arc<SharedLog>> {
        let core = self.core();
        core.all_followed().iter().find(|one| one.log.of == log).map(|one| Arc::clone(&one.log))
    }
}
