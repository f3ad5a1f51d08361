//! `listen`: against the gateway, and against one that is played, for what a gateway does only in need.

use std::net::{SocketAddr, TcpListener};

use futures_util::{SinkExt as _, StreamExt as _};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use crate::support::{Follower, Gateway, binary, pushgate, write_configuration};

#[test]
fn what_was_printed_is_confirmed_and_what_was_not_comes_again() {
    let gateway = Gateway::new();
    let ids = |lines: &str| -> Vec<String> {
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|message| message["id"].as_str().unwrap().to_owned()).collect()
    };
    for id in ["a", "b", "c"] {
        gateway.command(&["send", "alice", "1", "--id", id]).ok();
    }
    let url = gateway.url();
    let two = ["listen", "--user", "alice", "--url", &url, "--json", "--count", "2", "--for", "30s"];
    assert_eq!(ids(&gateway.command(&two).ok()), ["a", "b"]);
    gateway.command(&["send", "alice", "1", "--id", "d"]).ok();
    assert_eq!(ids(&gateway.command(&two).ok()), ["c", "d"]);
    // By transport: the ping behind the one message is answered before the end.
    gateway.command(&["send", "alice", "1", "--id", "e"]).ok();
    let one = ["listen", "--user", "alice", "--url", &url, "--json", "--count", "1", "--ack-mode", "transport"];
    assert_eq!(ids(&gateway.command(&one).ok()), ["e"]);
    let none = ["listen", "--user", "alice", "--url", &url, "--count", "1", "--for", "300ms"];
    gateway.command(&none).fails_after_note("0 of 1 messages came in time");
}

#[test]
fn listening_ends_in_time_with_0_where_nothing_was_counted() {
    let gateway = Gateway::new();
    assert_eq!(gateway.command(&["listen", "--user", "a", "--url", &gateway.url(), "--for", "200ms"]).code, 0);
}

#[test]
fn tokens_come_from_files_too_and_bad_ones_are_refused_clearly() {
    let gateway = Gateway::new();
    let url = gateway.url();
    let token = gateway.command(&["token", "user", "--sub", "carol"]).ok();
    let file = gateway.write("carol.token", &token);
    gateway.command(&["send", "carol", "7"]).ok();
    let args = ["listen", "--token-file", file.to_str().unwrap(), "--url", &url, "--count", "1"];
    assert!(pushgate(&args).ok().contains("  notification  7  "));

    let run = pushgate(&["listen", "--token", "a.b.c", "--url", &url]);
    run.fails(77, "the token was refused: 4401 token_invalid (token_invalid: ");
    let run = pushgate(&["listen", "--token", token.trim(), "--url", &url.replace("/ws", "/elsewhere")]);
    run.fails(1, "/elsewhere answers HTTP 404 Not Found: not found");
    let run = pushgate(&["listen", "--token", token.trim(), "--url", &url, "--device", "no spaces"]);
    run.fails(1, "answers HTTP 400 Bad Request: device: ");
}

#[test]
fn nobody_there_ends_with_69() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let run = pushgate(&["listen", "--token", "a.b.c", "--url", &format!("ws://{free}/ws")]);
    run.fails(69, &format!("nobody answers at ws://{free}/ws: Connection refused"));
    let folder = tempfile::tempdir().unwrap();
    let file = write_configuration(folder.path(), "");
    pushgate(&["listen", "--user", "a", "--config", &file]).fails(78, "says port 0");
}

impl crate::support::Run {
    /// Like `fails` with 1, behind the note of a connection that was there.
    fn fails_after_note(&self, text: &str) {
        assert_eq!((self.code, self.stderr.lines().last()), (1, Some(text)), "{self:?}");
    }
}

/// A gateway that is played: it takes one connection after the other.
struct Played {
    runtime: tokio::runtime::Runtime,
    listener: tokio::net::TcpListener,
    address: SocketAddr,
}

struct Peer {
    socket: WebSocketStream<tokio::net::TcpStream>,
    token: String,
    query: String,
}

