//! `pushgate top`: the sessions that weigh most, again and again.

use std::time::{Duration, SystemTime};

use clap::Args;
use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Style, Stylize as _},
    text::Line,
    widgets::Paragraph,
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::{
    super::{
        connect::{Format, Target, span},
        failure::{Failure, Outcome},
        json, operator,
        output::{self, count},
        sessions::Filter,
        table,
    },
    View, WAITING_MAX,
    asking::{self, News},
    foot, has_screen,
    rank::{Best, COLUMNS, Order, Ranking, cells},
    show, trouble,
};

/// The shortest time between two listings.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The sessions that a screen of any height shows.
const ROWS_MAX: usize = 500;

/// Its examples.
pub const EXAMPLES: &str = "Examples:
  pushgate top
  pushgate top --by messages --address 10.0.0.0/8
  pushgate top --once --rows 5
  pushgate top --once --by outbox --json | jq -r '.sessions[].sessionId'";

/// `pushgate top`.
#[derive(Args, Debug)]
pub struct Top {
    /// What comes first; on the screen a key chooses: o, m, b, u, r
    #[arg(long, value_enum, default_value_t)]
    by: Order,
    /// How often the sessions are listed; less often where that takes more than a tenth of the time
    #[arg(long, value_name = "SPAN", default_value = "2s", value_parser = interval)]
    interval: Duration,
    /// How many sessions; on a screen as many as it has room for
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    rows: u16,
    /// List them twice, an interval apart, print that, and end
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = span(text)?;
    if interval < INTERVAL_MIN { Err("must be at least 100ms".to_owned()) } else { Ok(interval) }
}

/// Runs `pushgate top`.
pub async fn top(args: Top) -> Outcome {
    let gateway = args.target.connect().await?;
    let rows = usize::from(args.rows);
    if args.once {
        let mut ranking = Ranking::new(rows);
        ranking.listed(&gateway, &args.filter).await?;
        tokio::time::sleep(args.interval).await;
        return print(&ranking.listed(&gateway, &args.filter).await?, args.by, args.format);
    }
    if args.format.json || !has_screen() {
        let mut ranking = Ranking::new(rows);
        let endless = async {
            let mut next = Instant::now();
            loop {
                ranking.listed(&gateway, &args.filter).await?;
                next = (next + args.interval).max(Instant::now());
                tokio::time::sleep_until(next).await;
                print(&ranking.listed(&gateway, &args.filter).await?, args.by, args.format)?;
            }
        };
        return operator::until_stopped(endless).await;
    }
    drop(gateway);
    let (sender, news) = mpsc::channel(WAITING_MAX);
    let asking = asking::listings(args.target, args.filter, args.interval, ROWS_MAX, sender);
    show(Screen::new(args.by), news, asking).await
}

fn print(best: &Best, order: Order, format: Format) -> Outcome {
    if format.json {
        return output::json_line(&document(best, order)?);
    }
    let now = SystemTime::now();
    let rows: Vec<_> = best.by(order).iter().map(|row| cells(row, now)).collect();
    output::line(&heading(best, order))?;
    if rows.is_empty() {
        return Ok(());
    }
    table::lines(&COLUMNS, &rows, output::width()).iter().try_for_each(|line| output::line(line))
}

fn heading(best: &Best, order: Order) -> String {
    format!("{}, by {}", count(best.total as u64, "session"), order.key().1)
}

/// The sessions as `ListSessions` has them, and their rates.
fn document(best: &Best, order: Order) -> Outcome<Value> {
    let failed = |error: serde_json::Error| Failure::new(super::super::failure::EXIT_FAILURE, error.to_string());
    let mut sessions = Vec::new();
    for row in best.by(order) {
        let mut session = serde_json::to_value(json::document("Session", &row.session)).map_err(failed)?;
        session["messagesPerSecond"] = json!(row.messages);
        session["bytesPerSecond"] = json!(row.bytes);
        sessions.push(session);
    }
    Ok(json!({ "by": order.key().1, "total": best.total, "sessions": sessions }))
}

struct Screen {
    best: Option<Best>,
    order: Order,
    trouble: Option<String>,
    paused: bool,
}

impl Screen {
    fn new(order: Order) -> Self {
        Self { best: None, order, trouble: None, paused: false }
    }
}

