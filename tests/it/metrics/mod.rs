//! `/metrics`, its table in `docs/metrics.md`, and the dashboard and rules in `ops/` that stand on it.

mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::support::Gateway;

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    kind: String,
    labels: BTreeSet<String>,
}

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(at(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn quoted(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The families of the table, by the name under which they are declared.
fn table() -> BTreeMap<String, Row> {
    let text = read("docs/metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `pushgate_"));
    let mut families = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, name, kind, labels, meaning, _] = cells[..] else { panic!("{row}") };
        assert!(!meaning.is_empty(), "{row}");
        let name = name.trim_matches('`');
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            "gauge" | "histogram" => "",
            other => panic!("{other} in {row}"),
        };
        let family = name.strip_suffix(suffix).unwrap_or_else(|| panic!("{name} is a {kind}")).to_owned();
        let found = Row { kind: kind.to_owned(), labels: quoted(labels) };
        assert_eq!(families.insert(family, found), None, "{name} has two rows");
    }
    families
}

/// What is exposed: families with their types and the labels of their samples.
fn exposed(text: &str) -> BTreeMap<String, Row> {
    let mut families = BTreeMap::new();
    let mut last = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            last = name.to_owned();
            families.insert(last.clone(), Row { kind: kind.to_owned(), labels: BTreeSet::new() });
        } else if !line.starts_with('#')
            && let Some((_, labels)) = line.split_once('{')
        {
            let labels = labels.rsplit_once('}').unwrap().0;
            let names = labels.split("\",").map(|label| label.split_once('=').unwrap().0.to_owned());
            families.get_mut(&last).unwrap().labels.extend(names.filter(|name| name != "le"));
        }
    }
    families
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_says_what_is_exposed_and_nothing_else() {
    let gateway = Gateway::start().await;
    let table = table();
    let mut exposed = exposed(&gateway.ops().get("/metrics").await.body);
    // Only there with a certificate, which tests/it/tls.rs sees.
    let expiry = exposed.get_mut("pushgate_tls_certificate_expiry_timestamp_seconds").unwrap();
    assert!(expiry.labels.insert("listener".to_owned()));
    let undocumented: Vec<_> = exposed.keys().filter(|name| !table.contains_key(*name)).collect();
    assert!(undocumented.is_empty(), "no row in docs/metrics.md: {undocumented:?}");
    for (name, row) in &table {
        assert_eq!(exposed.get(name), Some(row), "{name}");
    }
    let labels = read("docs/metrics.md");
    for label in table.values().flat_map(|row| &row.labels) {
        assert!(labels.contains(&format!("\n| `{label}`")), "the values of {label} are not listed");
    }
}

/// The series that a family has.
fn series() -> BTreeSet<String> {
    let of = |(name, row): (String, Row)| {
        let suffixes: &[&str] = match row.kind.as_str() {
            "counter" => &["_total"],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        suffixes.iter().map(|suffix| format!("{name}{suffix}")).collect::<Vec<_>>()
    };
    table().into_iter().flat_map(of).collect()
}

/// The names of metrics in an expression.
fn named(expression: &str) -> impl Iterator<Item = &str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    expression.split(move |c: char| !is_word(c)).filter(|word| word.starts_with("pushgate_"))
}

/// Each metric of an expression exists.
fn check(expression: &str, known: &BTreeSet<String>, seen: &mut BTreeSet<String>, what: &str) {
    let names: Vec<_> = named(expression).collect();
    assert!(!names.is_empty() || expression.starts_with("up{"), "{what}: {expression}");
    for name in names {
        assert!(known.contains(name), "{what}: {name} does not exist: {expression}");
        seen.insert(name.to_owned());
    }
}

#[test]
fn every_expression_of_the_dashboard_and_the_rules_names_what_exists() {
    let known = series();
    let dashboard: Value = serde_json::from_str(&read("ops/grafana/pushgate.json")).unwrap();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36 && dashboard["id"].is_null());
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert!(variables.iter().any(|one| one["type"] == "datasource" && one["query"] == "prometheus"));
    let (mut seen, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "two panels have one id");
        let (place, title) = (&panel["gridPos"], panel["title"].as_str().unwrap());
        assert!(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24, "{title}");
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        assert!(!panel["description"].as_str().unwrap().is_empty(), "{title}");
        for target in panel["targets"].as_array().unwrap() {
            check(target["expr"].as_str().unwrap(), &known, &mut seen, title);
        }
    }
    let unseen: Vec<_> = table().into_keys().filter(|name| !seen.iter().any(|one| one.starts_with(name))).collect();
    assert!(unseen.is_empty(), "on no panel: {unseen:?}");

    let rules = read("ops/prometheus/pushgate.rules.yml");
    let mut alerts = 0;
    let mut anchors = 0;
    let lines: Vec<&str> = rules.lines().map(str::trim).collect();
    for (index, line) in lines.iter().enumerate() {
        if let Some(alert) = line.strip_prefix("- alert: ") {
            alerts += 1;
            let rule = &lines[index..lines.len().min(index + 14)];
            assert_eq!(rule[1], "expr: >-", "{alert}");
            check(rule[2], &known, &mut seen, alert);
            for part in ["severity: ", "summary: ", "description: "] {
                assert!(rule.iter().any(|line| line.starts_with(part)), "{alert} has no {part}");
            }
            let runbook = format!("runbook: docs/operations.md#{}", alert.to_lowercase());
            anchors += usize::from(rule.contains(&runbook.as_str()));
        }
    }
    assert!(alerts >= 20 && anchors == alerts, "{anchors} of {alerts} say what to do");
}
