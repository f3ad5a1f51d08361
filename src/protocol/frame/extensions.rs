//! The offers of extensions in a handshake (RFC 6455 section 9.1, RFC 7692 section 7.1): read, and answered.
//!
//! Owns the header `Sec-WebSocket-Extensions`. Rule: the first offer of permessage-deflate of which every parameter is
//! understood is taken, others are passed over; what is not of the header's grammar fails the handshake.

use std::borrow::Cow;

use super::Window;
use crate::limits;

/// What is taken of what a client offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// permessage-deflate, and how far back what is sent to the client may refer.
    pub deflate: Option<Window>,
    /// Whether the client asked for that window, so that the answer has to name it.
    named: bool,
}

/// The header is not of its grammar, or offers more than [`limits::EXTENSION_OFFERS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Sec-WebSocket-Extensions is malformed")]
pub struct MalformedOffer;

impl Extensions {
    /// Reads the values of all lines of the header, in their order.
    ///
    /// # Errors
    /// [`MalformedOffer`], whatever was offered before.
    pub fn negotiate<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, MalformedOffer> {
        let mut taken = None;
        let mut offers = 0;
        for line in lines {
            let mut rest = Reader(line);
            loop {
                rest.skip_blanks();
                // Empty elements of a list mean nothing.
                if !rest.is_at_end_of_element() {
                    offers += 1;
                    if offers > limits::EXTENSION_OFFERS_MAX {
                        return Err(MalformedOffer);
                    }
                    let offer = rest.offer()?;
                    taken = taken.or(offer);
                }
                if !rest.take(b',') {
                    break;
                }
            }
            if !rest.0.is_empty() {
                return Err(MalformedOffer);
            }
        }
        Ok(taken.unwrap_or_default())
    }

    /// The answer's header; `None` where nothing is taken. Neither side may refer back to an earlier message, so that an
    /// idle session needs no window.
    pub fn answer(self) -> Option<Cow<'static, str>> {
        const ANSWER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        let window = self.deflate?;
        Some(match self.named {
            true => format!("{ANSWER}; server_max_window_bits={}", window.bits()).into(),
            false => ANSWER.into(),
        })
    }
}

/// The parameters of an offer so far. Each may come once.
#[derive(Default)]
struct Parameters {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<Window>,
    client_max_window_bits: bool,
}

impl Parameters {
    /// Notes one more; false where it is unknown, came before, or has a value that it cannot have.
    fn note(&mut self, name: &[u8], value: Option<&[u8]>) -> bool {
        match (name, value) {
            (b"server_no_context_takeover", None) => !std::mem::replace(&mut self.server_no_context_takeover, true),
            (b"client_no_context_takeover", None) => !std::mem::replace(&mut self.client_no_context_takeover, true),
            (b"server_max_window_bits", Some(value)) => {
                let bits = window_bits(value);
                bits.is_some() && std::mem::replace(&mut self.server_max_window_bits, bits).is_none()
            }
            // What it limits itself to makes no difference to who can take more.
            (b"client_max_window_bits", value) => {
                value.is_none_or(|value| window_bits(value).is_some())
                    && !std::mem::replace(&mut self.client_max_window_bits, true)
            }
            _ => false,
        }
    }
}

/// 8 to 15, without leading zeros (RFC 7692 section 7.1.2).
fn window_bits(value: &[u8]) -> Option<Window> {
    match value {
        [digit @ b'8'..=b'9'] => Window::from_bits(digit - b'0'),
        [b'1', digit @ b'0'..=b'5'] => Window::from_bits(10 + digit - b'0'),
        _ => None,
    }
}

/// What is left of a line.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn skip_blanks(&mut self) {
        self.0 = self.0.trim_ascii_start();
    }

    fn is_at_end_of_element(&self) -> bool {
        matches!(self.0.first(), None | Some(b','))
    }

    /// Takes this sign, with the blanks around it.
    fn take(&mut self, sign: u8) -> bool {
        self.skip_blanks();
        let Some(rest) = self.0.strip_prefix(&[sign]) else { return false };
        self.0 = rest;
        self.skip_blanks();
        true
    }

    fn token(&mut self) -> Result<&'a [u8], MalformedOffer> {
        let length = self.0.iter().take_while(|byte| is_token(**byte)).count();
        let (token, rest) = self.0.split_at(length);
        self.0 = rest;
        if token.is_empty() { Err(MalformedOffer) } else { Ok(token) }
    }

    /// A token, or one in quotes: that what they hold must be a token, the quoting does not change (RFC 6455 section 9.1).
    fn value(&mut self) -> Result<Cow<'a, [u8]>, MalformedOffer> {
        let Some(mut rest) = self.0.strip_prefix(b"\"") else { return self.token().map(Cow::Borrowed) };
        let mut value = Vec::new();
        loop {
            match rest {
                [b'"', behind @ ..] => {
                    self.0 = behind;
                    return if value.is_empty() { Err(MalformedOffer) } else { Ok(Cow::Owned(value)) };
                }
                [b'\\', byte, behind @ ..] | [byte, behind @ ..] if is_token(*byte) => {
                    value.push(*byte);
                    rest = behind;
                }
                _ => return Err(MalformedOffer),
            }
        }
    }

    /// One offer: what it comes to, where it is one that can be taken.
    fn offer(&mut self) -> Result<Option<Extensions>, MalformedOffer> {
        let known = self.token()? == b"permessage-deflate";
        let (mut parameters, mut good) = (Parameters::default(), known);
        while self.take(b';') {
            let name = self.token()?;
            let value = if self.take(b'=') { Some(self.value()?) } else { None };
            good = good && parameters.note(name, value.as_deref());
        }
        let window = parameters.server_max_window_bits;
        Ok(good.then_some(Extensions { deflate: Some(window.unwrap_or(Window::LARGEST)), named: window.is_some() }))
    }
}

