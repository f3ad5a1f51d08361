//! What `pushgate stress` prints: a line a test, a table, and how it ends.

use std::{collections::BTreeMap, fmt::Display, time::Duration};

use crate::{
    cli::{
        failure::{EXIT_FAILURE, EXIT_UNAVAILABLE, Failure},
        output,
        table::{self, Column},
    },
    stress::report::{Latency, Report, Restart},
};

/// The longest bar, in characters.
const BAR: u64 = 60;

/// One line on a test that is over.
pub fn summary(report: &Report) -> String {
    let Report { test, connections, sent, received, lost, duplicates, out_of_order, .. } = report;
    let (connected, asked) = (connections.connected, connections.asked);
    format!(
        "{test}: {connected} of {asked} connected, {sent} sent, {received} received in {:.1} s, {lost} lost, \
         {duplicates} twice, {out_of_order} out of order",
        report.seconds
    )
}

/// The table: a column a test, a row a figure.
pub fn rows(reports: &[Report]) -> Vec<String> {
    type Cell = fn(&Report) -> Option<String>;
    fn number(value: impl Display) -> Option<String> {
        Some(value.to_string())
    }
    fn whole(value: f64) -> Option<String> {
        (value > 0.0).then(|| format!("{value:.0}"))
    }
    fn micros(latency: Option<&Latency>, of: fn(&Latency) -> u64) -> Option<String> {
        latency.map(|latency| output::span(Duration::from_micros(of(latency))))
    }
    // What a test is about: how long connecting took, or a replay, else how long messages were under way.
    fn main(report: &Report) -> Option<&Latency> {
        match report.test {
            "storm" => report.connect.as_ref(),
            "replay" => report.replay.as_ref(),
            _ => report.latency.as_ref(),
        }
    }
    let figures: [(&str, Cell); 31] = [
        ("connected", |report| number(report.connections.connected)),
        ("failed to connect", |report| number(report.connections.failed)),
        ("closed by the gateway", |report| number(report.connections.closed.values().sum::<u64>())),
        ("seconds", |report| Some(format!("{:.2}", report.seconds))),
        ("connects/s", |report| whole(report.per_second.connects)),
        ("sent", |report| number(report.sent)),
        ("not sent", |report| number(report.unsent)),
        ("failed calls", |report| number(report.refused.values().sum::<u64>())),
        ("sent/s", |report| whole(report.per_second.sent)),
        ("received", |report| number(report.received)),
        ("received/s", |report| whole(report.per_second.received)),
        ("latency of", |report| {
            Some(match report.test {
                "storm" => "connect".to_owned(),
                "replay" => "replay".to_owned(),
                "throughput" | "sustained" => "echo".to_owned(),
                _ => "delivery".to_owned(),
            })
        }),
        ("  p50", |report| micros(main(report), |latency| latency.p50_micros)),
        ("  p90", |report| micros(main(report), |latency| latency.p90_micros)),
        ("  p99", |report| micros(main(report), |latency| latency.p99_micros)),
        ("  p99.9", |report| micros(main(report), |latency| latency.p999_micros)),
        ("  max", |report| micros(main(report), |latency| latency.max_micros)),
        ("connect p50", |report| micros(report.connect.as_ref(), |latency| latency.p50_micros)),
        ("connect p99", |report| micros(report.connect.as_ref(), |latency| latency.p99_micros)),
        ("answer p50", |report| micros(report.answer.as_ref(), |latency| latency.p50_micros)),
        ("answer p99", |report| micros(report.answer.as_ref(), |latency| latency.p99_micros)),
        ("lost", |report| number(report.lost)),
        ("duplicates", |report| number(report.duplicates)),
        ("out of order", |report| number(report.out_of_order)),
        ("somebody else's", |report| number(report.misdelivered)),
        ("not to be got", |report| number(report.unexpected)),
        ("of another run", |report| number(report.foreign)),
        ("gateway CPU", |report| Some(format!("{:.2}s", report.server.as_ref()?.cpu_seconds))),
        ("  µs a", |report| {
            let server = report.server.as_ref()?;
            Some(format!("{} {:.2}", server.unit, server.cpu_micros_per_unit?))
        }),
        ("gateway memory", |report| Some(output::bytes(report.server.as_ref()?.rss_bytes as f64))),
        ("  a session", |report| Some(output::bytes(report.server.as_ref()?.rss_bytes_per_session?))),
    ];
    let mut columns = vec![Column::number("")];
    columns.extend(reports.iter().map(|report| Column::number(report.test)));
    let cells = figures.iter().map(|(title, cell)| {
        let found: Vec<_> = reports.iter().map(cell).collect();
        (format!("{title:21}"), found)
    });
    let told = cells.filter(|(_, found)| found.iter().any(Option::is_some));
    let rows: Vec<Vec<String>> = told
        .map(|(title, found)| [title].into_iter().chain(found.into_iter().map(Option::unwrap_or_default)).collect())
        .collect();
    // Whatever the terminal's width: a column that is not shown would be a test that is not told.
    let mut lines = table::lines(&columns, &rows, usize::MAX);
    lines.extend(reports.iter().filter_map(details));
    lines.extend(reports.iter().filter_map(|report| report.restart.as_ref()).flat_map(returns));
    lines
}

