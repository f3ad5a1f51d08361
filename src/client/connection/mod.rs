//! One connection: authenticated, read, written to, watched, and ended.
//!
//! One task does it all, and never waits for one thing alone: what is written waits for the socket while it is read, so
//! that two sides which both write cannot come to wait for each other. Reading pauses while the inbox is full; unsolicited
//! pongs (RFC 6455 section 5.5.3) then show the gateway that somebody is there.

mod ending;
mod incoming;

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Sink as _, SinkExt as _, Stream as _};
use tokio::{
    io::AsyncWrite as _,
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::{self, Message as Frame};
use tokio_util::task::AbortOnDropHandle;

use super::{
    dial::Socket,
    error::{AuthFailure, ConnectError, Error, RequestError},
    events::State,
    message::{Message, Session},
    renewal::{Asking, Renewal},
    retry::random,
    shared::{Shared, Weaks},
    tokens::Tokens,
};
use crate::protocol::{ack_mode::AckMode, close::CloseCode as Code};

/// What an interval of the gateway's is held within.
const HEARTBEAT_BOUNDS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(300));
/// How long the close frame behind `auth_failure`, and the answer to this side's close frame, are waited for.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// Frames that are written before the socket is read again.
const WRITES_MAX: usize = 256;

/// Why a connection ended.
#[derive(Debug)]
pub enum Why {
    /// With this code and reason; 1006 where it was lost.
    Closed(u16, String),
    /// The gateway let nobody in.
    Refused(AuthFailure),
    /// Not authenticated in time.
    Timeout,
    /// [`super::Client::close`] was called, and all is done.
    Asked,
    /// The last handle is gone.
    Cancelled,
}

/// How a connection ended.
#[derive(Debug)]
pub struct Ended {
    pub why: Why,
    /// Whether there was a session.
    pub session: Option<Arc<Session>>,
    /// How long it lived.
    pub lived: Duration,
    /// Whether it brought a message.
    pub useful: bool,
    /// When `draining` asked to come back.
    pub after: Option<Duration>,
}

/// The answer that [`super::Builder::connect`] waits for.
pub type First = Option<oneshot::Sender<Result<(), ConnectError>>>;

/// An open connection.
pub struct Connection<'a> {
    shared: &'a Shared,
    weaks: &'a Weaks,
    tokens: &'a mut Tokens,
    first: &'a mut First,
    /// The number of the session that it becomes.
    number: u64,
    socket: Socket,
    /// Set by every read that brought something.
    received: Arc<AtomicBool>,
    /// What this side says of its own, before all else.
    own: VecDeque<Frame>,
    /// An `auth` message on its way, and how much of it has left.
    secret: Option<(Vec<u8>, usize)>,
    /// Something was written and not flushed.
    dirty: bool,
    /// Nothing can be written any more; what was received is still read.
    broken: bool,
    session: Option<Arc<Session>>,
    since: Instant,
    /// Until when it must be authenticated.
    until: Instant,
    useful: bool,
    refused: Option<AuthFailure>,
    after: Option<Duration>,
    heard: Instant,
    pinged: Option<Instant>,
    /// When the gateway was last shown that somebody is there, while reading pauses.
    shown: Instant,
    interval: Duration,
    /// How long the gateway lets this side be silent.
    shows: Duration,
    renewal: Renewal,
}

/// What one turn brought: a frame, or the end.
type Turn = Option<Result<Frame, tungstenite::Error>>;

impl<'a> Connection<'a> {
    pub fn new(
        (shared, weaks): (&'a Shared, &'a Weaks),
        tokens: &'a mut Tokens,
        first: &'a mut First,
        number: u64,
        (socket, received): (Socket, Arc<AtomicBool>),
        until: Instant,
    ) -> Self {
        let now = Instant::now();
        Self {
            shared,
            weaks,
            tokens,
            first,
            number,
            socket,
            received,
            own: VecDeque::new(),
            secret: None,
            dirty: false,
            broken: false,
            session: None,
            since: now,
            until,
            useful: false,
            refused: None,
            after: None,
            heard: now,
            pinged: None,
            shown: now,
            interval: HEARTBEAT_BOUNDS.1,
            shows: HEARTBEAT_BOUNDS.1,
            renewal: Renewal::default(),
        }
    }

    /// Runs it to its end.
    pub async fn run(mut self, handler: &mut AbortOnDropHandle<()>) -> Ended {
        let why = self.live(handler).await;
        let (session, lived) = (self.session, self.since.elapsed());
        Ended { why, session, lived, useful: self.useful, after: self.after }
    }

