//! `StreamEvents`: a consumer's view of the events, filtered, at its own pace, from the place that it asks for.

mod encode;

pub use self::encode::alert;

use std::{collections::VecDeque, pin::Pin};

use futures_util::{Stream, stream};
use tokio_util::sync::CancellationToken;

use super::{
    convert::{Checks, timestamp},
    error::ApiError,
    lists,
    proto::{self, event::Event as Body},
    standing::{self, Standing},
};
use crate::{
    hub::{Hub, Interest, Read, Reader, Start},
    lifecycle::Lifecycle,
    limits,
    metrics::Metrics,
    types::{EventBody, SessionId, TypeName, UserId},
};

/// What `StreamEvents` answers with.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<proto::Event, ApiError>> + Send>>;

/// Events that come whatever the filter of types.
const ALWAYS: [&str; 3] = ["events_lost", "snapshot_session", "snapshot_end"];

struct Consumer {
    reader: Reader,
    /// Until all of it was told.
    snapshot: Option<Snapshot>,
    epoch: String,
    user: Option<UserId>,
    raw_json: bool,
    ready: VecDeque<proto::Event>,
    stop: CancellationToken,
    standing: Standing,
    hub: Hub,
    open: Open,
}

/// How far a snapshot was told.
struct Snapshot {
    /// The last event before it: what it shows is what there was then, or came since.
    sequence: u64,
    /// The session that was told last.
    after: Option<SessionId>,
    sessions: u32,
}

/// Counts an open stream for as long as it lives.
struct Open(Metrics);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.event_streams.leave();
    }
}

/// Where a consumer goes on.
struct Place {
    /// Behind this event of the present epoch.
    after: u64,
    /// It was in another epoch.
    epoch_changed: bool,
}

/// `StreamEvents`.
pub fn stream(
    hub: &Hub,
    life: &Lifecycle,
    standing: &Standing,
    request: &proto::StreamEventsRequest,
) -> Result<EventStream, ApiError> {
    let mut checks = Checks::default();
    let user = checks.optional("user_id", &request.user_id, UserId::parse);
    let types = checks.event_types(&request.types);
    let message_types = checks.message_types(&request.message_types);
    let group = checks.group(&request.group);
    let place = request.resume_after.as_ref().and_then(|place| checks.place(hub, place));
    checks.check("resume_after", request.resume_after.is_none() || !request.snapshot, || {
        "does not go together with snapshot, which begins anew".to_owned()
    });
    let (user, message_types) = checks.finish((user, message_types))?;
    hub.metrics().event_streams.enter();
    let open = Open(hub.metrics().clone());
    let start = place.as_ref().map_or(Start::Now, |place| Start::After(place.after));
    // Who asks for all there is does not say that he answers clients.
    let asked = |name: &String| name == EventBody::NAMES[EventBody::MESSAGE_RECEIVED];
    let serves = group.is_some() || !message_types.is_empty() || request.types.iter().any(asked);
    let interest = Interest { types, user: user.clone(), message_types, group, serves };
    let reader = hub.events().consume(interest, start);
    let snapshot = Snapshot { sequence: reader.place(), after: None, sessions: 0 };
    let mut consumer = Consumer {
        reader,
        snapshot: request.snapshot.then_some(snapshot),
        epoch: hub.events().epoch().to_string(),
        user,
        raw_json: request.raw_json,
        ready: VecDeque::new(),
        stop: life.stopping().clone(),
        standing: standing.clone(),
        hub: hub.clone(),
        open,
    };
    if place.is_some_and(|place| place.epoch_changed) {
        let (count, last) = consumer.reader.skip_lost();
        let lost = consumer.lost(count, last, true);
        consumer.ready.push_back(lost);
    }
    Ok(Box::pin(stream::unfold(Some(consumer), |consumer| async {
        let mut consumer = consumer?;
        match consumer.next().await {
            Ok(event) => Some((Ok(event), Some(consumer))),
            Err(end) => Some((Err(end), None)),
        }
    })))
}

impl Consumer {
    /// The next event, or why there are no more.
    async fn next(&mut self) -> Result<proto::Event, ApiError> {
        let over = Err(ApiError::Unauthenticated(standing::ENDED));
        loop {
            if self.standing.has_ended() {
                return over;
            }
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            if let Some(snapshot) = self.snapshot.take() {
                self.tell_sessions(snapshot);
                continue;
            }
            let read = tokio::select! {
                biased;
                read = self.reader.read() => read,
                () = self.stop.cancelled() => {
                    let message = "the node is stopping".to_owned();
                    return Err(ApiError::Unavailable { reason: "DRAINING", message });
                }
                () = self.standing.ended() => return over,
            };
            match read {
                Read::Lost { count, last } => return Ok(self.lost(count, last, false)),
                Read::Events(events) => {
                    let events = events.iter().map(|event| encode::event(event, &self.epoch, self.raw_json));
                    self.ready = events.collect();
                }
            }
        }
    }

