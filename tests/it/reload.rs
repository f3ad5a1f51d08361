//! The configuration read again while the daemon runs: what is other from then on for who connects, who calls and who is
//! there already; what is not; and that a configuration with anything wrong changes nothing.

use std::{path::PathBuf, sync::Arc};

use pushgate::api::proto::{
    AlertState, ConfigChange, ListSessionsRequest, ReloadRequest, ReloadResponse, SendBatchRequest,
    StreamEventsRequest, event::Event as Body,
};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::support::{
    Client, Rpc, Token,
    child::{self, Daemon},
    client::{refusal, request},
    gateway::{ADMIN, base},
    rpc, soon,
    tls::{Authority, Files, client_config, connect, der, shown},
    token, until,
};

/// A daemon, and the file that it reads.
struct Live {
    file: PathBuf,
    daemon: Daemon,
    rpc: Rpc,
    folder: TempDir,
}

impl Live {
    async fn with(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = child::config(folder.path(), more);
        let daemon = Daemon::start(&file).await;
        let rpc = Rpc::over_tcp(daemon.address("grpc"), Some(ADMIN)).await;
        Self { file, daemon, rpc, folder }
    }

    /// Writes the common configuration and `more`.
    fn write(&self, more: &str) {
        std::fs::write(&self.file, base(self.folder.path()) + more).unwrap();
    }

    /// Writes it changed.
    fn edit(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(&self.file).unwrap();
        assert!(text.contains(from), "{from}: {text}");
        std::fs::write(&self.file, text.replace(from, to)).unwrap();
    }

    async fn try_reload(&mut self) -> Result<ReloadResponse, Status> {
        Ok(soon("an answer", self.rpc.client.reload(ReloadRequest {})).await?.into_inner())
    }

    /// Has it read again; the keys that changed. None needs a restart.
    async fn reload(&mut self) -> Vec<String> {
        let answer = self.try_reload().await.unwrap();
        assert_eq!(answer.needs_restart, []);
        keys(&answer.changed)
    }

    async fn reload_with(&mut self, more: &str) -> Vec<String> {
        self.write(more);
        self.reload().await
    }

    fn url(&self, query: &str) -> String {
        format!("ws://{}/ws?{query}", self.daemon.address("http"))
    }

    async fn client(&self, user: &str) -> Client {
        Client::connect(&self.url(&format!("token={}", Token::of(user).sign()))).await
    }

    /// What a handshake comes to with that token: `auth_success`, or the code of its refusal.
    async fn answer(&self, token: &Token) -> String {
        let (mut client, _) = Client::open(request(&self.url(&format!("token={}", token.sign())), &[])).await.unwrap();
        let hello = client.next().await;
        let name = if hello["type"] == "auth_success" { "type" } else { "code" };
        hello[name].as_str().unwrap().to_owned()
    }
}