impl View for Screen {
    fn take(&mut self, news: News) {
        match news {
            News::Nothing(why) => self.trouble = Some(why),
            News::Sessions(best) => {
                self.trouble = None;
                if !self.paused || self.best.is_none() {
                    self.best = Some(best);
                }
            }
            // Nobody asks for it here.
            News::Page(_) => {}
        }
    }

    fn key(&mut self, key: char) {
        self.order = Order::of(key).unwrap_or(self.order);
    }

    fn pause(&mut self) {
        self.paused = !self.paused;
    }

    fn draw(&self, frame: &mut Frame) {
        let parts = [Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)];
        let [head, middle, last] = Layout::vertical(parts).areas(frame.area());
        let text = self.best.as_ref().map_or_else(|| "asking the gateway".to_owned(), |best| heading(best, self.order));
        match &self.trouble {
            Some(why) => trouble(frame, head, why),
            None => frame.render_widget(Line::from(text).bold(), head),
        }
        if let Some(best) = &self.best {
            let now = SystemTime::now();
            let room = usize::from(middle.height.saturating_sub(1));
            let rows: Vec<_> = best.by(self.order).iter().take(room).map(|row| cells(row, now)).collect();
            let lines = table::lines(&COLUMNS, &rows, usize::from(middle.width));
            let mut lines: Vec<_> = lines.into_iter().map(Line::from).collect();
            if let Some(first) = lines.first_mut() {
                *first = first.clone().style(Style::new().reversed());
            }
            frame.render_widget(Paragraph::new(lines), middle);
        }
        let orders = Order::ALL.map(Order::key);
        foot(frame, last, &[&[("q", "quit"), ("space", "pause")][..], &orders].concat(), self.paused);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::drawn, *};
    use crate::api::proto;

    fn best() -> Best {
        let mut ranking = Ranking::new(ROWS_MAX);
        let mut listing = ranking.begin(Instant::now());
        for (user_id, outbox_bytes, messages_sent) in [("alice", 10, 500), ("bob", 4096, 1)] {
            let (session_id, user_id) = (user_id.to_owned(), user_id.to_owned());
            listing.add(proto::Session { session_id, user_id, outbox_bytes, messages_sent, ..Default::default() });
        }
        listing.end()
    }

    #[test]
    fn a_key_chooses_the_order() {
        let mut screen = Screen::new(Order::Outbox);
        screen.take(News::Sessions(best()));
        let lines = drawn((120, 10), |frame| screen.draw(frame));
        assert!(lines[0].starts_with("2 sessions, by outbox") && lines[2].starts_with("bob"), "{lines:#?}");
        screen.key('m');
        let lines = drawn((120, 10), |frame| screen.draw(frame));
        assert!(lines[0].starts_with("2 sessions, by messages") && lines[2].starts_with("alice"), "{lines:#?}");
        screen.key('x');
        assert_eq!(screen.order, Order::Messages);
    }

    #[test]
    fn what_is_paused_says_so_also_where_it_is_narrow() {
        let mut screen = Screen::new(Order::Outbox);
        screen.take(News::Sessions(best()));
        screen.pause();
        for width in [20, 80] {
            let lines = drawn((width, 24), |frame| screen.draw(frame));
            assert!(lines[23].starts_with("PAUSED   q quit"), "{lines:#?}");
        }
        screen.pause();
        assert!(drawn((80, 24), |frame| screen.draw(frame))[23].starts_with("q quit"));
    }

    #[test]
    fn every_size_can_be_drawn() {
        let mut screen = Screen::new(Order::Rtt);
        screen.take(News::Sessions(best()));
        for (width, height) in [(1, 1), (2, 3), (20, 2), (79, 24), (300, 100)] {
            drawn((width, height), |frame| screen.draw(frame));
            drawn((width, height), |frame| Screen::new(Order::Rtt).draw(frame));
        }
    }

    #[test]
    fn json_has_sessions_as_they_are_listed_and_their_rates() {
        let document = document(&best(), Order::Messages).unwrap();
        assert_eq!((&document["by"], &document["total"]), (&json!("messages"), &json!(2)));
        let first = &document["sessions"][0];
        assert_eq!((&first["userId"], &first["messagesSent"]), (&json!("alice"), &json!("500")));
        assert_eq!(first["messagesPerSecond"], json!(500.0));
    }
}
