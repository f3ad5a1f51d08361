//! What goes because its time has come: expired notifications, ids that were remembered long enough, devices that were
//! not seen for long.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::sync::oneshot;

use super::{Hub, log::LogState};
use crate::{
    limits,
    store::{Due, Op, StoreError},
    types::{UnixMillis, UserId},
};

/// How often what has expired is looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Buckets looked at in one step of a sweep.
const BUCKETS_MAX: usize = 1024;
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
            self.sweep_all().await;
            self.sweep_revocations();
        }
    }

    fn swept<T>(&self, found: Result<Vec<T>, StoreError>, what: &str) -> Vec<T> {
        match found {
            Ok(found) => return found,
            Err(StoreError::Closed | StoreError::Recovering(_)) => {}
            Err(error) => {
                self.store_error(&error);
                tracing::error!(%error, "{what} could not be looked up");
            }
        }
        Vec::new()
    }

    /// Deletes all that is due; how many notifications had expired.
    async fn sweep_all(&self) -> usize {
        let _one_at_a_time = self.0.sweeping.lock().await;
        let mut expired = 0;
        loop {
            let (some, more) = self.sweep(self.clock().unix_millis(), BUCKETS_MAX).await;
            expired += some;
            if !(more | self.sweep_ids().await) {
                return expired;
            }
        }
    }

    /// What the clockwork does by itself, done now: sessions whose time is over are closed (no heartbeat, nothing confirmed,
    /// a token that ran out), and what has expired is deleted, that of the present minute included.
    ///
    /// # Errors
    /// A store that does not take it.
    pub async fn clean_up(&self) -> Result<CleanedUp, StoreError> {
        let closed = self.close_overdue().await;
        self.0.store.health()?;
        let mut expired = self.sweep_all().await;
        let _one_at_a_time = self.0.sweeping.lock().await;
        let soon = self.clock().unix_millis().saturating_add(BUCKET);
        expired += self.sweep(soon, BUCKETS_AHEAD_MAX).await.0;
        Ok(CleanedUp { closed, expired })
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

    /// Deletes what has expired of the logs whose buckets are due at `upto`, in part; how much, and whether there may be
    /// more.
    async fn sweep(&self, upto: UnixMillis, max: usize) -> (usize, bool) {
        let due = self.0.store.due(upto, max).await;
        let due = self.swept(due, "expired notifications");
        let full = due.len() == max;
        // A log may have several minutes due; one look at it serves them all.
        let mut users: HashMap<UserId, Vec<Due>> = HashMap::new();
        let mut broadcasts = Vec::new();
        for row in due {
            match row.log.user().cloned() {
                Some(user) => users.entry(user).or_default().push(row),
                None => broadcasts.push(row),
            }
        }
        let (mut written, mut expired) = (Vec::new(), 0);
        if !broadcasts.is_empty() {
            match self.broadcasts().await {
                Ok(log) => {
                    let mut state = log.state();
                    expired += self.expire_broadcasts(&mut state);
                    written.push(self.forget_due(&state.log, broadcasts));
                }
                Err(error) => tracing::error!(%error, "expired broadcasts could not be deleted"),
            }
        }
        let users: Vec<_> = stream::iter(users)
            .map(async |(id, rows)| match self.user(&id).await {
                Ok(user) => {
                    let mut state = user.state();
                    let expired = self.expire(&user, &mut state);
                    Some((expired, self.forget_due(&state.log, rows)))
                }
                Err(error) => {
                    tracing::error!(user = %id, %error, "expired notifications could not be deleted");
                    None
                }
            })
            .buffer_unordered(USERS_AT_ONCE)
            .collect()
            .await;
        for (some, told) in users.into_iter().flatten() {
            expired += some;
            written.push(told);
        }
        (expired, full && all_written(written).await)
    }

    /// Behind the deletes in the writer's queue, so that a crash between them leaves the rows to find them by. Told when
    /// that is on disk: until then the same rows would be found again. Of a bucket that is not due yet more may follow.
    fn forget_due(&self, log: &LogState, mut rows: Vec<Due>) -> Written {
        let now = self.clock().unix_millis();
        rows.retain(|row| row.is_due(now));
        let (done, written) = oneshot::channel();
        let (mut done, mut left) = (Some(done), rows.len());
        for due in rows {
            left -= 1;
            let done = if left == 0 { done.take() } else { None };
            self.write(log, Op::ForgetDue { due, done });
        }
        written
    }

    /// Forgets ids that were remembered long enough, in part; whether there may be more.
    async fn sweep_ids(&self) -> bool {
        let now = self.clock().unix_millis();
        let due = self.0.store.due_ids(now, BUCKETS_MAX).await;
        let due = self.swept(due, "ids to be forgotten");
        let (full, mut left) = (due.len() == BUCKETS_MAX, due.len());
        let (done, written) = oneshot::channel();
        let mut done = Some(done);
        for due in due {
            left -= 1;
            let done = if left == 0 { done.take() } else { None };
            // It follows from no log's state: the writer looks at the row itself.
            let _ = self.0.store.stage_in(self.0.store.generation(), Op::ForgetId { due, now, done });
        }
        full && all_written(vec![written]).await
    }

    pub(super) async fn run_device_sweep(&self) {
        let (least, most) = DEVICE_SWEEP;
        let mut interval = tokio::time::interval((self.quotas().device_ttl / 8).clamp(least, most));
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.sweep_devices().await;
        }
    }

    /// Forgets every device that was not seen for `store.device_ttl`.
    pub(super) async fn sweep_devices(&self) {
        let mut after = None;
        loop {
            let page = self.0.store.devices_after(after, DEVICES_MAX).await;
            let page = self.swept(page, "devices");
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

/// Waits for all of it; false where some of it failed.
async fn all_written(waiting: Vec<Written>) -> bool {
    let mut all = true;
    for written in waiting {
        all &= matches!(written.await, Ok(Ok(())));
    }
    all
}
