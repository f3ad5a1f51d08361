//! What `pushgate store check` and `stats` print.

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    cli::{
        output::{bytes, clean, count},
        table::{self, Column},
    },
    store::tools::{Mailbox, Problem, Report, Stats},
    types::{LogId, UnixMillis},
};

const NAMES: usize = 16;

fn row(name: &str, value: impl std::fmt::Display) -> String {
    format!("  {name:<NAMES$}{value}")
}

fn place_of(problem: &Problem) -> String {
    let log = problem.log.as_ref().map(|log| match log {
        LogId::User(user) => format!("user {}", clean(user.as_str())),
        LogId::Broadcast => "broadcasts".to_owned(),
        LogId::Topic(topic) => format!("topic {}", clean(topic.as_str())),
    });
    let offset = problem.offset.map(|offset| format!("offset {offset}"));
    let place: Vec<_> = log.into_iter().chain(offset).collect();
    if place.is_empty() { "store".to_owned() } else { place.join(", ") }
}

/// A check for people.
pub fn report_text(path: &Path, report: &Report) -> String {
    let mut lines = vec![
        format!("{}: {}", path.display(), report.engine),
        row("rows", report.rows),
        row("users", report.users),
        row("devices", report.devices),
        row(
            "pending",
            format!("{}, {}", count(report.pending.count, "notification"), bytes(report.pending.bytes as f64)),
        ),
        row("  broadcasts", report.broadcasts),
        row("  in topics", report.topics),
        row("  chunks", report.chunks),
        row("remembered ids", report.ids),
        row("revocations", report.revocations),
    ];
    if report.damaged == 0 {
        lines.push("no damage found".to_owned());
    }
    lines.extend(report.problems.iter().map(|one| format!("DAMAGED  {}: {}", place_of(one), clean(&one.what))));
    let more = report.damaged.saturating_sub(report.problems.len() as u64);
    if more > 0 {
        lines.push(format!("and {} more", count(more, "problem")));
    }
    lines.join("\n")
}

/// A check as JSON.
pub fn report_json(report: &Report) -> Value {
    let problems: Vec<_> = report
        .problems
        .iter()
        .map(|one| {
            let user = one.log.as_ref().and_then(LogId::user).map(|user| user.as_str());
            let broadcast = one.log == Some(LogId::Broadcast);
            let topic = one.log.as_ref().and_then(LogId::topic).map(|topic| topic.as_str());
            let offset = one.offset.map(|offset| offset.get().to_string());
            json!({ "userId": user, "broadcast": broadcast, "topic": topic, "offset": offset, "message": one.what })
        })
        .collect();
    json!({
        "engine": report.engine,
        "rows": report.rows.to_string(),
        "users": report.users.to_string(),
        "devices": report.devices.to_string(),
        "pending": { "count": report.pending.count.to_string(), "bytes": report.pending.bytes.to_string() },
        "broadcasts": report.broadcasts.to_string(),
        "topics": report.topics.to_string(),
        "members": report.members.to_string(),
        "chunks": report.chunks.to_string(),
        "ids": report.ids.to_string(),
        "revocations": report.revocations.to_string(),
        "damaged": report.damaged.to_string(),
        "problems": problems,
    })
}

fn moment(at: Option<UnixMillis>) -> String {
    at.map_or_else(|| "none".to_owned(), |at| at.rfc3339().to_string())
}

fn mailboxes(title: &'static str, mailboxes: &[Mailbox], width: usize) -> Vec<String> {
    let columns = [Column::text(title, 12), Column::number("PENDING"), Column::number("BYTES")];
    let rows: Vec<_> = mailboxes
        .iter()
        .map(|one| vec![one.user.as_str().to_owned(), one.count.to_string(), bytes(one.bytes as f64)])
        .collect();
    table::lines(&columns, &rows, width)
}

/// What is in a store, for people.
pub fn stats_text(path: &Path, stats: &Stats, width: usize) -> String {
    let pending = |count_: u64, of: u64, what: &str| format!("{}, {}", count(count_, what), bytes(of as f64));
    let mut lines = vec![
        format!(
            "{}: {}, format {}, {} on disk",
            path.display(),
            stats.engine,
            stats.format,
            bytes(stats.disk_bytes as f64)
        ),
        row("store epoch", stats.epoch),
        row("users", stats.users),
        row("devices", format!("{}, {} forgotten", stats.devices, stats.forgotten)),
        row("pending", pending(stats.notifications.count, stats.notifications.bytes, "notification")),
        row("broadcasts", pending(stats.broadcasts.count, stats.broadcasts.bytes, "broadcast")),
        row(
            "topics",
            format!(
                "{}, {}",
                pending(stats.topics.count, stats.topics.bytes, "record"),
                count(stats.members, "member")
            ),
        ),
        row("remembered ids", stats.ids),
        row("revocations", stats.revocations),
        row("oldest", moment(stats.oldest)),
        row("newest", moment(stats.newest)),
    ];
    for (title, top) in [("MOST PENDING", &stats.by_count), ("MOST BYTES", &stats.by_bytes)] {
        if !top.is_empty() {
            lines.push(String::new());
            lines.extend(mailboxes(title, top, width));
        }
    }
    lines.join("\n")
}

/// The same as JSON.
pub fn stats_json(stats: &Stats) -> Value {
    let top = |mailboxes: &[Mailbox]| -> Vec<Value> {
        let one = |one: &Mailbox| json!({ "userId": one.user.as_str(), "count": one.count.to_string(), "bytes": one.bytes.to_string() });
        mailboxes.iter().map(one).collect()
    };
    let moment = |at: Option<UnixMillis>| at.map(|at| at.rfc3339().to_string());
    let pending = |count: u64, bytes: u64| json!({ "count": count.to_string(), "bytes": bytes.to_string() });
    json!({
        "engine": stats.engine,
        "format": stats.format,
        "storeEpoch": stats.epoch,
        "diskBytes": stats.disk_bytes.to_string(),
        "users": stats.users.to_string(),
        "devices": stats.devices.to_string(),
        "forgotten": stats.forgotten.to_string(),
        "pending": pending(stats.notifications.count, stats.notifications.bytes),
        "broadcasts": pending(stats.broadcasts.count, stats.broadcasts.bytes),
        "topics": pending(stats.topics.count, stats.topics.bytes),
        "members": stats.members.to_string(),
        "ids": stats.ids.to_string(),
        "revocations": stats.revocations.to_string(),
        "oldest": moment(stats.oldest),
        "newest": moment(stats.newest),
        "topByCount": top(&stats.by_count),
        "topByBytes": top(&stats.by_bytes),
    })
}
