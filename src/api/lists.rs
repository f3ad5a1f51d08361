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

/// The most sessions that are looked at in one go.
const LOOK_MAX: usize = 1024;

/// Where a page goes on: behind a session, which may have gone. In a topic the order is by user first.
type Place = (Option<UserId>, SessionId);

/// `ListSessions`. What a page looks at is what it shows, and what it passes over until it is full; the next one goes on
/// there. So all pages together look at each session once.
pub async fn sessions(
    hub: &Hub,
    request: &proto::ListSessionsRequest,
) -> Result<proto::ListSessionsResponse, ApiError> {
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
    let after = checks.page_token(&request.page_token, filter, parse_place);
    let (user, session, device, address, topic, after) =
        checks.finish((user, session, device, address, topic, after))?;
    let rows = pages::rows(request.page_size);
    let matches = |handle: &Arc<Handle>| {
        user.as_ref().is_none_or(|user| *user == handle.user.id)
            && device.as_ref().is_none_or(|device| *device == handle.device)
            && address.is_none_or(|network| network.contains(handle.peer.remote.ip()))
            && topic.as_ref().is_none_or(|topic| handle.core().is_in(topic))
    };
    let id = after.as_ref().map(|(_, id)| *id);
    // One more than asked for tells whether there is a next page.
    let wanted = rows + 1;
    let mut page: Vec<Arc<Handle>> = match (&user, session, &topic) {
        (_, Some(one), _) => {
            hub.session(one).into_iter().filter(|one| id.is_none_or(|id| one.id > id) && matches(one)).collect()
        }
        (Some(user), None, _) => {
            let all = hub.user_sessions(user).into_iter();
            all.filter(|one| id.is_none_or(|id| one.id > id) && matches(one)).take(wanted).collect()
        }
        (None, None, Some(topic)) => {
            let after = after.and_then(|(user, id)| Some((user?, id)));
            let next = |last: Option<&Arc<Handle>>, most| {
                let last = last.map(|last| (last.user.id.clone(), last.id));
                hub.topic_sessions(topic, last.as_ref().or(after.as_ref()), most)
            };
            look_through(next, matches, wanted).await
        }
        (None, None, None) => {
            let next = |last: Option<&Arc<Handle>>, most| hub.session_page(last.map(|last| last.id).or(id), most);
            look_through(next, matches, wanted).await
        }
    };
    let more = page.len() > rows;
    page.truncate(rows);
    let by_user = user.is_none() && topic.is_some();
    let place = |last: &Arc<Handle>| match by_user {
        true => format!("{} {}", last.id, last.user.id.as_str()),
        false => last.id.to_string(),
    };
    let next_page_token = page.last().filter(|_| more).map(|last| filter.token(&place(last))).unwrap_or_default();
    Ok(proto::ListSessionsResponse {
        sessions: page.iter().map(|handle| session_row(hub, handle)).collect(),
        next_page_token,
    })
}

fn parse_place(text: &str) -> Option<Place> {
    let (id, user) = text.split_once(' ').map_or((text, None), |(id, user)| (id, Some(user)));
    Some((user.map(UserId::parse).transpose().ok()?, SessionId::parse(id).ok()?))
}

/// The first `wanted` that match. `next` gives the next so many behind one, fewer only at the end. It looks ahead no further
/// than it has come, so that little is looked at twice, by this page and by the next.
async fn look_through<T: Clone>(
    next: impl Fn(Option<&T>, usize) -> Vec<T>,
    matches: impl Fn(&T) -> bool,
    wanted: usize,
) -> Vec<T> {
    let (mut page, mut last, mut most) = (Vec::new(), None, wanted.min(LOOK_MAX));
    loop {
        let looked = next(last.as_ref(), most);
        let more = looked.len() == most;
        last = looked.last().cloned();
        page.extend(looked.into_iter().filter(&matches).take(wanted - page.len()));
        if page.len() == wanted || !more {
            return page;
        }
        most = (2 * most).min(LOOK_MAX);
        tokio::task::yield_now().await;
    }
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn all_pages_together_look_at_little_more_than_everything() {
        const ALL: usize = 20_000;
        for (one_of, rows) in [(1, 1), (1, 10), (1, 1000), (7, 10), (100, 3), (5000, 100), (ALL, 1)] {
            let (looked, calls) = (Cell::new(0), Cell::new(0));
            let (mut listed, mut after) = (Vec::new(), None);
            loop {
                let next = |last: Option<&usize>, most: usize| {
                    let from = last.copied().or(after).map_or(0, |last| last + 1);
                    let some: Vec<_> = (from..ALL).take(most).collect();
                    looked.set(looked.get() + some.len());
                    calls.set(calls.get() + 1);
                    assert!(most <= LOOK_MAX);
                    some
                };
                let mut page = look_through(next, |n| n % one_of == 0, rows + 1).await;
                let more = page.len() > rows;
                page.truncate(rows);
                listed.extend_from_slice(&page);
                after = page.last().copied();
                if !more {
                    break;
                }
            }
            assert_eq!(listed, (0..ALL).step_by(one_of).collect::<Vec<_>>(), "{one_of}");
            let pages = listed.len().div_ceil(rows);
            assert!(looked.get() <= 4 * ALL + pages * one_of, "{} looks: 1 of {one_of}, {rows} a page", looked.get());
            assert!(calls.get() <= 11 * pages + looked.get() / LOOK_MAX, "{} calls", calls.get());
        }
    }

    #[test]
    fn a_place_is_read_with_its_user_or_without() {
        let (id, user) = (SessionId::generate(), UserId::parse("a b").unwrap());
        assert_eq!(parse_place(&id.to_string()), Some((None, id)));
        assert_eq!(parse_place(&format!("{id} a b")), Some((Some(user), id)));
        for bad in ["", "x", " ", &format!("{id} "), "x a"] {
            assert_eq!(parse_place(bad), None, "{bad}");
        }
    }
}
