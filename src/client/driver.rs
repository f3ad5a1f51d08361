//! The client's task: one connection after the other, the waits between them, and the end.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::{
    connection::{Connection, Ended, First, Why},
    dial,
    error::{AuthFailure, ConnectError, Disconnect, Error, GiveUp},
    events::{Event, State},
    handler::{self, Handler},
    retry::{self, Backoff, random},
    shared::{Shared, Weaks},
    tokens::{NoToken, Source, Tokens},
};
use crate::protocol::close::{CloseCode, Next};

/// A session that lived so long, or brought a message, starts the count of attempts and the back-off over. Shorter ones do
/// not, so that a gateway which lets everybody in and throws him out is not hammered.
const PROVED_AFTER: Duration = Duration::from_secs(5);

/// See the module.
pub struct Driver {
    shared: Arc<Shared>,
    weaks: Weaks,
    tokens: Tokens,
    tls: Option<TlsConnector>,
    first: First,
    sessions: u64,
    /// Why the token in use before was refused.
    refusal: Option<ConnectError>,
    _end: Certain,
}

/// Ends the client for whoever waits for that, even where its task is dropped with the runtime.
struct Certain(Arc<Shared>);

impl Drop for Certain {
    fn drop(&mut self) {
        if self.0.ended.borrow().is_none() {
            self.0.end(State::Closed);
        }
    }
}

/// Why there will be no further connection.
enum End {
    Cancelled,
    Asked,
    GaveUp(GiveUp),
}

/// What one attempt came to.
struct Outcome {
    next: Next,
    /// The wait that was asked for.
    asked: Option<Duration>,
    /// Whether a back-off is added to that.
    jitter: bool,
    /// Whether it was a session that starts the count over.
    proved: bool,
    error: ConnectError,
    /// How the session ended, where there was one.
    disconnect: Option<Disconnect>,
}

impl Driver {
    pub fn new(shared: Arc<Shared>, weaks: Weaks, source: Source, tls: Option<TlsConnector>, first: First) -> Self {
        let end = Certain(Arc::clone(&shared));
        Self { shared, weaks, tokens: Tokens::new(source), tls, first, sessions: 0, refusal: None, _end: end }
    }

    /// Runs the client to its end.
    pub async fn run(mut self, handler: Option<Handler>) {
        let drains = handler.is_some();
        let mut handling = AbortOnDropHandle::new(tokio::spawn(handler::run(Arc::clone(&self.shared), handler)));
        let end = self.connections(&mut handling).await;
        let shared = &self.shared;
        let end_by = shared.end_by();
        shared.close_inbox();
        if !matches!(end, End::Cancelled) {
            // From here on nothing is taken to be sent.
            shared.closing.cancel();
        }
        if matches!(end, End::Asked) {
            shared.set_state(State::Closing);
        }
        // What came and will not come again is handled before the end, and a handler under way comes to its own.
        if drains && !matches!(end, End::Cancelled) && !handling.is_finished() {
            shared.set_state(State::Closing);
            tokio::select! {
                () = shared.cancel.cancelled() => {}
                _ = timeout_at(end_by, &mut handling) => {}
            }
        }
        drop(handling);
        let state = match end {
            End::Cancelled | End::Asked => State::Closed,
            End::GaveUp(why) => {
                shared.gave_up(&why);
                State::GaveUp
            }
        };
        shared.end(state);
    }

    async fn connections(&mut self, handling: &mut AbortOnDropHandle<()>) -> End {
        let shared = Arc::clone(&self.shared);
        let options = &shared.options;
        let mut backoff = Backoff::new(options.reconnect_delay, options.max_delay);
        let mut failures = 0u32;
        loop {
            shared.set_state(State::Connecting);
            let outcome = match self.attempt(handling).await {
                Ok(outcome) => outcome,
                Err(end) => return end,
            };
            if let Some(first) = self.first.take() {
                // Whoever started it with `connect` has no client, and hears it from there.
                let _ = first.send(Err(outcome.error));
                return End::Cancelled;
            }
            if shared.closing.is_cancelled() {
                // The gateway was quicker, whatever it wanted.
                if let Some(disconnect) = &outcome.disconnect {
                    shared.disconnected(disconnect);
                }
                return End::Asked;
            }
            if outcome.proved {
                failures = 0;
                backoff.reset();
            }
            match &outcome.disconnect {
                Some(disconnect) => shared.disconnected(disconnect),
                None => shared.error(Error::Connect(outcome.error.clone())),
            }
            let refuse = |outcome: Outcome| match outcome.disconnect {
                Some(disconnect) if outcome.next == Next::Stay => GiveUp::Closed(disconnect),
                _ => GiveUp::Refused(outcome.error),
            };
            match outcome.next {
                Next::Stay => return End::GaveUp(refuse(outcome)),
                Next::OtherToken if !self.tokens.refuse() => return End::GaveUp(refuse(outcome)),
                Next::OtherToken => self.refusal = Some(outcome.error.clone()),
                Next::Again => {}
            }
            let last = match &outcome.disconnect {
                Some(disconnect) => disconnect.to_string(),
                None => outcome.error.to_string(),
            };
            if !options.auto_reconnect {
                return End::GaveUp(GiveUp::ReconnectOff(last));
            }
            if options.max_reconnects > 0 && failures >= options.max_reconnects {
                return End::GaveUp(GiveUp::Attempts { attempts: failures, last });
            }
            failures = failures.saturating_add(1);
            let asked = outcome.asked.unwrap_or_default();
            // A gateway that asks again and again for no more than a moment is not hammered either.
            let jitter = outcome.jitter || (failures > 1 && !outcome.proved);
            let wait = if jitter { asked + backoff.next(random()) } else { asked };
            shared.set_state(State::Waiting);
            shared.events.show(&Event::Waiting { attempt: failures, delay: wait });
            tokio::select! {
                biased;
                () = shared.cancel.cancelled() => return End::Cancelled,
                () = shared.closing.cancelled() => return End::Asked,
                () = sleep(wait) => {}
            }
        }
    }

