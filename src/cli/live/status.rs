//! `pushgate status --watch` on a terminal: rates with their last minutes, what `pushgate status` says, and the sessions that
//! lag most.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Style, Stylize as _},
    text::{Line, Span},
    widgets::{Block, Borders, Paragraph, RenderDirection, Sparkline},
};
use tokio::sync::mpsc;

use super::{
    super::{
        connect::{Gateway, Target},
        failure::Outcome,
        output::{count, duration},
        sessions::Filter,
        status, table,
    },
    View, WAITING_MAX,
    asking::{self, News},
    foot,
    rank::{Best, COLUMNS, Order, cells},
    show, style, trouble,
};
use crate::api::proto::GetStatusResponse;

/// How often sessions are listed, where that is quick.
const LISTING_PERIOD: Duration = Duration::from_secs(2);
/// The sessions that a screen of any height shows.
const ROWS_MAX: usize = 200;
/// What a sparkline remembers: more than any screen is wide.
const POINTS_MAX: usize = 600;
/// The height of the sparklines with their frames, and of the screen below which there are none.
const SPARKS: (u16, u16) = (6, 30);
/// The lines that are kept for the sessions, their two headings included, on a screen of twice that many or more.
const TABLE_MIN: u16 = 5;
/// A sparkline has whole numbers: a hundredth of a unit is one.
const SCALE: f64 = 100.0;

/// Runs until a key, a signal or a failure that asking again does not mend.
pub async fn watch(target: Target, gateway: Gateway, period: Duration) -> Outcome {
    let (sender, news) = mpsc::channel(WAITING_MAX);
    let pages = asking::pages(target.clone(), gateway, period, sender.clone());
    let listings = asking::listings(target, Filter::default(), LISTING_PERIOD, ROWS_MAX, sender);
    let asking = async {
        tokio::select! {
            failure = pages => failure,
            failure = listings => failure,
        }
    };
    show(Screen::default(), news, asking).await
}

/// A quantity over time, the newest first.
#[derive(Default)]
struct Series {
    points: VecDeque<u64>,
    now: f64,
}

impl Series {
    fn push(&mut self, value: f64) {
        self.now = value;
        self.points.truncate(POINTS_MAX - 1);
        self.points.push_front((value * SCALE).round() as u64);
    }
}

/// What there was at one moment.
struct Sample {
    epoch: String,
    up: Duration,
    messages: [u64; 2],
    cpu: Duration,
}

#[derive(Default)]
struct Screen {
    page: Option<Box<GetStatusResponse>>,
    before: Option<Sample>,
    sent: Series,
    received: Series,
    sessions: Series,
    cpu: Series,
    best: Best,
    order: Order,
    trouble: Option<String>,
    paused: bool,
}

impl Screen {
    /// Adds a point to each line. The times are the gateway's own, so that a slow answer is no dip.
    fn count(&mut self, page: &GetStatusResponse) {
        let messages = [page.sent, page.received].map(|traffic| traffic.unwrap_or_default().messages);
        let process = page.process.unwrap_or_default();
        let now = Sample {
            epoch: page.epoch.clone(),
            up: duration(page.uptime.as_ref()),
            messages,
            cpu: duration(process.cpu.as_ref()),
        };
        self.sessions.push(f64::from(page.sessions));
        // A gateway that was started anew counts from nothing.
        if let Some(before) = self.before.replace(now).filter(|before| before.epoch == page.epoch)
            && let Some(now) = &self.before
            && now.up > before.up
        {
            let seconds = (now.up - before.up).as_secs_f64();
            let rate = |place: usize| now.messages[place].saturating_sub(before.messages[place]) as f64 / seconds;
            let (sent, received) = (rate(0), rate(1));
            let cpu = now.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds * 100.0;
            self.sent.push(sent);
            self.received.push(received);
            self.cpu.push(cpu);
        }
    }

    fn sparks(&self, frame: &mut Frame, area: Rect) {
        let lines = [
            (format!("sent {:.1}/s", self.sent.now), &self.sent, Style::new().green()),
            (format!("received {:.1}/s", self.received.now), &self.received, Style::new().cyan()),
            (count(self.sessions.now as u64, "session"), &self.sessions, Style::new().blue()),
            (format!("CPU {:.0} % of a core", self.cpu.now), &self.cpu, Style::new().yellow()),
        ];
        let areas = Layout::horizontal([Constraint::Fill(1); 4]).spacing(1).split(area);
        for ((title, series, colour), area) in lines.into_iter().zip(areas.iter()) {
            let most = series.points.iter().take(usize::from(area.width)).copied().max().unwrap_or_default();
            let block = Block::new().borders(Borders::TOP).title(title);
            let line = Sparkline::default()
                .block(block)
                .data(&series.points)
                // Nothing but zeros is a line of nothing, and not of full bars.
                .max(most.max(1))
                .direction(RenderDirection::RightToLeft)
                .style(style(colour));
            frame.render_widget(line, *area);
        }
    }