/// A character of a token (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(lines: &[&str]) -> Result<Option<String>, MalformedOffer> {
        let negotiated = Extensions::negotiate(lines.iter().map(|line| line.as_bytes()))?;
        Ok(negotiated.answer().map(Cow::into_owned))
    }

    const PLAIN: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    #[test]
    fn offers_that_can_be_met_are_taken() {
        for offer in [
            "permessage-deflate",
            // Chromium, Firefox, Node's ws and Python's websockets.
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            "permessage-deflate;client_max_window_bits=8;server_no_context_takeover",
            "permessage-deflate; client_max_window_bits=\"15\"",
            "permessage-deflate ; client_max_window_bits = \"1\\0\"",
            ",, permessage-deflate ,",
            "x-webkit-deflate-frame, foo; bar=\"baz\", permessage-deflate",
            // The first cannot be met, the second can.
            "permessage-deflate; what, permessage-deflate",
            "permessage-deflate; server_max_window_bits, permessage-deflate; client_max_window_bits=9",
        ] {
            assert_eq!(answer(&[offer]), Ok(Some(PLAIN.to_owned())), "{offer}");
        }
        assert_eq!(answer(&["foo", "permessage-deflate"]), Ok(Some(PLAIN.to_owned())), "two lines");
    }

    #[test]
    fn a_window_that_is_asked_for_is_named() {
        for bits in 8..=15 {
            let offer = format!("permessage-deflate; server_max_window_bits={bits}");
            assert_eq!(answer(&[&offer]), Ok(Some(format!("{PLAIN}; server_max_window_bits={bits}"))));
        }
        let two = "permessage-deflate; server_max_window_bits=\"10\", permessage-deflate";
        assert_eq!(answer(&[two]), Ok(Some(format!("{PLAIN}; server_max_window_bits=10"))), "the first counts");
    }

    #[test]
    fn offers_with_what_is_not_understood_are_declined() {
        for parameters in [
            "unknown",
            "unknown=1",
            "server_no_context_takeover=1",
            "server_no_context_takeover=\"true\"",
            "client_no_context_takeover=0",
            "server_no_context_takeover; server_no_context_takeover",
            "client_no_context_takeover; client_no_context_takeover",
            "server_max_window_bits",
            "server_max_window_bits=7",
            "server_max_window_bits=16",
            "server_max_window_bits=08",
            "server_max_window_bits=010",
            "server_max_window_bits=+9",
            "server_max_window_bits=a",
            "server_max_window_bits=9; server_max_window_bits=9",
            "client_max_window_bits=7",
            "client_max_window_bits=16",
            "client_max_window_bits=09",
            "client_max_window_bits; client_max_window_bits",
            "Server_No_Context_Takeover",
        ] {
            assert_eq!(answer(&[&format!("permessage-deflate; {parameters}")]), Ok(None), "{parameters}");
        }
        assert_eq!(answer(&["permessage-bzip2; server_max_window_bits=9"]), Ok(None));
        assert_eq!(answer(&[]), Ok(None));
        assert_eq!(answer(&[""]), Ok(None));
    }

    #[test]
    fn what_is_not_of_the_grammar_fails_the_handshake() {
        let many = "a,".repeat(limits::EXTENSION_OFFERS_MAX + 1);
        for line in [
            ";",
            "permessage-deflate;",
            "permessage-deflate; =1",
            "permessage-deflate; a=",
            "permessage-deflate; a=\"",
            "permessage-deflate; a=\"b",
            "permessage-deflate; a=\"\"",
            "permessage-deflate; a=\"b c\"",
            "permessage-deflate; a=b c",
            "permessage-deflate client_max_window_bits",
            "permessage-deflate; a=\"b\"c",
            "permessage deflate",
            "permessage-deflate, é",
            &many,
        ] {
            assert_eq!(answer(&["permessage-deflate", line]), Err(MalformedOffer), "{line}");
        }
    }
}
