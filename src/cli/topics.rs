//! `pushgate publish` and `pushgate topics`: to the sessions that are in a topic, and which topics there are.

use clap::Args;

use super::{
    connect::{Format, Target},
    failure::{Failure, Outcome},
    json, output,
    send::{self, Notification},
    table::{self, Column},
};
use crate::{api::proto, limits};

/// `pushgate publish`.
#[derive(Args, Debug)]
pub struct Publish {
    /// The topic; one that nobody is in is no error
    topic: String,
    #[command(flatten)]
    notification: Notification,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// `pushgate topics`.
#[derive(Args, Debug)]
pub struct Topics {
    /// Only this topic
    #[arg(default_value = "", hide_default_value = true)]
    topic: String,
    /// Only topics whose names begin so
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

const COLUMNS: [Column; 4] =
    [Column::text("TOPIC", 6), Column::number("SESSIONS"), Column::number("USERS"), Column::number("KEPT")];

/// Runs `pushgate publish`.
pub async fn publish(args: Publish) -> Outcome {
    let notification = args.notification.into_proto()?;
    if notification.payload.is_none() {
        return Err(Failure::usage("publish needs its data: JSON, --data-file FILE or --binary-file FILE"));
    }
    let request = proto::PublishRequest { topic: args.topic, notification: Some(notification) };
    let gateway = args.target.connect().await?;
    let answered = gateway.calls().publish(gateway.request(request)).await;
    let answer = answered.map_err(|status| gateway.refused(&status))?.into_inner();
    if args.format.json {
        return output::document(&json::document("PublishResponse", &answer));
    }
    let handed = output::count(answer.sessions, "session");
    output::line(&send::report(answer.outcome(), &answer.id, answer.offset, answer.duplicate, &handed))
}

/// Runs `pushgate topics`.
pub async fn topics(args: Topics) -> Outcome {
    let gateway = args.target.connect().await?;
    let (mut topics, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = proto::ListTopicsRequest {
            topic: args.topic.clone(),
            prefix: args.prefix.clone(),
            page_size: limits::PAGE_ROWS_MAX as u32,
            page_token,
        };
        let answered = gateway.calls().list_topics(gateway.request(request)).await;
        let page = answered.map_err(|status| gateway.refused(&status))?.into_inner();
        topics.extend(page.topics);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if args.format.json {
        let listed = proto::ListTopicsResponse { topics, next_page_token: String::new() };
        return output::document(&json::document("ListTopicsResponse", &listed));
    }
    if topics.is_empty() {
        return output::line("no topics");
    }
    let kept = |topic: &proto::Topic| if topic.durable { topic.records.to_string() } else { "-".to_owned() };
    let row = |topic: &proto::Topic| {
        vec![topic.topic.clone(), topic.sessions.to_string(), topic.users.to_string(), kept(topic)]
    };
    let rows: Vec<_> = topics.iter().map(row).collect();
    table::lines(&COLUMNS, &rows, output::width()).iter().try_for_each(|line| output::line(line))
}