    async fn live(&mut self, handler: &mut AbortOnDropHandle<()>) -> Why {
        let mut asking: Option<Asking> = None;
        let mut closing: Option<Instant> = None;
        let (mut paused, mut handled) = (false, false);
        let shared = self.shared;
        loop {
            let now = Instant::now();
            // One `auth` message at a time: a further one must not take the place of what has left in part.
            if self.session.is_some() && asking.is_none() && self.secret.is_none() {
                asking = self.renewal.ask(self.tokens, now);
            }
            let full = self.session.as_ref().is_some_and(|session| {
                let core = shared.core.lock();
                // In this mode reading confirms, and nothing more would be handled.
                core.is_full() || (core.inbox.finished && session.ack_mode == AckMode::Transport)
            });
            if paused && !full {
                // The silence was this side's own.
                (self.heard, self.pinged) = (now, None);
            }
            paused = full;
            if let Some(deadline) = closing {
                let done = handled && !self.dirty && !shared.core.lock().has_frame();
                if done || self.broken || deadline <= now {
                    self.goodbye().await;
                    return Why::Asked;
                }
            }
            let deadline = self.deadline(paused, closing);
            // The order is the policy: what ends it, then what is due, then the gateway; senders come last, since a turn
            // takes along what they have.
            tokio::select! {
                biased;
                () = shared.cancel.cancelled() => return Why::Cancelled,
                () = shared.closing.cancelled(), if closing.is_none() => {
                    if self.session.is_none() {
                        return Why::Asked;
                    }
                    closing = Some(shared.end_by());
                    shared.set_state(State::Closing);
                }
                _ = &mut *handler, if closing.is_some() && !handled => handled = true,
                provided = poll_fn(|cx| match &mut asking {
                    Some(asking) => asking.as_mut().poll(cx),
                    None => Poll::Pending,
                }) => {
                    asking = None;
                    self.renew(provided);
                }
                () = sleep_until(deadline) => {
                    if let Some(why) = self.on_time(Instant::now(), paused) {
                        return why;
                    }
                }
                turn = poll_fn(|cx| self.turn(cx, paused)) => {
                    if paused {
                        return self.last_words().await;
                    }
                    if let Some(why) = self.take(turn).await {
                        return why;
                    }
                }
                () = shared.wake.notified() => {}
            }
        }
    }

    /// Writes what there is, and reads unless that pauses. Nothing is lost when it is dropped between two polls: a frame
    /// is handed to the socket whole, or not at all.
    fn turn(&mut self, cx: &mut Context<'_>, paused: bool) -> Poll<Turn> {
        if !self.broken
            && let Err(error) = self.write(cx)
        {
            // What the gateway said last may still be there to read: a close frame, above all.
            tracing::debug!(%error, "client: nothing can be written any more");
            self.broken = true;
        }
        if paused {
            // What cannot be shown to be alive either is at its end.
            return if self.broken { Poll::Ready(None) } else { Poll::Pending };
        }
        if self.secret.as_ref().is_some_and(|(_, written)| *written > 0) && !self.broken {
            // Reading may write pongs, which must not come into the middle of a frame.
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_next(cx)
    }

    /// Writes an `auth` message around tungstenite, which would write every frame, this one's token and all, to whatever log
    /// has its traces on. It goes between two frames: what was written before has been flushed, and nothing else is written
    /// until all of it has left.
    fn write_secret(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), tungstenite::Error>> {
        let Some((frame, written)) = &mut self.secret else { return Poll::Ready(Ok(())) };
        if *written == 0 {
            ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        }
        let mut stream = Pin::new(self.socket.get_mut());
        while *written < frame.len() {
            match ready!(stream.as_mut().poll_write(cx, &frame[*written..]))? {
                0 => return Poll::Ready(Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into())),
                count => *written += count,
            }
        }
        self.secret = None;
        self.dirty = true;
        Poll::Ready(Ok(()))
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), tungstenite::Error> {
        if let Poll::Ready(left) = self.write_secret(cx) {
            left?;
        } else {
            return Ok(());
        }
        let mut written = 0;
        let mut socket = Pin::new(&mut self.socket);
        while let Poll::Ready(ready) = socket.as_mut().poll_ready(cx) {
            ready?;
            if written == WRITES_MAX {
                // More may be there; the gateway has its turn first.
                cx.waker().wake_by_ref();
                break;
            }
            let next = self.own.pop_front().map(|frame| (frame, None));
            let next = next.or_else(|| self.session.as_ref().and_then(|_| self.shared.next_frame()));
            let Some((frame, request)) = next else { break };
            let most = self.session.as_ref().map_or(u64::MAX, |session| session.max_message_bytes);
            if frame.len() as u64 > most && !frame.is_ping() && !frame.is_pong() {
                let error = super::SendError::TooLarge { bytes: frame.len(), max: most };
                // Whoever waits for an answer has it; the others are told in the background.
                let refused = |id: String| {
                    let answer = Err(RequestError::Send(error.clone()));
                    self.shared.core.lock().outbox.answer(&id, answer).is_ok()
                };
                if !request.is_some_and(refused) {
                    self.shared.error(Error::NotSent(error));
                }
                continue;
            }
            socket.as_mut().start_send(frame)?;
            (self.dirty, written) = (true, written + 1);
        }
        if self.dirty
            && let Poll::Ready(flushed) = socket.as_mut().poll_flush(cx)
        {
            flushed?;
            self.dirty = false;
        }
        Ok(())
    }

