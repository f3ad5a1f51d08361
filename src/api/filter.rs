//! The filter of a broadcast, field by field. All that is wrong is told at once.

use std::{collections::HashMap, sync::Arc};

use super::{convert::Checks, proto};
use crate::{
    hub::Filter,
    limits,
    types::{Device, Glob, InvalidId, SessionId, Topic, UnixMillis, UserId},
};

const TOPIC: &str = "filter.topic";
const DEVICES: &str = "filter.devices";
const USER_AGENT: &str = "filter.user_agent";
const CONNECTED_AFTER: &str = "filter.connected_after";
const CONNECTED_BEFORE: &str = "filter.connected_before";
const CLAIMS: &str = "filter.claims";
const EXCLUDE_USERS: &str = "filter.exclude_user_ids";
const EXCLUDE_SESSIONS: &str = "filter.exclude_session_ids";

/// The seconds of a Timestamp: years 1 to 9999.
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

impl Checks {
    /// The topic whose members a broadcast is for.
    pub fn topic(&mut self, topic: &str) -> Option<Option<Topic>> {
        self.optional(TOPIC, topic, Topic::parse)
    }

    /// Which sessions a broadcast is for, beside those of its topic; whom it leaves out besides is
    /// [`Checks::excluded_users`]. `kept` are the claims
    /// that sessions have.
    pub fn filter(&mut self, filter: proto::BroadcastFilter, kept: &[String]) -> Option<Filter> {
        let devices = self.each(DEVICES, &filter.devices, limits::FILTER_DEVICES_MAX, Device::parse);
        let pattern = match filter.user_agent.as_str() {
            "" => Some(None),
            pattern => self.field(USER_AGENT, Glob::parse(pattern)).map(Some),
        };
        let connected = self.connected(filter.connected_after, filter.connected_before);
        let claims = self.claims(filter.claims, kept);
        let sessions =
            self.each(EXCLUDE_SESSIONS, &filter.exclude_session_ids, limits::EXCLUDED_SESSIONS_MAX, SessionId::parse);
        let (after, before) = connected?;
        let filter = Filter::default().devices(devices?).user_agent(pattern?).connected(after, before);
        Some(filter.claims(claims?).not_to(sessions?))
    }

    /// The same for a durable one, which is for devices: nothing but users may be left out.
    pub fn no_filter(&mut self, filter: &proto::BroadcastFilter) -> Option<Filter> {
        let set = [
            (TOPIC, !filter.topic.is_empty()),
            (DEVICES, !filter.devices.is_empty()),
            (USER_AGENT, !filter.user_agent.is_empty()),
            (CONNECTED_AFTER, filter.connected_after.is_some()),
            (CONNECTED_BEFORE, filter.connected_before.is_some()),
            (CLAIMS, !filter.claims.is_empty()),
            (EXCLUDE_SESSIONS, !filter.exclude_session_ids.is_empty()),
        ];
        for (field, is_set) in set {
            self.check(field, !is_set, || {
                "is not for durable broadcasts, which are for devices that may be away; they take exclude_user_ids only"
                    .to_owned()
            });
        }
        Some(Filter::default())
    }

    /// Whom a broadcast leaves out: sorted, so that the same users are the same content.
    pub fn excluded_users(&mut self, users: &[String]) -> Option<Arc<[UserId]>> {
        let mut users = self.each(EXCLUDE_USERS, users, limits::EXCLUDED_USERS_MAX, UserId::parse)?;
        users.sort_unstable();
        users.dedup();
        Some(users.into())
    }

    fn each<T>(
        &mut self,
        field: &'static str,
        texts: &[String],
        max: usize,
        parse: impl Fn(&str) -> Result<T, InvalidId>,
    ) -> Option<Vec<T>> {
        if texts.len() > max {
            self.violation(field, format!("has {} entries, and at most {max} are allowed", texts.len()));
            return None;
        }
        self.field(field, texts.iter().map(|text| parse(text)).collect())
    }

    fn connected(
        &mut self,
        after: Option<prost_types::Timestamp>,
        before: Option<prost_types::Timestamp>,
    ) -> Option<(Option<UnixMillis>, Option<UnixMillis>)> {
        let after = self.moment(CONNECTED_AFTER, after);
        let before = self.moment(CONNECTED_BEFORE, before);
        let (after, before) = (after?, before?);
        let empty = after.zip(before).is_some_and(|(after, before)| before <= after);
        self.check(CONNECTED_BEFORE, !empty, || "must be later than connected_after".to_owned());
        Some((after, before))
    }

