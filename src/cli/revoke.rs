//! `pushgate revoke`: tokens of clients that are void from now on.

use std::time::{Duration, SystemTime};

use clap::{ArgGroup, Args};

use super::{
    connect::{Format, Target},
    failure::Outcome,
    json, output,
    send::moment,
};
use crate::{api::proto, types::Span};

/// `pushgate revoke`.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("which").required(true), group = ArgGroup::new("until").required(true))]
pub struct Revoke {
    /// The token with this `jti`
    #[arg(long, group = "which")]
    jti: Option<String>,
    /// The tokens of this user
    #[arg(long, group = "which")]
    user: Option<String>,
    /// Only those that were issued before; RFC 3339 [default: now]
    #[arg(long, value_name = "TIME", requires = "user", value_parser = moment)]
    issued_before: Option<prost_types::Timestamp>,
    /// When the last of them runs out by itself, RFC 3339: until then it is remembered
    #[arg(long, value_name = "TIME", group = "until", value_parser = moment)]
    expires_at: Option<prost_types::Timestamp>,
    /// The same, as a time from now: as long as your tokens live at most
    #[arg(long, value_name = "TIME", group = "until", value_parser = span)]
    expires_in: Option<Span>,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

fn span(text: &str) -> Result<Span, String> {
    Span::parse(text).map_err(|error| error.to_string())
}

/// Runs `pushgate revoke`.
pub async fn revoke(args: Revoke) -> Outcome {
    let from_now = |span: Span| SystemTime::now() + span.0.min(Duration::from_secs(200 * 365 * 86_400));
    let request = proto::RevokeTokensRequest {
        jti: args.jti.unwrap_or_default(),
        user_id: args.user.unwrap_or_default(),
        issued_before: args.issued_before,
        expires_at: args.expires_at.or_else(|| args.expires_in.map(|span| from_now(span).into())),
    };
    let gateway = args.target.connect().await?;
    let answered = gateway.calls().revoke_tokens(gateway.request(request)).await;
    let answer = answered.map_err(|status| gateway.refused(&status))?.into_inner();
    if args.format.json {
        return output::document(&json::document("RevokeTokensResponse", &answer));
    }
    output::line(&format!("revoked; closed {}", output::count(answer.closed, "session")))
}
