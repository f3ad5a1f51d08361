//! How a connection becomes a session: a token, from the handshake or from the first message, is verified once.

use std::sync::Arc;

use crate::{
    auth::{AuthError, Authenticator, Identity},
    protocol::{
        ack_mode::AckMode,
        auth_code::AuthCode,
        client::{self, AuthRequest, Request},
        frame::Window,
    },
    types::{Device, Secret, UserId},
};

/// What a client asks for beside being let in.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The installation; a claim of the token overrides it.
    pub device: Option<Device>,
    /// How to confirm; where it says nothing, `delivery.ack_mode`.
    pub ack_mode: Option<AckMode>,
    /// Whether payload bytes are wanted as such.
    pub binary: bool,
    /// How far back messages that are compressed for it may refer; `None`: it takes none such.
    pub window: Option<Window>,
}

/// What the HTTP handshake brought.
pub struct Opening {
    /// The token, where it brought one.
    pub token: Option<Secret>,
    /// The rest.
    pub options: Options,
}

/// A connection whose peer is not known yet. Its first message decides.
pub struct Unauthenticated {
    authenticator: Arc<Authenticator>,
    options: Options,
}

/// A connection whose peer is known.
#[derive(Debug)]
pub struct Granted {
    /// Who it is.
    pub identity: Identity,
    /// What it asked for, the token's own device put in.
    pub options: Options,
    /// The id of the `auth` message, where it was one.
    pub reply_to: Option<String>,
}

/// Why a connection is not let in. The message never holds the token.
#[derive(Debug)]
pub struct Refused {
    /// What the client is told.
    pub code: AuthCode,
    /// In words.
    pub message: String,
    /// The user, where the token was good and something else was not.
    pub user: Option<UserId>,
    /// The id of the `auth` message, where it was one.
    pub reply_to: Option<String>,
    /// The token once more, where it may be good with keys that are not here yet.
    pub again: Option<Box<Again>>,
}

/// A token that asks for a key that nobody knows yet.
#[derive(Debug)]
pub struct Again {
    token: Secret,
    options: Options,
}

impl Refused {
    /// A refusal that has nothing to do with a user.
    pub fn new(code: AuthCode, message: &str) -> Self {
        Self { code, message: message.to_owned(), user: None, reply_to: None, again: None }
    }

    /// Looks at the token once more, with the keys that there are by now.
    pub fn retry(mut self, authenticator: &Authenticator) -> Result<Granted, Refused> {
        let Some(again) = self.again.take() else { return Err(self) };
        let Again { token, options } = *again;
        match authenticator.verify(token.expose()) {
            Ok(identity) => Ok(granted(identity, options, self.reply_to)),
            Err(error) => Err(Refused { reply_to: self.reply_to, ..error.into() }),
        }
    }
}

impl From<AuthError> for Refused {
    fn from(error: AuthError) -> Self {
        Self { code: error.code, message: error.message, user: error.user, reply_to: None, again: None }
    }
}

fn refused(error: AuthError, token: Secret, options: Options, reply_to: Option<String>) -> Refused {
    let again = error.may_be_new.then(|| Box::new(Again { token, options }));
    Refused { reply_to, again, ..error.into() }
}

impl Opening {
    /// Lets the peer in by the handshake's token, or waits for its first message.
    pub fn authenticate(self, authenticator: Arc<Authenticator>) -> Result<Granted, Result<Unauthenticated, Refused>> {
        let Some(token) = self.token else {
            return Err(Ok(Unauthenticated { authenticator, options: self.options }));
        };
        match authenticator.verify(token.expose()) {
            Ok(identity) => Ok(granted(identity, self.options, None)),
            Err(error) => Err(Err(refused(error, token, self.options, None))),
        }
    }
}

/// What the first message of a connection is, where guests are let in.
#[derive(Debug)]
pub enum First {
    /// A token, good or not.
    Token(Result<Granted, Refused>),
    /// None: its peer is a guest. Whether it says something else, which is yet to be looked at.
    Guest(Granted, bool),
}

impl Unauthenticated {
    /// The first message. Anything but an `auth` that convinces ends the connection.
    pub fn on_text(self, text: &str) -> Result<Granted, Refused> {
        let Ok(message) = client::decode(text) else {
            return Err(Refused::new(AuthCode::TokenMissing, "the first message must be `auth` with a `token`"));
        };
        let reply_to = message.id.map(|id| id.into_owned());
        let Request::Auth(auth) = message.request else {
            let mut refused = Refused::new(AuthCode::TokenMissing, "the first message must be `auth` with a `token`");
            refused.reply_to = reply_to;
            return Err(refused);
        };
        let options = match merge(self.options, &auth) {
            Ok(options) => options,
            Err(mut refused) => {
                refused.reply_to = reply_to;
                return Err(refused);
            }
        };
        match self.authenticator.verify(auth.token.expose()) {
            Ok(identity) => Ok(granted(identity, options, reply_to)),
            Err(error) => Err(refused(error, auth.token, options, reply_to)),
        }
    }

    /// Whether who brings no token is a guest.
    pub fn may_be_guest(&self) -> bool {
        self.authenticator.lets_guests_in()
    }

    /// The same where guests are let in: what brings no token makes its sender one, and is his first message; an `auth`
    /// without a token does as well, and says how.
    pub fn on_first_text(self, text: &str) -> First {
        if let Some((reply_to, auth)) = client::auth_without_token(text) {
            return match merge(self.options, &auth) {
                Ok(options) => First::of_guest(Self { authenticator: self.authenticator, options }, reply_to, false),
                Err(refused) => First::Token(Err(Refused { reply_to, ..refused })),
            };
        }
        match client::decode(text) {
            Ok(message) if matches!(message.request, Request::Auth(_)) => First::Token(self.on_text(text)),
            Ok(_) | Err(_) => First::of_guest(self, None, true),
        }
    }

    /// It brought no token.
    pub fn as_guest(self) -> Result<Granted, Refused> {
        match self.authenticator.guest() {
            Some(identity) => Ok(granted(identity, self.options, None)),
            None => Err(Refused::new(AuthCode::TokenMissing, "the first message must be `auth` with a `token`")),
        }
    }
}

impl First {
    fn of_guest(peer: Unauthenticated, reply_to: Option<String>, says_more: bool) -> Self {
        match peer.as_guest() {
            Ok(granted) => First::Guest(Granted { reply_to, ..granted }, says_more),
            Err(refused) => First::Token(Err(refused)),
        }
    }
}

/// What the `auth` message says goes before what the handshake said.
fn merge(options: Options, auth: &AuthRequest) -> Result<Options, Refused> {
    let device = match auth.device.as_deref() {
        None => options.device,
        Some("") => return Err(Refused::new(AuthCode::TokenInvalid, "`device` is empty; leave it out, or name one")),
        Some(name) => Some(Device::parse(name).map_err(|error| {
            Refused::new(AuthCode::TokenInvalid, &format!("`device` is not a device name: {error}"))
        })?),
    };
    let (ack_mode, binary) = (auth.ack_mode.or(options.ack_mode), auth.binary || options.binary);
    Ok(Options { device, ack_mode, binary, ..options })
}

fn granted(identity: Identity, mut options: Options, reply_to: Option<String>) -> Granted {
    if let Some(device) = identity.device() {
        options.device = Some(device.clone());
    }
    Granted { identity, options, reply_to }
}
