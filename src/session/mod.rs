//! One session without its socket: inputs go in, what is to be done comes out. It never awaits, never locks, never
//! writes; the hub calls it under the session's lock and carries out what it says.
//!
//! `handshake.rs` is how a connection becomes a session, `delivery.rs` what it has been handed and what it confirmed;
//! here are heartbeat, confirmation pings, the token's time and the client's messages.

mod bucket;
pub mod config;
mod delivery;
mod handshake;
mod rare;
mod reaction;
mod requests;
mod settings;
mod warning;

use std::time::Duration;

use bucket::Ahead;
pub use bucket::{Bucket, Over, Rates};
pub use config::{Delivery as DeliveryConfig, Heartbeat as HeartbeatConfig};
pub use delivery::{Confirmed, Delivery, Flow, Log, Offer};
pub use handshake::{First, Granted, Opening, Options, Refused, Unauthenticated};
pub use rare::PerMinute;
use rare::Rare;
pub use reaction::{Counts, Reaction, Saying, Tick, Unanswered, Verdict};
pub use requests::Held;
pub use settings::Settings;
use warning::Warning;

use crate::{
    clock::{Instant, Moment},
    limits::{self, Limit},
    metrics::Failure,
    protocol::{
        ack_mode::AckMode,
        auth_code::AuthCode,
        client::{self, BadMessage, ClientMessage, Data, Request},
        close::CloseCode,
        error_code::ErrorCode,
        server,
    },
    types::{Count, TokenMark, UnixMillis},
};

/// No token ends then.
const NEVER: UnixMillis = UnixMillis(u64::MAX);
/// No time from a ping to its pong was measured yet.
const NO_RTT: u32 = u32::MAX;
/// The users of a list that cost as much as asking for it.
const USERS_PER_POINT: usize = 100;
/// The lists that a session may ask for a second, beyond `limits.user_lists` at once.
const LISTS_PER_SECOND: u32 = 2;

/// A limit on how many may come at once, which is none at 0.
fn at_once(most: Count) -> u32 {
    if most.0 == 0 { u32::MAX } else { most.0 }
}

/// Refuses a message over a rate.
fn limited(limit: Limit, text: &str, id: Option<&str>) -> Reaction<'static> {
    Reaction::Reply(server::error(ErrorCode::RateLimited, text, id), Some(limit.into()))
}

/// The payload of a ping that confirms: the session's nonce and the sequence below which its pong confirms.
pub type PingPayload = [u8; 16];

/// A ping that the peer has yet to answer. There is never more than one.
#[derive(Debug)]
struct Outstanding {
    /// Everything handed over below this sequence is confirmed by the pong.
    covers: u64,
    sent: Moment,
}

/// An authenticated session's state.
#[derive(Debug)]
pub struct Session {
    /// How it confirms.
    pub ack_mode: AckMode,
    /// Whether it takes payload bytes as such.
    pub binary: bool,
    /// What it was handed and has yet to confirm.
    pub delivery: Delivery,
    /// The last time from a ping to its pong, in µs.
    rtt_micros: u32,
    /// When its token runs out; at the end of time where it does not.
    token_expires_at: UnixMillis,
    /// The token itself, for the day it is revoked.
    token: TokenMark,
    nonce: u64,
    outstanding: Option<Outstanding>,
    /// The heartbeat counts from here: the last receipt, or for the first one a jittered moment before the start.
    quiet_since: Instant,
    token_deadline: Option<Moment>,
    token_warning: Warning,
    ahead: Ahead,
    rate_warned: bool,
    rare: Option<Box<Rare>>,
}

impl Session {
    /// A session that starts now. `nonce` must not be guessable by others; it makes pongs unforgeable and spreads the
    /// first heartbeats.
    pub fn new(
        options: &Options,
        default_mode: AckMode,
        heartbeat: &HeartbeatConfig,
        nonce: u64,
        now: Instant,
    ) -> Self {
        let jitter = heartbeat.interval.0 / 2 * (nonce as u32 % 1024) / 1024;
        Self {
            ack_mode: options.ack_mode.unwrap_or(default_mode),
            binary: options.binary,
            delivery: Delivery::default(),
            rtt_micros: NO_RTT,
            token_expires_at: NEVER,
            token: TokenMark::NONE,
            nonce,
            outstanding: None,
            quiet_since: now.checked_sub(jitter).unwrap_or(now),
            token_deadline: None,
            token_warning: Warning::default(),
            ahead: Ahead::default(),
            rate_warned: false,
            rare: None,
        }
    }

