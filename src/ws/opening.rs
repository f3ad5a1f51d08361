//! From the finished handshake to a session: the first message where the handshake brought no token, or the answer why
//! not.

use std::{io, ops::ControlFlow, sync::Arc};

use super::{
    Context,
    socket::{self, Socket},
};
use crate::{
    hub::{AttachError, Handle, Peer},
    limits::{self, Limit},
    metrics::{Failure, Handshake},
    protocol::{
        auth_code::AuthCode,
        close::CloseCode,
        frame::{ControlFrame, FrameReader, Incoming, ReadError},
        server,
    },
    session::{self, Counts, Granted, Opening, Refused, Unauthenticated},
    store::StoreError,
};

/// What a first message must be.
const FIRST_MESSAGE: &str = "the first message must be `auth` with a `token`";

/// A connection that became a session.
pub struct Opened {
    /// The session.
    pub handle: Arc<Handle>,
    /// Its frames, so far as they were read.
    pub reader: FrameReader,
    /// What a guest said before he was let in, not looked at yet.
    pub said: Option<First>,
    /// Bytes that came behind what let it in, not looked at yet.
    pub early: Vec<u8>,
}

/// How a connection ends before it is a session.
enum End {
    Refused(Refused),
    Close(CloseCode, String),
    /// The peer closed, whatever code it chose.
    Left(CloseCode),
    /// Nobody is let in any more.
    Restarting,
    Violation(ReadError),
    TooMuch,
    Gone,
}

impl End {
    /// What became of the handshake.
    fn result(&self) -> Handshake {
        match self {
            End::Refused(refused) if refused.code == AuthCode::DeviceLimit => Handshake::Limited,
            End::Refused(_) => Handshake::Unauthorized,
            End::Restarting => Handshake::Draining,
            End::Close(CloseCode::TRY_LATER, _) | End::TooMuch => Handshake::Limited,
            End::Close(CloseCode::INTERNAL, _) => Handshake::Failed,
            End::Close(..) | End::Left(_) | End::Gone => Handshake::Gone,
            End::Violation(_) => Handshake::Malformed,
        }
    }
}

/// Lets the peer in, or tells him why not and closes. `early` is what came behind the handshake.
pub async fn open(
    socket: &Arc<Socket>,
    opening: Opening,
    early: Vec<u8>,
    peer: &Peer,
    context: &Context,
) -> Option<Opened> {
    let reader = match opening.options.window {
        Some(_) => FrameReader::inflating(limits::UNAUTHENTICATED_MESSAGE_BYTES_MAX),
        None => FrameReader::new(limits::UNAUTHENTICATED_MESSAGE_BYTES_MAX),
    };
    let bytes = early.len();
    let mut opener = Opener { socket, reader, early, bytes };
    let mut said = None;
    let granted = match opening.authenticate(context.hub.authenticator()) {
        Ok(granted) => Ok(granted),
        Err(Err(refused)) => look_again(refused, context).await,
        Err(Ok(unauthenticated)) => {
            let first = opener.first_of(unauthenticated, &mut said, context);
            let shut = context.hub.letting_in();
            let first = tokio::select! {
                () = shut.cancelled() => Err(End::Restarting),
                first = first => first,
            };
            match first {
                Err(End::Refused(refused)) => look_again(refused, context).await,
                other => other,
            }
        }
    };
    let attached = match granted {
        Ok(granted) => attach(granted, peer, socket, context).await,
        Err(end) => Err(end),
    };
    match attached {
        Ok(handle) => {
            context.hub.metrics().handshake(Handshake::Opened);
            Some(Opened { handle, reader: opener.reader, said, early: opener.early })
        }
        Err(end) => {
            context.hub.metrics().handshake(end.result());
            turn_away(socket, end, peer, context).await;
            None
        }
    }
}

/// Where a token asks for a key that nobody knows: waits for the keys to be fetched, if they are, and looks once more.
async fn look_again(refused: Refused, context: &Context) -> Result<Granted, End> {
    if refused.again.is_none() {
        return Err(End::Refused(refused));
    }
    let authenticator = context.hub.authenticator();
    let shut = context.hub.letting_in();
    let renewed = tokio::select! {
        () = shut.cancelled() => return Err(End::Restarting),
        renewed = tokio::time::timeout(context.terms().auth_timeout, authenticator.renewed()) => renewed,
    };
    // By the rules that are in force by now.
    if renewed == Ok(true) {
        refused.retry(&context.hub.authenticator()).map_err(End::Refused)
    } else {
        Err(End::Refused(refused))
    }
}