    /// What `pushgate status` says, what is wrong in red.
    fn facts(page: &GetStatusResponse, width: usize) -> Vec<Line<'static>> {
        let bad = |name: &str| match name {
            "alerts" => !page.alerts.is_empty(),
            "store" => !page.store.as_ref().is_some_and(|store| store.healthy),
            _ => false,
        };
        let mut lines = Vec::new();
        for (name, items) in status::facts(page) {
            // Every line of the block in its colour, also where it had to be broken.
            for line in status::wrapped(name, &items, width).lines() {
                let line = Line::from(line.to_owned());
                lines.push(if bad(name) { line.style(style(Style::new().red().bold())) } else { line });
            }
        }
        lines
    }

    fn table(&self, frame: &mut Frame, area: Rect) {
        let room = usize::from(area.height.saturating_sub(1));
        let rows = self.best.by(self.order);
        let shown = rows.len().min(room.saturating_sub(1));
        let now = SystemTime::now();
        let cells: Vec<_> = rows.iter().take(shown).map(|row| cells(row, now)).collect();
        let (_, order) = self.order.key();
        let title = format!("sessions by {order}: {shown} of {}", self.best.total);
        let mut lines = vec![Line::from(Span::from(title).bold())];
        if shown > 0 {
            lines.extend(table::lines(&COLUMNS, &cells, usize::from(area.width)).into_iter().map(Line::from));
            lines[1] = lines[1].clone().style(Style::new().reversed());
        }
        frame.render_widget(Paragraph::new(lines), area);
    }
}

impl View for Screen {
    fn take(&mut self, news: News) {
        match news {
            News::Nothing(why) => self.trouble = Some(why),
            // What is paused stays as it is on the screen; its lines go on.
            News::Page(page) => {
                self.trouble = None;
                self.count(&page);
                if !self.paused || self.page.is_none() {
                    self.page = Some(page);
                }
            }
            News::Sessions(best) if !self.paused => self.best = best,
            News::Sessions(_) => {}
        }
    }

    fn key(&mut self, key: char) {
        self.order = Order::of(key).unwrap_or(self.order);
    }

    fn pause(&mut self) {
        self.paused = !self.paused;
    }

    fn draw(&self, frame: &mut Frame) {
        let area = frame.area();
        let width = usize::from(area.width);
        let facts = self.page.as_deref().map(|page| Self::facts(page, width)).unwrap_or_default();
        let sparks = if area.height >= SPARKS.1 { SPARKS.0 } else { 0 };
        let room = area.height.saturating_sub(2 + sparks);
        let rows = u16::try_from(self.best.by(self.order).len()).unwrap_or(u16::MAX);
        let kept = rows.saturating_add(2).min(TABLE_MIN).min(room / 2);
        let height = u16::try_from(facts.len()).unwrap_or(u16::MAX).min(room - kept);
        let parts = [
            Constraint::Length(1),
            Constraint::Length(sparks),
            Constraint::Length(height),
            Constraint::Min(0),
            Constraint::Length(1),
        ];
        let [head, top, middle, bottom, last] = Layout::vertical(parts).areas(area);
        match (&self.trouble, self.page.as_deref()) {
            (Some(why), _) => trouble(frame, head, why),
            (None, Some(page)) => {
                let heading = Line::from(status::heading(page));
                let heading = if page.draining { heading.yellow() } else { heading };
                frame.render_widget(heading.bold(), head);
            }
            (None, None) => frame.render_widget(Line::from("asking the gateway"), head),
        }
        if sparks > 0 {
            self.sparks(frame, top);
        }
        frame.render_widget(Paragraph::new(facts), middle);
        self.table(frame, bottom);
        foot(frame, last, &[("q", "quit"), ("space", "pause"), ("o m b u r", "order of sessions")], self.paused);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::drawn, *};
    use crate::api::proto;