    /// An event that is none of the node's.
    fn beside(&self, sequence: u64, event: Body) -> proto::Event {
        let time = Some(timestamp(self.hub.clock().unix_millis()));
        proto::Event { sequence, epoch: self.epoch.clone(), time, event: Some(event) }
    }

    fn lost(&self, count: u64, last: u64, epoch_changed: bool) -> proto::Event {
        self.open.0.events_lost.add(count);
        self.beside(last, Body::EventsLost(proto::EventsLost { count, epoch_changed }))
    }

    /// The next sessions of a snapshot, or its end.
    fn tell_sessions(&mut self, mut snapshot: Snapshot) {
        let page = match &self.user {
            Some(user) if snapshot.after.is_none() => {
                let sessions = self.hub.user_sessions(user);
                sessions.last().map(|last| last.id).map(|last| (sessions, last))
            }
            Some(_) => None,
            None => self.hub.open_sessions(snapshot.after, limits::SNAPSHOT_PAGE_SESSIONS),
        };
        let sequence = snapshot.sequence;
        let Some((page, last)) = page else {
            let end = proto::SnapshotEnd { sessions: snapshot.sessions };
            let end = self.beside(sequence, Body::SnapshotEnd(end));
            self.ready.push_back(end);
            return;
        };
        snapshot.after = Some(last);
        snapshot.sessions = snapshot.sessions.saturating_add(u32::try_from(page.len()).unwrap_or(u32::MAX));
        for handle in page {
            let session = Some(lists::session_row(&self.hub, &handle));
            let session = self.beside(sequence, Body::SnapshotSession(proto::SnapshotSession { session }));
            self.ready.push_back(session);
        }
        self.snapshot = Some(snapshot);
    }
}

impl Checks {
    /// The bits of the types that a consumer wants.
    fn event_types(&mut self, names: &[String]) -> u32 {
        let mut types = 0;
        for name in names {
            match EventBody::NAMES.iter().position(|known| known == name) {
                Some(index) => types |= 1 << index,
                None if ALWAYS.contains(&name.as_str()) => {}
                None => {
                    let allowed = [&EventBody::NAMES[..], &ALWAYS[..]].concat().join(", ");
                    self.violation("types", format!("an event type is not known; there are {allowed}"));
                }
            }
        }
        if names.is_empty() { Interest::ALL_TYPES } else { types }
    }

    /// Types that clients may give their messages.
    fn message_types(&mut self, names: &[String]) -> Option<Vec<TypeName>> {
        const FIELD: &str = "message_types";
        let max = limits::MESSAGE_TYPES_MAX;
        if names.len() > max {
            self.violation(FIELD, format!("has {} entries, and at most {max} are allowed", names.len()));
            return None;
        }
        // An empty one would be `notification`.
        if names.iter().any(String::is_empty) {
            self.violation(FIELD, "has an empty entry".to_owned());
            return None;
        }
        self.field(FIELD, names.iter().map(|name| TypeName::parse(name)).collect())
    }

    fn group(&mut self, name: &str) -> Option<Box<str>> {
        let max = limits::GROUP_BYTES_MAX;
        let usable = name.len() <= max && !name.chars().any(char::is_control);
        self.check("group", usable, || format!("must have at most {max} bytes and no control characters"));
        (!name.is_empty()).then(|| name.into())
    }

    /// The place that a consumer comes back to.
    fn place(&mut self, hub: &Hub, place: &proto::EventPosition) -> Option<Place> {
        if place.epoch.is_empty() {
            self.violation("resume_after.epoch", "is required: that of the event to go on behind".to_owned());
            return None;
        }
        // From the first of this epoch on, as far as they are there.
        if place.epoch != hub.events().epoch().to_string() {
            return Some(Place { after: 0, epoch_changed: true });
        }
        let reached = hub.events().count();
        self.check("resume_after.sequence", place.sequence <= reached, || {
            format!("{} is not reached yet in this epoch, which is at {reached}", place.sequence)
        });
        Some(Place { after: place.sequence, epoch_changed: false })
    }
}
