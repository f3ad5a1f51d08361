//! What goes because its time has come: expired notifications, ids that were remembered long enough, devices that were
//! not seen for long.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::sync::oneshot;

use super::{Hub, log::LogState};
use crate::{
    limits,
    store::{Due, Op, StoreError},
    types::{LogId, UnixMillis, UserId},
};

/// How often what has expired is looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Buckets looked at in one step of a sweep.
const BUCKETS_MAX: usize = 1024;
/// How long a topic's log that nobody uses stays in memory, in milliseconds.
const TOPIC_LOG_KEPT: u64 = 60_000;
/// How long a bucket waits for the last of what is in it to expire.
const BUCKET: Duration = Duration::from_secs(60);
/// The same of a look at those that are not due yet; the next sweeps find what is beyond.
const BUCKETS_AHEAD_MAX: usize = 65_536;
/// Users that one sweep reads at once.
const USERS_AT_ONCE: usize = 32;
/// Devices looked at in one step of a sweep.
const DEVICES_MAX: usize = 512;
/// How often devices are looked through: often enough for `store.device_ttl`, within these bounds.
const DEVICE_SWEEP: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// What a clean-up came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanedUp {
    /// Sessions that were closed.
    pub closed: usize,
    /// Notifications that had expired.
    pub expired: usize,
}

impl Hub {
    pub(super) async fn run_sweep(&self) {
        let mut interval = tokio::time::interval(SWEEP_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            {
                let _one_at_a_time = self.0.sweeping.lock().await;
                self.sweep_all(&mut Swept::default()).await;
            }
            self.sweep_revocations();
            self.0.topic_logs.forget_idle(UnixMillis(self.clock().unix_millis().0.saturating_sub(TOPIC_LOG_KEPT)));
        }
    }

    /// What was looked up. A store that fails has found nothing.
    fn found<T>(&self, found: Result<Vec<T>, StoreError>, what: &str, swept: &mut Swept) -> Vec<T> {
        let error = match found {
            Ok(found) => return found,
            Err(error) => error,
        };
        if !matches!(error, StoreError::Closed | StoreError::Recovering(_)) {
            self.store_error(&error);
            tracing::error!(%error, "{what} could not be looked up");
        }
        swept.fails(error);
        Vec::new()
    }

    /// Deletes all that is due.
    async fn sweep_all(&self, swept: &mut Swept) {
        while self.sweep(self.clock().unix_millis(), BUCKETS_MAX, swept).await | self.sweep_ids(swept).await {}
    }

    /// What the clockwork does by itself, done now: sessions whose time is over are closed (no heartbeat, nothing confirmed,
    /// a token that ran out), and what has expired is deleted, that of the present minute included.
    ///
    /// # Errors
    /// A store that does not take it.
    pub async fn clean_up(&self) -> Result<CleanedUp, StoreError> {
        let closed = self.close_overdue().await;
        self.0.store.health()?;
        let _one_at_a_time = self.0.sweeping.lock().await;
        let mut swept = Swept { waits: true, ..Swept::default() };
        self.sweep_all(&mut swept).await;
        let soon = self.clock().unix_millis().saturating_add(BUCKET);
        self.sweep(soon, BUCKETS_AHEAD_MAX, &mut swept).await;
        match swept.failed {
            Some(error) => Err(error),
            None => self.0.store.health().map(|()| CleanedUp { closed, expired: swept.expired }),
        }
    }

    /// Looks at every session; how many were closed for it.
    async fn close_overdue(&self) -> usize {
        let (mut after, mut closed) = (None, 0);
        loop {
            let slice = self.session_page(after, limits::FANOUT_SLICE_SESSIONS);
            let Some(last) = slice.last() else { return closed };
            after = Some(last.id);
            for handle in &slice {
                let open = !handle.is_closing();
                self.look_at(handle);
                closed += usize::from(open && handle.is_closing());
            }
            tokio::task::yield_now().await;
        }
    }