    fn page(seconds: i64, messages: u64) -> Box<GetStatusResponse> {
        let traffic = |messages| proto::Traffic { messages, ..Default::default() };
        Box::new(GetStatusResponse {
            version: "1.2.3".into(),
            node: "host".into(),
            epoch: "one".into(),
            uptime: Some(prost_types::Duration { seconds, nanos: 0 }),
            sessions: 3,
            sent: Some(traffic(messages)),
            received: Some(traffic(messages / 2)),
            store: Some(proto::StoreStatus { healthy: true, engine: "sled".into(), ..Default::default() }),
            process: Some(proto::ProcessStatus {
                cpu: Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 * i32::try_from(seconds).unwrap() }),
                rss_bytes: 1024,
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    fn screen() -> Screen {
        let mut screen = Screen::default();
        screen.take(News::Page(page(1, 100)));
        screen.take(News::Page(page(3, 140)));
        screen
    }

    #[test]
    fn rates_are_what_was_counted_between_two_answers() {
        let mut screen = screen();
        assert_eq!((screen.sent.now, screen.received.now, screen.cpu.now), (20.0, 10.0, 10.0));
        // Another start of the daemon: its counters begin anew, and that is no rate.
        screen.take(News::Page(Box::new(GetStatusResponse { epoch: "two".into(), ..*page(1, 7) })));
        assert_eq!((screen.sent.now, screen.sent.points.len(), screen.sessions.points.len()), (20.0, 1, 3));
        screen.take(News::Page(Box::new(GetStatusResponse { epoch: "two".into(), ..*page(2, 8) })));
        assert_eq!(screen.sent.now, 1.0);
        for _ in 0..2 * POINTS_MAX {
            screen.sent.push(1.0);
        }
        assert_eq!(screen.sent.points.len(), POINTS_MAX);
    }

    #[test]
    fn it_shows_rates_facts_and_the_sessions_that_lag() {
        let mut screen = screen();
        let mut ranking = super::super::rank::Ranking::new(ROWS_MAX);
        let mut listing = ranking.begin(tokio::time::Instant::now());
        for (user_id, outbox_bytes, unconfirmed) in [("alice", 10, 9), ("bob\u{1b}[2J", 4096, 0)] {
            let session_id = user_id.to_owned();
            let user_id = user_id.to_owned();
            listing.add(proto::Session { session_id, user_id, outbox_bytes, unconfirmed, ..Default::default() });
        }
        screen.take(News::Sessions(listing.end()));
        let lines = drawn((150, 40), |frame| screen.draw(frame));
        let text = lines.join("\n");
        for part in
            ["pushgate 1.2.3 on host: serving", "sent 20.0/s", "CPU 10 % of a core", "3 sessions", "healthy", "█"]
        {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        let place = |name: &str| lines.iter().position(|line| line.starts_with(name)).unwrap();
        assert!(place("sessions by outbox: 2 of 2") + 2 == place("bob\\u{1b}[2J"), "{text}");
        assert!(place("bob") < place("alice"), "{text}");
        screen.key('u');
        let lines = drawn((150, 40), |frame| screen.draw(frame));
        let place = |name: &str| lines.iter().position(|line| line.starts_with(name)).unwrap();
        assert!(place("alice") < place("bob"), "{}", lines.join("\n"));
    }

    #[test]
    fn a_small_terminal_has_sessions_too() {
        let mut screen = screen();
        let alerts = (0..40).map(|n| proto::Alert { name: format!("alert {n}"), ..Default::default() });
        screen.take(News::Page(Box::new(GetStatusResponse { alerts: alerts.collect(), ..*page(4, 150) })));
        let mut ranking = super::super::rank::Ranking::new(ROWS_MAX);
        let mut listing = ranking.begin(tokio::time::Instant::now());
        for user_id in ["alice", "bob", "carol", "dave"] {
            let (session_id, user_id) = (user_id.to_owned(), user_id.to_owned());
            listing.add(proto::Session { session_id, user_id, ..Default::default() });
        }
        screen.take(News::Sessions(listing.end()));
        for (height, rows) in [(24, 3), (30, 3), (40, 4)] {
            let lines = drawn((80, height), |frame| screen.draw(frame));
            let shown =
                lines.iter().filter(|line| ["alice", "bob", "carol", "dave"].iter().any(|n| line.starts_with(n)));
            assert_eq!(shown.count(), rows, "{lines:#?}");
            assert!(lines.contains(&format!("sessions by outbox: {rows} of 4")), "{lines:#?}");
        }
    }

    #[test]
    fn a_gateway_that_does_not_answer_is_told_and_what_was_known_stays() {
        let mut screen = screen();
        screen.take(News::Nothing("nobody\u{1b}there".into()));
        let lines = drawn((100, 30), |frame| screen.draw(frame));
        assert!(lines[0].starts_with("no answer, asking again: nobody\\u{1b}there"), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("healthy")), "{lines:?}");
        screen.take(News::Page(page(4, 150)));
        assert!(drawn((100, 30), |frame| screen.draw(frame))[0].starts_with("pushgate 1.2.3"));
    }

    #[test]
    fn what_is_paused_stays_and_says_so() {
        let mut screen = screen();
        screen.pause();
        screen.take(News::Page(Box::new(GetStatusResponse { users: 77, ..*page(4, 150) })));
        let text = drawn((100, 30), |frame| screen.draw(frame)).join("\n");
        assert!(text.contains("PAUSED") && !text.contains("77 users"), "{text}");
        screen.pause();
        screen.take(News::Page(Box::new(GetStatusResponse { users: 77, ..*page(5, 150) })));
        let text = drawn((100, 30), |frame| screen.draw(frame)).join("\n");
        assert!(!text.contains("PAUSED") && text.contains("77 users"), "{text}");
    }

    #[test]
    fn every_size_can_be_drawn() {
        let screen = screen();
        for width in [1, 2, 10, 40, 79, 300] {
            for height in [1, 2, 3, 5, 12, 24, 100] {
                drawn((width, height), |frame| screen.draw(frame));
                drawn((width, height), |frame| Screen::default().draw(frame));
            }
        }
        let lines = drawn((80, 12), |frame| screen.draw(frame));
        assert!(lines[0].starts_with("pushgate") && lines[11].starts_with("q quit"), "{lines:?}");
    }
}