    /// Sets when the token runs out. `unix` is the wall clock's now.
    pub fn set_token_expiry(&mut self, expires_at: Option<UnixMillis>, now: Instant, unix: UnixMillis) {
        self.token_expires_at = expires_at.unwrap_or(NEVER);
        // Far ends are looked at again in a year.
        const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
        let deadline = expires_at.map(|end| now + Duration::from_millis(end.0.saturating_sub(unix.0)).min(FAR));
        self.token_deadline = deadline.map(Moment::of);
        self.token_warning = deadline.map(|end| Warning::of(end.saturating_duration_since(now))).unwrap_or_default();
    }

    /// Notes which token it lives by.
    pub fn set_token(&mut self, token: TokenMark) {
        self.token = token;
    }

    /// The token that it lives by.
    pub fn token(&self) -> TokenMark {
        self.token
    }

    /// When its token runs out.
    pub fn token_expires_at(&self) -> Option<UnixMillis> {
        Some(self.token_expires_at).filter(|end| *end != NEVER)
    }

    /// When something was last received from it; before its beginning: nothing was yet.
    pub fn last_received(&self) -> Instant {
        self.quiet_since
    }

    /// So many bytes arrived: the peer is alive.
    pub fn received(&mut self, bytes: usize, settings: &Settings, now: Instant) {
        self.ahead.received(bytes, now.saturating_duration_since(self.quiet_since), &settings.rates);
        self.quiet_since = now;
    }

    /// What came was compressed, and came to so many bytes: they are work as much as those that are sent plain.
    pub fn inflated(&mut self, bytes: usize, settings: &Settings) {
        self.ahead.inflated(bytes, &settings.rates);
    }

    /// What is to be done about how much it sends, after each message of it.
    pub fn over_rate(&mut self, settings: &Settings) -> Option<Over> {
        self.ahead.over(&mut self.rate_warned, &settings.rates)
    }

    /// A ping arrived. It counts as a message: it is answered.
    pub fn on_ping(&mut self, settings: &Settings) {
        self.ahead.message(&settings.rates);
    }

