//! The matrix of README.md: who may do what with which topic. Configuration, tokens and cells are read from there, so that
//! each cell of the documentation is one that was tried.

use figment::providers::{Format as _, Toml};
use serde_json::{Value, json};

use crate::support::{Client, Gateway, Token};

/// What is between two lines of a text.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let start = text.find(from).unwrap_or_else(|| panic!("no `{from}`")) + from.len();
    let rest = &text[start..];
    &rest[..rest.find(to).unwrap_or_else(|| panic!("no `{to}` behind `{from}`"))]
}

/// The cells of a row, without the bars and quotes around them.
fn cells(row: &str) -> Vec<String> {
    row.trim().trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
}

/// A value as TOML on one line.
fn inline(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{name} = {}", inline(value)));
            format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

async fn may(client: &mut Client, action: &str, topic: &str) -> bool {
    let ask = json!({ "type": action, "topic": topic, "id": "asked" });
    client.say(&ask).await;
    if matches!(action, "publish" | "typing") {
        // What is allowed is not answered.
        client.say(&json!({ "type": "ping", "id": "asked" })).await;
    }
    let answer = client.next().await;
    assert_eq!(answer["replyTo"], "asked", "{answer}");
    let allowed = match answer["type"].as_str().unwrap() {
        "error" => {
            assert_eq!(answer["code"], "forbidden");
            if matches!(action, "publish" | "typing") {
                assert_eq!(client.next().await["type"], "pong");
            }
            false
        }
        "subscribed" | "user_list" | "pong" => true,
        other => panic!("{other}"),
    };
    if allowed && action == "subscribe" {
        client.ask(&json!({ "type": "unsubscribe", "topic": topic })).await;
    }
    allowed
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cell_of_the_documented_matrix_holds() {
    let readme = include_str!("../../../README.md");
    let section = between(readme, "\n## Topics and rooms\n", "\n## ");
    let toml = between(section, "```toml\n", "```");
    let rules: Value = Toml::from_str(toml).unwrap();
    let (topics, message) = (inline(&rules["topics"]), inline(&rules["clients"]["message"]));
    let gateway = Gateway::with(&[("topics", &topics), ("clients.message", &message)]).await;

    let table = between(section, "<!-- matrix -->\n", "<!-- end of matrix -->");
    let mut rows = table.lines().filter(|line| line.starts_with('|')).map(cells);
    let head = rows.next().unwrap();
    assert!(rows.next().unwrap().iter().all(|cell| cell.starts_with("---")));
    assert_eq!(head[..3], ["rule", "name", "action"]);
    let mut clients = Vec::new();
    for claims in &head[3..] {
        let claims: Value = serde_json::from_str(claims).unwrap_or_else(|error| panic!("{claims}: {error}"));
        let token = claims
            .as_object()
            .unwrap()
            .iter()
            .fold(Token::of("alice"), |token, (name, value)| token.with(name, value.clone()));
        clients.push(gateway.client_by(&token, "").await);
    }
    let (mut tried, mut allowed) = (0, 0);
    for row in rows {
        assert_eq!(row.len(), head.len(), "{row:?}");
        let [rule, name, action] = &row[..3] else { panic!() };
        let patterns = rules["topics"].as_array().unwrap();
        let known = patterns.iter().any(|one| one["pattern"].as_str() == Some(rule));
        assert!(known || rule == "none" || rule == "clients.message", "{rule}");
        for ((client, cell), claims) in clients.iter_mut().zip(&row[3..]).zip(&head[3..]) {
            let expected = match cell.as_str() {
                "yes" => true,
                "–" => false,
                other => panic!("{other}"),
            };
            let may = match rule.as_str() {
                "clients.message" => may_say(client, action, name).await,
                _ => may(client, action, name).await,
            };
            assert_eq!(may, expected, "{claims}: {action} {name}");
            tried += 1;
            allowed += u32::from(may);
        }
    }
    assert!(tried >= 60 && allowed >= 20 && tried - allowed >= 20, "{tried} cells, {allowed} of them allowed");
}

/// Whether a client may say something to a user.
async fn may_say(client: &mut Client, action: &str, to: &str) -> bool {
    client.say(&json!({ "type": action, "to": to, "id": "asked" })).await;
    client.say(&json!({ "type": "ping", "id": "end" })).await;
    let answer = client.next().await;
    if answer["replyTo"] == "end" {
        return true;
    }
    assert_eq!((&answer["code"], &answer["replyTo"]), (&json!("forbidden"), &json!("asked")));
    assert_eq!(client.next().await["replyTo"], "end");
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn without_rules_a_client_may_do_nothing_on_its_own() {
    let gateway = Gateway::start().await;
    let mut client = gateway.client_by(&Token::of("alice").with("role", "admin"), "").await;
    for action in ["subscribe", "publish", "typing", "user_list", "unsubscribe"] {
        for topic in ["a", "room.1", "alice", "*"] {
            let (code, _) = client.refused(&json!({ "type": action, "topic": topic })).await;
            assert_eq!(code, "forbidden", "{action} {topic}");
        }
    }
    for action in ["message", "typing"] {
        assert_eq!(client.refused(&json!({ "type": action, "to": "alice" })).await.0, "forbidden");
    }
    assert_eq!(gateway.errors("forbidden").await, 22);
}

/// Rights are those of the token in force when something is asked; what a session is in it stays in.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_changes_what_may_be_asked_from_then_on() {
    let rule = r#"[{ pattern = "team.{team}", subscribe = ["*"], publish = ["role=lead"] }]"#;
    let gateway = Gateway::with(&[("topics", rule)]).await;
    let token = |team: &str, role: &str| Token::of("alice").with("team", team).with("role", role);
    let mut alice = gateway.client_by(&token("red", "lead"), "").await;
    alice.subscribe("team.red").await;
    assert!(may(&mut alice, "publish", "team.red").await);
    let renewed = alice.ask(&json!({ "type": "auth", "token": token("blue", "member").sign() })).await;
    assert_eq!(renewed["type"], "auth_success");
    for (action, topic, allowed) in
        [("subscribe", "team.blue", true), ("publish", "team.blue", false), ("publish", "team.red", false)]
    {
        assert_eq!(may(&mut alice, action, topic).await, allowed, "{action} {topic}");
    }
    assert_eq!(gateway.rpc().await.publish("team.red", 1).await, 1);
}