    /// One attempt to connect, and the session that it becomes.
    async fn attempt(&mut self, handling: &mut AbortOnDropHandle<()>) -> Result<Outcome, End> {
        let shared = Arc::clone(&self.shared);
        let options = &shared.options;
        let tls = self.tls.clone();
        let connecting = async {
            let token = match self.tokens.for_connection().await {
                Ok(token) => token,
                Err(NoToken::Failed(problem)) => return Err(failed(Next::Again, None, ConnectError::Token(problem))),
                Err(NoToken::Refused) => {
                    let none = || ConnectError::Token("there is none but the one that was refused".to_owned());
                    return Err(failed(Next::Stay, None, self.refusal.clone().unwrap_or_else(none)));
                }
            };
            let until = Instant::now() + options.handshake_timeout;
            match timeout_at(until, dial::dial(options, tls.as_ref(), token.as_ref(), until)).await {
                Ok(Ok(socket)) => Ok((socket, until)),
                Ok(Err(error)) => {
                    let (next, asked) = match &error {
                        ConnectError::Http { status, retry_after, .. } => (retry::after_status(*status), *retry_after),
                        _ => (Next::Again, None),
                    };
                    Err(failed(next, asked, error))
                }
                Err(_) => Err(failed(Next::Again, None, out_of_time(&shared))),
            }
        };
        let connected = tokio::select! {
            biased;
            () = shared.cancel.cancelled() => return Err(End::Cancelled),
            () = shared.closing.cancelled() => return Err(End::Asked),
            connected = connecting => connected,
        };
        let (socket, until) = match connected {
            Ok(connected) => connected,
            Err(outcome) => return Ok(outcome),
        };
        let number = self.sessions + 1;
        let connection =
            Connection::new((&shared, &self.weaks), &mut self.tokens, &mut self.first, number, socket, until);
        let ended = connection.run(handling).await;
        if ended.session.is_some() {
            self.sessions = number;
        }
        self.judge(ended)
    }

    /// What the end of a connection means.
    fn judge(&self, ended: Ended) -> Result<Outcome, End> {
        let Ended { why, session, lived, useful, after } = ended;
        let (code, reason, refused) = match why {
            Why::Cancelled | Why::Asked => {
                if session.is_some() {
                    let (code, reason) = match why {
                        Why::Asked => (CloseCode::NORMAL.0, "closed by this side"),
                        _ => (CloseCode::ABNORMAL.0, "the last handle was dropped"),
                    };
                    self.shared.disconnected(&Disconnect { code, reason: reason.to_owned(), reconnect_after: None });
                }
                return Err(if matches!(why, Why::Asked) { End::Asked } else { End::Cancelled });
            }
            Why::Timeout => return Ok(failed(Next::Again, None, out_of_time(&self.shared))),
            Why::Closed(code, reason) => (code, reason, None),
            Why::Refused(failure) => (CloseCode::UNAUTHORIZED.0, failure.code.clone(), Some(failure)),
        };
        let next = CloseCode(code).asks();
        let error = match refused {
            Some(failure) => ConnectError::Refused(failure),
            None if code == CloseCode::UNAUTHORIZED.0 => {
                ConnectError::Refused(AuthFailure { code: reason.clone(), message: "closed with 4401".to_owned() })
            }
            None => ConnectError::Closed { code, reason: reason.clone() },
        };
        let proved = session.is_some() && (useful || lived >= PROVED_AFTER);
        let disconnect = session.map(|_| Disconnect { code, reason, reconnect_after: after });
        // What `draining` asks for is spread by the gateway already.
        Ok(Outcome { next, asked: after, jitter: after.is_none(), proved, error, disconnect })
    }
}

/// An attempt without a session.
fn failed(next: Next, asked: Option<Duration>, error: ConnectError) -> Outcome {
    Outcome { next, asked, jitter: true, proved: false, error, disconnect: None }
}

fn out_of_time(shared: &Shared) -> ConnectError {
    let (address, timeout) = (shared.options.target.address.clone(), shared.options.handshake_timeout);
    ConnectError::Timeout { address, timeout }
}
