//! What clients ask of services: which messages become events, who gets them, and how they are answered.

use pushgate::api::proto::{
    MessageReceived, Notification, Outcome, SendToSessionRequest, StreamEventsRequest, event::Event,
    message_received::Payload as Received, notification::Payload,
};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{
    Client, Gateway, Rpc, Token,
    rpc::{Events, notification, ttl},
    soon, until,
};

const FORWARD_ALL: (&str, &str) = ("clients.forward", r#"["*"]"#);

/// Listens for clients' messages.
async fn service(gateway: &Gateway, request: StreamEventsRequest) -> Events {
    let request = StreamEventsRequest { types: vec!["message_received".to_owned()], raw_json: true, ..request };
    gateway.rpc().await.stream(request).await.unwrap()
}

async fn any(gateway: &Gateway) -> Events {
    service(gateway, StreamEventsRequest::default()).await
}

async fn in_group(gateway: &Gateway, group: &str) -> Events {
    service(gateway, StreamEventsRequest { group: group.to_owned(), ..Default::default() }).await
}

async fn received(events: &mut Events) -> MessageReceived {
    match events.body().await {
        Event::MessageReceived(message) => message,
        other => panic!("{other:?}"),
    }
}

fn raw(message: &MessageReceived) -> &str {
    match &message.payload {
        Some(Received::Json(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn to_session(session: &str, notification: Notification) -> SendToSessionRequest {
    SendToSessionRequest { session_id: session.to_owned(), notification: Some(notification), ..Default::default() }
}

async fn reply(rpc: &mut Rpc, to: &MessageReceived, data: impl Into<Value>) {
    let request = SendToSessionRequest { reply_to: to.id.clone(), ..to_session(&to.session_id, notification(data)) };
    let answer = rpc.send_to_session(request).await.unwrap();
    assert_eq!(answer.outcome(), Outcome::Accepted);
}

fn refused_with(answer: &Value, code: &str, id: Option<&str>) {
    assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!(code)), "{answer}");
    assert_eq!(answer.get("replyTo").and_then(Value::as_str), id, "{answer}");
}

fn ask(id: impl Into<Value>) -> Value {
    json!({ "type": "order", "id": id.into(), "data": { "n": 1 } })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_may_be_bytes() {
    let gateway = Gateway::with(&[FORWARD_ALL]).await;
    let mut events = any(&gateway).await;
    let mut client = gateway.client("alice").await;
    let envelope = json!({ "type": "scan", "id": "b-1" }).to_string();
    let length = u32::try_from(envelope.len()).unwrap().to_be_bytes();
    let payload = [0, 159, 146, 150, 255];
    client.send(Message::binary([&length, envelope.as_bytes(), &payload].concat())).await;
    let message = received(&mut events).await;
    assert_eq!((&*message.r#type, &*message.id), ("scan", "b-1"));
    assert_eq!(message.payload, Some(Received::Binary(payload.to_vec().into())));
    reply(&mut gateway.rpc().await, &message, 7).await;
    let answer = client.next().await;
    assert_eq!((&answer["type"], &answer["replyTo"], &answer["data"]), (&json!("reply"), &json!("b-1"), &json!(7)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_request_reaches_a_service_and_its_reply_the_client() {
    let changes = [
        ("clients.forward", r#"["order.status", "notification"]"#),
        ("auth.session_claims", r#"["role", "team"]"#),
        ("clients.reply_timeout", "1h"),
    ];
    let gateway = Gateway::with(&changes).await;
    let mut raw_events = any(&gateway).await;
    let mut rpc = gateway.rpc().await;
    let mut events = rpc.events(&["message_received"], "alice").await;
    let token = Token::of("alice").with("role", json!(["admin"])).with("secret", "s").sign();
    let mut client = Client::connect(&gateway.url(&format!("token={token}&device=phone"))).await;

    let data = r#"{ "b":1.0,  "a" : 12345678901234567890123 , "s":"\u00e9\/" }"#;
    client.send(Message::text(format!(r#"{{"type":"order.status","id":"r-1","data":{data}}}"#))).await;
    let message = received(&mut raw_events).await;
    assert_eq!(raw(&message), data, "passed on as it came");
    assert_eq!(
        (&*message.session_id, &*message.user_id, &*message.device, &*message.r#type, &*message.id),
        (&*client.session(), "alice", "phone", "order.status", "r-1")
    );
    let event = events.next().await;
    let Some(Event::MessageReceived(same)) = event.event else { panic!() };
    let Some(Received::Data(value)) = &same.payload else { panic!("{same:?}") };
    let Some(prost_types::value::Kind::StructValue(object)) = &value.kind else { panic!("{value:?}") };
    assert_eq!(object.fields.len(), 3);
    assert_eq!(object.fields["s"].kind, Some(prost_types::value::Kind::StringValue("é/".to_owned())));
    assert_eq!(object.fields["b"].kind, Some(prost_types::value::Kind::NumberValue(1.0)));
    let claims = same.claims.unwrap().fields;
    assert_eq!(claims.keys().collect::<Vec<_>>(), ["role"], "those that the configuration names, and are there");
    let (received_at, reply_by) = (event.time.unwrap(), same.reply_by.unwrap());
    assert!((3599..=3600).contains(&(reply_by.seconds - received_at.seconds)));

    reply(&mut rpc, &message, json!({ "state": "shipped" })).await;
    let answer = client.next().await;
    assert_eq!((&answer["type"], &answer["replyTo"]), (&json!("reply"), &json!("r-1")));
    assert_eq!(answer["data"], json!({ "state": "shipped" }));
    assert!(answer["id"].is_string() && answer["timestamp"].is_string() && answer.get("offset").is_none());

    // What has no data has null, and what has no id awaits nothing.
    client.say(&json!({ "type": "notification" })).await;
    let message = received(&mut raw_events).await;
    assert_eq!((raw(&message), &*message.id, &*message.r#type), ("null", "", "notification"));
    assert!(message.reply_by.is_none());
    client.nothing_more().await;
    refused_with(&client.ask(&json!({ "type": "order.list", "id": "r-2" })).await, "unknown_type", Some("r-2"));
    assert_eq!(gateway.errors("unknown_type").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_star_lets_through_all_but_what_is_the_gateways_own() {
    let gateway = Gateway::with(&[FORWARD_ALL]).await;
    let mut events = any(&gateway).await;
    let mut client = gateway.client("alice").await;
    for own in ["auth_success", "error", "reply", "draining", "pong", "user_joined", "a\nb"] {
        refused_with(&client.ask(&json!({ "type": own, "id": "o" })).await, "unknown_type", Some("o"));
    }
    for own in ["subscribe", "message", "typing"] {
        let answer = client.ask(&json!({ "type": own, "id": "o", "topic": "t" })).await;
        assert_eq!(answer["replyTo"], "o", "answered here: {answer}");
    }
    for types in ["chat.say", "system_message", "ü"] {
        client.say(&json!({ "type": types, "data": [types] })).await;
        assert_eq!(received(&mut events).await.r#type, types);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_and_texts_that_a_value_cannot_hold_come_as_text() {
    let gateway = Gateway::with(&[FORWARD_ALL]).await;
    let mut events = gateway.rpc().await.events(&["message_received"], "").await;
    let mut client = gateway.client("alice").await;
    for data in ["1e999", r#"["\ud800"]"#] {
        client.send(Message::text(format!(r#"{{"type":"odd","data":{data}}}"#))).await;
        assert_eq!(raw(&received(&mut events).await), data);
    }
    let deep = format!("{}{}", "[".repeat(31), "]".repeat(31));
    client.send(Message::text(format!(r#"{{"type":"deep","data":{deep}}}"#))).await;
    assert!(matches!(received(&mut events).await.payload, Some(Received::Data(_))), "as deep as clients may nest");
    let deep = format!("{}1{}", r#"{"a":"#.repeat(31), "}".repeat(31));
    client.send(Message::text(format!(r#"{{"type":"deep","data":{deep}}}"#))).await;
    assert!(matches!(received(&mut events).await.payload, Some(Received::Data(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_listens_the_client_hears_so_at_once() {
    let gateway = Gateway::with(&[FORWARD_ALL, ("clients.reply_timeout", "1h")]).await;
    let mut client = gateway.client("alice").await;
    refused_with(&client.ask(&ask("1")).await, "no_service", Some("1"));
    refused_with(&client.ask(&json!({ "type": "order" })).await, "no_service", None);
    // Those listen to something else.
    let mut rpc = gateway.rpc().await;
    let _sessions = rpc.events(&["session_opened"], "").await;
    let _bob = service(&gateway, StreamEventsRequest { user_id: "bob".into(), ..Default::default() }).await;
    let other = StreamEventsRequest { message_types: vec!["chat".into(), "orders".into()], ..Default::default() };
    let _other = service(&gateway, other).await;
    refused_with(&client.ask(&ask("2")).await, "no_service", Some("2"));
    let wanted = StreamEventsRequest { message_types: vec!["chat".into(), "order".into()], ..Default::default() };
    let mut wanted = service(&gateway, wanted).await;
    client.say(&ask("3")).await;
    let message = received(&mut wanted).await;
    reply(&mut rpc, &message, 1).await;
    assert_eq!(client.next().await["replyTo"], "3");
    drop(wanted);
    until("streams", 3, async || gateway.rpc().await.status().await.event_streams.unwrap().open).await;
    refused_with(&client.ask(&ask("4")).await, "no_service", Some("4"));
    assert_eq!((gateway.errors("no_service").await, gateway.errors("reply_timeout").await), (4, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_all_there_is_sees_messages_and_is_no_service() {
    let gateway = Gateway::with(&[FORWARD_ALL, ("clients.reply_timeout", "1h")]).await;
    let (mut client, mut rpc) = (gateway.client("alice").await, gateway.rpc().await);
    let mut all = rpc.events(&[], "").await;
    let mut hers = rpc.events(&[], "alice").await;
    for id in ["1", "2"] {
        refused_with(&client.ask(&ask(id)).await, "no_service", Some(id));
        for observer in [&mut all, &mut hers] {
            let message = received(observer).await;
            assert_eq!((message.id.as_str(), message.reply_by), (id, None), "nobody waits for a reply");
        }
    }
    // Nothing is open for it: as many as may be are asked anew.
    for n in 0..300 {
        let id = format!("many {n}");
        refused_with(&client.ask(&ask(id.as_str())).await, "no_service", Some(&id));
    }
    assert_eq!((gateway.errors("no_service").await, gateway.errors("rate_limited").await), (302, 0));

    // Who names what he answers, or shares it, serves; beside him an observer hears of it as before.
    let named = StreamEventsRequest { types: vec!["message_received".into()], ..Default::default() };
    let types = StreamEventsRequest { message_types: vec!["order".into()], ..Default::default() };
    let shared = StreamEventsRequest { group: "orders".into(), ..Default::default() };
    for (id, request) in [("a", named), ("b", types), ("c", shared)] {
        let mut service = rpc.stream(request).await.unwrap();
        client.say(&ask(id)).await;
        let message = received(&mut service).await;
        assert!(message.id == id && message.reply_by.is_some(), "{message:?}");
        reply(&mut rpc, &message, id).await;
        let told = client.next().await;
        assert_eq!((&told["type"], &told["replyTo"]), (&json!("reply"), &json!(id)));
        drop(service);
        let open = async || gateway.rpc().await.status().await.event_streams.unwrap().open;
        until("the service has gone", 2, open).await;
    }
    refused_with(&client.ask(&ask("3")).await, "no_service", Some("3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_answers_times_out_once_and_a_late_reply_still_comes() {
    let gateway = Gateway::with(&[FORWARD_ALL, ("clients.reply_timeout", "200ms")]).await;
    let mut events = any(&gateway).await;
    let mut rpc = gateway.rpc().await;
    let mut client = gateway.client("alice").await;
    let mut other = gateway.client("alice").await;
    client.say(&json!({ "type": "order" })).await;
    client.say(&ask("a")).await;
    client.say(&ask("b")).await;
    client.say(&ask("a")).await;
    for expected in ["", "a", "b", "a"] {
        assert_eq!(received(&mut events).await.id, expected);
    }
    let session = client.session();
    let first = MessageReceived { session_id: session.clone(), id: "a".into(), ..Default::default() };
    reply(&mut rpc, &first, "in time").await;
    assert_eq!(client.next().await["data"], "in time");
    // One of the two with this id has its reply, the other has not.
    refused_with(&client.next().await, "timeout", Some("b"));
    refused_with(&client.next().await, "timeout", Some("a"));
    reply(&mut rpc, &first, "late").await;
    assert_eq!(client.next().await["data"], "late");
    client.nothing_more().await;
    other.nothing_more().await;
    assert_eq!((gateway.errors("reply_timeout").await, gateway.errors("no_service").await), (2, 0));
    let handle = gateway.hub.session(pushgate::types::SessionId::parse(&session).unwrap()).unwrap();
    assert_eq!(handle.core().session.open_requests(), 0);
    // What nobody answered counts with the time that was waited for.
    assert_eq!(gateway.hub.metrics().reply_latency.percentiles().count, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_has_so_many_open_requests_and_no_more() {
    let gateway = Gateway::with(&[FORWARD_ALL, ("clients.reply_timeout", "1h")]).await;
    let mut events = any(&gateway).await;
    let mut rpc = gateway.rpc().await;
    let mut client = gateway.client("alice").await;
    for n in 0..256 {
        client.say(&ask(n.to_string())).await;
    }
    refused_with(&client.ask(&ask("more")).await, "rate_limited", Some("more"));
    // What awaits no reply is not held up, nor is anybody else.
    client.say(&json!({ "type": "order" })).await;
    let mut other = gateway.client("alice").await;
    other.say(&ask("other")).await;
    let mut ids = Vec::new();
    for _ in 0..258 {
        ids.push(received(&mut events).await);
    }
    assert!(!ids.iter().any(|message| message.id == "more"));
    reply(&mut rpc, &ids[7], 7).await;
    assert_eq!(client.next().await["replyTo"], "7");
    client.say(&ask("again")).await;
    assert_eq!(received(&mut events).await.id, "again");
    assert_eq!(gateway.errors("rate_limited").await, 1);
    // They go with their session.
    client.close().await;
    gateway.sessions("alice", 1).await;
    let gone = SendToSessionRequest { reply_to: "8".into(), ..to_session(&ids[8].session_id, notification(1)) };
    assert_eq!(rpc.send_to_session(gone).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_goes_to_one_replica_of_each_service() {
    let gateway = Gateway::with(&[FORWARD_ALL, ("clients.reply_timeout", "1h")]).await;
    let mut replicas = [in_group(&gateway, "orders").await, in_group(&gateway, "orders").await];
    let mut audit = in_group(&gateway, "audit").await;
    let mut monitor = any(&gateway).await;
    let mut client = gateway.client("alice").await;
    const COUNT: usize = 100;
    for n in 0..COUNT {
        client.say(&ask(n.to_string())).await;
    }
    let all: Vec<String> = (0..COUNT).map(|n| n.to_string()).collect();
    for whole in [&mut audit, &mut monitor] {
        let mut ids = Vec::new();
        for _ in 0..COUNT {
            ids.push(received(whole).await.id);
        }
        assert_eq!(ids, all, "each, in order");
    }
    // In turns: whoever keeps up gets his share.
    let mut ids = Vec::new();
    for replica in &mut replicas {
        for _ in 0..COUNT / 2 {
            ids.push(received(replica).await.id.parse::<usize>().unwrap());
        }
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..COUNT).collect::<Vec<_>>(), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_dies_has_its_requests_time_out_and_the_others_go_on() {
    let gateway = Gateway::with(&[FORWARD_ALL, ("clients.reply_timeout", "300ms")]).await;
    let mut one = in_group(&gateway, "orders").await;
    let mut two = in_group(&gateway, "orders").await;
    let mut rpc = gateway.rpc().await;
    let mut client = gateway.client("alice").await;
    client.say(&ask("1")).await;
    client.say(&ask("2")).await;
    let (of_one, of_two) = (received(&mut one).await, received(&mut two).await);
    drop(one);
    until("streams", 1, async || gateway.rpc().await.status().await.event_streams.unwrap().open).await;
    reply(&mut rpc, &of_two, "alive").await;
    assert_eq!(client.next().await["replyTo"], json!(of_two.id));
    refused_with(&client.next().await, "timeout", Some(&of_one.id));
    for n in 3..9 {
        client.say(&ask(n.to_string())).await;
        let message = received(&mut two).await;
        reply(&mut rpc, &message, n).await;
        assert_eq!(client.next().await["data"], n);
    }
    drop(two);
    until("streams", 0, async || gateway.rpc().await.status().await.event_streams.unwrap().open).await;
    refused_with(&client.ask(&ask("9")).await, "no_service", Some("9"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_takes_requests_and_answers_none_gets_no_more_of_them() {
    let gateway = Gateway::with(&[FORWARD_ALL, ("clients.reply_timeout", "1h")]).await;
    let mut hangs = in_group(&gateway, "orders").await;
    let mut answers = in_group(&gateway, "orders").await;
    let mut rpc = gateway.rpc().await;
    let mut client = gateway.client("alice").await;
    client.say(&ask("0")).await;
    let unanswered = received(&mut hangs).await;
    for n in 1..20 {
        client.say(&ask(n.to_string())).await;
        let message = received(&mut answers).await;
        reply(&mut rpc, &message, n).await;
        assert_eq!(client.next().await["replyTo"], n.to_string());
    }
    // It comes round, and has its turn again.
    reply(&mut rpc, &unanswered, 0).await;
    assert_eq!(client.next().await["replyTo"], "0");
    client.say(&ask("20")).await;
    assert_eq!(received(&mut hangs).await.id, "20");
}

/// A service that stops reading, with more on its way than its connection takes.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_stalled_replica_was_not_given_goes_to_another_when_it_ends() {
    let gateway = Gateway::with(&[FORWARD_ALL, ("clients.reply_timeout", "1h")]).await;
    let stalled = in_group(&gateway, "files").await;
    let mut client = gateway.client("alice").await;
    const COUNT: usize = 100;
    let data = "x".repeat(60_000);
    for n in 0..COUNT {
        client.say(&json!({ "type": "file", "id": n.to_string(), "data": data })).await;
    }
    client.nothing_more().await;
    let mut heir = in_group(&gateway, "files").await;
    drop(stalled);
    let mut ids = vec![received(&mut heir).await.id.parse::<usize>().unwrap()];
    let first = ids[0];
    assert!(first < COUNT / 2, "a connection takes a few, about 2 MB: {first}");
    for _ in first + 1..COUNT {
        ids.push(received(&mut heir).await.id.parse().unwrap());
    }
    assert_eq!(ids, (first..COUNT).collect::<Vec<_>>(), "all that was not sent, in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_speaks_to_one_session_and_nothing_of_it_is_stored() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let mut client = gateway.client_with("alice", "device=phone").await;
    let mut other = gateway.client_with("alice", "device=desk").await;
    let bytes =
        |bytes: &'static [u8]| Notification { payload: Some(Payload::Binary(bytes.into())), ..Default::default() };
    let named =
        Notification { r#type: "poke".into(), id: "mine".into(), from_user_id: "bob".into(), ..notification(7) };
    let answer = rpc.send_to_session(to_session(&client.session(), named)).await.unwrap();
    assert_eq!((&*answer.id, answer.outcome()), ("mine", Outcome::Accepted));
    let poke = client.next().await;
    assert_eq!((&poke["type"], &poke["id"], &poke["data"]), (&json!("poke"), &json!("mine"), &json!(7)));
    assert_eq!(poke["fromUserId"], "bob");
    assert!(poke.get("offset").is_none() && poke.get("replyTo").is_none());
    let now = Notification { ttl: ttl(0, 0), ..notification(8) };
    assert!(!rpc.send_to_session(to_session(&client.session(), now)).await.unwrap().id.is_empty());
    assert_eq!(client.data(1).await, [8]);
    // An answer that nobody asked for names what it says it answers.
    let answer = SendToSessionRequest { reply_to: "q".into(), ..to_session(&client.session(), bytes(b"ab")) };
    rpc.send_to_session(answer.clone()).await.unwrap();
    let reply = client.next().await;
    assert_eq!(
        (&reply["type"], &reply["replyTo"], &reply["dataBase64"]),
        (&json!("reply"), &json!("q"), &json!("YWI="))
    );
    let mut binary = gateway.client_with("alice", "device=tablet&binary=1").await;
    rpc.send_to_session(SendToSessionRequest { session_id: binary.session(), ..answer }).await.unwrap();
    let Message::Binary(message) = binary.next_message().await else { panic!() };
    let length = u32::from_be_bytes(message[..4].try_into().unwrap()) as usize;
    let envelope: Value = serde_json::from_slice(&message[4..4 + length]).unwrap();
    assert_eq!((&envelope["type"], &envelope["replyTo"]), (&json!("reply"), &json!("q")));
    assert_eq!(&message[4 + length..], b"ab");
    other.nothing_more().await;
    assert_eq!(gateway.pending().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_not_there_and_bad_input_are_refused() {
    let gateway = Gateway::start().await;
    let mut rpc = gateway.rpc().await;
    let client = gateway.client("alice").await;
    let session = client.session();
    let named = |name: &str| Notification { r#type: name.into(), ..Default::default() };
    let with_reply_to = |id: String| SendToSessionRequest { reply_to: id, ..to_session(&session, notification(1)) };
    for (request, field) in [
        (to_session("", notification(1)), "session_id"),
        (to_session("alice", notification(1)), "session_id"),
        (SendToSessionRequest { session_id: session.clone(), ..Default::default() }, "notification"),
        (to_session(&session, named("auth_success")), "notification.type"),
        (to_session(&session, named("reply")), "notification.type"),
        (to_session(&session, Notification { ttl: ttl(-1, 0), ..notification(1) }), "notification.ttl"),
        (to_session(&session, notification("x".repeat(300_000))), "notification"),
        (with_reply_to("r".repeat(129)), "reply_to"),
    ] {
        let refused = rpc.send_to_session(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert_eq!(refused.get_error_details().bad_request().unwrap().field_violations[0].field, field);
    }
    rpc.send_to_session(with_reply_to("r".repeat(128))).await.unwrap();
    client.close().await;
    gateway.sessions("alice", 0).await;
    let refused = rpc.send_to_session(to_session(&session, notification(1))).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert_eq!(refused.get_error_details().error_info().unwrap().reason, "SESSION_UNKNOWN");
    assert_eq!((rpc.errors("grpc_invalid_argument").await, rpc.errors("not_found").await), (8, 1));
    let bad = |group: &str, types: &[&str]| StreamEventsRequest {
        group: group.into(),
        message_types: types.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    for (request, field) in [
        (bad(&"g".repeat(129), &[]), "group"),
        (bad("a\nb", &[]), "group"),
        (bad("", &["order", ""]), "message_types"),
        (bad("", &["order", "reply"]), "message_types"),
        (bad("", &["t".repeat(129).as_str()]), "message_types"),
        (bad("", &["a"; 1001]), "message_types"),
    ] {
        let Err(refused) = rpc.stream(request).await else { panic!("{field} is taken") };
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert_eq!(refused.get_error_details().bad_request().unwrap().field_violations[0].field, field);
    }
}

/// `examples/service.rs` runs as its first lines say.
#[tokio::test(flavor = "multi_thread")]
async fn the_example_answers_what_it_is_asked() {
    let gateway = Gateway::with(&[("clients.forward", r#"["order.status"]"#)]).await;
    // As in the client's example: whatever is built has the files' usual mode.
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", "umask 022; exec \"$@\"", "sh", env!("CARGO"), "run", "--quiet", "--locked"]);
    command
        .args(["--example", "service", "--"])
        .arg(gateway.grpc.to_string())
        .env("PUSHGATE_ADMIN_TOKEN", "admin-token");
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdout(std::process::Stdio::piped()).kill_on_drop(true);
    let mut service = command.spawn().unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(service.stdout.take().unwrap()));
    // It may have to be built first.
    let line = tokio::time::timeout(std::time::Duration::from_secs(600), lines.next_line()).await.unwrap().unwrap();
    assert_eq!(line.as_deref(), Some("listening"));
    let mut client = gateway.client("alice").await;
    client.say(&json!({ "type": "order.status", "data": { "order": 6 } })).await;
    let answer = client.ask(&json!({ "type": "order.status", "id": "q", "data": { "order": 7 } })).await;
    assert_eq!((&answer["type"], &answer["replyTo"]), (&json!("reply"), &json!("q")), "{answer}");
    assert_eq!(answer["data"], json!({ "order": 7, "of": "alice", "state": "shipped" }));
    service.kill().await.unwrap();
}

/// The client library against a service, many requests at once.
#[tokio::test(flavor = "multi_thread")]
async fn the_rust_client_finds_the_reply_to_each_of_its_requests() {
    let gateway = Gateway::with(&[FORWARD_ALL]).await;
    let mut events = in_group(&gateway, "double").await;
    let mut rpc = gateway.rpc().await;
    let serving = tokio::spawn(async move {
        loop {
            let message = received(&mut events).await;
            let number: Value = serde_json::from_str(raw(&message)).unwrap();
            reply(&mut rpc, &message, 2 * number.as_u64().unwrap()).await;
        }
    });
    let token = Token::of("alice").sign();
    let client = pushgate::client::Client::builder(format!("ws://{}/ws", gateway.http))
        .token_provider(move || {
            let token = token.clone();
            async move { Ok(token) }
        })
        .connect()
        .await
        .unwrap();
    let wait = std::time::Duration::from_secs(20);
    let asked = (0..200_u64).map(async |n| (n, client.request("double", &n, wait).await));
    for (n, answer) in futures_util::future::join_all(asked).await {
        assert_eq!(answer.unwrap().data(), Some(&*(2 * n).to_string()));
    }
    soon("the end", client.close()).await;
    serving.abort();
}