    /// When something has to be done at the latest.
    fn deadline(&self, paused: bool, closing: Option<Instant>) -> Instant {
        if self.session.is_none() {
            return self.until;
        }
        let heartbeat = match self.pinged {
            _ if paused => self.shown + self.shows / 3,
            Some(at) => at + self.shared.options.heartbeat_timeout,
            None => self.heard + self.interval,
        };
        // What is due while a token leaves is done behind it.
        let renewal = self.renewal.deadline().filter(|_| self.secret.is_none() || self.renewal.waits());
        let further = [renewal, closing, self.shared.core.lock().wishes.due(Instant::now())];
        further.into_iter().flatten().fold(heartbeat, Instant::min)
    }

    /// Does what is due; why it ends, if it does.
    fn on_time(&mut self, now: Instant, paused: bool) -> Option<Why> {
        if self.session.is_none() {
            return (self.until <= now).then(|| self.refused.take().map_or(Why::Timeout, Why::Refused));
        }
        if self.renewal.overdue(now) {
            if self.secret.is_some() {
                return Some(Why::Closed(Code::ABNORMAL.0, "a token could not be sent in time".to_owned()));
            }
            self.shared.error(Error::Renewal("the gateway does not answer".to_owned()));
        }
        if paused {
            if self.shown + self.shows / 3 <= now {
                // Where the last one has not left yet, it will do.
                if self.own.is_empty() {
                    self.own.push_back(Frame::Pong(Bytes::new()));
                }
                self.shown = now;
            }
            return None;
        }
        if self.received.swap(false, Ordering::Relaxed) && self.heard + self.interval <= now {
            // A part of a large message, on a slow line.
            (self.heard, self.pinged) = (now, None);
        }
        let patience = self.shared.options.heartbeat_timeout;
        match self.pinged {
            Some(at) if at + patience <= now => {
                let silence = now.duration_since(self.heard);
                Some(Why::Closed(Code::ABNORMAL.0, format!("nothing was heard for {silence:.1?}")))
            }
            None if self.heard + self.interval <= now => {
                self.own.push_back(Frame::Ping(Bytes::new()));
                self.pinged = Some(now);
                None
            }
            _ => None,
        }
    }

    /// Takes what a turn brought; why it ends, if it does.
    async fn take(&mut self, turn: Turn) -> Option<Why> {
        (self.heard, self.pinged) = (Instant::now(), None);
        self.received.store(false, Ordering::Relaxed);
        let read = match turn {
            Some(Ok(Frame::Text(text))) => Message::from_text(text.into()),
            Some(Ok(Frame::Binary(bytes))) => Message::from_binary(&bytes),
            Some(Ok(Frame::Ping(_))) => {
                // The pong is made; it is to leave now.
                self.dirty = true;
                return None;
            }
            Some(Ok(Frame::Close(frame))) => {
                // Sends the answer.
                let _ = timeout(END_TIMEOUT, self.socket.flush()).await;
                return Some(self.refused.take().map_or_else(|| ending::said(frame), Why::Refused));
            }
            Some(Ok(Frame::Pong(_) | Frame::Frame(_))) => return None,
            Some(Err(error)) => return Some(self.lost(error.to_string())),
            None => return Some(self.lost("the connection ended".to_owned())),
        };
        match read {
            Ok(message) => self.message(message),
            Err(problem) => self.shared.error(Error::BadMessage(problem)),
        }
        None
    }
}

/// A text message as a client's frame (RFC 6455 section 5.2), masked.
fn masked_text(text: &str) -> Vec<u8> {
    let mask = random().to_be_bytes();
    let mut frame = vec![0x81];
    match text.len() {
        short @ 0..126 => frame.push(0x80 | short as u8),
        medium @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    frame.extend(text.bytes().zip(mask.into_iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}
