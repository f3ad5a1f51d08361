//! What clients may do with topics and towards each other: `[[topics]]` and `clients.message`, compiled.
//!
//! A pattern matches a whole name. In it `*` is any run of characters, also none; `{sub}` the client's user id; `{name}`
//! a claim of his token, text or any of a list, never empty; everything else is itself. The first rule whose pattern
//! matches decides, whatever it grants; without one nothing is allowed. A rule with placeholders matches only for the
//! client whose values fill it. What a value holds is never read as a pattern.
//!
//! A grant is `*` (every client) or `claim=text` (the claim is that text, or a list that holds it).

use std::{collections::BTreeSet, time::Duration};

use super::config::TopicRule;
use crate::{
    limits,
    types::{Claims, Topic, UserId},
};

/// What a client may be allowed to do with a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Hear what is published to it.
    Subscribe,
    /// Publish to it, and be typing in it.
    Publish,
    /// Be told who is in it, and of those who come and go.
    Presence,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// His user id.
    pub user: &'a UserId,
    /// What his token says, as far as it is kept.
    pub claims: &'a Claims,
}

/// A rule or grant that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {text}")]
pub struct BadRule {
    /// The key of the configuration.
    pub key: String,
    /// What is wrong and what is allowed.
    pub text: String,
}

/// All rules. See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    topics: Vec<Rule>,
    message: Vec<Grant>,
}

#[derive(Clone, Debug)]
struct Rule {
    pattern: Pattern,
    kept: Option<Kept>,
    subscribe: Vec<Grant>,
    publish: Vec<Grant>,
    presence: Vec<Grant>,
}

/// How what is published to a durable topic is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// For how long; `None`: `store.ttl`.
    pub ttl: Option<Duration>,
    /// How much at most; then the oldest goes.
    pub max_records: usize,
}