impl Played {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        Self { runtime, listener, address }
    }

    /// A listening client of this gateway, which signs its own tokens.
    fn client(&self, folder: &tempfile::TempDir, further: &[&str]) -> std::process::Child {
        let file = write_configuration(folder.path(), "");
        let url = format!("ws://{}/ws", self.address);
        let args = [&["listen", "--user", "alice", "--url", &url, "--config", &file], further].concat();
        binary(&args).spawn().unwrap()
    }

    #[allow(clippy::disallowed_methods, reason = "a played peer is not the gateway")]
    fn accept(&self) -> Peer {
        self.runtime.block_on(async {
            let (stream, _) = self.listener.accept().await.unwrap();
            let (mut token, mut query) = (String::new(), String::new());
            #[allow(clippy::result_large_err, reason = "the library's own type")]
            let look = |request: &Request, response: Response| {
                token = request.headers()["authorization"].to_str().unwrap().to_owned();
                query = request.uri().query().unwrap_or_default().to_owned();
                Ok(response)
            };
            let mut socket = accept_hdr_async(stream, look).await.unwrap();
            let hello =
                json!({ "type": "auth_success", "sessionId": "s", "userId": "alice", "device": "", "pending": 0 });
            socket.send(Message::from(hello.to_string())).await.unwrap();
            Peer { socket, token, query }
        })
    }

    fn say(&self, peer: &mut Peer, text: &str) {
        self.runtime.block_on(peer.socket.send(Message::from(text))).unwrap();
    }

    fn hear(&self, peer: &mut Peer) -> Value {
        let message = self.runtime.block_on(peer.socket.next()).unwrap().unwrap();
        serde_json::from_str(message.to_text().unwrap()).unwrap()
    }

    fn close(&self, mut peer: Peer, code: u16, reason: &str) {
        self.runtime.block_on(async {
            let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
            peer.socket.close(Some(frame)).await.unwrap();
            while let Some(Ok(_)) = peer.socket.next().await {}
        });
    }
}

#[test]
fn it_comes_back_after_a_restart_with_a_token_that_is_renewed() {
    let played = Played::new();
    let folder = tempfile::tempdir().unwrap();
    let child = played.client(&folder, &["--device", "phone", "--count", "2"]);

    let mut peer = played.accept();
    assert_eq!(peer.query, "device=phone&ackMode=client");
    assert!(peer.token.starts_with("Bearer ey"), "{}", peer.token);
    played.say(&mut peer, r#"{"type":"token_expiring","expiresAt":"2026-01-31T09:35:00.000Z"}"#);
    let auth = played.hear(&mut peer);
    assert!(auth["type"] == "auth" && auth["token"].as_str().unwrap().starts_with("ey"), "{auth}");
    played.say(&mut peer, "{\"type\":\"x\",\"id\":\"1\",\"offset\": 5,\"data\":\n{\"a\":1.0}}");
    assert_eq!(played.hear(&mut peer), json!({ "type": "ack", "offset": 5 }));
    played.say(&mut peer, r#"{"type":"draining","reconnectAfterMs":1}"#);
    played.close(peer, 1012, "restart");

    let peer = played.accept();
    played.close(peer, 4401, "token_expired");
    let mut peer = played.accept();
    // What has no offset is not confirmed.
    played.say(&mut peer, r#"{"type":"y","data":2,"timestamp":"T"}"#);
    assert!(
        matches!(played.runtime.block_on(peer.socket.next()), Some(Ok(Message::Close(Some(frame)))) if frame.code == CloseCode::Normal)
    );
    played.runtime.block_on(async { while let Some(Ok(_)) = peer.socket.next().await {} });
    let run = crate::support::finish(child);
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(run.stdout, "  x  {\"a\":1.0}  (id 1)\nT  y  2\n");
    assert!(run.stderr.contains("the gateway restarts: 1012 restart; connecting again in 1.0ms"), "{run:?}");
    assert!(run.stderr.contains("the token was refused: 4401 token_expired; connecting again in "), "{run:?}");
}

#[test]
fn a_lost_connection_is_made_again_and_a_final_close_is_not() {
    let played = Played::new();
    let folder = tempfile::tempdir().unwrap();
    let child = played.client(&folder, &[]);
    drop(played.accept());
    let peer = played.accept();
    played.close(peer, 3999, "moved\nhouse");
    let run = crate::support::finish(child);
    assert_eq!(run.code, 1, "{run:?}");
    assert!(run.stderr.contains("the connection was lost: 1006"), "{run:?}");
    assert_eq!(run.stderr.lines().last(), Some("closed: 3999 moved\\u{a}house"), "{run:?}");
}

#[test]
fn an_interrupt_says_goodbye() {
    let gateway = Gateway::new();
    let mut events = Follower::start(binary(&gateway.args(&["events", "--type", "session_closed"])), "events of ");
    let client = gateway.client("alice", &[]);
    client.signal(Signal::INT);
    assert_eq!(client.end().code, 0);
    let line = events.line();
    assert!(line.contains(", 1000 by the client after "), "{line}");
}
