//! Lists come a page at a time. A page token says where the next page starts and which list and filter it belongs to; it
//! is opaque to callers and refused with another one.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use super::convert::Checks;
use crate::limits;

const HASH_BYTES: usize = 8;

/// What a page token is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter([u8; HASH_BYTES]);

impl Filter {
    /// The list `name` with these fields of its request; `None` for a field that is not set.
    pub fn new(name: &str, fields: &[Option<&str>]) -> Self {
        let mut hash = Sha256::new();
        for field in [Some(name)].iter().chain(fields) {
            let text = field.unwrap_or_default();
            hash.update([u8::from(field.is_some())]);
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        let mut short = [0; HASH_BYTES];
        short.copy_from_slice(&hash.finalize()[..HASH_BYTES]);
        Self(short)
    }

    /// The token of a page that starts behind `after`.
    pub fn token(self, after: &str) -> String {
        URL_SAFE_NO_PAD.encode([&self.0, after.as_bytes()].concat())
    }

    fn after(self, token: &str) -> Option<String> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (hash, after) = bytes.split_at_checked(HASH_BYTES)?;
        (hash == self.0).then_some(())?;
        String::from_utf8(after.to_vec()).ok()
    }
}

/// How many rows a page has, for a request's `page_size`.
pub fn rows(page_size: u32) -> usize {
    match usize::try_from(page_size).unwrap_or(usize::MAX) {
        0 => limits::PAGE_ROWS_DEFAULT,
        n => n.min(limits::PAGE_ROWS_MAX),
    }
}

impl Checks {
    /// Where a page starts: `Some(None)` for the first one.
    pub fn page_token<T>(
        &mut self,
        token: &str,
        filter: Filter,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<Option<T>> {
        if token.is_empty() {
            return Some(None);
        }
        let after = filter.after(token).and_then(|after| parse(&after));
        self.check("page_token", after.is_some(), || "is not one that this list, with this filter, gave".to_owned());
        after.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_holds_for_its_list_and_filter_only() {
        let filter = Filter::new("sessions", &[Some("alice"), None]);
        let token = filter.token("7");
        assert_eq!(filter.after(&token).as_deref(), Some("7"));
        let others = [
            Filter::new("pending", &[Some("alice"), None]),
            Filter::new("sessions", &[Some("alice"), Some("")]),
            Filter::new("sessions", &[None, Some("alice")]),
            Filter::new("sessions", &[Some("bob"), None]),
        ];
        for other in others {
            assert_ne!(other, filter);
            assert_eq!(other.after(&token), None);
        }
        for junk in ["x", "AAAA", "%%%", ""] {
            assert_eq!(filter.after(junk), None);
        }
    }

    #[test]
    fn the_size_of_a_page_is_bounded() {
        assert_eq!([0, 1, 1000, 1001, u32::MAX].map(rows), [100, 1, 1000, 1000, 1000]);
    }
}
