//! Broadcasts: to every session that is connected, and where they are durable also to every known device that was away,
//! on its next connection, from a log of their own.

use std::sync::Arc;

use super::{
    Hub,
    filter::Filter,
    outgoing::Outgoing,
    send::{SendError, Sent},
    shared_log::Audience,
};
use crate::{metrics::Class, types::Notification};

impl Hub {
    /// Hands a notification to every session that is connected now, those of `not_for` left out.
    pub async fn broadcast(&self, notification: Notification) -> Result<Sent, SendError> {
        self.broadcast_to(Filter::default(), notification).await
    }

    /// The same, to those sessions alone that pass the filter.
    pub async fn broadcast_to(&self, filter: Filter, mut notification: Notification) -> Result<Sent, SendError> {
        if self.is_draining() {
            return Err(SendError::Draining);
        }
        if notification.is_now_or_never() {
            notification.expires_at = None;
        }
        let draft = self.draft(&notification, false)?;
        let outgoing = Outgoing::new(draft, &notification, None, false, true).counted_as(Class::Broadcast);
        let room = self.0.sessions.room(&outgoing).await;
        let filter = (!filter.is_empty()).then_some(filter);
        let (job, handed) = self.0.sessions.job(outgoing, Arc::new(notification), filter, None, room);
        job.measure(self.metrics());
        self.0.sessions.enqueue(job, &self.0.life);
        let sessions = handed.await.unwrap_or_default();
        Ok(self.sent_unstored(sessions))
    }

    /// Broadcasts durably. Returns once it is on disk and was handed to every session that is connected now.
    pub async fn broadcast_durably(&self, notification: Notification, own_id: bool) -> Result<Sent, SendError> {
        if self.is_draining() {
            return Err(SendError::Draining);
        }
        self.append_shared(&self.0.broadcasts, Audience::Everybody, notification, own_id).await
    }
}
