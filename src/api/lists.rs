//! Lists, a page at a time. A page token says where the next page starts and which filter it belongs to; it is opaque
//! to callers and refused with another filter.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use super::{
    convert::{Checks, duration, timestamp},
    error::ApiError,
    proto,
};
use crate::{
    hub::{Handle, Hub},
    limits,
    protocol::ack_mode::AckMode,
    types::{Device, SessionId, UserId},
};

const FILTER_HASH_BYTES: usize = 8;

fn filter_hash(request: &proto::ListSessionsRequest) -> [u8; FILTER_HASH_BYTES] {
    let mut hash = Sha256::new();
    let device = request.device.as_deref();
    for part in [request.user_id.as_str(), &request.session_id, device.map_or("-", |_| "+"), device.unwrap_or("")] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut short = [0; FILTER_HASH_BYTES];
    short.copy_from_slice(&hash.finalize()[..FILTER_HASH_BYTES]);
    short
}

fn encode_token(after: SessionId, filter: [u8; FILTER_HASH_BYTES]) -> String {
    URL_SAFE_NO_PAD.encode([filter.as_slice(), after.to_string().as_bytes()].concat())
}

fn decode_token(token: &str, filter: [u8; FILTER_HASH_BYTES]) -> Option<SessionId> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (hash, after) = bytes.split_at_checked(FILTER_HASH_BYTES)?;
    (hash == filter).then_some(())?;
    SessionId::parse(std::str::from_utf8(after).ok()?).ok()
}

/// `ListSessions`.
pub fn sessions(hub: &Hub, request: &proto::ListSessionsRequest) -> Result<proto::ListSessionsResponse, ApiError> {
    let mut checks = Checks::default();
    let user = checks.optional("user_id", &request.user_id, UserId::parse);
    let session = checks.optional("session_id", &request.session_id, SessionId::parse);
    let device = checks.field("device", request.device.as_deref().map(Device::parse).transpose());
    let filter = filter_hash(request);
    let after = match request.page_token.as_str() {
        "" => Some(None),
        token => {
            let after = decode_token(token, filter);
            checks.check("page_token", after.is_some(), || {
                "is not one that this list, with this filter, gave".to_owned()
            });
            after.map(Some)
        }
    };
    let (user, session, device, after) = checks.finish((user, session, device, after))?;
    let rows = match request.page_size as usize {
        0 => limits::PAGE_ROWS_DEFAULT,
        n => n.min(limits::PAGE_ROWS_MAX),
    };
    let matches = |handle: &Arc<Handle>| {
        after.is_none_or(|after| handle.id > after)
            && user.as_ref().is_none_or(|user| *user == handle.user.id)
            && device.as_ref().is_none_or(|device| *device == handle.device)
    };
    // One more than asked for tells whether there is a next page.
    let mut page: Vec<Arc<Handle>> = match (&user, session) {
        (_, Some(id)) => hub.session(id).into_iter().filter(matches).collect(),
        (Some(user), None) => hub.user_sessions(user).into_iter().filter(matches).take(rows + 1).collect(),
        (None, None) if device.is_none() => hub.session_page(after, rows + 1),
        (None, None) => hub.session_page(after, usize::MAX).into_iter().filter(matches).take(rows + 1).collect(),
    };
    let more = page.len() > rows;
    page.truncate(rows);
    let next_page_token = page.last().filter(|_| more).map(|last| encode_token(last.id, filter)).unwrap_or_default();
    Ok(proto::ListSessionsResponse {
        sessions: page.iter().map(|handle| session_row(hub, handle)).collect(),
        next_page_token,
    })
}

fn session_row(hub: &Hub, handle: &Handle) -> proto::Session {
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
    let quiet = hub.clock().now().duration_since(core.session.last_received);
    let quiet = u64::try_from(quiet.as_millis()).unwrap_or(u64::MAX);
    let last_activity = crate::types::UnixMillis(hub.clock().unix_millis().0.saturating_sub(quiet));
    proto::Session {
        session_id: handle.id.to_string(),
        user_id: handle.user.id.as_str().to_owned(),
        device: handle.device.as_str().to_owned(),
        connected_at: Some(timestamp(handle.connected_at)),
        last_activity: Some(timestamp(last_activity)),
        remote_address: handle.peer.remote.to_string(),
        user_agent: handle.peer.user_agent.as_deref().unwrap_or_default().to_owned(),
        state: state.into(),
        ack_mode: ack_mode.into(),
        outbox_messages: u32::try_from(core.outbox.frames()).unwrap_or(u32::MAX),
        outbox_bytes: core.outbox.bytes() as u64,
        unconfirmed: u32::try_from(core.session.delivery.unconfirmed()).unwrap_or(u32::MAX),
        rtt: core.session.rtt.map(duration),
        messages_received: core.counts.messages_received,
        bytes_received: core.counts.bytes_received,
        messages_sent: core.counts.messages_sent,
        bytes_sent: core.counts.bytes_sent,
        token_expires_at: core.session.token_expires_at.map(timestamp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_holds_for_its_filter_only() {
        let alice = proto::ListSessionsRequest { user_id: "alice".into(), ..Default::default() };
        let unnamed = proto::ListSessionsRequest { device: Some(String::new()), ..Default::default() };
        let id = SessionId::generate();
        let token = encode_token(id, filter_hash(&alice));
        assert_eq!(decode_token(&token, filter_hash(&alice)), Some(id));
        assert_eq!(decode_token(&token, filter_hash(&unnamed)), None);
        assert_ne!(filter_hash(&unnamed), filter_hash(&Default::default()));
        for junk in ["x", "AAAA", "%%%", ""] {
            assert_eq!(decode_token(junk, filter_hash(&alice)), None);
        }
    }
}
