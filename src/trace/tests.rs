//! Which calls are recorded, and what becomes of what they send.

use std::time::Duration;

use super::*;
use crate::types::UserId;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn tracer(percent: u32) -> Tracer {
    Tracer::new(Share::percent(percent), Clock::system())
}

fn headers(parent: &str) -> HeaderMap {
    HeaderMap::from_iter([("traceparent".parse().unwrap(), parent.parse().unwrap())])
}

fn sampled() -> HeaderMap {
    headers(&format!("00-{TRACE}-00f067aa0ba902b7-01"))
}

fn begin(tracer: &Tracer, headers: &HeaderMap) -> Option<Call> {
    tracer.begin(headers, || "a call".to_owned())
}

fn is_clean(tracer: &Tracer) -> bool {
    tracer.0.as_ref().unwrap().sends.is_clean()
}

fn place(offset: u64) -> (LogId, Offset) {
    (LogId::User(UserId::parse("alice").unwrap()), Offset::new(offset))
}

#[test]
fn the_caller_decides_and_of_the_others_a_share_is_recorded() {
    for (percent, parent, recorded) in [(0, Some("01"), 1), (100, Some("00"), 0), (100, None, 1), (0, None, 0)] {
        let tracer = tracer(percent);
        let headers =
            parent.map_or_else(HeaderMap::new, |flags| headers(&format!("00-{TRACE}-00f067aa0ba902b7-{flags}")));
        drop(begin(&tracer, &headers));
        let spans = tracer.take(9);
        assert_eq!(spans.len(), recorded, "{percent} {parent:?}");
        for span in spans {
            let given = span.parent.is_some();
            assert_eq!((given, span.trace.to_string() == TRACE), (parent.is_some(), parent.is_some()));
        }
    }
    // A tenth, and not none and not all: of 2000, within 8 standard deviations.
    let tracer = tracer(10);
    for _ in 0..2000 {
        drop(begin(&tracer, &HeaderMap::new()));
    }
    let recorded = tracer.take(2000).len();
    assert!((90..310).contains(&recorded), "{recorded}");
    assert!(begin(&Tracer::default(), &HeaderMap::new()).is_none());
    assert!(begin(&Tracer::default(), &sampled()).is_some_and(|call| call.recorded.is_none()), "for the log alone");
}

#[tokio::test]
async fn a_call_is_current_in_its_own_future_and_nowhere_else() {
    let tracer = tracer(0);
    assert!(tracer.current().is_none());
    let call = begin(&tracer, &sampled()).unwrap();
    assert!(tracer.current().is_none());
    let found = call.within(async { tracer.current().map(|current| current.trace.to_string()) }).await;
    assert_eq!(found.as_deref(), Some(TRACE));
    call.end(Vec::new, None);
    assert!(tracer.current().is_none());
}

#[tokio::test(start_paused = true)]
async fn who_confirms_and_who_does_not_is_recorded_within_bounds() {
    let tracer = tracer(0);
    let call = begin(&tracer, &sampled()).unwrap();
    let recorded = call.recorded.clone().unwrap();
    let sessions: Vec<_> = (0..3).map(|_| SessionId::generate()).collect();
    let (log, offset) = place(1);
    recorded.sent(log.clone(), offset, sessions.iter().copied());
    recorded.written(true);
    call.end(Vec::new, None);
    let now = Instant::now();
    let handed = Handed { session: sessions[0], handed_at: now, written_at: Some(now) };
    tracer.confirmed(log.clone(), offset, &handed);
    // Of another place nothing is known.
    tracer.confirmed(log.clone(), Offset::new(2), &handed);
    tracer.left(sessions[1]);
    tracer.sweep();
    assert!(tracer.awaits_confirmations());
    tokio::time::advance(limits::SPAN_CONFIRM_MAX + Duration::from_millis(1)).await;
    tracer.sweep();
    assert!(!tracer.awaits_confirmations() && is_clean(&tracer));
    let spans = tracer.take(99);
    let names: Vec<_> = spans.iter().map(|span| &*span.name).collect();
    assert_eq!(names, ["store.commit", "a call", "deliver", "confirm", "confirm", "confirm"]);
    let outcomes: Vec<_> =
        spans.iter().filter_map(|span| span.attributes.get(1)).map(|(_, value)| value.clone()).collect();
    assert_eq!(outcomes, ["confirmed", "unconfirmed", "unconfirmed"].map(|text| Value::Text(text.to_owned())));
    let own = spans[1].id;
    assert!(
        spans.iter().filter(|span| !span.of_call).all(|span| span.parent == Some(own) && span.trace == spans[1].trace)
    );
    assert!(spans.iter().all(|span| span.start_nanos <= span.end_nanos));
}

#[test]
fn who_goes_leaves_nothing_behind() {
    let tracer = tracer(0);
    let call = begin(&tracer, &sampled()).unwrap();
    let recorded = call.recorded.clone().unwrap();
    let (one, other) = (SessionId::generate(), SessionId::generate());
    let now = Instant::now();
    for n in 1..=3 {
        let (log, offset) = place(n);
        recorded.sent(log, offset, [one, other].into_iter());
    }
    let (log, offset) = place(1);
    for session in [one, one, other] {
        tracer.confirmed(log.clone(), offset, &Handed { session, handed_at: now, written_at: None });
    }
    tracer.left(one);
    tracer.left(one);
    assert!(tracer.awaits_confirmations());
    tracer.left(other);
    assert!(!tracer.awaits_confirmations() && is_clean(&tracer));
    drop(call);
    let spans = tracer.take(99);
    let told = |outcome: &str| {
        spans
            .iter()
            .filter(|span| span.attributes.iter().any(|(_, value)| *value == Value::Text(outcome.to_owned())))
            .count()
    };
    assert_eq!((told("confirmed"), told("unconfirmed"), spans.len()), (3, 4, 8));
}

#[test]
fn what_waits_is_bounded_and_what_is_lost_is_counted() {
    let tracer = tracer(100);
    for _ in 0..limits::SPANS_WAITING_MAX + 3 {
        drop(begin(&tracer, &HeaderMap::new()));
    }
    assert_eq!((tracer.take_lost(), tracer.take_lost()), (3, 0));
    assert_eq!(tracer.take(usize::MAX).len(), limits::SPANS_WAITING_MAX);

    let call = begin(&tracer, &sampled()).unwrap();
    let recorded = call.recorded.clone().unwrap();
    for offset in 0..limits::SPAN_SENDS_MAX as u64 + 2 {
        let (log, offset) = place(offset + 1);
        recorded.sent(log, offset, std::iter::empty());
    }
    assert_eq!(tracer.take_lost(), 2);
    tracer.close();
    assert!(!tracer.awaits_confirmations());

    // One that went to many: the ways of some are told.
    let sessions = (0..100).map(|_| SessionId::generate());
    let (log, offset) = place(1);
    recorded.sent(log, offset, sessions);
    tracer.close();
    assert!(is_clean(&tracer));
    drop(call);
    assert_eq!(tracer.take(usize::MAX).len(), limits::SPAN_SESSIONS_MAX as usize + 1);
}