#[derive(Clone, Debug)]
struct Pattern(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Any,
    /// `sub` is the user id, wherever the token has it.
    Claim(Box<str>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Grant {
    Everyone,
    Claim(Box<str>, Box<str>),
}

/// The claim that stands for the user id.
const SUB: &str = "sub";

impl Rules {
    /// Compiles `[[topics]]` and `clients.message`.
    ///
    /// # Errors
    /// Everything that cannot be understood, each with its key.
    pub fn new(topics: &[TopicRule], message: &[String]) -> Result<Self, Vec<BadRule>> {
        let mut bad = Vec::new();
        if topics.len() > limits::TOPIC_RULES_MAX {
            let text = format!("has {} rules, and at most {} are allowed", topics.len(), limits::TOPIC_RULES_MAX);
            bad.push(BadRule { key: "topics".to_owned(), text });
        }
        let mut compiled = Vec::new();
        for (index, rule) in topics.iter().enumerate() {
            let key = |name: &str| format!("topics[{index}].{name}");
            let pattern = Pattern::parse(&rule.pattern);
            let pattern = pattern.map_err(|text| bad.push(BadRule { key: key("pattern"), text })).ok();
            let mut grants = |name, list| grants(&key(name), list, &mut bad);
            let (subscribe, publish) = (grants("subscribe", &rule.subscribe), grants("publish", &rule.publish));
            let presence = grants("presence", &rule.presence);
            let max_records = rule.max_records.unwrap_or(limits::TOPIC_RECORDS) as usize;
            let kept = rule.durable.then(|| Kept { ttl: rule.ttl.map(|ttl| ttl.0), max_records });
            compiled.extend(pattern.map(|pattern| Rule { pattern, kept, subscribe, publish, presence }));
        }
        let message = grants("clients.message", message, &mut bad);
        if bad.is_empty() { Ok(Self { topics: compiled, message }) } else { Err(bad) }
    }

    /// Whether a client may do that with a topic on his own.
    pub fn allows(&self, action: Action, topic: &Topic, client: Client<'_>) -> bool {
        let rule = self.topics.iter().find(|rule| rule.pattern.matches(topic.as_str(), Some(client)));
        rule.is_some_and(|rule| is_granted(rule.grants(action), client))
    }

    /// Whether a client may send messages to users.
    pub fn allows_messages(&self, client: Client<'_>) -> bool {
        is_granted(&self.message, client)
    }

    /// Whether there may be a client who is told who is in a topic; else nobody need keep account of it.
    pub fn may_show_presence(&self, topic: &Topic) -> bool {
        let shows = |rule: &&Rule| !rule.presence.is_empty() && rule.pattern.matches(topic.as_str(), None);
        self.topics.iter().any(|rule| shows(&rule))
    }

    /// How what is published to a topic is kept, where it is: as the first rule says whose pattern matches the name, whoever
    /// publishes. `None`: it is not kept.
    pub fn kept(&self, topic: &Topic) -> Option<Kept> {
        self.topics.iter().find(|rule| rule.pattern.matches(topic.as_str(), None))?.kept
    }

    /// The claims that have to be known of a session for that.
    pub fn claims(&self) -> BTreeSet<String> {
        let parts = self.topics.iter().flat_map(|rule| &rule.pattern.0);
        let named = parts.filter_map(|part| if let Part::Claim(name) = part { Some(name) } else { None });
        let of_rule = |rule: &Rule| [rule.subscribe.clone(), rule.publish.clone(), rule.presence.clone()].concat();
        let grants = self.topics.iter().flat_map(of_rule).chain(self.message.iter().cloned());
        let asked = grants.filter_map(|grant| if let Grant::Claim(name, _) = grant { Some(name) } else { None });
        let all = named.cloned().chain(asked).map(String::from);
        all.filter(|name| name != SUB).collect()
    }
}

impl Rule {
    fn grants(&self, action: Action) -> &[Grant] {
        match action {
            Action::Subscribe => &self.subscribe,
            Action::Publish => &self.publish,
            Action::Presence => &self.presence,
        }
    }
}

fn is_granted(grants: &[Grant], client: Client<'_>) -> bool {
    grants.iter().any(|grant| match grant {
        Grant::Everyone => true,
        Grant::Claim(name, text) if &**name == SUB => client.user.as_str() == &**text,
        Grant::Claim(name, text) => client.claims.has(name, text),
    })
}

fn grants(key: &str, list: &[String], bad: &mut Vec<BadRule>) -> Vec<Grant> {
    let mut grants = Vec::new();
    for (index, text) in list.iter().enumerate() {
        match text.split_once('=') {
            None if text == "*" => grants.push(Grant::Everyone),
            Some((name, value)) if !name.is_empty() && !value.is_empty() => {
                grants.push(Grant::Claim(name.into(), value.into()));
            }
            _ => bad.push(BadRule {
                key: format!("{key}[{index}]"),
                text: format!(
                    "`{text}` is no grant; write \"*\" for every client, or a claim and its text, such as \"role=admin\""
                ),
            }),
        }
    }
    grants
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        let max = limits::TOPIC_PATTERN_BYTES_MAX;
        if text.is_empty() || text.len() > max {
            return Err(format!("has {} bytes, and 1 to {max} are allowed; \"*\" is every topic", text.len()));
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some(at) = rest.find(['*', '{', '}']) {
            if at > 0 {
                parts.push(Part::Text(rest[..at].into()));
            }
            rest = &rest[at..];
            if let Some(behind) = rest.strip_prefix('*') {
                // Two in a row are one.
                if parts.last() != Some(&Part::Any) {
                    parts.push(Part::Any);
                }
                rest = behind;
                continue;
            }
            let inside = rest.strip_prefix('{').and_then(|inside| inside.split_once('}'));
            let Some((name, behind)) = inside.filter(|(name, _)| !name.is_empty() && !name.contains(['{', '*'])) else {
                return Err(format!(
                    "`{text}` is no pattern; braces hold `sub` or the name of a claim, such as \"team.{{team}}.*\""
                ));
            };
            parts.push(Part::Claim(name.into()));
            rest = behind;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        Ok(Self(parts))
    }

    /// Whether it matches the whole name: for that client, or for one who is not known, who may have any value.
    fn matches(&self, name: &str, client: Option<Client<'_>>) -> bool {
        let mut places = Places::start();
        for part in &self.0 {
            places = match (part, client) {
                (Part::Text(text), _) => places.behind(name, std::iter::once(&**text)),
                (Part::Any, _) => places.onwards(name, 0),
                (Part::Claim(_), None) => places.onwards(name, 1),
                (Part::Claim(claim), Some(client)) if &**claim == SUB => {
                    places.behind(name, std::iter::once(client.user.as_str()))
                }
                (Part::Claim(claim), Some(client)) => {
                    let values = client.claims.texts(claim);
                    places.behind(name, values.iter().map(|value| &**value).filter(|value| !value.is_empty()))
                }
            };
        }
        places.0[name.len()]
    }
}

/// How far into a name the parts so far may reach: all places at once, so that no pattern takes long, whatever the name.
#[derive(Clone, Copy)]
struct Places([bool; limits::TOPIC_BYTES_MAX + 1]);

impl Places {
    const NONE: Places = Places([false; limits::TOPIC_BYTES_MAX + 1]);

    fn start() -> Self {
        let mut places = Self::NONE;
        places.0[0] = true;
        places
    }

    /// Those behind one of the texts, where it stands at one of the places.
    fn behind<'a>(&self, name: &str, texts: impl Iterator<Item = &'a str>) -> Self {
        let mut reached = Self::NONE;
        for text in texts {
            for at in 0..=name.len() {
                if self.0[at] && name.as_bytes()[at..].starts_with(text.as_bytes()) {
                    reached.0[at + text.len()] = true;
                }
            }
        }
        reached
    }

    /// Those at least so many bytes behind the first place.
    fn onwards(&self, name: &str, least: usize) -> Self {
        let mut reached = Self::NONE;
        if let Some(first) = self.0.iter().position(|there| *there) {
            (first + least..=name.len()).for_each(|at| reached.0[at] = true);
        }
        reached
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rule(pattern: &str, subscribe: &[&str], publish: &[&str], presence: &[&str]) -> TopicRule {
        let list = |grants: &[&str]| grants.iter().map(|grant| (*grant).to_owned()).collect();
        TopicRule {
            pattern: pattern.to_owned(),
            subscribe: list(subscribe),
            publish: list(publish),
            presence: list(presence),
            ..TopicRule::default()
        }
    }

    fn claims(rules: &Rules, value: Value) -> Claims {
        let Value::Object(all) = value else { panic!("no object") };
        Claims::of(&all, &rules.claims().into_iter().collect::<Vec<_>>())
    }

    /// Whether a pattern matches a name, for alice with these claims.
    fn matches(pattern: &str, name: &str, value: Value) -> bool {
        let rules = Rules::new(&[rule(pattern, &["*"], &[], &[])], &[]).unwrap();
        let (user, claims) = (UserId::parse("alice").unwrap(), claims(&rules, value));
        rules.allows(Action::Subscribe, &Topic::parse(name).unwrap(), Client { user: &user, claims: &claims })
    }

    #[test]
    fn a_pattern_matches_the_whole_name() {
        for (pattern, yes, no) in [
            ("news", &["news"][..], &["new", "newss", "News", "*"][..]),
            ("*", &["a", "room.1", "ä", "{sub}"], &[]),
            ("room.*", &["room.", "room.1", "room.1.2"], &["room", "xroom.1", "rooms.1"]),
            ("*.log", &[".log", "a.log", "a.log.log"], &["log", "a.logs"]),
            ("a*b*c", &["abc", "aXbYc", "abbcc", "abcbc"], &["ab", "acb", "abcd"]),
            ("a**b", &["ab", "aXXb"], &["a", "b"]),
            ("grün.*", &["grün.1"], &["grun.1"]),
        ] {
            for name in yes {
                assert!(matches(pattern, name, json!({})), "{pattern} {name}");
            }
            for name in no {
                assert!(!matches(pattern, name, json!({})), "{pattern} {name}");
            }
        }
        // Nothing to try again and again.
        assert!(!matches(&"*a".repeat(100), &"a".repeat(99), json!({})));
        assert!(matches(&"*a".repeat(100), &"a".repeat(200), json!({})));
    }

    #[test]
    fn placeholders_are_filled_by_the_clients_own_values_alone() {
        let token = json!({ "team": ["red", "blue"], "site": 7, "vip": true, "empty": "", "star": "*", "no": null });
        for (pattern, yes, no) in [
            ("user.{sub}", &["user.alice"][..], &["user.bob", "user.", "user.{sub}", "user.*"][..]),
            ("user.{sub}.*", &["user.alice.x", "user.alice."], &["user.alice", "user.bob.x"]),
            ("team.{team}.*", &["team.red.1", "team.blue."], &["team.green.1", "team.redblue.1", "team..1"]),
            ("{team}{team}", &["redblue", "redred"], &["red", "bluegreen"]),
            ("*{team}", &["red", "Xred", "redblue"], &["redX"]),
            ("{site}-{vip}", &["7-true"], &["7-false", "8-true"]),
            ("x{empty}", &[], &["x"]),
            ("x{star}", &["x*"], &["x", "xy"]),
            ("x{no}", &[], &["x", "xnull"]),
            ("x{unknown}", &[], &["x", "x{unknown}"]),
        ] {
            for name in yes {
                assert!(matches(pattern, name, token.clone()), "{pattern} {name}");
            }
            for name in no {
                assert!(!matches(pattern, name, token.clone()), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = [
            rule("room.secret", &[], &["role=admin"], &[]),
            rule("room.{team}", &["*"], &["*"], &["*"]),
            rule("room.*", &["role=guest", "sub=bob"], &[], &[]),
        ];
        let rules = Rules::new(&rules, &["vip=true".to_owned()]).unwrap();
        let asks = |name: &str, value: Value| {
            let (user, claims) = (UserId::parse(name).unwrap(), claims(&rules, value));
            let topic = |topic: &str| Topic::parse(topic).unwrap();
            let client = Client { user: &user, claims: &claims };
            let may = |action, name: &str| rules.allows(action, &topic(name), client);
            let all = [Action::Subscribe, Action::Publish, Action::Presence];
            let row = |name: &str| all.map(|action| may(action, name));
            (["room.secret", "room.red", "room.x", "other"].map(row), rules.allows_messages(client))
        };
        let none = [false; 3];
        let admin = [false, true, false];
        let guest = [true, false, false];
        assert_eq!(asks("alice", json!({})), ([none; 4], false));
        assert_eq!(asks("alice", json!({ "role": "admin" })), ([admin, none, none, none], false));
        assert_eq!(asks("alice", json!({ "team": "red", "vip": true })), ([none, [true; 3], none, none], true));
        assert_eq!(asks("alice", json!({ "role": ["guest"] })), ([none, guest, guest, none], false));
        assert_eq!(asks("bob", json!({ "sub": "alice" })), ([none, guest, guest, none], false), "the user id counts");
        assert_eq!(rules.claims().into_iter().collect::<Vec<_>>(), ["role", "team", "vip"]);
    }

    #[test]
    fn presence_is_kept_account_of_where_somebody_may_see_it() {
        let rules = [rule("lobby", &["*"], &[], &[]), rule("room.{team}.*", &[], &[], &["*"])];
        let rules = Rules::new(&rules, &[]).unwrap();
        let shows = |name: &str| rules.may_show_presence(&Topic::parse(name).unwrap());
        assert!(shows("room.a.") && shows("room.red.7"));
        assert!(!shows("lobby") && !shows("room..") && !shows("rooms"));
    }

    #[test]
    fn what_is_no_rule_is_refused_with_its_key() {
        let rules = [
            rule("", &[], &[], &[]),
            rule("a{b", &[], &[], &[]),
            rule("a}", &[], &[], &[]),
            rule("{}", &[], &[], &[]),
            rule("{a*}", &[], &[], &[]),
            rule(&"x".repeat(257), &[], &[], &[]),
            rule("ok", &["all"], &["=x"], &["role=", "*", ""]),
        ];
        let bad = Rules::new(&rules, &["nobody".to_owned()]).unwrap_err();
        let keys: Vec<_> = bad.iter().map(|bad| &*bad.key).collect();
        assert_eq!(
            keys,
            [
                "topics[0].pattern",
                "topics[1].pattern",
                "topics[2].pattern",
                "topics[3].pattern",
                "topics[4].pattern",
                "topics[5].pattern",
                "topics[6].subscribe[0]",
                "topics[6].publish[0]",
                "topics[6].presence[0]",
                "topics[6].presence[2]",
                "clients.message[0]",
            ]
        );
        assert!(
            bad[10].to_string().starts_with("clients.message[0]: `nobody` is no grant; write \"*\""),
            "{}",
            bad[10]
        );
        let many = vec![rule("x", &[], &[], &[]); limits::TOPIC_RULES_MAX + 1];
        assert_eq!(Rules::new(&many, &[]).unwrap_err()[0].key, "topics");
    }
}
