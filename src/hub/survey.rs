//! How the sessions are now, all of them looked at: for whoever scrapes the metrics. What changes with every message is
//! counted nowhere for it, so that those who do not ask do not pay.

use std::{sync::Arc, time::Duration};

use super::{Hub, handle::Handle};
use crate::{clock::Instant, limits};

/// One in so much of a core's time goes into surveys at most: a survey is handed out again for as many times as long as it
/// took.
const SHARE: u32 = 20;

/// See the module's documentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Sessions that are handed at once what is sent.
    pub live: u64,
    /// Sessions that read from the store what they lack.
    pub pulling: u64,
    /// Sessions that are being closed.
    pub closing: u64,
    /// Sessions whose sockets take nothing just now of what waits for them.
    pub stalled: u64,
    /// Bytes that wait for all sockets.
    pub outbox_bytes: u64,
    /// The most that wait for one.
    pub outbox_bytes_max: u64,
    /// Notifications that were handed over and are not confirmed.
    pub unconfirmed: u64,
}

impl Survey {
    fn add(&mut self, handle: &Arc<Handle>) {
        let core = handle.core();
        let state = if core.closing.is_some() {
            &mut self.closing
        } else if core.session.delivery.is_live() {
            &mut self.live
        } else {
            &mut self.pulling
        };
        *state += 1;
        let bytes = core.outbox.bytes() as u64;
        self.stalled += u64::from(core.outbox.stalled_since().is_some());
        self.outbox_bytes += bytes;
        self.outbox_bytes_max = self.outbox_bytes_max.max(bytes);
        self.unconfirmed += core.session.delivery.unconfirmed() as u64;
    }
}

/// The last survey: when it began, and how long it took.
pub type Surveyed = tokio::sync::Mutex<Option<(Instant, Duration, Survey)>>;

impl Hub {
    /// Looks at every session, slice by slice with turns for others between. One survey at a time; who asks while there is one
    /// gets the same.
    pub async fn survey(&self) -> Survey {
        let mut last = self.0.surveyed.lock().await;
        if let Some((began, took, survey)) = &*last
            && began.elapsed() < *took * SHARE
        {
            return *survey;
        }
        let (began, mut survey, mut after) = (Instant::now(), Survey::default(), None);
        loop {
            let page = self.session_page(after, limits::FANOUT_SLICE_SESSIONS);
            page.iter().for_each(|handle| survey.add(handle));
            after = page.last().map(|handle| handle.id);
            if page.len() < limits::FANOUT_SLICE_SESSIONS {
                break;
            }
            tokio::task::yield_now().await;
        }
        *last = Some((began, began.elapsed(), survey));
        survey
    }
}