    /// Deletes what has expired of the logs whose buckets are due at `upto`, in part; whether there may be more.
    async fn sweep(&self, upto: UnixMillis, max: usize, swept: &mut Swept) -> bool {
        let due = self.0.store.due(upto, max).await;
        let due = self.found(due, "expired notifications", swept);
        let full = due.len() == max;
        // A log may have several minutes due; one look at it serves them all.
        let mut users: HashMap<UserId, Vec<Due>> = HashMap::new();
        let mut many: HashMap<LogId, Vec<Due>> = HashMap::new();
        for row in due {
            match row.log.user().cloned() {
                Some(user) => users.entry(user).or_default().push(row),
                None => many.entry(row.log.clone()).or_default().push(row),
            }
        }
        let mut written = Vec::new();
        for (id, rows) in many {
            let log = match id.topic() {
                None => self.broadcasts().await.map(Arc::clone),
                Some(topic) => self.topic_log(topic).await,
            };
            match log {
                Ok(log) => {
                    let mut state = log.state();
                    swept.expired += self.expire_shared(&id, &mut state.log);
                    written.extend(self.forget_due(&state.log, rows));
                }
                Err(error) => {
                    tracing::error!(log = %id, %error, "what has expired could not be deleted");
                    swept.fails(error);
                }
            }
        }
        let users: Vec<_> = stream::iter(users)
            .map(async |(id, rows)| match self.user(&id).await {
                Ok(user) => {
                    let mut state = user.state();
                    let expired = self.expire(&user, &mut state);
                    Ok((expired, self.forget_due(&state.log, rows)))
                }
                Err(error) => {
                    tracing::error!(user = %id, %error, "expired notifications could not be deleted");
                    Err(error)
                }
            })
            .buffer_unordered(USERS_AT_ONCE)
            .collect()
            .await;
        for user in users {
            match user {
                Ok((expired, told)) => {
                    swept.expired += expired;
                    written.extend(told);
                }
                Err(error) => swept.fails(error),
            }
        }
        swept.wait_for(written, full).await
    }

    /// Behind the deletes in the writer's queue, so that a crash between them leaves the rows to find them by. Told when
    /// that is on disk: until then the same rows would be found again. Of a bucket that is not due yet more may follow, and
    /// it stays.
    fn forget_due(&self, log: &LogState, mut rows: Vec<Due>) -> Option<Written> {
        let now = self.clock().unix_millis();
        rows.retain(|row| row.is_due(now));
        if rows.is_empty() {
            return None;
        }
        let (done, written) = oneshot::channel();
        let (mut done, mut left) = (Some(done), rows.len());
        for due in rows {
            left -= 1;
            let done = if left == 0 { done.take() } else { None };
            self.write(log, Op::ForgetDue { due, done });
        }
        Some(written)
    }

    /// Forgets ids that were remembered long enough, in part; whether there may be more.
    async fn sweep_ids(&self, swept: &mut Swept) -> bool {
        let now = self.clock().unix_millis();
        let due = self.0.store.due_ids(now, BUCKETS_MAX).await;
        let due = self.found(due, "ids to be forgotten", swept);
        if due.is_empty() {
            return false;
        }
        let (full, mut left) = (due.len() == BUCKETS_MAX, due.len());
        let (done, written) = oneshot::channel();
        let mut done = Some(done);
        for due in due {
            left -= 1;
            let done = if left == 0 { done.take() } else { None };
            // It follows from no log's state: the writer looks at the row itself.
            let _ = self.0.store.stage_in(self.0.store.generation(), Op::ForgetId { due, now, done });
        }
        swept.wait_for(vec![written], full).await
    }

    pub(super) async fn run_device_sweep(&self) {
        let (least, most) = DEVICE_SWEEP;
        loop {
            self.sweep_devices().await;
            // Short of the next sweep, a TTL that a reload makes shorter counts at the latest after `most`.
            tokio::time::sleep((self.quotas().device_ttl / 8).clamp(least, most)).await;
        }
    }

    /// Forgets every device that was not seen for `store.device_ttl`.
    pub(super) async fn sweep_devices(&self) {
        let mut after = None;
        loop {
            let page = self.0.store.devices_after(after, DEVICES_MAX).await;
            let page = self.found(page, "devices", &mut Swept::default());
            let Some((user, device, _)) = page.last() else { return };
            after = Some((user.clone(), device.clone()));
            let now = self.clock().unix_millis();
            let unseen = |row: &crate::store::DeviceRow| row.last_seen.saturating_add(self.quotas().device_ttl) <= now;
            for (id, _, row) in page {
                if unseen(&row)
                    && let Ok(user) = self.user(&id).await
                {
                    self.forget_unseen(&user, &mut user.state());
                }
            }
        }
    }
}

/// Told when something is on disk.
type Written = oneshot::Receiver<Result<(), StoreError>>;

/// What a sweep has come to so far.
#[derive(Debug, Default)]
struct Swept {
    /// Notifications that had expired.
    expired: usize,
    /// Whether it waits for what it writes where nothing else asks for it.
    waits: bool,
    /// What went wrong first.
    failed: Option<StoreError>,
}

impl Swept {
    fn fails(&mut self, error: StoreError) {
        self.failed.get_or_insert(error);
    }

    /// Waits for what was written where there may be `more` behind it, which is to be looked for then: not before it is on
    /// disk, and not where it failed.
    async fn wait_for(&mut self, written: Vec<Written>, more: bool) -> bool {
        if !(more || self.waits) {
            return false;
        }
        let mut all = true;
        for written in written {
            let written = written.await.unwrap_or(Err(StoreError::Closed));
            all &= written.is_ok();
            written.unwrap_or_else(|error| self.fails(error));
        }
        more && all
    }
}