async fn attach(granted: Granted, peer: &Peer, socket: &Arc<Socket>, context: &Context) -> Result<Arc<Handle>, End> {
    let (user, reply_to) = (granted.identity.user().clone(), granted.reply_to.clone());
    // The handshake may have been long ago.
    if let Err(limit) = context.gates().memory(context.hub.clock().now()) {
        context.hub.metrics().hit(limit);
        return Err(End::Close(CloseCode::TRY_LATER, "limits.memory is reached; try again later".to_owned()));
    }
    context.hub.attach(granted, peer.clone(), Arc::<Socket>::clone(socket)).await.map_err(|error| match error {
        AttachError::DeviceLimit | AttachError::DeviceRate => End::Refused(Refused {
            code: AuthCode::DeviceLimit,
            message: error.to_string(),
            user: Some(user),
            reply_to,
            again: None,
        }),
        AttachError::Revoked => End::Refused(Refused {
            code: AuthCode::TokenRevoked,
            message: error.to_string(),
            user: Some(user),
            reply_to,
            again: None,
        }),
        AttachError::Guests => {
            context.hub.metrics().failure(Failure::GuestLimit);
            End::Close(CloseCode::TRY_LATER, error.to_string())
        }
        AttachError::UserConnections => {
            context.hub.metrics().hit(Limit::ConnectionsPerUser);
            End::Close(CloseCode::TRY_LATER, error.to_string())
        }
        AttachError::DeviceConnections => {
            context.hub.metrics().hit(Limit::ConnectionsPerDevice);
            End::Close(CloseCode::TRY_LATER, error.to_string())
        }
        AttachError::Draining => End::Restarting,
        AttachError::Store(StoreError::Recovering(_)) => End::Close(CloseCode::TRY_LATER, "try again later".to_owned()),
        AttachError::Store(ref cause) => {
            if context.not_opened.admits() {
                tracing::error!(%user, error = %cause, "a session could not be opened");
            }
            End::Close(CloseCode::INTERNAL, error.to_string())
        }
    })
}

/// Tells the peer why, and closes.
async fn turn_away(socket: &Socket, end: End, peer: &Peer, context: &Context) {
    let mut bytes = Vec::new();
    match end {
        End::Gone => return,
        End::Refused(refused) => {
            let Refused { code, message, reply_to, .. } = &refused;
            let now = context.hub.clock().unix_millis();
            bytes.extend_from_slice(&server::auth_failure(*code, message, reply_to.as_deref(), now));
            bytes.extend_from_slice(ControlFrame::close(CloseCode::UNAUTHORIZED, code.as_str()).as_bytes());
            if context.not_let_in.admits() {
                tracing::info!(remote = %peer.remote, code = code.as_str(), why = %message, "not let in");
            }
            context.hub.auth_failed(&refused, peer);
        }
        End::Restarting => {
            bytes.extend_from_slice(&context.hub.come_back_later());
            bytes.extend_from_slice(ControlFrame::close(CloseCode::RESTART, "restarting").as_bytes());
        }
        End::Close(code, reason) => bytes.extend_from_slice(ControlFrame::close(code, &reason).as_bytes()),
        End::Left(code) => bytes.extend_from_slice(ControlFrame::close(code, "").as_bytes()),
        End::TooMuch => {
            context.hub.metrics().hit(Limit::HandshakeBytes);
            let close = ControlFrame::close(CloseCode::TOO_BIG, "too much came before `auth`");
            bytes.extend_from_slice(close.as_bytes());
        }
        End::Violation(error) => {
            counts_of(&error).count(context.hub.metrics());
            bytes.extend_from_slice(ControlFrame::close(error.close_code(), &error.to_string()).as_bytes());
        }
    }
    let _ = tokio::time::timeout(limits::CLOSE_LINGER, socket::write_all(socket, &bytes)).await;
    socket::linger(socket).await;
}

