//! The checks of a handshake, for `tests/fuzz`: what [`super::upgrade`] makes of a request before anything depends on who
//! is there. The feature `fuzzing` alone has it.

use http::{Request, StatusCode};

use super::{Compression, upgrade};

/// The status that a request gets.
pub fn handshake<B>(request: &Request<B>) -> StatusCode {
    upgrade::checked(request, Compression::Auto).map_or_else(|status| status, |()| StatusCode::SWITCHING_PROTOCOLS)
}
