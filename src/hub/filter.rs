//! Which sessions a broadcast is for, beside the users whom it leaves out: all that is set must hold.
//!
//! The fan-out asks once a session and broadcast, under no lock but, where claims are asked for, the session's own. What
//! does not change with a session is looked at first, and nothing is allocated.

use super::handle::Handle;
use crate::types::{Claims, Device, Glob, SessionId, UnixMillis};

/// A filter that lets everything pass, until something is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    devices: Box<[Device]>,
    user_agent: Option<Glob>,
    connected_after: Option<UnixMillis>,
    connected_before: Option<UnixMillis>,
    claims: Box<[(String, String)]>,
    not_to: Box<[SessionId]>,
}

impl Filter {
    /// Only sessions of one of these devices; of any where there are none.
    #[must_use]
    pub fn devices(mut self, devices: impl IntoIterator<Item = Device>) -> Self {
        self.devices = sorted(devices);
        self
    }

    /// Only sessions whose user agent has that pattern. Who brought none has the empty one.
    #[must_use]
    pub fn user_agent(mut self, pattern: Option<Glob>) -> Self {
        self.user_agent = pattern;
        self
    }

    /// Only sessions that authenticated at `after` or later, and before `before`.
    #[must_use]
    pub fn connected(mut self, after: Option<UnixMillis>, before: Option<UnixMillis>) -> Self {
        (self.connected_after, self.connected_before) = (after, before);
        self
    }

    /// Only sessions each of whose claims with these names is or holds that text.
    #[must_use]
    pub fn claims(mut self, claims: impl IntoIterator<Item = (String, String)>) -> Self {
        self.claims = claims.into_iter().collect();
        self
    }

    /// Not these sessions.
    #[must_use]
    pub fn not_to(mut self, sessions: impl IntoIterator<Item = SessionId>) -> Self {
        self.not_to = sorted(sessions);
        self
    }

    /// Whether it lets everything pass.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a session gets what is sent with it.
    pub fn admits(&self, handle: &Handle) -> bool {
        self.admits_device(&handle.device)
            && self.admits_moment(handle.connected_at)
            && self.not_to.binary_search(&handle.id).is_err()
            && self.admits_user_agent(handle.peer.user_agent.as_deref())
            && (self.claims.is_empty() || self.admits_claims(&handle.core().claims()))
    }

    fn admits_device(&self, device: &Device) -> bool {
        self.devices.is_empty() || self.devices.binary_search(device).is_ok()
    }

    fn admits_moment(&self, at: UnixMillis) -> bool {
        self.connected_after.is_none_or(|after| at >= after) && self.connected_before.is_none_or(|before| at < before)
    }

    fn admits_user_agent(&self, text: Option<&str>) -> bool {
        self.user_agent.as_ref().is_none_or(|pattern| pattern.matches(text.unwrap_or_default()))
    }

    fn admits_claims(&self, claims: &Claims) -> bool {
        self.claims.iter().all(|(name, text)| claims.has(name, text))
    }
}

fn sorted<T: Ord>(all: impl IntoIterator<Item = T>) -> Box<[T]> {
    let mut all: Vec<T> = all.into_iter().collect();
    all.sort_unstable();
    all.dedup();
    all.into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn device(name: &str) -> Device {
        Device::parse(name).unwrap()
    }

    #[test]
    fn the_span_of_connections_is_half_open() {
        let between = |after, before| Filter::default().connected(after, before);
        let at = |moment: u64| Some(UnixMillis(moment));
        let both = between(at(10), at(20));
        assert_eq!([9, 10, 19, 20].map(|moment| both.admits_moment(UnixMillis(moment))), [false, true, true, false]);
        assert!(between(at(10), None).admits_moment(UnixMillis(u64::MAX)));
        assert!(between(None, at(1)).admits_moment(UnixMillis(0)));
    }

    #[test]
    fn devices_are_alternatives_and_the_unnamed_one_is_one_of_them() {
        let filter = Filter::default().devices([device("tablet"), device(""), device("phone"), device("phone")]);
        assert!(filter.admits_device(&device("phone")) && filter.admits_device(&Device::UNNAMED));
        assert!(!filter.admits_device(&device("phone2")));
        assert!(Filter::default().admits_device(&device("phone2")));
    }

    #[test]
    fn every_claim_that_is_asked_for_must_hold() {
        let Value::Object(token) = json!({"role": ["admin", "dev"], "tenant": "acme", "level": 7}) else { panic!() };
        let claims = Claims::of(&token, &["role".to_owned(), "tenant".to_owned(), "level".to_owned()]);
        let asks = |all: &[(&str, &str)]| {
            let all = all.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
            Filter::default().claims(all).admits_claims(&claims)
        };
        assert!(asks(&[]) && asks(&[("role", "dev"), ("tenant", "acme"), ("level", "7")]));
        assert!(!asks(&[("role", "dev"), ("tenant", "other")]) && !asks(&[("role", "d")]) && !asks(&[("none", "")]));
    }

    #[test]
    fn who_has_no_user_agent_has_an_empty_one() {
        let agent = |pattern: &str| Filter::default().user_agent(Some(Glob::parse(pattern).unwrap()));
        assert!(agent("*").admits_user_agent(None) && !agent("?*").admits_user_agent(None));
        assert!(
            agent("app/2.*").admits_user_agent(Some("App/2.1")) && !agent("app/2.*").admits_user_agent(Some("App/3"))
        );
    }

    #[test]
    fn a_filter_in_which_nothing_is_set_is_empty() {
        assert!(Filter::default().devices([]).user_agent(None).connected(None, None).claims([]).not_to([]).is_empty());
        assert!(!Filter::default().not_to([SessionId::generate()]).is_empty());
        assert!(!Filter::default().connected(None, Some(UnixMillis(0))).is_empty());
    }
}