    /// The last time from a ping to its pong.
    pub fn rtt(&self) -> Option<Duration> {
        Some(self.rtt_micros).filter(|micros| *micros != NO_RTT).map(|micros| Duration::from_micros(micros.into()))
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Notes a request that awaits a reply until `deadline`, which is none before that of an earlier request. False: as
    /// many are open as may.
    pub fn open_request(&mut self, id: &str, deadline: Instant) -> bool {
        self.rare().requests.open(id, deadline)
    }

    /// Has the last request with this id hold something until it ends, or lets go of it where that has been.
    pub fn hold_with_request(&mut self, id: &str, held: Held) {
        self.rare().requests.hold(id, held);
    }

    /// Takes back the last request with this id, which nobody was given.
    pub fn withdraw_request(&mut self, id: &str) {
        self.rare().requests.withdraw(id);
    }

    /// The first open request with this id has its reply: its deadline. `None`: there is none.
    pub fn answer_request(&mut self, id: &str) -> Option<Instant> {
        self.rare.as_mut()?.requests.answer(id)
    }

    /// Requests that await a reply.
    pub fn open_requests(&self) -> usize {
        self.rare.as_ref().map_or(0, |rare| rare.requests.len())
    }

    /// The ping that belongs behind what was just handed over: one that will confirm it, unless one is under way.
    pub fn confirmation_ping(&mut self, now: Instant) -> Option<PingPayload> {
        let wanted = self.ack_mode == AckMode::Transport && !self.delivery.is_empty() && self.outstanding.is_none();
        wanted.then(|| self.ping(now))
    }

    fn ping(&mut self, now: Instant) -> PingPayload {
        let covers = self.delivery.next_sequence();
        self.outstanding = Some(Outstanding { covers, sent: Moment::of(now) });
        self.ping_payload(covers)
    }

    fn ping_payload(&self, covers: u64) -> PingPayload {
        let mut payload = [0; 16];
        payload[..8].copy_from_slice(&self.nonce.to_be_bytes());
        payload[8..].copy_from_slice(&covers.to_be_bytes());
        payload
    }

    /// A pong. Only the outstanding ping's payload counts; anything else is ignored (RFC 6455 section 5.5.3 allows
    /// unsolicited pongs). Returns what it confirms; ask for the next [`Session::confirmation_ping`] afterwards.
    /// One that was not asked for counts as a message.
    pub fn on_pong(&mut self, payload: &[u8], settings: &Settings, now: Instant) -> Vec<Confirmed> {
        let asked_for = |ping: &&Outstanding| payload == self.ping_payload(ping.covers);
        let Some(outstanding) = self.outstanding.as_ref().filter(asked_for) else {
            self.ahead.message(&settings.rates);
            return Vec::new();
        };
        let covers = outstanding.covers;
        let rtt = now.duration_since(outstanding.sent.instant());
        self.rtt_micros = u32::try_from(rtt.as_micros()).unwrap_or(NO_RTT).min(NO_RTT - 1);
        self.outstanding = None;
        match self.ack_mode {
            AckMode::Transport => self.delivery.confirm_below(covers),
            AckMode::Client => Vec::new(),
        }
    }

    /// A text message from the client.
    pub fn on_text<'a>(&mut self, text: &'a str, settings: &Settings, now: Instant, unix: UnixMillis) -> Reaction<'a> {
        self.on_message(client::decode(text), settings, now, unix)
    }

    /// A binary message from the client.
    pub fn on_binary<'a>(
        &mut self,
        bytes: &'a [u8],
        settings: &Settings,
        now: Instant,
        unix: UnixMillis,
    ) -> Reaction<'a> {
        match client::decode_binary(bytes) {
            Some(message) => self.on_message(message, settings, now, unix),
            None => Reaction::Close(Verdict {
                code: CloseCode::UNSUPPORTED,
                reason: "a binary message is a 4-byte length, so many bytes of a JSON envelope, and the payload",
                counts: Some(Failure::UnsupportedData.into()),
            }),
        }
    }

    fn on_message<'a>(
        &mut self,
        message: Result<ClientMessage<'a>, BadMessage<'a>>,
        settings: &Settings,
        now: Instant,
        unix: UnixMillis,
    ) -> Reaction<'a> {
        let reaction = self.react(message, settings, now, unix);
        // What is confirmed was sent to it before: who gets much may say as much.
        if !matches!(&reaction, Reaction::Confirmed(confirmed) if !confirmed.is_empty()) {
            self.ahead.message(&settings.rates);
        }
        reaction
    }

    fn react<'a>(
        &mut self,
        message: Result<ClientMessage<'a>, BadMessage<'a>>,
        settings: &Settings,
        now: Instant,
        unix: UnixMillis,
    ) -> Reaction<'a> {
        let message = match message {
            Ok(message) => message,
            Err(bad) => {
                if !self.rare().bad_messages.admit(settings.bad_messages.limit(), now) {
                    return Reaction::Close(Verdict {
                        code: CloseCode::BAD_MESSAGES,
                        reason: "too many bad messages",
                        counts: Some(Limit::BadMessages.into()),
                    });
                }
                let reply = server::error(ErrorCode::BadMessage, &bad.message, bad.id.as_deref());
                return Reaction::Reply(reply, Some(Failure::BadMessage.into()));
            }
        };
        let id = message.id.as_deref();
        match message.request {
            Request::Ping => Reaction::Reply(server::pong(id, unix), None),
            Request::Echo(Data::Json(data)) => Reaction::Reply(server::echo_response(data, id, unix), None),
            Request::Echo(Data::Bytes(bytes)) => {
                Reaction::Reply(server::echo_response_of_bytes(bytes, self.binary, id, unix), None)
            }
            Request::Ack(offset) => match self.ack_mode {
                AckMode::Client => Reaction::Confirmed(self.delivery.confirm_through(offset)),
                AckMode::Transport => Reaction::None,
            },
            Request::Auth(auth) => {
                let most = settings.reauths_per_minute;
                if self.rare().reauths.admit(most.limit(), now) {
                    Reaction::Reauthenticate(auth, id.map(str::to_owned))
                } else {
                    let text = format!(
                        "at most {} new `auth` messages a minute (limits.reauths_per_minute); the token in force stays",
                        most.0
                    );
                    limited(Limit::ReauthsPerMinute, &text, id)
                }
            }
            Request::Subscribe(_) | Request::Unsubscribe(_)
                if !self.rare().memberships.admit_of(
                    at_once(settings.membership_changes),
                    limits::MEMBERSHIP_CHANGES_PER_SECOND,
                    now,
                ) =>
            {
                limited(
                    Limit::MembershipChanges,
                    "topics joined and left too often in too short a time; try again later",
                    id,
                )
            }
            Request::Subscribe(of) => Reaction::Subscribe(of, id.map(str::to_owned)),
            Request::Unsubscribe(of) => Reaction::Unsubscribe(of, id.map(str::to_owned)),
            Request::UserList(topic)
                if self.rare().lists.admit_of(at_once(settings.user_lists), LISTS_PER_SECOND, now) =>
            {
                Reaction::ListUsers(topic, id.map(str::to_owned))
            }
            Request::UserList(_) => {
                limited(Limit::UserLists, "too many lists in too short a time; try again later", id)
            }
            Request::Say(said) => {
                let payload = said.data.to_payload();
                let (verb, to, kind, reply_to) = (said.verb, said.to, said.kind, id.map(str::to_owned));
                Reaction::Say(Box::new(Saying { verb, to, kind, payload, reply_to }))
            }
            Request::Other { type_name, data } => Reaction::Forward(Unanswered { type_name, data, id: message.id }),
        }
    }

    /// It was told of so many users, which costs it more than having asked.
    pub fn listed(&mut self, users: usize) {
        let points = u32::try_from(users / USERS_PER_POINT).unwrap_or(u32::MAX);
        self.rare().lists.charge(points);
    }

    /// What has to happen by now, given how long bytes have waited for the socket. Call it again until it is `Idle`.
    pub fn on_tick(&mut self, settings: &Settings, now: Instant) -> Tick {
        let close = |code, reason, counts: Counts| Tick::Close(Verdict { code, reason, counts: Some(counts) });
        if let (Some(end), Some(expires_at)) = (self.token_deadline, self.token_expires_at()) {
            let end = end.instant();
            if end <= now {
                return close(CloseCode::UNAUTHORIZED, "token_expired", AuthCode::TokenExpired.into());
            }
            if self.token_warning.ahead().is_some_and(|ahead| end <= now + ahead) {
                self.token_warning = Warning::default();
                return Tick::TokenExpiring(expires_at);
            }
        }
        if let Some(id) = self.rare.as_mut().and_then(|rare| rare.requests.take_due(now)) {
            return Tick::TimedOut(id);
        }
        if self.confirm_deadline(settings).is_some_and(|deadline| deadline <= now) {
            return match self.ack_mode {
                AckMode::Transport => {
                    close(CloseCode::TIMEOUT, "nothing confirmed in time", Failure::ConfirmTimeout.into())
                }
                AckMode::Client => close(CloseCode::ACK_TIMEOUT, "nothing acked in time", Failure::AckTimeout.into()),
            };
        }
        match &self.outstanding {
            Some(_) if self.heartbeat_deadline(settings) <= now => {
                close(CloseCode::TIMEOUT, "nothing received in time", Failure::HeartbeatTimeout.into())
            }
            None if self.quiet_since + settings.heartbeat.interval.0 <= now => Tick::Ping(self.ping(now)),
            _ => Tick::Idle,
        }
    }

    /// When [`Session::on_tick`] has something to do at the latest, as things stand.
    pub fn next_deadline(&self, settings: &Settings) -> Instant {
        let mut next = match self.outstanding {
            Some(_) => self.heartbeat_deadline(settings),
            None => self.quiet_since + settings.heartbeat.interval.0,
        };
        if let Some(deadline) = self.confirm_deadline(settings) {
            next = next.min(deadline);
        }
        if let Some(deadline) = self.rare.as_ref().and_then(|rare| rare.requests.first_deadline()) {
            next = next.min(deadline);
        }
        if let Some(end) = self.token_deadline.map(Moment::instant) {
            let warning = self.token_warning.ahead().and_then(|ahead| end.checked_sub(ahead));
            next = next.min(warning.unwrap_or(end));
        }
        next
    }

    /// With a ping outstanding: silent for the interval, and for the timeout more since it could have answered.
    fn heartbeat_deadline(&self, settings: &Settings) -> Instant {
        let silent = self.quiet_since + settings.heartbeat.interval.0;
        let asked = self.outstanding.as_ref().map_or(silent, |ping| ping.sent.instant().max(silent));
        asked + settings.heartbeat.timeout.0
    }

    fn confirm_deadline(&self, settings: &Settings) -> Option<Instant> {
        let timeout = match self.ack_mode {
            AckMode::Transport => settings.delivery.confirm_timeout,
            AckMode::Client => settings.delivery.ack_timeout,
        };
        self.delivery.oldest_handed_at().map(|at| at + timeout.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        limits::Limits,
        types::{Count, NotificationId, Offset, Span},
    };

    fn settings() -> Settings {
        let heartbeat = HeartbeatConfig { interval: Span::secs(30), timeout: Span::secs(10) };
        Settings::of(&DeliveryConfig::default(), &heartbeat, &Limits { bad_messages: Count(3), ..Limits::default() })
    }

    fn session(mode: AckMode, now: Instant) -> Session {
        let options = Options { ack_mode: Some(mode), ..Options::default() };
        // 1024 is no jitter at all.
        let mut session = Session::new(&options, AckMode::Transport, &settings().heartbeat, 1024, now);
        for log in Log::EVERY {
            session.delivery.start(log, Offset::ZERO);
            session.delivery.go_live(log, Offset::ZERO);
        }
        session
    }

    fn hand_over(session: &mut Session, offset: u64, now: Instant) {
        let id = NotificationId::generate();
        let taken = session.delivery.offer(Log::User, Offset::new(offset), &id, 10, 256, true, now);
        assert!(matches!(taken, Offer::Taken(_)));
    }

    #[test]
    fn a_pong_confirms_what_was_handed_over_before_its_ping_and_nothing_later() {
        let now = Instant::now();
        let mut session = session(AckMode::Transport, now);
        assert_eq!(session.confirmation_ping(now), None, "nothing to confirm");
        hand_over(&mut session, 1, now);
        let first = session.confirmation_ping(now).expect("a ping behind the data");
        hand_over(&mut session, 2, now);
        assert_eq!(session.confirmation_ping(now), None, "one is outstanding");
        let confirmed = session.on_pong(&first, &settings(), now);
        assert_eq!(confirmed.iter().map(|c| c.offset.get()).collect::<Vec<_>>(), [1]);
        let second = session.confirmation_ping(now).expect("the next one goes out");
        assert_eq!(session.on_pong(&second, &settings(), now).len(), 1);
        assert_eq!(session.confirmation_ping(now), None);
    }

    #[test]
    fn forged_stale_and_repeated_pongs_are_ignored() {
        let now = Instant::now();
        let mut session = session(AckMode::Transport, now);
        assert!(session.on_pong(b"", &settings(), now).is_empty());
        hand_over(&mut session, 1, now);
        let ping = session.confirmation_ping(now).unwrap();
        for bit in 0..128 {
            let mut forged = ping;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(session.on_pong(&forged, &settings(), now).is_empty());
        }
        assert!(session.on_pong(&ping[..15], &settings(), now).is_empty());
        assert_eq!(session.on_pong(&ping, &settings(), now).len(), 1);
        hand_over(&mut session, 2, now);
        session.confirmation_ping(now).unwrap();
        assert!(session.on_pong(&ping, &settings(), now).is_empty(), "an old pong confirms nothing new");
    }

    #[test]
    fn pongs_confirm_nothing_where_the_client_acks() {
        let now = Instant::now();
        let mut session = session(AckMode::Client, now);
        hand_over(&mut session, 1, now);
        hand_over(&mut session, 2, now);
        assert_eq!(session.confirmation_ping(now), None);
        let Tick::Ping(ping) = session.on_tick(&settings(), now + Duration::from_secs(30)) else { panic!() };
        assert!(session.on_pong(&ping, &settings(), now).is_empty());
        let ack = |session: &mut Session, n: u64| match session.on_text(
            &format!(r#"{{"type":"ack","offset":{n}}}"#),
            &settings(),
            now,
            UnixMillis(0),
        ) {
            Reaction::Confirmed(confirmed) => confirmed,
            other => panic!("{other:?}"),
        };
        assert!(ack(&mut session, 9).is_empty(), "not in flight");
        assert_eq!(ack(&mut session, 2).len(), 2, "everything up to it");
    }

    #[test]
    fn a_request_that_nobody_answers_is_told_at_its_deadline_and_once() {
        let now = Instant::now();
        let mut session = session(AckMode::Transport, now);
        let settings = settings();
        assert_eq!(session.open_requests(), 0);
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(
            session.open_request("a", at(5)) && session.open_request("b", at(6)) && session.open_request("c", at(7))
        );
        assert_eq!(session.next_deadline(&settings), at(5));
        assert_eq!(session.answer_request("b"), Some(at(6)));
        assert_eq!(session.answer_request("b"), None);
        session.withdraw_request("c");
        assert_eq!(session.on_tick(&settings, at(4)), Tick::Idle);
        assert_eq!(session.on_tick(&settings, at(5)), Tick::TimedOut("a".into()));
        assert_eq!(session.on_tick(&settings, at(5)), Tick::Idle);
        assert_eq!((session.open_requests(), session.next_deadline(&settings)), (0, at(30)));
    }

    #[test]
    fn what_the_gateway_does_not_answer_is_for_others() {
        let now = Instant::now();
        let mut session = session(AckMode::Transport, now);
        let text = r#"{"type":"order","id":"7","data":{ "n":1.0 }}"#;
        let Reaction::Forward(message) = session.on_text(text, &settings(), now, UnixMillis(0)) else { panic!() };
        assert_eq!(
            (&*message.type_name, message.data, message.id.as_deref()),
            ("order", Data::Json("{ \"n\":1.0 }"), Some("7"))
        );
    }

    #[test]
    fn a_silent_session_is_pinged_and_then_closed() {
        let now = Instant::now();
        let mut session = session(AckMode::Transport, now);
        let settings = settings();
        assert_eq!(session.on_tick(&settings, now + Duration::from_secs(29)), Tick::Idle);
        let at = now + Duration::from_secs(30);
        assert!(matches!(session.on_tick(&settings, at), Tick::Ping(_)));
        assert_eq!(session.on_tick(&settings, at), Tick::Idle, "one ping at a time");
        assert_eq!(session.next_deadline(&settings), at + Duration::from_secs(10));
        let Tick::Close(verdict) = session.on_tick(&settings, at + Duration::from_secs(10)) else { panic!() };
        assert_eq!(verdict.code, CloseCode::TIMEOUT);
    }

    #[test]
    fn anything_received_keeps_a_session_alive_while_its_ping_is_out() {
        let now = Instant::now();
        let mut session = session(AckMode::Transport, now);
        let settings = settings();
        session.on_tick(&settings, now + Duration::from_secs(30));
        session.received(1, &settings, now + Duration::from_secs(39));
        assert_eq!(session.on_tick(&settings, now + Duration::from_secs(41)), Tick::Idle);
    }

    #[test]
    fn what_stays_unconfirmed_closes_the_session_although_it_speaks() {
        let now = Instant::now();
        let settings = settings();
        for (mode, code, after) in [(AckMode::Transport, 4408, 30), (AckMode::Client, 4410, 300)] {
            let mut session = session(mode, now);
            hand_over(&mut session, 1, now);
            session.confirmation_ping(now);
            let late = now + Duration::from_secs(after);
            session.received(1, &settings, late - Duration::from_secs(1));
            assert!(!matches!(session.on_tick(&settings, late - Duration::from_secs(1)), Tick::Close(_)));
            let Tick::Close(verdict) = session.on_tick(&settings, late) else { panic!("{mode:?}") };
            assert_eq!(verdict.code.0, code);
        }
    }

    #[test]
    fn a_token_is_warned_of_a_minute_before_its_end_and_ends_the_session() {
        let now = Instant::now();
        let settings = settings();
        let mut session = session(AckMode::Transport, now);
        session.set_token_expiry(Some(UnixMillis(200_000)), now, UnixMillis(0));
        session.received(1, &settings, now + Duration::from_secs(139));
        assert_eq!(session.on_tick(&settings, now + Duration::from_secs(139)), Tick::Idle);
        let warned = session.on_tick(&settings, now + Duration::from_secs(140));
        assert_eq!(warned, Tick::TokenExpiring(UnixMillis(200_000)));
        assert_eq!(session.on_tick(&settings, now + Duration::from_secs(141)), Tick::Idle, "once");
        let Tick::Close(verdict) = session.on_tick(&settings, now + Duration::from_secs(200)) else { panic!() };
        assert_eq!((verdict.code, verdict.reason), (CloseCode::UNAUTHORIZED, "token_expired"));
    }

    #[test]
    fn a_short_token_is_warned_of_halfway_to_its_end_also_where_it_is_a_new_one() {
        let now = Instant::now();
        let settings = settings();
        let millis = Duration::from_millis;
        let mut session = session(AckMode::Transport, now);
        session.set_token_expiry(Some(UnixMillis(1_000_000)), now, UnixMillis(0));
        let mut begin = now;
        for (left, warned_after) in [(90_000, 30_000), (30_000, 15_000), (2_000, 1_000)] {
            session.received(1, &settings, begin);
            session.set_token_expiry(Some(UnixMillis(left)), begin, UnixMillis(0));
            assert!(session.next_deadline(&settings) <= begin + millis(warned_after), "{left}");
            let mut at = |after| {
                session.received(1, &settings, begin + millis(after));
                session.on_tick(&settings, begin + millis(after))
            };
            assert_eq!(at(warned_after - 1), Tick::Idle, "{left}");
            assert_eq!(at(warned_after), Tick::TokenExpiring(UnixMillis(left)), "{left}");
            assert_eq!(at(left - 1), Tick::Idle, "once");
            assert!(matches!(at(left), Tick::Close(_)), "{left}");
            begin += millis(left);
        }
        // So little that nobody can answer: a client would do nothing else.
        session.received(1, &settings, begin);
        session.set_token_expiry(Some(UnixMillis(1_999)), begin, UnixMillis(0));
        assert_eq!(session.on_tick(&settings, begin + millis(1_998)), Tick::Idle);
        assert!(matches!(session.on_tick(&settings, begin + millis(1_999)), Tick::Close(_)));
    }

    #[test]
    fn bad_messages_are_answered_until_there_are_too_many_in_a_minute() {
        let now = Instant::now();
        let mut session = session(AckMode::Transport, now);
        let mut say = |now| session.on_text("nonsense", &settings(), now, UnixMillis(0));
        for _ in 0..3 {
            assert!(matches!(say(now), Reaction::Reply(_, Some(Counts::Failure(Failure::BadMessage)))));
        }
        assert!(matches!(say(now), Reaction::Close(v) if v.code == CloseCode::BAD_MESSAGES));
        assert!(matches!(say(now + Duration::from_secs(60)), Reaction::Reply(..)), "a new minute");
    }
}