fn keys(changes: &[ConfigChange]) -> Vec<String> {
    changes.iter().map(|change| change.key.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_others_and_sessions_by_the_old_ones_go_on() {
    let mut live = Live::with("").await;
    let mut alice = live.client("alice").await;
    let other = "another-secret-of-more-than-thirty-two-bytes";
    let signed = |claims: Token| {
        claims.signed(jsonwebtoken::Algorithm::HS256, jsonwebtoken::EncodingKey::from_secret(other.as_bytes()), None)
    };
    let bob = signed(Token::of("bob"));
    assert_eq!(live.answer(&bob).await, "token_invalid");
    live.edit(token::SECRET, other);
    let answer = live.try_reload().await.unwrap();
    assert_eq!((keys(&answer.changed), answer.needs_restart.len()), (vec!["auth.keys".to_owned()], 0));
    assert!(!format!("{answer:?}").contains("secret"), "{answer:?}");
    assert_eq!(live.answer(&bob).await, "auth_success");
    assert_eq!(live.answer(&Token::of("alice")).await, "token_invalid");
    live.rpc.send("alice", 1).await;
    assert_eq!(alice.data(1).await, [json!(1)]);

    // The rules of tokens, too.
    let text = std::fs::read_to_string(&live.file).unwrap();
    std::fs::write(&live.file, text + "auth.issuer = [\"https://id.example.com\"]\n").unwrap();
    assert_eq!(live.reload().await, ["auth.issuer"]);
    assert_eq!(live.answer(&bob).await, "issuer_mismatch");
    let issued = signed(Token::of("bob").with("iss", "https://id.example.com"));
    assert_eq!(live.answer(&issued).await, "auth_success");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_revoked_stays_so() {
    let mut live = Live::with("").await;
    let token = Token::of("alice").with("jti", "one");
    assert_eq!(live.answer(&token).await, "auth_success");
    let expires_at = Some(prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 });
    let revoke = pushgate::api::proto::RevokeTokensRequest { jti: "one".to_owned(), expires_at, ..Default::default() };
    live.rpc.revoke(revoke).await.unwrap();
    assert_eq!(live.answer(&token).await, "token_revoked");
    assert_eq!(
        live.reload_with("auth.leeway = \"1s\"\nauth.max_lifetime = \"1h\"\n").await,
        ["auth.leeway", "auth.max_lifetime"]
    );
    assert_eq!(live.answer(&token).await, "token_revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_gone_opens_nothing_and_its_streams_end() {
    let mut live = Live::with("").await;
    let grpc = live.daemon.address("grpc");
    let mut events = Rpc::over_tcp(grpc, Some("events-token")).await;
    let mut stays = Rpc::over_tcp(grpc, Some("admin-token")).await;
    let mut send = Rpc::over_tcp(grpc, Some("send-token")).await;
    let mut ends = events.stream(StreamEventsRequest::default()).await.unwrap();
    let mut goes_on = stays.stream(StreamEventsRequest::default()).await.unwrap();
    let (requests, queue) = tokio::sync::mpsc::channel::<SendBatchRequest>(4);
    let mut batch = soon("a batch", send.client.send_batch(tokio_stream_of(queue))).await.unwrap().into_inner();
    let one = |id: &str| SendBatchRequest {
        request_id: id.to_owned(),
        send: Some(rpc::request("alice", rpc::notification(1))),
    };
    requests.send(one("a")).await.unwrap();
    assert_eq!(soon("an answer", batch.message()).await.unwrap().unwrap().request_id, "a");

    live.edit("token = \"events-token\"", "token = \"events-token-2\"");
    live.edit("token = \"send-token\", scopes = [\"send\"]", "token = \"send-token\", scopes = [\"read\"]");
    assert_eq!(live.reload().await, ["grpc.tokens"]);
    let end = soon("the end", ends.0.message()).await.unwrap_err();
    assert_eq!(end.code(), Code::Unauthenticated, "{end}");
    let end = soon("the end", batch.message()).await.unwrap_err();
    assert_eq!(end.code(), Code::Unauthenticated, "{end}");
    assert_eq!(events.stream(StreamEventsRequest::default()).await.err().unwrap().code(), Code::Unauthenticated);
    let refused = send.try_send(rpc::request("alice", rpc::notification(1))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    send.list(ListSessionsRequest::default()).await.unwrap();
    Rpc::over_tcp(grpc, Some("events-token-2")).await.stream(StreamEventsRequest::default()).await.unwrap();
    // Of the one that is as it was nothing has ended.
    let alice = live.client("alice").await;
    while !matches!(goes_on.body().await, Body::SessionOpened(_)) {}
    drop(alice);
}

/// What is sent through the channel, as a stream.
fn tokio_stream_of<T: Send + 'static>(
    queue: tokio::sync::mpsc::Receiver<T>,
) -> impl futures_util::Stream<Item = T> + Send {
    futures_util::stream::unfold(queue, |mut queue| async { queue.recv().await.map(|item| (item, queue)) })
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_for_who_comes_and_for_who_is_there() {
    let mut live = Live::with("").await;
    let mut alice = live.client("alice").await;
    let limits = "limits.connections_per_user = 1\nstore.max_pending_per_user = 1\nlimits.notification_bytes = \"1KiB\"\n\
                  limits.topics_per_session = 1\ngrpc.max_connections = 2\n";
    assert_eq!(
        live.reload_with(limits).await,
        [
            "grpc.max_connections",
            "store.max_pending_per_user",
            "limits.connections_per_user",
            "limits.notification_bytes",
            "limits.topics_per_session"
        ]
    );
    let (mut second, _) =
        Client::open(request(&live.url(&format!("token={}", Token::of("alice").sign())), &[])).await.unwrap();
    assert_eq!(second.closed().await.0, 1013);
    live.rpc.send("bob", 1).await;
    let full = live.rpc.try_send(rpc::request("bob", rpc::notification(2))).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    let large = live.rpc.try_send(rpc::request("alice", rpc::notification("x".repeat(2000)))).await.unwrap_err();
    assert_eq!(large.code(), Code::InvalidArgument);
    let shown = live.rpc.status().await.limits.unwrap();
    assert_eq!((shown.notification_bytes, shown.connections_per_user, shown.max_pending_per_user), (1024, 1, 1));
    // And up again.
    live.reload_with("").await;
    live.rpc.send("bob", 2).await;
    live.rpc.send("alice", "x".repeat(2000)).await;
    alice.data(1).await;
    let _second = live.client("alice").await;

    // A silent session is found by the heartbeat of now, and not by that of its beginning.
    assert_eq!(live.reload_with("heartbeat.interval = \"100ms\"\nheartbeat.timeout = \"100ms\"\n").await.len(), 2);
    until("a silent session is closed", true, async || live.rpc.clone().errors("heartbeat_timeout").await >= 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_are_let_in_and_paths_are_others() {
    let mut live = Live::with("http.origins = [\"https://a.example\"]\n").await;
    let from = |live: &Live| request(&live.url("token=x"), &[("origin", "https://b.example")]);
    assert_eq!(refusal(from(&live)).await.status(), 403);
    assert_eq!(live.reload_with("http.origins = [\"https://*.example\"]\n").await, ["http.origins"]);
    Client::open(from(&live)).await.unwrap();
    let trusted = "http.trusted_proxies = [\"127.0.0.0/8\"]\nhttp.path = \"/push\"\n";
    assert_eq!(live.reload_with(trusted).await, ["http.path", "http.origins", "http.trusted_proxies"]);
    assert_eq!(refusal(request(&live.url("token=x"), &[])).await.status(), 404);
    let url = format!("ws://{}/push?token={}", live.daemon.address("http"), Token::of("alice").sign());
    let client = Client::open(request(&url, &[("x-forwarded-for", "203.0.113.7")])).await.unwrap().0.welcomed().await;
    let sessions = live.rpc.list(ListSessionsRequest::default()).await.unwrap().sessions;
    assert!(sessions[0].remote_address.starts_with("203.0.113.7"), "{sessions:?}");
    drop(client);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_fires_by_its_new_threshold_and_ends_when_it_is_switched_off() {
    let mut live = Live::with("alerts.connections = \"1\"\nalerts.fire_after = \"0s\"\n").await;
    let _clients = [live.client("alice").await];
    let mut events = live.rpc.events(&["alert"], "").await;
    assert_eq!(
        live.reload_with("alerts.connections = \"0\"\nalerts.fire_after = \"0s\"\n").await,
        ["alerts.connections"]
    );
    let _more = [live.client("bob").await];
    assert_eq!(
        live.reload_with("alerts.connections = \"1\"\nalerts.fire_after = \"0s\"\n").await,
        ["alerts.connections"]
    );
    let next = async |events: &mut rpc::Events| match events.body().await {
        Body::Alert(alert) => alert,
        other => panic!("{other:?}"),
    };
    let alert = next(&mut events).await;
    assert_eq!((alert.name.as_str(), alert.state(), alert.threshold), ("connections", AlertState::Firing, 1.0));
    live.reload_with("alerts.connections = \"0\"\n").await;
    let alert = next(&mut events).await;
    assert_eq!((alert.state(), alert.text.as_str()), (AlertState::Cleared, "switched off"));
    assert_eq!(live.rpc.status().await.alerts, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_subscribes_meets_the_new_rules_and_who_has_is_in_the_topic_still() {
    let rule = |pattern: &str| format!("topics = [{{ pattern = \"{pattern}\", subscribe = [\"*\"] }}]\n");
    let mut live = Live::with("").await;
    let mut alice = live.client("alice").await;
    let news = json!({ "type": "subscribe", "topic": "news", "id": "s" });
    assert_eq!(alice.ask(&news).await["code"], "forbidden");
    let answer = {
        live.write(&rule("news"));
        live.try_reload().await.unwrap()
    };
    assert_eq!(keys(&answer.changed), ["topics"]);
    assert_eq!((answer.changed[0].old.as_str(), answer.changed[0].new.as_str()), ("0: ", "1: news"));
    assert_eq!(alice.ask(&news).await["type"], "subscribed");
    assert_eq!(live.reload_with(&rule("other")).await, ["topics"]);
    let mut bob = live.client("bob").await;
    assert_eq!(bob.ask(&news).await["code"], "forbidden");
    assert_eq!(live.rpc.publish("news", 1).await, 1);
    assert_eq!(alice.next().await["data"], 1);

    // Which topics are durable is settled at the start.
    live.write("topics = [{ pattern = \"news\", subscribe = [\"*\"], durable = true }]\n");
    let answer = live.try_reload().await.unwrap();
    assert_eq!((keys(&answer.changed).len(), keys(&answer.needs_restart)), (0, vec!["topics".to_owned()]));
    assert_eq!(bob.ask(&news).await["code"], "forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_s_filter_is_that_of_the_file_where_that_is_another() {
    let mut live = Live::with("").await;
    assert_eq!(live.rpc.log_filter("info,pushgate::store=debug").await.unwrap(), "info");
    assert_eq!(live.reload_with("presence.linger = \"1s\"\n").await, ["presence.linger"]);
    assert_eq!(live.rpc.log_filter("warn").await.unwrap(), "info,pushgate::store=debug", "nothing of it was changed");
    assert_eq!(
        live.reload_with("log.filter = \"info,pushgate::hub=debug\"\n").await,
        ["presence.linger", "log.filter"]
    );
    assert_eq!(live.rpc.log_filter("info").await.unwrap(), "info,pushgate::hub=debug");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_come_from_other_files_and_one_that_is_none_changes_nothing() {
    let authority = Authority::new();
    let issued = [authority.server(&["localhost"], 30), authority.server(&["localhost"], 60)];
    let files = issued.each_ref().map(|issued| Files::new(issued, &authority));
    let tls = |files: &Files| {
        let lines = files.keys("http").into_iter().map(|(key, file)| format!("{key} = \"{file}\"\n"));
        lines.collect::<String>()
    };
    let mut live = Live::with(&tls(&files[0])).await;
    let before = live.rpc.status().await.limits.unwrap().connections;
    let config = Arc::new(client_config(&authority.pem, None));
    let address = live.daemon.address("http");
    let seen = async || shown(&connect(address, &config).await.unwrap());
    assert_eq!(seen().await, der(&issued[0].certificate));
    assert_eq!(live.reload_with(&tls(&files[1])).await, ["http.tls.certificate_file", "http.tls.key_file"]);
    assert_eq!(seen().await, der(&issued[1].certificate));
    let mixed = tls(&files[0]).replace(&files[0].text("tls.key"), &files[1].text("tls.key"));
    live.write(&(mixed + "limits.connections = 7\n"));
    let refused = live.try_reload().await.unwrap_err();
    assert!(refused.message().contains("is not the key of the certificate"), "{refused}");
    assert_eq!(seen().await, der(&issued[1].certificate));
    assert_eq!(live.rpc.status().await.limits.unwrap().connections, before);
    // TLS itself begins and ends with the listener.
    live.write("");
    let answer = live.try_reload().await.unwrap();
    assert_eq!(keys(&answer.needs_restart), ["http.tls.certificate_file", "http.tls.key_file"]);
    assert_eq!(seen().await, der(&issued[1].certificate));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_changes_nothing_and_is_said_as_config_check_says_it() {
    let mut live = Live::with("").await;
    let before = live.rpc.status().await.limits.unwrap().connections;
    let file = live.file.to_str().unwrap().to_owned();
    for bad in [
        "limits.connections = 7\nlimits.no_such = 1\n",
        "limits.connections = 7\nheartbeat.interval = \"0s\"\nstore.ttl = \"0s\"\n",
        "limits.connections = 7\nauth.jwks.file = \"/nowhere/keys.json\"\n",
        "limits.connections = 7\n[junk",
    ] {
        live.write(bad);
        let refused = live.try_reload().await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        let (code, _, said) = child::run(&["config", "check", "--config", &file]).await;
        assert_eq!(code, 78);
        for line in said.lines() {
            assert!(refused.message().contains(line), "{line}: {refused}");
        }
        assert_eq!(live.rpc.status().await.limits.unwrap().connections, before, "{bad}");
    }
    std::fs::remove_file(&live.file).unwrap();
    let refused = live.try_reload().await.unwrap_err();
    assert!(refused.message().contains("cannot be read"), "{refused}");
    assert_eq!(live.rpc.errors("reload_refused").await, 5);
    live.client("alice").await;
    // Nothing is left of it.
    assert_eq!(live.reload_with("limits.connections = 7\n").await, ["limits.connections"]);
    assert_eq!(live.reload().await, [""; 0]);
}

/// What fails last finds everything else made already: none of that is in force, whatever it concerns.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_last_leaves_everything_as_it_was() {
    let mut live = Live::with("http.origins = [\"https://a.example\"]\n").await;
    let before = live.rpc.status().await.limits.unwrap().connections;
    let mut alice = live.client("alice").await;
    let mut events = Rpc::over_tcp(live.daemon.address("grpc"), Some("events-token")).await;
    let mut stream = events.stream(StreamEventsRequest::default()).await.unwrap();
    let from = |live: &Live| request(&live.url("token=x"), &[("origin", "https://b.example")]);
    let signed = Token::of("bob");
    let all = "http.origins = [\"https://*.example\"]\nlimits.connections = 7\nlimits.notification_bytes = \"1KiB\"\n\
               topics = [{ pattern = \"news\", subscribe = [\"*\"] }]\nlog.filter = \"warn\"\nalerts.connections = \"1\"\n\
               alerts.fire_after = \"0s\"\nauth.issuer = [\"https://id.example.com\"]\nheartbeat.interval = \"45s\"\n";
    // Nobody answers there.
    live.write(&format!("{all}auth.jwks.url = \"https://127.0.0.1:1/keys\"\n"));
    live.edit("token = \"events-token\"", "token = \"events-token-2\"");
    let heartbeat = live.client("carol").await.hello["heartbeatIntervalMs"].clone();
    for _ in 0..2 {
        let refused = live.try_reload().await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("auth.jwks.url: "), "{refused}");
        let shown = live.rpc.status().await;
        let limits = shown.limits.unwrap();
        assert_eq!((limits.connections, limits.notification_bytes), (before, 256 * 1024), "{limits:?}");
        assert_eq!(shown.alerts, []);
        assert_eq!(refusal(from(&live)).await.status(), 403);
        assert_eq!(live.answer(&signed).await, "auth_success");
        assert_eq!(live.client("carol").await.hello["heartbeatIntervalMs"], heartbeat);
        let news = json!({ "type": "subscribe", "topic": "news", "id": "s" });
        assert_eq!(alice.ask(&news).await["code"], "forbidden");
        live.rpc.send("alice", "x".repeat(2000)).await;
        alice.data(1).await;
        while !matches!(stream.body().await, Body::SessionOpened(_)) {}
        Rpc::over_tcp(live.daemon.address("grpc"), Some("events-token-2"))
            .await
            .stream(StreamEventsRequest::default())
            .await
            .map(|_| ())
            .unwrap_err();
    }
    assert_eq!(live.rpc.log_filter("info").await.unwrap(), "info");
    // Without what fails, all of it is taken.
    live.write(all);
    live.edit("token = \"events-token\"", "token = \"events-token-2\"");
    assert_eq!(
        live.reload().await,
        [
            "http.origins",
            "grpc.tokens",
            "auth.issuer",
            "heartbeat.interval",
            "limits.connections",
            "limits.notification_bytes",
            "topics",
            "alerts.fire_after",
            "alerts.connections",
            "log.filter"
        ]
    );
    let end = loop {
        if let Err(end) = soon("the end", stream.0.message()).await {
            break end;
        }
    };
    assert_eq!(end.code(), Code::Unauthenticated, "{end}");
    assert_eq!(live.answer(&signed).await, "issuer_mismatch");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_restart_is_named_until_there_is_one() {
    let mut live = Live::with("").await;
    live.edit("http.listen = [\"127.0.0.1:0\"]", "http.listen = [\"127.0.0.1:1\"]");
    let text = std::fs::read_to_string(&live.file).unwrap();
    std::fs::write(&live.file, text + "events.buffer = 1024\nlimits.connections = 7\n").unwrap();
    for changed in [vec!["limits.connections".to_owned()], Vec::new()] {
        let answer = live.try_reload().await.unwrap();
        assert_eq!(keys(&answer.changed), changed);
        assert_eq!(keys(&answer.needs_restart), ["http.listen", "events.buffer"]);
        let listen = &answer.needs_restart[0];
        assert_eq!((listen.old.as_str(), listen.new.as_str()), ("[\"127.0.0.1:0\"]", "[\"127.0.0.1:1\"]"));
    }
    live.client("alice").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_follow_each_other_and_one_of_them_finds_what_is_new() {
    let mut live = Live::with("").await;
    live.write("limits.connections = 7\n");
    let calls = (0..16).map(|_| {
        let mut rpc = live.rpc.clone();
        async move { keys(&rpc.client.reload(ReloadRequest {}).await.unwrap().into_inner().changed) }
    });
    let found: Vec<_> = soon("all answers", futures_util::future::join_all(calls)).await;
    assert_eq!(found.iter().filter(|changed| **changed == ["limits.connections"]).count(), 1, "{found:?}");
    assert_eq!(found.iter().filter(|changed| changed.is_empty()).count(), 15);
    let line = live.daemon.logged("audit").await;
    assert_eq!((&line["action"], &line["caller"]), (&json!("reload"), &json!("admin")), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_does_the_same_and_the_log_has_the_outcome() {
    let mut live = Live::with("").await;
    live.write("limits.connections = 7\nevents.buffer = 1024\n");
    live.daemon.signal(Signal::HUP);
    let line = live.daemon.logged("the configuration was read again").await;
    assert_eq!((&line["changed"], &line["needs_restart"]), (&json!("limits.connections"), &json!("events.buffer")));
    assert_eq!(live.rpc.status().await.limits.unwrap().connections, 7);
    live.write("limits.connections = \"many\"\n");
    live.daemon.signal(Signal::HUP);
    let line = live.daemon.logged("the configuration is not taken; the one from before stays").await;
    assert!(line["problem"].as_str().unwrap().contains("limits.connections"), "{line}");
    until("it is counted", 1, async || live.rpc.clone().errors("reload_refused").await).await;
    live.daemon.signal(Signal::TERM);
    assert!(live.daemon.ended().await.success());
}
