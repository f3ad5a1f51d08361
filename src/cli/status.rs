//! `pushgate status` and `pushgate health`: how the gateway does.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    connect::{Format, Gateway, Target},
    failure::{EXIT_PERMISSION, EXIT_UNAVAILABLE, Failure, Outcome},
    json, live,
    output::{self, bytes, clean, count, duration, span},
};
use crate::api::proto;

/// How often `--watch` asks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// The width of the names.
const NAMES: usize = 13;

/// `pushgate status`.
#[derive(Args, Debug)]
pub struct Status {
    /// Go on until interrupted: on a terminal a live screen, else a page a second; with --json a line a second
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// `pushgate health`.
#[derive(Args, Debug)]
pub struct Health {
    /// The service to ask for [default: the gateway as a whole]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    service: String,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// Asks for the page.
pub async fn fetch(gateway: &Gateway) -> Outcome<proto::GetStatusResponse> {
    let answered = gateway.calls().get_status(gateway.request(proto::GetStatusRequest {})).await;
    Ok(answered.map_err(|status| gateway.refused(&status))?.into_inner())
}

/// Runs `pushgate status`.
pub async fn status(args: Status) -> Outcome {
    let gateway = args.target.connect().await?;
    if !args.watch {
        let page = fetch(&gateway).await?;
        return match args.format.json {
            true => output::document(&json::document("GetStatusResponse", &page)),
            false => output::line(&page_text(&page, output::width())),
        };
    }
    if !args.format.json && live::has_screen() {
        return live::status::watch(args.target, gateway, WATCH_INTERVAL).await;
    }
    let watching = async {
        let mut ticks = tokio::time::interval(WATCH_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let page = fetch(&gateway).await?;
            if args.format.json {
                output::json_line(&json::document("GetStatusResponse", &page))?;
            } else {
                output::line(&format!("{}\n", page_text(&page, output::width())))?;
            }
        }
    };
    super::operator::until_stopped(watching).await
}

/// The page for people.
fn page_text(page: &proto::GetStatusResponse, width: usize) -> String {
    let facts = facts(page).into_iter().map(|(name, items)| wrapped(name, &items, width));
    [heading(page)].into_iter().chain(facts).collect::<Vec<_>>().join("\n")
}

/// Its first line.
pub fn heading(page: &proto::GetStatusResponse) -> String {
    let state = if page.draining { "STOPPING" } else { "serving" };
    let since = page.started_at.map(|at| at.to_string()).unwrap_or_default();
    let up = span(duration(page.uptime.as_ref()));
    format!("pushgate {} on {}: {state}, up {up}, since {since}", clean(&page.version), clean(&page.node))
}

/// The others: a name, and what belongs to it.
pub fn facts(page: &proto::GetStatusResponse) -> Vec<(&'static str, Vec<String>)> {
    let mut facts = Vec::new();
    let mut row = |name: &'static str, items: Vec<String>| facts.push((name, items));

    let listeners = page.listeners.iter().map(|one| format!("{} {}", clean(&one.name), clean(&one.address)));
    row("listeners", listeners.collect());
    let connections = page.connections.unwrap_or_default();
    let limits = page.limits.clone().unwrap_or_default();
    row(
        "connections",
        vec![
            format!("{} now of {}", connections.now, bound(limits.connections.into())),
            format!("{} at most", connections.peak),
            format!("{} since the start", connections.total),
        ],
    );
    row("online", vec![count(page.users, "user"), count(page.sessions, "session")]);
    for (name, traffic) in [("received", page.received), ("sent", page.sent)] {
        let traffic = traffic.unwrap_or_default();
        row(
            name,
            vec![
                format!("{} {}", count(traffic.messages, "message"), parenthesised(bytes(traffic.bytes as f64))),
                format!(
                    "{:.1}/s {}",
                    traffic.messages_per_second,
                    parenthesised(bytes(traffic.bytes_per_second) + "/s")
                ),
            ],
        );
    }
    let latency = page.confirm_latency.unwrap_or_default();
    let mut confirmed = vec![count(latency.count, "time")];
    if latency.count > 0 {
        let spans = [("half", latency.p50), ("90%", latency.p90), ("99%", latency.p99), ("all", latency.max)];
        confirmed.extend(spans.map(|(share, at)| format!("{share} within {}", span(duration(at.as_ref())))));
    }
    row("confirmed", confirmed);
    let pending = page.pending.unwrap_or_default();
    row(
        "pending",
        vec![
            count(pending.count, "notification"),
            format!("{} of {}", bytes(pending.bytes as f64), bound_bytes(limits.max_store_bytes)),
        ],
    );
    let store = page.store.clone().unwrap_or_default();
    let healthy = if store.healthy { "healthy".to_owned() } else { format!("FAILING: {}", clean(&store.reason)) };
    row(
        "store",
        vec![clean(&store.engine).into_owned(), healthy, format!("{} on disk", bytes(store.disk_bytes as f64))],
    );
    let events = page.event_streams.unwrap_or_default();
    row(
        "events",
        vec![
            format!("{} since the start", events.events),
            count(events.open, "stream"),
            format!("{} lost", events.lost),
        ],
    );
    let mut alerts: Vec<_> =
        page.alerts.iter().map(|one| format!("{}: {}", clean(&one.name), clean(&one.text))).collect();
    if alerts.is_empty() {
        alerts.push("none".to_owned());
    }
    row("alerts", alerts);
    let process = page.process.unwrap_or_default();
    row(
        "process",
        vec![
            format!("{} of CPU", span(duration(process.cpu.as_ref()))),
            format!("{} of {}", bytes(process.rss_bytes as f64), bytes(process.memory_total_bytes as f64)),
        ],
    );
    let mut hits: Vec<_> = limits.hits.iter().filter(|(_, n)| **n > 0).collect();
    hits.sort_by(|(one, n), (other, m)| m.cmp(n).then(one.cmp(other)));
    if !hits.is_empty() {
        row("limits", hits.into_iter().map(|(name, n)| format!("{} {n} times", clean(name))).collect());
    }
    let mut errors: Vec<_> = page.errors.iter().filter(|(_, n)| **n > 0).collect();
    errors.sort_by(|(one, n), (other, m)| m.cmp(n).then(one.cmp(other)));
    let mut items = vec![format!("{:.1}/s", page.errors_per_second)];
    items.extend(errors.into_iter().map(|(name, n)| format!("{} {n}", clean(name))));
    row("errors", items);
    facts
}

fn parenthesised(text: String) -> String {
    format!("({text})")
}

fn bound(limit: u64) -> String {
    if limit == 0 { "any number".to_owned() } else { limit.to_string() }
}

fn bound_bytes(limit: u64) -> String {
    if limit == 0 { "any size".to_owned() } else { bytes(limit as f64) }
}

/// A name and what belongs to it, broken between items where the terminal ends.
pub fn wrapped(name: &str, items: &[String], width: usize) -> String {
    let mut text = format!("  {name:<NAMES$}");
    let mut used = text.chars().count();
    for (index, item) in items.iter().enumerate() {
        let item = if index + 1 < items.len() { format!("{item}, ") } else { item.clone() };
        let length = item.trim_end().chars().count();
        if index > 0 && used + length > width {
            text.truncate(text.trim_end().len());
            text.push_str(&format!("\n  {:<NAMES$}", ""));
            used = NAMES + 2;
        }
        text.push_str(&item);
        used += item.chars().count();
    }
    text
}

/// Asks grpc.health, which is open to everyone.
pub async fn serving(gateway: &Gateway, service: String) -> Outcome<ServingStatus> {
    let request = gateway.request(HealthCheckRequest { service });
    let answered = HealthClient::new(gateway.channel()).check(request).await;
    Ok(answered.map_err(|status| gateway.refused(&status))?.into_inner().status())
}

/// Runs `pushgate health`.
pub async fn health(args: Health) -> Outcome {
    let gateway = args.target.connect().await?;
    // Whoever asks wants one answer to act on: one that does not answer in time does not serve.
    let status = serving(&gateway, args.service).await.map_err(|failure| match failure.code() {
        EXIT_PERMISSION => failure,
        _ => Failure::new(EXIT_UNAVAILABLE, failure.message()),
    })?;
    if args.format.json {
        output::document(&json!({ "status": status.as_str_name() }))?;
    } else if status == ServingStatus::Serving {
        output::line("serving")?;
    }
    if status == ServingStatus::Serving {
        return Ok(());
    }
    let text = format!("{} is not serving: {}", gateway.address(), status.as_str_name());
    Err(Failure::new(EXIT_UNAVAILABLE, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_shows_what_is_wrong_and_stays_within_the_terminal() {
        let page = proto::GetStatusResponse {
            version: "1.2.3".to_owned(),
            node: "host".to_owned(),
            listeners: (0..5)
                .map(|n| proto::Listener {
                    name: "http".to_owned(),
                    address: format!("127.0.0.1:{n}"),
                    ..Default::default()
                })
                .collect(),
            errors: [("auth_failed".to_owned(), 3), ("panic".to_owned(), 0)].into(),
            store: Some(proto::StoreStatus { reason: "disk full".to_owned(), ..Default::default() }),
            ..Default::default()
        };
        let text = page_text(&page, 60);
        assert!(text.lines().skip(1).all(|line| line.chars().count() <= 60), "{text}");
        assert!(text.contains("FAILING: disk full") && text.contains("0.0/s, auth_failed 3"), "{text}");
        assert!(!text.contains("panic"), "{text}");
        assert!(text.contains("\n  listeners    http 127.0.0.1:0, http 127.0.0.1:1,\n"), "{text}");
    }
}
