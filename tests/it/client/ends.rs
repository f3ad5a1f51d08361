//! How sessions and clients end: close codes, giving up, closing in order, dropped handles.

use std::time::{Duration, Instant};

use pushgate::client::{Error, Event, GiveUp, RequestError, SendError, State};
use serde_json::json;
use tokio_tungstenite::tungstenite::{
    Message as Frame,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::support::{Gate, Played, Told, at_least, client_at, client_of, collecting, next};
use crate::support::{Gateway, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn codes_that_mean_to_stay_away_end_the_client() {
    for code in [1000, 1008, 3000, 4000, 4099, 4400] {
        let played = Played::new().await;
        let (gave_up, mut reasons) = Told::new();
        let client = client_at(played.url()).on_give_up(move |why| gave_up(why.clone())).start().unwrap();
        let mut states = client.states();
        let mut events = client.events();
        played.session().await.close(code).await;
        let GiveUp::Closed(end) = reasons.next().await else { panic!("{code}: another reason") };
        assert_eq!((end.code, &*end.reason), (code, "played"));
        assert!(soon("the end", states.wait_for(State::GaveUp)).await);
        assert_eq!((states.next().await, client.state()), (None, State::GaveUp));
        assert_eq!(client.send_text(r#"{"type":"a"}"#), Err(SendError::Ended));
        assert_eq!(client.ping().await, Err(RequestError::Send(SendError::Ended)));
        assert_eq!(client.subscribe("t").await, Err(RequestError::Ended));
        assert_eq!(client.close().await.unsent, 0);
        let mut last = Vec::new();
        while let Some(event) = soon("the end of the events", events.next()).await {
            last.push(format!("{event:?}").split(['(', ' ']).next().unwrap().to_owned());
        }
        assert_eq!(last[last.len() - 3..], ["Disconnected", "GaveUp", "State"], "{last:?}");
        assert!(client.events().next().await.is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_all_other_ends_it_comes_back() {
    let played = Played::new().await;
    let (disconnected, mut ends) = Told::new();
    let client = client_at(played.url()).on_disconnect(move |end| disconnected(end.code)).start().unwrap();
    let mut number = 1;
    for code in [1001, 1002, 1003, 1007, 1009, 1011, 1012, 1013, 4408, 4409, 4410, 4429, 4777] {
        let peer = played.session().await;
        peer.close(code).await;
        assert_eq!(ends.next().await, code);
        number += 1;
    }
    let mut peer = played.session().await;
    peer.socket.close(None).await.unwrap();
    assert_eq!(ends.next().await, 1005);
    drop(peer);
    drop(played.session().await);
    assert_eq!(ends.next().await, 1006);
    let _last = played.session().await;
    let mut states = client.states();
    assert!(soon("a session", states.wait_for(State::Connected)).await);
    assert_eq!(client.session().unwrap().number, number + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wait_that_draining_asks_for_is_kept() {
    let played = Played::new().await;
    let (disconnected, mut ends) = Told::new();
    let client = client_at(played.url()).on_disconnect(move |end| disconnected(end.clone())).start().unwrap();
    let mut peer = played.session().await;
    peer.say(json!({ "type": "draining", "reconnectAfterMs": 400 })).await;
    let since = Instant::now();
    let mut events = client.events();
    peer.close(1012).await;
    assert_eq!(ends.next().await.reconnect_after, Some(Duration::from_millis(400)));
    loop {
        if let Event::Waiting { attempt, delay } = soon("an event", events.next()).await.unwrap() {
            assert_eq!((attempt, delay), (1, Duration::from_millis(400)));
            break;
        }
    }
    let mut peer = played.session().await;
    at_least(since, Duration::from_millis(400));
    // It holds where the close frame is lost, and no longer than for one return.
    peer.say(json!({ "type": "draining", "reconnectAfterMs": 300 })).await;
    let since = Instant::now();
    drop(peer);
    let peer = played.session().await;
    at_least(since, Duration::from_millis(300));
    peer.close(1012).await;
    let (lost, closed) = (ends.next().await, ends.next().await);
    assert_eq!((lost.code, lost.reconnect_after), (1006, Some(Duration::from_millis(300))));
    assert_eq!((closed.code, closed.reconnect_after), (1012, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_without_a_time_or_again_and_again_is_followed_by_the_back_off() {
    for ask in [
        json!({ "reconnectAfterMs": "soon" }),
        json!({}),
        json!({ "reconnectAfterMs": 0 }),
        json!({ "reconnectAfterMs": 1 }),
    ] {
        let played = Played::new().await;
        let far = Duration::from_secs(3600);
        let client = client_at(played.url()).reconnect_delay(far).max_delay(far).start().unwrap();
        let mut events = client.events();
        let mut waits = Vec::new();
        while waits.last().is_none_or(|wait| *wait == Duration::from_millis(1)) {
            assert!(waits.len() < 2, "{ask}: {waits:?}");
            let mut peer = played.session().await;
            let mut draining = json!({ "type": "draining" });
            draining.as_object_mut().unwrap().extend(ask.as_object().unwrap().clone());
            peer.say(draining).await;
            peer.close(1012).await;
            loop {
                if let Event::Waiting { delay, .. } = soon("an event", events.next()).await.unwrap() {
                    waits.push(delay);
                    break;
                }
            }
        }
        // Any wait between nothing and an hour, but hardly within a millisecond.
        assert!(*waits.last().unwrap() > Duration::from_millis(1), "{ask}: {waits:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_the_client_itself_is_no_message_that_proves_a_session() {
    let played = Played::new().await;
    let (gave_up, mut reasons) = Told::new();
    let client = client_at(played.url()).max_reconnects(2).on_give_up(move |why| gave_up(why.clone())).start().unwrap();
    let wanting = tokio::spawn(async move { client.subscribe("t").await.map(|()| client) });
    for _ in 0..3 {
        let mut peer = played.session().await;
        let ask = peer.hear().await;
        peer.say(json!({ "type": "subscribed", "replyTo": ask["id"] })).await;
        peer.close(1011).await;
    }
    assert!(matches!(reasons.next().await, GiveUp::Attempts { attempts: 2, .. }));
    soon("the answer", wanting).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_in_a_row_are_counted_and_sessions_that_prove_nothing_count_too() {
    let played = Played::new().await;
    let (gave_up, mut reasons) = Told::new();
    let (failed, mut failures) = Told::new();
    let (builder, mut messages) = collecting(client_at(played.url()));
    let client = builder
        .max_reconnects(3)
        .on_give_up(move |why| gave_up(why.clone()))
        .on_error(move |error| failed(error.clone()))
        .start()
        .unwrap();
    // A session that brings something starts the count over.
    for n in 0..5 {
        let mut peer = played.session().await;
        peer.say(json!({ "type": "tick", "data": n })).await;
        assert_eq!(next(&mut messages).await, n);
        peer.close(1011).await;
    }
    played.session().await.close(1011).await;
    drop(played.connection().await);
    assert!(matches!(failures.next().await, Error::Connect(_)));
    played.session().await.close(1011).await;
    let GiveUp::Attempts { attempts: 3, last } = reasons.next().await else { panic!("another reason") };
    assert_eq!(last, "closed with 1011 played");
    until("the state", State::GaveUp, async || client.state()).await;
    played.nobody_within(Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_reconnecting_the_first_end_is_the_last() {
    let played = Played::new().await;
    let (gave_up, mut reasons) = Told::new();
    let _client =
        client_at(played.url()).auto_reconnect(false).on_give_up(move |why| gave_up(why.clone())).start().unwrap();
    drop(played.session().await);
    assert!(matches!(reasons.next().await, GiveUp::ReconnectOff(_)));
    played.nobody_within(Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_finishes_what_is_under_way_and_acks_it() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["session_closed"], "alice").await;
    let (began, mut begun) = Told::new();
    let (disconnected, mut ends) = Told::new();
    let gate = Gate::new();
    let held = gate.clone();
    let client = client_of(&gateway, "alice")
        .on_disconnect(move |end| disconnected(end.clone()))
        .on_message(move |message| {
            let (held, began) = (held.clone(), began.clone());
            async move {
                began(message.json::<u32>()?);
                held.passed().await;
                Ok(())
            }
        })
        .connect()
        .await
        .unwrap();
    for n in 1..=3 {
        rpc.send("alice", n).await;
    }
    assert_eq!(begun.next().await, 1);
    let closing = tokio::spawn({
        let client = client.clone();
        async move { client.close().await }
    });
    let mut states = client.states();
    assert!(soon("closing", states.wait_for(State::Closing)).await);
    assert_eq!(client.send_text(r#"{"type":"a"}"#), Err(SendError::Ended));
    gate.open();
    assert_eq!(soon("the end", closing).await.unwrap().unsent, 0);
    assert_eq!(client.state(), State::Closed);
    assert_eq!(ends.next().await.code, 1000);
    until("what waits: the first was handled, the others were not begun", 2, || gateway.pending()).await;
    assert!(begun.0.try_recv().is_err());
    let pushgate::api::proto::event::Event::SessionClosed(closed) = events.body().await else {
        panic!("another event")
    };
    assert_eq!((closed.code, closed.closed_by()), (1000, pushgate::api::proto::ClosedBy::Client));
    assert_eq!(client.close().await.unsent, 0, "again");
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_sends_what_waits_or_says_how_much_is_left() {
    let played = Played::new().await;
    let client = client_at(played.url()).start().unwrap();
    let mut peer = played.session().await;
    assert!(soon("a session", client.states().wait_for(State::Connected)).await);
    client.send_json(&json!({ "type": "last" })).unwrap();
    let closing = tokio::spawn(async move { client.close().await });
    assert_eq!(peer.hear().await["type"], "last");
    assert_eq!(peer.closed().await, 1000);
    assert_eq!(soon("the end", closing).await.unwrap().unsent, 0);

    let nobody = Played::new().await;
    let client = client_at(nobody.url()).start().unwrap();
    for _ in 0..3 {
        client.send_json(&json!({ "type": "lost" })).unwrap();
    }
    assert_eq!(soon("the end", client.close()).await.unsent, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_last_handle_everything_ends() {
    let gateway = Gateway::start().await;
    let (began, mut begun) = Told::new();
    let (dropped, mut drops) = Told::new();
    struct Guard<F: Fn(())>(F);
    impl<F: Fn(())> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)(());
        }
    }
    let client = client_of(&gateway, "alice")
        .on_message(move |_| {
            let (began, guard) = (began.clone(), Guard(dropped.clone()));
            async move {
                began(());
                std::future::pending::<()>().await;
                drop(guard);
                Ok(())
            }
        })
        .connect()
        .await
        .unwrap();
    let mut events = client.events();
    gateway.rpc().await.send("alice", 1).await;
    begun.next().await;
    let clone = client.clone();
    drop(client);
    assert!(clone.ping().await.is_ok(), "one is left");
    drop(clone);
    drops.next().await;
    gateway.sessions("alice", 0).await;
    let mut last = None;
    while let Some(event) = soon("the end of the events", events.next()).await {
        last = Some(event);
    }
    assert!(matches!(last, Some(Event::State(State::Closed))), "{last:?}");
    assert_eq!(gateway.pending().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_that_panics_ends_nothing() {
    let played = Played::new().await;
    let client = client_at(played.url())
        .on_connect(|_| panic!("in a callback"))
        .on_error(|_| panic!("in another"))
        .on_state(|_| panic!("and another"))
        .start()
        .unwrap();
    let mut events = client.events();
    let mut peer = played.session().await;
    peer.send(Frame::text("{")).await;
    let mut told = Vec::new();
    while !told.contains(&"on_error") {
        if let Event::Error(Error::Callback(name)) = soon("an event", events.next()).await.unwrap() {
            told.push(name);
        }
    }
    assert!(told.contains(&"on_connect"), "{told:?}");
    let answering = tokio::spawn(async move {
        let asked = peer.hear().await;
        peer.say(json!({ "type": "pong", "replyTo": asked["id"] })).await;
        peer
    });
    client.ping().await.unwrap();
    let mut peer = answering.await.unwrap();
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    peer.socket.close(Some(frame)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_without_end_are_spans_like_any() {
    let played = Played::new().await;
    let ever = Duration::MAX;
    let builder = client_at(played.url()).handshake_timeout(ever).request_timeout(ever).close_timeout(ever);
    let client = builder.heartbeat_interval(ever).heartbeat_timeout(ever).max_delay(ever).start().unwrap();
    played.session().await.close(1011).await;
    let mut peer = played.session().await;
    assert!(soon("a session", client.states().wait_for(State::Connected)).await);
    let closing = tokio::spawn(async move { client.close().await });
    assert_eq!(peer.closed().await, 1000);
    soon("the end", closing).await.unwrap();
}

#[test]
fn a_runtime_that_ends_takes_the_client_along_and_tells_those_who_watch() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let client = first.block_on(async { client_at(Played::new().await.url()).start().unwrap() });
    let mut states = client.states();
    drop(first);
    second.block_on(async {
        assert!(soon("the end", states.wait_for(State::Closed)).await);
        soon("the end", client.close()).await;
    });
}
