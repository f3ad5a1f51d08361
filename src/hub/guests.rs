//! Guests: who brought no token, where that is allowed (`auth.anonymous`).
//!
//! Nothing of a guest is stored: his device is known in memory while he is connected, and what is sent to him is handed to
//! the session that he has, or to nobody. A name is used once.

use super::{Hub, attach::AttachError};
use crate::types::UserId;

/// A guest's place among those who are connected, given back when it is dropped.
pub(super) struct GuestPlace<'a>(&'a Hub);

impl GuestPlace<'_> {
    /// It is given back by whoever takes the session out of the hub.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for GuestPlace<'_> {
    fn drop(&mut self) {
        self.0.0.guests.leave();
    }
}

impl Hub {
    /// Whether that is a guest.
    pub fn is_guest(&self, user: &UserId) -> bool {
        self.authenticator().is_guest(user)
    }

    /// Guests who are connected.
    pub fn guests(&self) -> u64 {
        self.0.guests.get()
    }

    /// One less. Who came by a token that named him so, before guests were let in, was not counted.
    pub(super) fn leave_guest(&self) {
        self.0.guests.leave_if_any();
    }

    /// A place for one more guest.
    pub(super) fn enter_guest(&self) -> Result<GuestPlace<'_>, AttachError> {
        let limit = self.live().guests_max.limit() as u64;
        if self.0.guests.enter_below(limit) { Ok(GuestPlace(self)) } else { Err(AttachError::Guests) }
    }
}