/// What a violation of RFC 6455 is counted as.
pub fn counts_of(error: &ReadError) -> Counts {
    match error.close_code() {
        _ if *error == ReadError::Inflate => Failure::InvalidDeflate.into(),
        CloseCode::INVALID_UTF8 => Failure::InvalidUtf8.into(),
        CloseCode::TOO_BIG => Limit::MessageBytes.into(),
        _ => Failure::ProtocolError.into(),
    }
}

/// A connection that waits for its first message.
struct Opener<'a> {
    socket: &'a Socket,
    reader: FrameReader,
    /// Bytes that were read and not looked at yet.
    early: Vec<u8>,
    /// All that was read.
    bytes: usize,
}

/// What came first.
pub enum First {
    /// Text.
    Text(String),
    /// Bytes.
    Binary(Vec<u8>),
    /// The peer closes.
    Close(Option<CloseCode>),
}

impl Opener<'_> {
    /// Who it is that brought no token with the handshake: the bearer of the one that he sends in time; or, where guests are
    /// let in, a guest.
    async fn first_of(
        &mut self,
        unauthenticated: Unauthenticated,
        said: &mut Option<First>,
        context: &Context,
    ) -> Result<Granted, End> {
        let guests = unauthenticated.may_be_guest();
        let timeout = context.terms().auth_timeout;
        let patience = if guests { timeout.min(limits::GUEST_GRACE) } else { timeout };
        match tokio::time::timeout(patience, self.first_message()).await {
            Err(_) if guests => unauthenticated.as_guest().map_err(End::Refused),
            Err(_) => Err(End::Refused(Refused::new(AuthCode::AuthTimeout, "no `auth` message came in time"))),
            Ok(first) => match first? {
                First::Close(code) => Err(End::Left(code.unwrap_or(CloseCode::NO_STATUS))),
                First::Text(text) if guests => match unauthenticated.on_first_text(&text) {
                    session::First::Token(result) => result.map_err(End::Refused),
                    session::First::Guest(granted, says_more) => {
                        *said = says_more.then_some(First::Text(text));
                        Ok(granted)
                    }
                },
                First::Text(text) => unauthenticated.on_text(&text).map_err(End::Refused),
                bytes @ First::Binary(_) if guests => {
                    *said = Some(bytes);
                    unauthenticated.as_guest().map_err(End::Refused)
                }
                First::Binary(_) => Err(End::Refused(Refused::new(AuthCode::TokenMissing, FIRST_MESSAGE))),
            },
        }
    }

    async fn first_message(&mut self) -> Result<First, End> {
        loop {
            let mut first = None;
            let mut pong = None;
            let fed = self.reader.feed_first(&mut self.early, &mut |incoming| {
                match incoming {
                    Incoming::Text(text) => first = Some(First::Text(text.to_owned())),
                    Incoming::Binary(bytes) => first = Some(First::Binary(bytes.to_vec())),
                    Incoming::Close(close) => first = Some(First::Close(close.map(|(code, _)| code))),
                    // Only the latest needs an answer (RFC 6455 section 5.5.3).
                    Incoming::Ping(payload) => pong = Some(ControlFrame::pong(payload)),
                    Incoming::Pong(_) => {}
                }
                ControlFlow::Continue(())
            });
            let (_, left) = fed.map_err(End::Violation)?;
            self.early.drain(..self.early.len() - left);
            if let Some(pong) = pong {
                socket::write_all(self.socket, pong.as_bytes()).await.map_err(|_| End::Gone)?;
            }
            match first {
                Some(first) => return Ok(first),
                // Control frames and empty fragments would never come to an end.
                None if self.bytes > limits::UNAUTHENTICATED_BYTES_MAX => return Err(End::TooMuch),
                None => {
                    self.early = self.read().await.map_err(|_| End::Gone)?;
                    self.bytes += self.early.len();
                }
            }
        }
    }

    /// Reads what is there; nothing is held while nothing comes.
    async fn read(&self) -> io::Result<Vec<u8>> {
        loop {
            self.socket.readable().await?;
            let mut buffer = vec![0; limits::UNAUTHENTICATED_MESSAGE_BYTES_MAX];
            match self.socket.try_read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    buffer.truncate(count);
                    return Ok(buffer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}
