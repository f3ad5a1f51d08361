//! How a Pulling session gets from its position to the present: a page at a time from the store, up to the log's
//! applied mark, no more than its window takes; then Live, under the log's lock, when nothing is left.

use std::sync::Arc;

use super::{
    Hub,
    ends::Why,
    handle::Handle,
    log::LogState,
    outgoing::Outgoing,
    shared_log::{SharedLog, SharedState},
};
use crate::{
    metrics::Failure,
    protocol::server::Draft,
    session::{Flow, Log},
    store::{Page, PageLimit, StoreError},
    types::{LogId, Offset, Topic, UnixMillis},
};

/// What a session's task does next about its logs.
#[derive(Debug, PartialEq, Eq)]
pub enum Pull {
    /// Nothing: it is Live.
    Live,
    /// Wait: for a log's applied mark, for confirmations, or for the socket. The task is woken.
    Wait,
    /// Read this page.
    Read(PageRequest),
}

/// A page to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    of: Log,
    log: LogId,
    /// The log, where many read it.
    shared: Option<Arc<SharedLog>>,
    after: Offset,
    upto: Offset,
    records: usize,
    bytes: usize,
}

impl Hub {
    /// Decides what a session's task does next, and turns the session Live in each log where nothing is left to pull.
    pub fn plan_pull(&self, handle: &Arc<Handle>) -> Pull {
        let mut waits = false;
        let mut decides = |plan: Pull| match plan {
            Pull::Read(request) => Some(Pull::Read(request)),
            Pull::Wait => {
                waits = true;
                None
            }
            Pull::Live => None,
        };
        if let Some(read) = decides(self.plan_user(handle)).or_else(|| decides(self.plan_broadcast(handle))) {
            return read;
        }
        if let Some(read) = handle.pulled_topics().iter().find_map(|log| decides(self.plan_shared(handle, log))) {
            return read;
        }
        if waits { Pull::Wait } else { Pull::Live }
    }

    fn plan_user(&self, handle: &Arc<Handle>) -> Pull {
        let mut guard = handle.user.state();
        let state = &mut *guard;
        let was = handle.is_pulling(Log::User);
        let plan = self.plan(handle, Log::User, &state.log, || (handle.user.log(), None));
        match plan {
            Pull::Live if was => self.drop_done(&handle.user, state),
            Pull::Wait => state.maybe_pulling = true,
            Pull::Live | Pull::Read(_) => {}
        }
        plan
    }

    /// The same for the broadcast log alone.
    pub(super) fn plan_broadcast(&self, handle: &Arc<Handle>) -> Pull {
        self.plan_shared(handle, &self.0.broadcasts)
    }

    /// The same for one log that many read.
    fn plan_shared(&self, handle: &Arc<Handle>, shared: &Arc<SharedLog>) -> Pull {
        let mut guard = shared.state();
        let SharedState { log, waiting } = &mut *guard;
        let plan = self.plan(handle, shared.of, log, || (shared.id.clone(), Some(Arc::clone(shared))));
        // One that waits for its window or its socket is woken by those, and each is in the list once.
        let waits = matches!(plan, Pull::Wait) && !handle.is_closing() && {
            let position = handle.core().session.delivery.position(shared.of);
            self.is_stale(log) || log.first_above(position).is_none_or(|first| first.offset > log.applied)
        };
        if waits && !handle.note_waiting(shared.of, true) {
            waiting.push(Arc::downgrade(handle));
        }
        plan
    }

    /// What is to be done about one log, under its lock.
    fn plan(
        &self,
        handle: &Handle,
        of: Log,
        log: &LogState,
        name: impl FnOnce() -> (LogId, Option<Arc<SharedLog>>),
    ) -> Pull {
        let mut core = handle.core();
        if core.closing.is_some() {
            return Pull::Wait;
        }
        if self.is_stale(log) {
            // It is read anew, and the sessions are woken, when the store works again.
            return Pull::Wait;
        }
        if core.session.delivery.flow(of) == Flow::Live {
            return Pull::Live;
        }
        let position = core.session.delivery.position(of);
        let first = log.first_above(position);
        #[cfg(test)]
        let first =
            first.filter(|_| !matches!(of, Log::Topic(_)) || !crate::planted::is(crate::planted::Bug::TopicNotPulled));
        #[cfg(test)]
        let first =
            first.filter(|first| first.offset <= log.applied || !crate::planted::is(crate::planted::Bug::LiveTooEarly));
        let Some(first) = first else {
            // Nothing lies between the position and the last assigned offset, and the lock keeps it so.
            core.session.delivery.go_live(of, log.last);
            handle.note_flow(of, &core.session.delivery);
            return Pull::Live;
        };
        if first.offset > log.applied {
            self.0.store.hurry();
            return Pull::Wait;
        }
        let window = self.settings().delivery.window as usize;
        let fits = core.outbox.has_room(first.bytes as usize, self.limits().outbox_bytes.as_usize() / 2);
        if !fits || !core.session.delivery.admits(first.bytes as usize, window) {
            return Pull::Wait;
        }
        let (records, bytes) = core.session.delivery.room(window);
        let upto = log.applied;
        let (log, shared) = name();
        Pull::Read(PageRequest { of, log, shared, after: position, upto, records, bytes })
    }

