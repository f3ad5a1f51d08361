//! `ListSessions`.

use std::sync::Arc;

use super::{
    convert::{Checks, duration, timestamp},
    error::ApiError,
    pages::{self, Filter},
    proto,
};
use crate::{
    hub::{Handle, Hub},
    protocol::ack_mode::AckMode,
    types::{Network, SessionId, Topic, UserId, shown_address},
};

/// `ListSessions`.
pub fn sessions(hub: &Hub, request: &proto::ListSessionsRequest) -> Result<proto::ListSessionsResponse, ApiError> {
    let mut checks = Checks::default();
    let user = checks.optional("user_id", &request.user_id, UserId::parse);
    let session = checks.optional("session_id", &request.session_id, SessionId::parse);
    let device = checks.device(request.device.as_deref());
    let address = checks.address(&request.address);
    let topic = checks.optional("topic", &request.topic, Topic::parse);
    let fields = [
        Some(request.user_id.as_str()),
        Some(&request.session_id),
        request.device.as_deref(),
        Some(&request.address),
        Some(&request.topic),
    ];
    let filter = Filter::new("sessions", &fields);
    let after = checks.page_token(&request.page_token, filter, |after| SessionId::parse(after).ok());
    let (user, session, device, address, topic, after) =
        checks.finish((user, session, device, address, topic, after))?;
    let rows = pages::rows(request.page_size);
    let matches = |handle: &Arc<Handle>| {
        after.is_none_or(|after| handle.id > after)
            && user.as_ref().is_none_or(|user| *user == handle.user.id)
            && device.as_ref().is_none_or(|device| *device == handle.device)
            && address.is_none_or(|network| network.contains(handle.peer.remote.ip()))
            && topic.as_ref().is_none_or(|topic| handle.core().is_in(topic))
    };
    // Where nothing else is asked for, no more is looked at than a page.
    let plain = device.is_none() && address.is_none();
    let most = if plain { rows + 1 } else { usize::MAX };
    // One more than asked for tells whether there is a next page.
    let mut page: Vec<Arc<Handle>> = match (&user, session, &topic) {
        (_, Some(id), _) => hub.session(id).into_iter().filter(matches).collect(),
        (Some(user), None, _) => hub.user_sessions(user).into_iter().filter(matches).take(rows + 1).collect(),
        (None, None, Some(topic)) if plain => hub.topic_sessions(topic, after, most),
        (None, None, None) if plain => hub.session_page(after, most),
        (None, None, Some(topic)) => {
            hub.topic_sessions(topic, after, most).into_iter().filter(matches).take(rows + 1).collect()
        }
        (None, None, None) => hub.session_page(after, most).into_iter().filter(matches).take(rows + 1).collect(),
    };
    let more = page.len() > rows;
    page.truncate(rows);
    let next_page_token =
        page.last().filter(|_| more).map(|last| filter.token(&last.id.to_string())).unwrap_or_default();
    Ok(proto::ListSessionsResponse {
        sessions: page.iter().map(|handle| session_row(hub, handle)).collect(),
        next_page_token,
    })
}

impl Checks {
    fn address(&mut self, address: &str) -> Option<Option<Network>> {
        if address.is_empty() {
            return Some(None);
        }
        address.parse().map(Some).map_err(|error| self.violation("address", ToString::to_string(&error))).ok()
    }
}

/// A session as lists and snapshots show it.
pub fn session_row(hub: &Hub, handle: &Handle) -> proto::Session {
    let core = handle.core();
    let state = match (&core.closing, core.session.delivery.is_live()) {
        (Some(_), _) => proto::SessionState::Closing,
        (None, false) => proto::SessionState::Pulling,
        (None, true) => proto::SessionState::Live,
    };
    let ack_mode = match core.session.ack_mode {
        AckMode::Transport => proto::AckMode::Transport,
        AckMode::Client => proto::AckMode::Client,
    };
    let quiet = hub.clock().now().duration_since(core.session.last_received().max(handle.opened));
    let quiet = u64::try_from(quiet.as_millis()).unwrap_or(u64::MAX);
    let last_activity = crate::types::UnixMillis(hub.clock().unix_millis().0.saturating_sub(quiet));
    proto::Session {
        session_id: handle.id.to_string(),
        user_id: handle.user.id.as_str().to_owned(),
        device: handle.device.as_str().to_owned(),
        connected_at: Some(timestamp(handle.connected_at)),
        last_activity: Some(timestamp(last_activity)),
        remote_address: shown_address(handle.peer.remote),
        user_agent: handle.peer.user_agent.as_deref().unwrap_or_default().to_owned(),
        topics: core.rooms().iter().map(|room| room.name.to_string()).collect(),
        state: state.into(),
        ack_mode: ack_mode.into(),
        outbox_messages: u32::try_from(core.outbox.frames()).unwrap_or(u32::MAX),
        outbox_bytes: core.outbox.bytes() as u64,
        unconfirmed: u32::try_from(core.session.delivery.unconfirmed()).unwrap_or(u32::MAX),
        rtt: core.session.rtt().map(duration),
        messages_received: core.counts.messages_received,
        bytes_received: core.counts.bytes_received,
        messages_sent: core.counts.messages_sent,
        bytes_sent: core.counts.bytes_sent,
        token_expires_at: core.session.token_expires_at().map(timestamp),
    }
}
