//! What a caller may do.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A group of calls that a token opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Scope {
    /// Sending: `SendTo…`, `SendBatch`, `Broadcast`, `Publish`, `Subscribe`, `Unsubscribe`.
    Send,
    /// `CloseUserSessions`.
    Close,
    /// `GetStatus`, `List…` and reflection.
    Read,
    /// `StreamEvents`.
    Events,
    /// All of them, and what changes the node itself.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Scope; 5] = [Scope::Send, Scope::Close, Scope::Read, Scope::Events, Scope::Admin];

    /// Its name in the configuration and in error messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Scope::Send => "send",
            Scope::Close => "close",
            Scope::Read => "read",
            Scope::Events => "events",
            Scope::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The scopes of one caller.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ScopeSet(u8);

impl ScopeSet {
    /// No scope.
    pub const NONE: ScopeSet = ScopeSet(0);
    /// What a caller on the Unix socket, or without any token on loopback, may do: everything.
    pub const ALL: ScopeSet = ScopeSet(1 << Scope::Admin as u8);

    /// Whether it opens calls of `scope`; `admin` opens all of them.
    pub const fn contains(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8 | 1 << Scope::Admin as u8) != 0
    }

    /// Whether it opens all that another opens.
    pub fn covers(self, other: Self) -> bool {
        Scope::ALL.into_iter().all(|scope| self.contains(scope) || !other.contains(scope))
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<Scope> for ScopeSet {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | 1 << scope as u8))
    }
}

impl fmt::Debug for ScopeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(Scope::ALL.into_iter().filter(|scope| self.0 & (1 << *scope as u8) != 0)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_contains_what_it_was_given_and_admin_contains_all() {
        let set: ScopeSet = [Scope::Send, Scope::Read].into_iter().collect();
        assert!(set.contains(Scope::Send) && set.contains(Scope::Read));
        assert!(!set.contains(Scope::Close) && !set.contains(Scope::Events) && !set.contains(Scope::Admin));
        assert_eq!(format!("{set:?}"), "{Send, Read}");
        assert!(Scope::ALL.into_iter().all(|scope| ScopeSet::ALL.contains(scope)));
        let send: ScopeSet = [Scope::Send].into_iter().collect();
        assert!(set.covers(send) && !send.covers(set) && ScopeSet::ALL.covers(set) && !set.covers(ScopeSet::ALL));
        assert!(ScopeSet::NONE.is_empty() && !Scope::ALL.into_iter().any(|scope| ScopeSet::NONE.contains(scope)));
    }
}