    /// Reads a page.
    pub async fn read_page(&self, request: &PageRequest) -> Result<Page, StoreError> {
        let PageRequest { log, after, upto, records, bytes, .. } = request;
        let limit = PageLimit { records: *records, bytes: *bytes };
        self.0.store.page(log, *after, *upto, limit).await.inspect_err(|error| {
            if matches!(error, StoreError::Recovering(_)) {
                return;
            }
            self.store_error(error);
            tracing::error!(%log, %error, "stored notifications could not be read");
        })
    }

    /// Hands a page over. False: nothing of it fitted; wait for confirmations before the next.
    pub fn finish_pull(&self, handle: &Arc<Handle>, request: &PageRequest, page: Page) -> bool {
        let (now, unix) = (self.clock().now(), self.clock().unix_millis());
        let of = request.of;
        // What was deleted since the page was read is left out.
        let waiting = match &request.shared {
            None => self.still_waiting(&request.log, &mut handle.user.state().log, &page, unix),
            Some(shared) => self.still_waiting(&request.log, &mut shared.state().log, &page, unix),
        };
        let mut progress = page.records.is_empty() && (page.complete || !page.damaged.is_empty());
        let (mut whole, mut excluded) = (page.complete, false);
        for ((offset, notification), waiting) in page.records.iter().zip(waiting) {
            let is_excluded = notification.not_for.contains(&handle.user.id);
            excluded |= is_excluded;
            // A purge may have moved the session on since the page was read.
            let had = *offset <= handle.core().session.delivery.position(of);
            if !waiting || is_excluded || had {
                handle.core().session.delivery.advance(of, *offset);
                progress = true;
                continue;
            }
            let draft = Draft::text(notification, true, true);
            let binary = handle.core().session.binary;
            let outgoing = Outgoing::new(draft, notification, Some(*offset), true, binary);
            if !handle.hand_over(of, notification, *offset, &outgoing, now) {
                whole = false;
                break;
            }
            #[cfg(test)]
            if crate::planted::is(crate::planted::Bug::CursorAtPush) {
                handle.user.state().device(&handle.device).map(|known| known.confirm(of, request.log.topic(), *offset));
            }
            progress = true;
        }
        if whole {
            handle.core().session.delivery.advance(of, request.upto);
        }
        handle.ping_behind_data();
        if excluded {
            self.pass_excluded(handle, of, request.log.topic());
        }
        // Live before the client has seen the page, where it was the last: what he makes happen by it finds him so.
        let _ = self.plan_pull(handle);
        handle.flush();
        progress
    }

    /// Moves a device past what leaves its user out, where nothing of that log is unconfirmed: it is not to be looked at again
    /// at each connection.
    fn pass_excluded(&self, handle: &Arc<Handle>, log: Log, topic: Option<&Topic>) {
        let mut guard = handle.user.state();
        let state = &mut *guard;
        let position = {
            let core = handle.core();
            let delivery = &core.session.delivery;
            (!delivery.has_in_flight(log) && !delivery.is_outside(log)).then(|| delivery.position(log))
        };
        let Some(known) = state.devices.iter_mut().find(|known| known.name == handle.device) else { return };
        if position.is_some_and(|position| known.confirm(log, topic, position)) {
            match topic {
                None => self.put_cursor(&handle.user, known, &state.log),
                Some(topic) => self.put_member_cursor(&handle.user, known, topic, &state.log),
            }
        }
    }

    /// Which records of a page still wait; those that cannot be read leave the log, and so do those that have expired,
    /// before a cursor moves past them.
    fn still_waiting(&self, log: &LogId, state: &mut LogState, page: &Page, now: UnixMillis) -> Vec<bool> {
        if !page.damaged.is_empty() {
            self.metrics().failure(Failure::StoreDamage);
            let entries = state.take_offsets(&page.damaged);
            self.ended(log, state, &entries, Why::Damaged);
            self.delete(log, state, &entries, None);
        }
        let expired = page.records.iter().filter(|(_, notification)| notification.is_expired(now));
        let expired: Vec<Offset> = expired.map(|(offset, _)| *offset).collect();
        if !expired.is_empty() {
            let entries = state.take_offsets(&expired);
            self.ended(log, state, &entries, Why::Expired);
            self.delete(log, state, &entries, None);
        }
        page.records.iter().map(|(offset, _)| state.entry(*offset).is_some()).collect()
    }
}