    /// A moment in the milliseconds that sessions have, rounded up: so whatever was at the moment or later still is, and
    /// whatever was before it as well. What lies before 1970 is before every session.
    pub(super) fn moment(
        &mut self,
        field: &'static str,
        moment: Option<prost_types::Timestamp>,
    ) -> Option<Option<UnixMillis>> {
        let Some(prost_types::Timestamp { seconds, nanos }) = moment else { return Some(None) };
        let nanos = u64::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
        let (true, Some(nanos)) = (TIMESTAMP_SECONDS.contains(&seconds), nanos) else {
            self.violation(field, "must be a moment of the years 1 to 9999, with 0 to 999,999,999 nanos".to_owned());
            return None;
        };
        let millis = u64::try_from(seconds).map_or(0, |seconds| seconds * 1000 + nanos.div_ceil(1_000_000));
        Some(Some(UnixMillis(millis)))
    }

    /// Each claim that is asked for is one that sessions keep.
    fn claims(&mut self, claims: HashMap<String, String>, kept: &[String]) -> Option<Vec<(String, String)>> {
        let max = limits::FILTER_CLAIMS_MAX;
        if claims.len() > max {
            self.violation(CLAIMS, format!("has {} entries, and at most {max} are allowed", claims.len()));
            return None;
        }
        let mut claims: Vec<_> = claims.into_iter().collect();
        claims.sort_unstable();
        for (name, text) in &claims {
            let known = kept.contains(name);
            self.check(CLAIMS, known, || not_kept(name, kept));
            let max = limits::FILTER_CLAIM_BYTES_MAX;
            self.check(CLAIMS, text.len() <= max, || {
                format!("{} must be asked for with at most {max} bytes, this text has {}", shown(name), text.len())
            });
        }
        Some(claims)
    }
}

fn not_kept(name: &str, kept: &[String]) -> String {
    let kept: Vec<_> = kept.iter().map(|name| shown(name)).collect();
    let known = if kept.is_empty() { "none is kept".to_owned() } else { format!("kept: {}", kept.join(", ")) };
    format!(
        "{} is no claim that sessions keep; add its name to auth.session_claims in the gateway's configuration, or to \
         auth.public_claims where other users may see it ({known})",
        shown(name)
    )
}

