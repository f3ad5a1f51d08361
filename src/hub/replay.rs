//! How a Pulling session gets from its position to the present: a page at a time from the store, up to the log's
//! applied mark, no more than its window takes; then Live, under the log's lock, when nothing is left.

use std::sync::Arc;

use super::{
    Hub,
    handle::{Handle, Outgoing},
};
use crate::{
    metrics::Failure,
    protocol::server::Draft,
    session::Flow,
    store::{Page, PageLimit, StoreError},
    types::{Offset, UserId},
};

/// What a session's task does next about its log.
#[derive(Debug, PartialEq, Eq)]
pub enum Pull {
    /// Nothing: it is Live.
    Live,
    /// Wait: for the log's applied mark, for confirmations, or for the socket. The task is woken.
    Wait,
    /// Read this page.
    Read(PageRequest),
}

/// A page to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    user: UserId,
    after: Offset,
    upto: Offset,
    records: usize,
    bytes: usize,
}

impl Hub {
    /// Decides what a session's task does next, and turns the session Live where nothing is left to pull.
    pub fn plan_pull(&self, handle: &Arc<Handle>) -> Pull {
        let mut guard = handle.user.state();
        let state = &mut *guard;
        let mut core = handle.core();
        if core.closing.is_some() {
            return Pull::Wait;
        }
        if self.is_stale(&handle.user) {
            // He is read anew, and his sessions are woken, when the store works again.
            return Pull::Wait;
        }
        let position = core.session.delivery.position();
        if core.session.delivery.flow() == Flow::Live {
            return Pull::Live;
        }
        let next = state.index.partition_point(|entry| entry.offset <= position);
        let Some(first) = state.index.get(next) else {
            // Nothing lies between the position and the last assigned offset, and the lock keeps it so.
            core.session.delivery.go_live(state.last);
            handle.note_flow(Flow::Live);
            drop(core);
            self.drop_confirmed(&handle.user, state);
            return Pull::Live;
        };
        if first.offset > state.applied {
            state.maybe_pulling = true;
            return Pull::Wait;
        }
        let window = self.settings().delivery.window as usize;
        let fits = core.outbox.has_room(first.bytes as usize, self.limits().outbox_bytes.as_usize() / 2);
        if !fits || !core.session.delivery.admits(first.bytes as usize, window) {
            return Pull::Wait;
        }
        let (records, bytes) = core.session.delivery.room(window);
        Pull::Read(PageRequest { user: handle.user.id.clone(), after: position, upto: state.applied, records, bytes })
    }

    /// Reads a page.
    pub async fn read_page(&self, request: &PageRequest) -> Result<Page, StoreError> {
        let PageRequest { user, after, upto, records, bytes } = request;
        let limit = PageLimit { records: *records, bytes: *bytes };
        self.0.store.page(user, *after, *upto, limit).await.inspect_err(|error| {
            if matches!(error, StoreError::Recovering(_)) {
                return;
            }
            self.metrics().failure(Failure::StoreError);
            tracing::error!(%user, %error, "stored notifications could not be read");
        })
    }

    /// Hands a page over. False: nothing of it fitted; wait for confirmations before the next.
    pub fn finish_pull(&self, handle: &Arc<Handle>, request: &PageRequest, page: Page) -> bool {
        let (now, unix) = (self.clock().now(), self.clock().unix_millis());
        // What was deleted since the page was read is left out.
        let waiting: Vec<bool> = {
            let mut guard = handle.user.state();
            let state = &mut *guard;
            if !page.damaged.is_empty() {
                self.metrics().failure(Failure::StoreDamage);
                let entries = state.take_offsets(&page.damaged);
                self.delete(&handle.user, state, entries);
            }
            let index = &state.index;
            let is_waiting = |offset: &Offset| index.binary_search_by_key(offset, |entry| entry.offset).is_ok();
            page.records.iter().map(|(offset, _)| is_waiting(offset)).collect()
        };
        let mut progress = page.records.is_empty() && (page.complete || !page.damaged.is_empty());
        let mut whole = page.complete;
        for ((offset, notification), waiting) in page.records.iter().zip(waiting) {
            if !waiting || notification.is_expired(unix) {
                handle.core().session.delivery.advance(*offset);
                progress = true;
                continue;
            }
            let draft = Draft::text(notification, true, true);
            let binary = handle.core().session.binary;
            let outgoing = Outgoing::new(draft, notification, Some(*offset), true, binary);
            if !handle.hand_over(notification, *offset, &outgoing, now) {
                whole = false;
                break;
            }
            progress = true;
        }
        if whole {
            handle.core().session.delivery.advance(request.upto);
        }
        handle.ping_behind_data();
        // Live before the client has seen the page, where it was the last: what he makes happen by it finds him so.
        let _ = self.plan_pull(handle);
        handle.flush();
        progress
    }
}
