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
    types::{Device, UserId},
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
    pub token: Option<String>,
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
}

impl Refused {
    /// A refusal that has nothing to do with a user.
    pub fn new(code: AuthCode, message: &str) -> Self {
        Self { code, message: message.to_owned(), user: None, reply_to: None }
    }
}

impl From<AuthError> for Refused {
    fn from(error: AuthError) -> Self {
        Self { code: error.code, message: error.message, user: error.user, reply_to: None }
    }
}

impl Opening {
    /// Lets the peer in by the handshake's token, or waits for its first message.
    pub fn authenticate(self, authenticator: Arc<Authenticator>) -> Result<Granted, Result<Unauthenticated, Refused>> {
        let Some(token) = self.token else {
            return Err(Ok(Unauthenticated { authenticator, options: self.options }));
        };
        match authenticator.verify(&token) {
            Ok(identity) => Ok(granted(identity, self.options, None)),
            Err(error) => Err(Err(error.into())),
        }
    }
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
        match self.authenticator.verify(&auth.token) {
            Ok(identity) => Ok(granted(identity, options, reply_to)),
            Err(error) => Err(Refused { reply_to, ..error.into() }),
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