/// A claim's name, as far as it is one.
fn shown(name: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 64;
    let cut: String = name.chars().take(SHOWN_CHARS_MAX).collect();
    let more = if cut.len() < name.len() { "…" } else { "" };
    format!("`{}{more}`", cut.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ApiError, error::Violation};

    fn violations(filter: proto::BroadcastFilter, durable: bool) -> Vec<Violation> {
        let mut checks = Checks::default();
        let kept = ["role".to_owned(), "tenant".to_owned()];
        let users = checks.excluded_users(&filter.exclude_user_ids);
        let topic = if durable { Some(None) } else { checks.topic(&filter.topic) };
        let filter = if durable { checks.no_filter(&filter) } else { checks.filter(filter, &kept) };
        match checks.finish((users, topic, filter)) {
            Ok(_) => Vec::new(),
            Err(ApiError::Invalid(violations)) => violations,
            Err(other) => panic!("{other:?}"),
        }
    }

    fn fields(filter: proto::BroadcastFilter, durable: bool) -> Vec<String> {
        violations(filter, durable).into_iter().map(|violation| violation.field.into_owned()).collect()
    }

    fn at(seconds: i64, nanos: i32) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos })
    }

    fn full() -> proto::BroadcastFilter {
        proto::BroadcastFilter {
            topic: "room.1".into(),
            devices: vec![String::new(), "phone".into()],
            user_agent: "*".into(),
            connected_after: at(0, 0),
            connected_before: at(1, 0),
            claims: [("role".into(), String::new())].into(),
            exclude_user_ids: vec!["alice".into()],
            exclude_session_ids: vec![SessionId::generate().to_string()],
        }
    }

    #[test]
    fn a_filter_with_all_that_there_is_is_good() {
        assert_eq!(fields(full(), false), Vec::<&str>::new());
        assert_eq!(fields(proto::BroadcastFilter::default(), true), Vec::<&str>::new());
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let bad = proto::BroadcastFilter {
            topic: "a\nb".into(),
            devices: vec!["a b".into()],
            user_agent: "ä".into(),
            connected_after: at(i64::MAX, 0),
            connected_before: at(0, -1),
            claims: [("secret".into(), String::new()), ("role".into(), "x".repeat(1025))].into(),
            exclude_user_ids: vec![String::new()],
            exclude_session_ids: vec!["1".into()],
        };
        let expected = [
            EXCLUDE_USERS,
            TOPIC,
            DEVICES,
            USER_AGENT,
            CONNECTED_AFTER,
            CONNECTED_BEFORE,
            CLAIMS,
            CLAIMS,
            EXCLUDE_SESSIONS,
        ];
        assert_eq!(fields(bad, false), expected);
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let many = |count: usize| (0..count).map(|n| format!("d{n}")).collect::<Vec<_>>();
        let devices = |count| proto::BroadcastFilter { devices: many(count), ..Default::default() };
        assert_eq!((fields(devices(100), false).len(), fields(devices(101), false)), (0, vec![DEVICES.to_owned()]));
        let users = |count| proto::BroadcastFilter { exclude_user_ids: many(count), ..Default::default() };
        assert_eq!((fields(users(1000), false).len(), fields(users(1001), false)), (0, vec![EXCLUDE_USERS.to_owned()]));
        let ids = |count| (0..count).map(|_| SessionId::generate().to_string()).collect();
        let sessions = |count| proto::BroadcastFilter { exclude_session_ids: ids(count), ..Default::default() };
        assert_eq!(
            (fields(sessions(1000), false).len(), fields(sessions(1001), false)),
            (0, vec![EXCLUDE_SESSIONS.to_owned()])
        );
        let claims = many(17).into_iter().map(|name| (name, String::new())).collect();
        let claims = violations(proto::BroadcastFilter { claims, ..Default::default() }, false);
        assert_eq!(claims.len(), 1, "not one for each: {claims:?}");
        let agent = proto::BroadcastFilter { user_agent: "x".repeat(257), ..Default::default() };
        assert_eq!(fields(agent, false), [USER_AGENT]);
    }

    #[test]
    fn a_claim_that_is_not_kept_says_which_key_to_set() {
        let claims = [("tier".to_owned(), "gold".to_owned())].into();
        let told = violations(proto::BroadcastFilter { claims, ..Default::default() }, false);
        let text = &told[0].description;
        assert!(
            text.starts_with("`tier` is no claim that sessions keep; add its name to auth.session_claims"),
            "{text}"
        );
        assert!(text.ends_with("(kept: `role`, `tenant`)"), "{text}");
        assert_eq!(shown(&"x\n".repeat(100)), format!("`{}…`", "x\\n".repeat(32)));
        assert!(not_kept("tier", &[]).ends_with("(none is kept)"));
    }

    #[test]
    fn a_span_in_which_nobody_can_be_is_refused() {
        let span = |after, before| {
            fields(
                proto::BroadcastFilter { connected_after: after, connected_before: before, ..Default::default() },
                false,
            )
        };
        assert_eq!(span(at(5, 0), at(5, 0)), [CONNECTED_BEFORE]);
        assert_eq!(span(at(5, 1), at(5, 2)), [CONNECTED_BEFORE], "no millisecond lies between them");
        assert_eq!(span(at(5, 0), at(5, 1)), Vec::<&str>::new());
        assert_eq!(span(at(-5, 999_999_999), at(5, 0)), Vec::<&str>::new());
        assert_eq!(span(at(0, 1_000_000_000), None), [CONNECTED_AFTER]);
    }

    #[test]
    fn a_durable_broadcast_leaves_out_users_and_nothing_else() {
        let expected = [TOPIC, DEVICES, USER_AGENT, CONNECTED_AFTER, CONNECTED_BEFORE, CLAIMS, EXCLUDE_SESSIONS];
        assert_eq!(fields(full(), true), expected);
        let users = proto::BroadcastFilter { exclude_user_ids: vec!["alice".into()], ..Default::default() };
        assert_eq!(fields(users, true), Vec::<&str>::new());
    }
}
