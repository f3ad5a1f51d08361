//! What goes because its time has come: expired notifications, ids that were remembered long enough, devices that were
//! not seen for long.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::sync::oneshot;

use super::{Hub, log::LogState};
use crate::{
    store::{Due, Op, StoreError},
    types::UserId,
};

/// How often what has expired is looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Buckets looked at in one step of a sweep.
const BUCKETS_MAX: usize = 1024;
/// Users that one sweep reads at once.
const USERS_AT_ONCE: usize = 32;
/// Devices looked at in one step of a sweep.
const DEVICES_MAX: usize = 512;
/// How often devices are looked through: often enough for `store.device_ttl`, within these bounds.
const DEVICE_SWEEP: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

impl Hub {
    pub(super) async fn run_sweep(&self) {
        let mut interval = tokio::time::interval(SWEEP_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            while self.sweep().await | self.sweep_ids().await {}
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

    /// Deletes what has expired, in part; whether there may be more.
    async fn sweep(&self) -> bool {
        let due = self.0.store.due(self.clock().unix_millis(), BUCKETS_MAX).await;
        let due = self.swept(due, "expired notifications");
        let full = due.len() == BUCKETS_MAX;
        // A log may have several minutes due; one look at it serves them all.
        let mut users: HashMap<UserId, Vec<Due>> = HashMap::new();
        let mut broadcasts = Vec::new();
        for row in due {
            match row.log.user().cloned() {
                Some(user) => users.entry(user).or_default().push(row),
                None => broadcasts.push(row),
            }
        }
        let mut written = Vec::new();
        if !broadcasts.is_empty() {
            match self.broadcasts().await {
                Ok(log) => {
                    let mut state = log.state();
                    self.expire_broadcasts(&mut state);
                    written.push(self.forget_due(&state.log, broadcasts));
                }
                Err(error) => tracing::error!(%error, "expired broadcasts could not be deleted"),
            }
        }
        let users: Vec<_> = stream::iter(users)
            .map(async |(id, rows)| match self.user(&id).await {
                Ok(user) => {
                    let mut state = user.state();
                    self.expire(&user, &mut state);
                    Some(self.forget_due(&state.log, rows))
                }
                Err(error) => {
                    tracing::error!(user = %id, %error, "expired notifications could not be deleted");
                    None
                }
            })
            .buffer_unordered(USERS_AT_ONCE)
            .collect()
            .await;
        written.extend(users.into_iter().flatten());
        full && all_written(written).await
    }

    /// Behind the deletes in the writer's queue, so that a crash between them leaves the rows to find them by. Told when
    /// that is on disk: until then the same rows would be found again.
    fn forget_due(&self, log: &LogState, rows: Vec<Due>) -> Written {
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
