//! `pushgate sessions`: who is connected, all pages of it.

use std::time::SystemTime;

use clap::Args;

use super::{
    connect::{Format, Gateway, Target},
    failure::Outcome,
    json,
    output::{self, duration, span},
    table::{self, Column, age},
};
use crate::{api::proto, limits};

/// `pushgate sessions`.
#[derive(Args, Debug)]
pub struct Sessions {
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// Which of them.
#[derive(Args, Clone, Debug, Default)]
pub struct Filter {
    /// Only sessions of this user
    #[arg(long)]
    user: Option<String>,
    /// Only sessions of this device; '' is the unnamed one
    #[arg(long)]
    device: Option<String>,
    /// Only this session
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Only sessions from this IP address or network, such as 10.0.0.0/8 or 2001:db8::/32
    #[arg(long, value_name = "IP")]
    address: Option<String>,
    /// Only sessions that are in this topic
    #[arg(long)]
    topic: Option<String>,
}

/// The id comes whole, so that it can be given to `close`; what matters least goes first where the terminal is narrow.
const COLUMNS: [Column; 11] = [
    Column::text("SESSION", 36),
    Column::text("USER", 6),
    Column::text("DEVICE", 6),
    Column::number("AGE"),
    Column::number("IDLE"),
    Column::text("STATE", 7),
    Column::number("UNCONFIRMED"),
    Column::number("OUTBOX"),
    Column::number("RTT"),
    Column::text("ADDRESS", 9),
    Column::text("AGENT", 10),
];

/// Runs `pushgate sessions`.
pub async fn sessions(args: Sessions) -> Outcome {
    let gateway = args.target.connect().await?;
    let mut sessions = Vec::new();
    pages(&gateway, &args.filter, |page| sessions.extend(page)).await?;
    if args.format.json {
        let listed = proto::ListSessionsResponse { sessions, next_page_token: String::new() };
        return output::document(&json::document("ListSessionsResponse", &listed));
    }
    if sessions.is_empty() {
        return output::line("no sessions");
    }
    let now = SystemTime::now();
    let rows: Vec<_> = sessions.iter().map(|session| row(session, now)).collect();
    table::lines(&COLUMNS, &rows, output::width()).iter().try_for_each(|line| output::line(line))
}

/// Hands every page of them to `take`.
pub async fn pages(gateway: &Gateway, filter: &Filter, mut take: impl FnMut(Vec<proto::Session>)) -> Outcome {
    let mut page_token = String::new();
    loop {
        let request = proto::ListSessionsRequest {
            user_id: filter.user.clone().unwrap_or_default(),
            session_id: filter.session.clone().unwrap_or_default(),
            device: filter.device.clone(),
            address: filter.address.clone().unwrap_or_default(),
            topic: filter.topic.clone().unwrap_or_default(),
            page_size: limits::PAGE_ROWS_MAX as u32,
            page_token,
        };
        let answered = gateway.calls().list_sessions(gateway.request(request)).await;
        let page = answered.map_err(|status| gateway.refused(&status))?.into_inner();
        take(page.sessions);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(());
        }
    }
}

/// A state as people call it.
pub fn state(state: proto::SessionState) -> &'static str {
    match state {
        proto::SessionState::Unspecified => "",
        proto::SessionState::Pulling => "pulling",
        proto::SessionState::Live => "live",
        proto::SessionState::Closing => "closing",
    }
}

fn row(session: &proto::Session, now: SystemTime) -> Vec<String> {
    vec![
        session.session_id.clone(),
        session.user_id.clone(),
        session.device.clone(),
        age(session.connected_at, now),
        age(session.last_activity, now),
        state(session.state()).to_owned(),
        session.unconfirmed.to_string(),
        output::bytes(session.outbox_bytes as f64),
        session.rtt.map_or_else(String::new, |rtt| span(duration(Some(&rtt)))),
        session.remote_address.clone(),
        session.user_agent.clone(),
    ]
}
