//! `ListPending`, `PurgePending`, `ListDevices`, `ForgetDevice`, `ForgetUser`: what is stored for a user, and its
//! clearing. Whatever clears something is a line of the audit.

use super::{
    Api, Caller,
    audit::{self, Subject},
    convert::{Checks, timestamp},
    error::ApiError,
    pages::{self, Filter},
    proto,
    scope::Scope,
};
use crate::{
    hub::{DeviceInfo, MailboxError, Purge},
    types::{Device, Notification, Offset, Topic, UserId},
};

impl Api {
    /// `ListPending`.
    pub async fn list_pending(
        &self,
        caller: &Caller,
        request: &proto::ListPendingRequest,
    ) -> Result<proto::ListPendingResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Read)?;
        let mut checks = Checks::default();
        let user = checks.field("user_id", UserId::parse(&request.user_id));
        let device = checks.device(request.device.as_deref());
        let filter = Filter::new("pending", &[Some(&request.user_id), request.device.as_deref()]);
        let after = checks.page_token(&request.page_token, filter, |after| after.parse().ok().map(Offset::new));
        let (user, device, after) = checks.finish((user, device, after))?;
        let (after, rows) = (after.unwrap_or(Offset::ZERO), pages::rows(request.page_size));
        let page = hub.pending(&user, device.as_ref(), after, rows).await?;
        let next_page_token = page.next.map(|next| filter.token(&next.to_string())).unwrap_or_default();
        let notifications = page.notifications.into_iter().map(pending).collect();
        Ok(proto::ListPendingResponse { notifications, next_page_token })
    }

    /// `PurgePending`.
    pub async fn purge_pending(
        &self,
        caller: &Caller,
        request: &proto::PurgePendingRequest,
    ) -> Result<proto::PurgePendingResponse, ApiError> {
        let subject = Subject(&[("user", Some(&request.user_id)), ("device", request.device.as_deref())]);
        // What only counts, and may, takes nothing away.
        let line = request.force.then(|| audit::begin("purge", caller, &subject));
        let outcome = self.purge(caller, request).await;
        let done = |answer: &proto::PurgePendingResponse| format!("{} purged", answer.purged);
        match line {
            Some(line) => line.note(&outcome, done),
            None if outcome.is_err() => audit::note("purge", caller, &subject, &outcome, done),
            None => {}
        }
        outcome
    }

    async fn purge(
        &self,
        caller: &Caller,
        request: &proto::PurgePendingRequest,
    ) -> Result<proto::PurgePendingResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Admin)?;
        let mut checks = Checks::default();
        let user = checks.field("user_id", UserId::parse(&request.user_id));
        let device = checks.device(request.device.as_deref());
        let (user, device) = checks.finish((user, device))?;
        let purged = hub.purge(&user, &Purge { device, force: request.force }).await?;
        Ok(proto::PurgePendingResponse { purged })
    }

    /// `ListDevices`.
    pub async fn list_devices(
        &self,
        caller: &Caller,
        request: &proto::ListDevicesRequest,
    ) -> Result<proto::ListDevicesResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Read)?;
        let mut checks = Checks::default();
        let user = checks.field("user_id", UserId::parse(&request.user_id));
        let (user,) = checks.finish((user,))?;
        let devices = hub.devices(&user).await?.iter().map(device_row).collect();
        Ok(proto::ListDevicesResponse { devices })
    }

    /// `ForgetDevice`.
    pub async fn forget_device(
        &self,
        caller: &Caller,
        request: &proto::ForgetDeviceRequest,
    ) -> Result<proto::ForgetDeviceResponse, ApiError> {
        let subject = Subject(&[("user", Some(&request.user_id)), ("device", request.device.as_deref())]);
        let line = audit::begin("forget device", caller, &subject);
        let outcome = self.forget_one(caller, request).await;
        line.note(&outcome, |_| "forgotten".to_owned());
        outcome
    }

    async fn forget_one(
        &self,
        caller: &Caller,
        request: &proto::ForgetDeviceRequest,
    ) -> Result<proto::ForgetDeviceResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Admin)?;
        let mut checks = Checks::default();
        let user = checks.field("user_id", UserId::parse(&request.user_id));
        let device = checks.device(request.device.as_deref());
        checks.check("device", request.device.is_some(), || {
            "is required; set and empty it is the unnamed device".to_owned()
        });
        let (user, device) = checks.finish((user, device.flatten()))?;
        hub.forget_device(&user, &device).await?;
        Ok(proto::ForgetDeviceResponse {})
    }

    /// `ForgetUser`.
    pub async fn forget_user(
        &self,
        caller: &Caller,
        request: &proto::ForgetUserRequest,
    ) -> Result<proto::ForgetUserResponse, ApiError> {
        let line = audit::begin("forget user", caller, &Subject(&[("user", Some(&request.user_id))]));
        let outcome = self.forget_all(caller, request).await;
        line.note(&outcome, |answer| {
            format!("{} devices and {} notifications forgotten", answer.devices, answer.notifications)
        });
        outcome
    }

    async fn forget_all(
        &self,
        caller: &Caller,
        request: &proto::ForgetUserRequest,
    ) -> Result<proto::ForgetUserResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Admin)?;
        let mut checks = Checks::default();
        let user = checks.field("user_id", UserId::parse(&request.user_id));
        let (user,) = checks.finish((user,))?;
        let (notifications, devices) = hub.forget_user(&user).await?;
        Ok(proto::ForgetUserResponse { notifications, devices })
    }
}

fn pending((offset, notification, waiting): (Offset, Notification, Vec<Device>)) -> proto::PendingNotification {
    proto::PendingNotification {
        id: notification.id.to_string(),
        offset: offset.get(),
        r#type: notification.type_name.as_str().to_owned(),
        bytes: notification.accounted_bytes(),
        created_at: Some(timestamp(notification.accepted_at)),
        expires_at: notification.expires_at.map(timestamp),
        waiting_devices: waiting.iter().map(Device::to_string).collect(),
        collapse_key: notification.collapse_key.map(|key| key.as_str().to_owned()).unwrap_or_default(),
    }
}

fn device_row(info: &DeviceInfo) -> proto::Device {
    proto::Device {
        device: info.name.to_string(),
        cursor: info.row.cursor.get(),
        broadcast_cursor: info.row.broadcast.get(),
        created_at: Some(timestamp(info.row.created_at)),
        last_seen: Some(timestamp(info.row.last_seen)),
        sessions: info.sessions,
        pending: info.pending,
        pending_broadcasts: info.broadcasts,
        gap: info.gap,
        topics: info.topics.iter().map(device_topic).collect(),
    }
}

fn device_topic((topic, cursor, pending): &(Topic, Offset, u32)) -> proto::DeviceTopic {
    proto::DeviceTopic { topic: topic.to_string(), cursor: cursor.get(), pending: *pending }
}

impl From<MailboxError> for ApiError {
    fn from(error: MailboxError) -> Self {
        let message = error.to_string();
        match error {
            MailboxError::NoSuchDevice => ApiError::NotFound { reason: "DEVICE_UNKNOWN", message },
            MailboxError::Store(_) => ApiError::Unavailable { reason: "STORE_FAILED", message },
        }
    }
}