/// What the table has no room for: reasons, codes and outcomes, where there are any.
fn details(report: &Report) -> Option<String> {
    fn counts<K: Display>(what: &str, counts: &BTreeMap<K, u64>) -> Option<String> {
        let all: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        (!all.is_empty()).then(|| format!("{what} {}", all.join(", ")))
    }
    let connections = &report.connections;
    let all = [
        counts("failed to connect:", &connections.failures),
        counts("closed:", &connections.closed),
        counts("failed calls:", &report.refused),
        counts("errors:", &report.errors),
        counts("answers:", &report.outcomes).filter(|_| report.outcomes.len() > 1),
    ];
    let all: Vec<String> = all.into_iter().flatten().collect();
    (!all.is_empty()).then(|| output::clean(&format!("{}: {}", report.test, all.join("; "))).into_owned())
}

/// How sessions came back over a restart: when they went, a bar for each second, and how long messages took.
fn returns(restart: &Restart) -> Vec<String> {
    let most = restart.each_second.iter().copied().max().unwrap_or_default().max(1);
    let window = |what: &str, ends: Option<[f64; 2]>| {
        ends.map(|[first, last]| format!("{what} from {first:.1} s to {last:.1} s after the restart was asked for"))
    };
    let mut lines: Vec<String> = window("ended", restart.left).into_iter().collect();
    lines.extend(window("back", restart.returned));
    let first = restart.each_second.iter().position(|count| *count > 0).unwrap_or_default();
    lines.extend(restart.each_second.iter().enumerate().skip(first).map(|(second, count)| {
        let bar = "#".repeat(usize::try_from(count * BAR / most).unwrap_or_default());
        format!("{second:5} s {count:6} {bar}").trim_end().to_owned()
    }));
    lines.push(format!("in each tenth of that window: {:?}", restart.tenths));
    let parts = [("before", &restart.before), ("until all were back", &restart.around), ("then", &restart.after)];
    lines.extend(parts.into_iter().filter_map(|(part, latency)| {
        let latency = latency.as_ref()?;
        let [p50, p99, max] = [latency.p50_micros, latency.p99_micros, latency.max_micros]
            .map(|micros| output::span(Duration::from_micros(micros)));
        Some(format!("delivery {part}: {} messages, p50 {p50}, p99 {p99}, max {max}", latency.count))
    }));
    lines.push(format!("sent again until taken: {}", restart.sent_again));
    lines
}

/// Why tests that did not pass did not.
pub fn verdict(reports: &[Report]) -> Failure {
    if let Some(report) = reports.iter().find(|report| report.connections.connected == 0) {
        let failures = &report.connections.failures;
        let most = failures.iter().max_by_key(|(_, count)| **count).map(|(what, _)| &**what);
        let reason = most.unwrap_or("no reason was given");
        return Failure::new(EXIT_UNAVAILABLE, format!("nobody could connect ({}): {reason}", report.test));
    }
    let mut parts = Vec::new();
    for report in reports {
        let faults = [
            (report.lost, "lost"),
            (report.out_of_order, "out of order"),
            (report.misdelivered, "for somebody else"),
            (report.unexpected, "that nobody was to get"),
        ];
        let counted = faults.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        let all: Vec<String> = counted.chain(report.shortfall()).collect();
        if !all.is_empty() {
            parts.push(format!("{}: {}", report.test, all.join(", ")));
        }
    }
    Failure::new(EXIT_FAILURE, parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stress::Kind;

    #[test]
    fn every_test_is_a_column() {
        let reports: Vec<Report> =
            Kind::ALL.iter().map(|kind| Report { test: kind.as_str(), ..Report::default() }).collect();
        let lines = rows(&reports);
        for kind in Kind::ALL {
            assert!(lines[0].contains(kind.as_str()), "{}", lines[0]);
        }
        assert!(lines.iter().any(|line| line.trim_start().starts_with("lost")), "{lines:#?}");
        assert!(lines.iter().all(|line| line.chars().count() < 110), "{lines:#?}");
    }
}
