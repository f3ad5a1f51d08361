//! A client of the gateway: one connection that comes back by itself, tokens that are renewed in time, messages that are
//! confirmed once they were handled.
//!
//! ```no_run
//! use pushgate::client::Client;
//! use serde_json::json;
//!
//! # async fn fetch_token() -> Result<String, pushgate::client::BoxError> { Ok(String::new()) }
//! # async fn show(_: serde_json::Value) -> Result<(), std::io::Error> { Ok(()) }
//! # async fn run() -> Result<(), pushgate::client::BoxError> {
//! let client = Client::builder("wss://push.example.com/ws")
//!     .token_provider(|| async { fetch_token().await })
//!     .device("desktop-1")
//!     .on_message(|message| async move {
//!         show(message.json()?).await?;
//!         Ok(()) // and the gateway is told that this message has been dealt with
//!     })
//!     .on_give_up(|why| eprintln!("no more messages: {why}"))
//!     .start()?;
//!
//! client.send_json(&json!({ "type": "typing", "to": "bob" }))?;
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/client.rs` is a whole program. The cargo feature is `client` (on by default); it needs a tokio runtime with I/O
//! and time. [`Builder`] is what a client is told, [`Client`] what is done with it, [`Message`] what comes, [`Event`] and
//! [`State`] what happens to it.
//!
//! # Confirmation
//!
//! With [`AckMode::Client`], the default, a stored notification is acked when the handler ([`Builder::on_message`]) has
//! returned `Ok` for it and for everything delivered before it. It is kept by the gateway until then. So:
//!
//! * Messages are handed over one at a time, in the order of delivery.
//! * Where the handler returns an error or panics, the message is handed to it again, after a wait that grows from 250 ms to
//!   30 s, and [`Builder::on_error`] hears of each failure. What follows waits behind it. When the session ends meanwhile
//!   (the gateway closes one that acks nothing for five minutes with 4410), the gateway delivers the message again on the
//!   next. A message that can never be handled must be answered with `Ok` to be rid of it.
//! * What was handled and comes again, because the ack got lost with a connection, is known by its id and acked without being
//!   handed over (the latest [`Builder::dedup_ids`]). One that failed, or is still being handled, is not taken for a repeat
//!   before it was handled. A program that ends between handling and acking gets the message again: at least once.
//! * What is not stored ([`Message::offset`] is `None`) comes once or never; a handler that fails on it is told so, and that
//!   is all.
//! * Without a handler, messages are handed out by [`Client::events`], and whoever reads them calls [`Message::ack`]; they wait
//!   for the first reader. One that is never acked comes again on a later session.
//!
//! With [`AckMode::Transport`] the WebSocket pong confirms a notification when it has arrived here, before it is handled:
//! nothing comes again because of a handler, which is called once for each message.
//!
//! A handler may take its time: it runs on a task of its own, and pings are answered meanwhile. Where 1,024 messages or 8 MiB
//! wait for it, the client stops reading, so that nothing more piles up here, and shows the gateway by unsolicited pongs that
//! it is alive. Replies are not read then, either: a handler that waits for [`Client::request`] should be given a timeout it
//! can bear. A gateway that cannot wait so long closes the session (4409; with [`AckMode::Transport`] also 4408, after 30 s in
//! which its ping was not read) and delivers what is stored on the next one.
//!
//! # Coming back
//!
//! | the connection ended with | then |
//! |---|---|
//! | 1000, 1008, 3000–3999, 4000–4099, 4400 | the client gives up: [`GiveUp::Closed`] |
//! | 4401, HTTP 401 | with another token of the provider; without one, or with the same again: [`GiveUp::Refused`] |
//! | 1012, 1001 after `draining` | after `reconnectAfterMs` (at most ten minutes), which the gateway spreads itself; without one, and in a row of sessions that came to nothing, after the back-off as well |
//! | any other code, a lost connection, HTTP 408, 425, 429, 5xx | after the back-off, and `Retry-After` before it |
//! | any other HTTP status | [`GiveUp::Refused`] |
//!
//! The back-off is full jitter: a random wait between nothing and a bound that doubles from [`Builder::reconnect_delay`] to
//! [`Builder::max_delay`]. It starts over, as does the count of [`Builder::max_reconnects`], with a session that lived for 5 s
//! or brought a message. The first attempt of [`Builder::connect`] is the exception: where it fails, so does `connect`.
//!
//! After a reconnect, topics and rooms are asked for again; what was sent offline leaves in order; what was under way as a
//! request fails ([`RequestError::Lost`]), since it may have been carried out. A message that was handed to a connection is not
//! sent a second time: at most once.
//!
//! The client pings when it has heard nothing for the gateway's `heartbeatIntervalMs`, and takes the connection for lost if
//! nothing comes within [`Builder::heartbeat_timeout`].
//!
//! # States
//!
//! | state | until |
//! |---|---|
//! | [`State::Connecting`] | there is a session: `Connected`; or there is none: `Waiting`, or an end |
//! | [`State::Connected`] | the session ends: `Waiting`, or an end |
//! | [`State::Waiting`] | the wait is over: `Connecting` |
//! | [`State::Closing`] | all is done, or [`Builder::close_timeout`] is over: `Closed`, or `GaveUp` where the client gave up and its handler has to finish |
//! | [`State::Closed`], [`State::GaveUp`] | for good |
//!
//! # Defaults and bounds
//!
//! | | default | bound |
//! |---|---|---|
//! | [`Builder::ack_mode`] | `Client` | |
//! | [`Builder::auto_reconnect`] | on | |
//! | [`Builder::reconnect_delay`], [`Builder::max_delay`] | 1 s, 30 s | what the gateway asks for: 10 min |
//! | [`Builder::max_reconnects`] | 0: no end | |
//! | [`Builder::queue_messages`], [`Builder::queue_bytes`] | 1,024, 4 MiB | so much at least with a session |
//! | [`Builder::dedup_ids`] | 4,096 | ids of up to 256 bytes |
//! | [`Builder::handshake_timeout`] | 10 s | more than 0 |
//! | [`Builder::request_timeout`] | 30 s | |
//! | [`Builder::heartbeat_interval`] | the gateway's | 100 ms to 5 min |
//! | [`Builder::heartbeat_timeout`] | 10 s | more than 0 |
//! | [`Builder::close_timeout`] | 10 s | and 1 s for the gateway's answer |
//! | [`Builder::max_message_bytes`] | 16 MiB | at least 1 |
//! | a token provider | | 30 s |
//! | requests under way; topics and rooms; answers to `unsubscribe` and `leave_room` | | 1,024 each |
//! | messages that wait for the handler | | 1,024, 8 MiB |
//! | events that wait for one reader; without a handler, messages apart from the rest | | 1,024, 8 MiB |
//!
//! # Secrets
//!
//! The token travels in the handshake's `Authorization` header. It, the values of further headers and the query of the
//! address are in no error, no `Debug` output and no log.

mod builder;
mod connection;
mod dial;
mod driver;
mod error;
mod events;
mod handler;
mod ledger;
mod message;
mod options;
mod outbox;
mod renewal;
mod retry;
mod shared;
pub(crate) mod tls;
mod tokens;
mod wishes;

use std::{fmt, sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::{json, value::RawValue};
use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite::Message as Frame;

pub use self::{
    builder::Builder,
    error::{AuthFailure, BoxError, BuildError, ConnectError, Disconnect, Error, GiveUp, RequestError, SendError},
    events::{Event, Events, State, States},
    message::{Message, Session},
};
use self::{shared::Shared, wishes::Wish};
pub use crate::protocol::ack_mode::AckMode;

/// A handle to a running client. Clones are handles to the same one, and cheap; with the last of them the client ends, at
/// once and without a goodbye ([`Client::close`] is the way in order).
#[derive(Clone)]
pub struct Client(Arc<Handle>);

/// Ends the client when the last handle goes.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.0.shared.options;
        f.debug_struct("Client").field("address", &options.target).field("state", &self.state()).finish_non_exhaustive()
    }
}

/// How [`Client::close`] went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// How many messages had not left, and will not.
    pub unsent: usize,
}

impl Client {
    /// A client of the endpoint at `url`: `ws://` or `wss://`. What else it is told is the [`Builder`]'s.
    pub fn builder(url: impl Into<String>) -> Builder {
        Builder::new(url)
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        self.0.shared.core.lock().state
    }

    /// The present state and every change of it from now on.
    pub fn states(&self) -> States {
        let shared = &self.0.shared;
        // Under the lock, so that no change falls between the state and the reader.
        let core = shared.core.lock();
        States(shared.states.reader(Some(core.state)))
    }

    /// Every event from now on. A reader has room for 1,024 events and 8 MiB of messages; one that lags hears how many it
    /// missed ([`Event::Missed`]).
    ///
    /// Without a handler, messages wait for the first reader, and for one that has room: 1,024 messages and 8 MiB, apart from
    /// other events. What is in a reader's queue stays there; a second reader without room misses what the first takes. Each
    /// is handled when it is said to be, by [`Message::ack`]; one that comes again and was handled meanwhile is passed over.
    pub fn events(&self) -> Events {
        let shared = &self.0.shared;
        Events::new(shared.events.reader(None), Arc::downgrade(shared))
    }

    /// The present session; `None` while there is none.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.0.shared.core.lock().session.clone()
    }

    /// Sends a text message as it stands: one JSON object with a `type`, such as
    /// `{"type":"message","to":"bob","kind":"chat","data":{}}`.
    ///
    /// This and its like return at once: the message waits for the socket or for the next session, in order with all others.
    /// Messages are sent at most once: one that was handed to a connection that then broke may have arrived or not, and is not
    /// sent again. To know, use [`Client::request`].
    ///
    /// # Errors
    /// The message is none of the protocol, or too large; too many wait; the client has ended.
    pub fn send_text(&self, message: impl Into<String>) -> Result<(), SendError> {
        self.send(outbox::text(message.into())?)
    }

    /// Sends a text message made of anything that serialises to one JSON object with a `type`.
    ///
    /// # Errors
    /// As [`Client::send_text`].
    pub fn send_json(&self, message: &impl Serialize) -> Result<(), SendError> {
        self.send_text(outbox::to_json(message)?)
    }

    /// Sends a binary message: `envelope` is what [`Client::send_json`] takes, without `data`, and the bytes are the payload.
    /// (A gateway that takes none from clients closes the session with 1003, after which the client comes back.)
    ///
    /// # Errors
    /// As [`Client::send_text`].
    pub fn send_binary(&self, envelope: &impl Serialize, payload: impl AsRef<[u8]>) -> Result<(), SendError> {
        self.send(outbox::binary(envelope, payload.as_ref())?)
    }

    fn send(&self, frame: Frame) -> Result<(), SendError> {
        let shared = &self.0.shared;
        let mut core = shared.core.lock();
        shared.may_send(&core, &frame)?;
        let online = core.session.is_some();
        core.outbox.push(frame, online)?;
        drop(core);
        shared.wake.notify_one();
        Ok(())
    }

    /// Sends `{"type": …, "data": …}` with an id of its own and waits for the message that answers it (`replyTo`), whatever
    /// its type: `reply`, `echo_response`, `pong` … Without a session it waits for the next one. Dropped or timed out, a
    /// request that has not left will not.
    ///
    /// # Errors
    /// The gateway answers `error`; no answer within `timeout`; the connection or the client ends; see also
    /// [`Client::send_text`].
    pub async fn request(
        &self,
        type_name: &str,
        data: &impl Serialize,
        timeout: Duration,
    ) -> Result<Message, RequestError> {
        let data = RawValue::from_string(outbox::to_json(data)?)
            .map_err(|_| SendError::NotAMessage("its data is no JSON".to_owned()))?;
        #[derive(Serialize)]
        struct Envelope<'a> {
            r#type: &'a str,
            data: &'a RawValue,
        }
        self.ask(&Envelope { r#type: type_name, data: &data }, timeout).await
    }

    /// The same for a whole envelope, for requests that have other fields than `data`:
    /// `{"type":"user_list","topic":"news"}`. An `id` in it is replaced.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub async fn ask(&self, envelope: &impl Serialize, timeout: Duration) -> Result<Message, RequestError> {
        let shared = &self.0.shared;
        let id = shared.new_id();
        let frame = outbox::with_id(envelope, &id)?;
        let answer = {
            let mut core = shared.core.lock();
            shared.may_send(&core, &frame)?;
            let online = core.session.is_some();
            core.outbox.ask(&id, frame, online)?
        };
        let _forget = Forget { shared, id };
        shared.wake.notify_one();
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(RequestError::Ended),
            Err(_) => Err(RequestError::Timeout),
        }
    }

    /// Asks the gateway for a sign of life, and says how long that took. Waits up to [`Builder::request_timeout`].
    ///
    /// # Errors
    /// As [`Client::request`].
    pub async fn ping(&self) -> Result<Duration, RequestError> {
        let started = tokio::time::Instant::now();
        self.ask(&json!({ "type": "ping" }), self.0.shared.options.request_timeout).await?;
        Ok(started.elapsed())
    }

    /// Wants to be in a topic from now on: on this session and on every further one, until [`Client::unsubscribe`] or a
    /// refusal for good (`forbidden`, `bad_message`, `unknown_type`). After another, such as `rate_limited`, it is asked for
    /// again, after a wait that grows from 1 s to 30 s. Returns when the gateway has confirmed it, on this session or the next, up to [`Builder::request_timeout`].
    /// At most 1,024 topics and rooms.
    ///
    /// # Errors
    /// Refused for good: the topic is not asked for again (each refusal is told as [`Error::Subscription`]). [`RequestError::Timeout`]: it stays
    /// wanted. [`RequestError::TooMany`], [`RequestError::Ended`].
    pub async fn subscribe(&self, topic: &str) -> Result<(), RequestError> {
        self.want(Wish::Topic(topic.to_owned()), topic).await
    }

    /// Does not want to be in a topic any more. Where the gateway knows of it, it is told so, in order with
    /// [`Client::subscribe`], and its answer or the end of the session is waited for, up to [`Builder::request_timeout`].
    ///
    /// # Errors
    /// Refused, [`RequestError::Timeout`], [`RequestError::TooMany`], [`RequestError::Ended`]. The topic is not asked for again,
    /// whatever the answer.
    pub async fn unsubscribe(&self, topic: &str) -> Result<(), RequestError> {
        self.want_no_more(Wish::Topic(topic.to_owned())).await
    }

    /// Wants to be in a room; all that is said of [`Client::subscribe`] holds.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub async fn join_room(&self, room: &str) -> Result<(), RequestError> {
        self.want(Wish::Room(room.to_owned()), room).await
    }

    /// Does not want to be in a room any more; all that is said of [`Client::unsubscribe`] holds.
    ///
    /// # Errors
    /// As [`Client::unsubscribe`].
    pub async fn leave_room(&self, room: &str) -> Result<(), RequestError> {
        self.want_no_more(Wish::Room(room.to_owned())).await
    }

    async fn want(&self, wish: Wish, name: &str) -> Result<(), RequestError> {
        wishes::check(name)?;
        let shared = &self.0.shared;
        let told = {
            let mut core = shared.core.lock();
            if core.state.is_end() {
                return Err(RequestError::Ended);
            }
            core.wishes.add(wish)?
        };
        shared.wake.notify_one();
        self.told(told).await
    }

    async fn want_no_more(&self, wish: Wish) -> Result<(), RequestError> {
        let shared = &self.0.shared;
        let told = {
            let mut core = shared.core.lock();
            if core.state.is_end() {
                return Err(RequestError::Ended);
            }
            core.wishes.remove(&wish)
        };
        // Where there are too many to be waited for, it leaves all the same.
        shared.wake.notify_one();
        self.told(told?).await
    }

    /// Waits for what the gateway says, where it has to say something.
    async fn told(&self, told: Option<oneshot::Receiver<Result<(), RequestError>>>) -> Result<(), RequestError> {
        let Some(told) = told else { return Ok(()) };
        match tokio::time::timeout(self.0.shared.options.request_timeout, told).await {
            Ok(Ok(told)) => told,
            Ok(Err(_)) => Err(RequestError::Ended),
            Err(_) => Err(RequestError::Timeout),
        }
    }

    /// Closes in order: no further message is handed to the handler, the one under way comes to its end, what was handled is
    /// acked, what waits is sent where there is a session, then the close frame 1000 and its answer. Takes
    /// [`Builder::close_timeout`] and a second at most; a handler that takes longer is dropped, and its message comes again.
    /// What waits and is not stored is dropped.
    ///
    /// With [`AckMode::Transport`] what has arrived is confirmed already: stored notifications that wait are handed over yet,
    /// as far as the time goes, and nothing more is read.
    ///
    /// A handler must not wait for it, since it waits for the handler. Called again, and on a client that has ended, it says
    /// what the end was like.
    pub async fn close(&self) -> Closed {
        let shared = &self.0.shared;
        shared.close();
        let mut ended = shared.ended.subscribe();
        // The bound is for a runtime that is gone, and the client's task with it.
        let bound = shared.options.close_timeout.saturating_add(Duration::from_secs(5));
        let ended = tokio::time::timeout(bound, ended.wait_for(Option::is_some)).await;
        let unsent = ended.ok().and_then(Result::ok).and_then(|unsent| *unsent);
        Closed { unsent: unsent.unwrap_or_else(|| shared.core.lock().outbox.len()) }
    }
}

/// Forgets a request when nobody waits for its answer any more.
struct Forget<'a> {
    shared: &'a Shared,
    id: String,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.core.lock().outbox.forget(&self.id);
    }
}
