//! `pushgate users`: who is online, all pages of it.

use std::time::SystemTime;

use clap::Args;

use super::{
    connect::{Format, Gateway, Target},
    failure::Outcome,
    json, output,
    table::{self, Column, age},
};
use crate::{api::proto, limits};

/// `pushgate users`.
#[derive(Args, Debug)]
pub struct Users {
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

const COLUMNS: [Column; 4] =
    [Column::text("USER", 8), Column::number("SESSIONS"), Column::number("ONLINE"), Column::text("CLAIMS", 10)];

/// Runs `pushgate users`.
pub async fn users(args: Users) -> Outcome {
    let gateway = args.target.connect().await?;
    let users = all(&gateway).await?;
    if args.format.json {
        let listed = proto::ListUsersResponse { users, next_page_token: String::new() };
        return output::document(&json::document("ListUsersResponse", &listed));
    }
    if users.is_empty() {
        return output::line("nobody is online");
    }
    let now = SystemTime::now();
    let row =
        |user: &proto::User| vec![user.user_id.clone(), user.sessions.to_string(), age(user.since, now), claims(user)];
    let rows: Vec<_> = users.iter().map(row).collect();
    table::lines(&COLUMNS, &rows, output::width()).iter().try_for_each(|line| output::line(line))
}

async fn all(gateway: &Gateway) -> Outcome<Vec<proto::User>> {
    let mut users = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = proto::ListUsersRequest { page_size: limits::PAGE_ROWS_MAX as u32, page_token };
        let answered = gateway.calls().list_users(gateway.request(request)).await;
        let page = answered.map_err(|status| gateway.refused(&status))?.into_inner();
        users.extend(page.users);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(users);
        }
    }
}

/// What others see of a user, as JSON; nothing where there is nothing.
fn claims(user: &proto::User) -> String {
    let shown = serde_json::to_value(json::document("User", user)).unwrap_or_default();
    shown.get("claims").map(ToString::to_string).unwrap_or_default()
}
