//! `pushgate pending`, `purge`, `devices`, `forget`: what is stored for a user, and its clearing.

use std::time::SystemTime;

use clap::Args;

use super::{
    connect::{Format, Gateway, Target},
    failure::{Failure, Outcome},
    json,
    output::{self, clean, count},
    table::{self, Column, age, left},
};
use crate::{api::proto, limits};

/// `pushgate pending`.
#[derive(Args, Debug)]
pub struct Pending {
    /// The user; one that is not known is no error, nothing waits for him
    user: String,
    /// Only what waits for this device; '' is the unnamed one
    #[arg(long)]
    device: Option<String>,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// `pushgate purge`.
#[derive(Args, Debug)]
pub struct Purge {
    /// The user
    user: String,
    /// Only what waits for this device, other devices still get it; '' is the unnamed one
    #[arg(long)]
    device: Option<String>,
    /// Do it; without it the command only says how much would go
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// `pushgate devices`.
#[derive(Args, Debug)]
pub struct Devices {
    /// The user; one that is not known is no error, he has none
    user: String,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// `pushgate forget`.
#[derive(Args, Debug)]
pub struct Forget {
    /// The user
    user: String,
    /// Only this device; '' is the unnamed one
    #[arg(long)]
    device: Option<String>,
    /// Needed where it is the whole user who is to be forgotten
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

const PENDING_COLUMNS: [Column; 8] = [
    Column::number("OFFSET"),
    Column::text("ID", 12),
    Column::text("TYPE", 8),
    Column::number("BYTES"),
    Column::number("AGE"),
    Column::number("EXPIRES"),
    Column::text("WAITS FOR", 9),
    Column::text("COLLAPSE KEY", 6),
];

const DEVICE_COLUMNS: [Column; 10] = [
    Column::text("DEVICE", 8),
    Column::number("SESSIONS"),
    Column::number("PENDING"),
    Column::number("BROADCASTS"),
    Column::number("TOPICS"),
    Column::text("GAP", 3),
    Column::number("SEEN"),
    Column::number("KNOWN"),
    Column::number("CURSOR"),
    Column::number("BROADCAST CURSOR"),
];

/// Runs `pushgate pending`.
pub async fn pending(args: Pending) -> Outcome {
    let gateway = args.target.connect().await?;
    let notifications = all_pending(&gateway, &args).await?;
    if args.format.json {
        let listed = proto::ListPendingResponse { notifications, next_page_token: String::new() };
        return output::document(&json::document("ListPendingResponse", &listed));
    }
    if notifications.is_empty() {
        return output::line("nothing waits");
    }
    let now = SystemTime::now();
    let row = |one: &proto::PendingNotification| {
        vec![
            one.offset.to_string(),
            one.id.clone(),
            one.r#type.clone(),
            output::bytes(one.bytes as f64),
            age(one.created_at, now),
            left(one.expires_at, now),
            match one.waiting_devices.is_empty() {
                true => "a first device".to_owned(),
                false => one.waiting_devices.iter().map(|name| device_name(name)).collect::<Vec<_>>().join(", "),
            },
            one.collapse_key.clone(),
        ]
    };
    let rows: Vec<_> = notifications.iter().map(row).collect();
    table::lines(&PENDING_COLUMNS, &rows, output::width()).iter().try_for_each(|line| output::line(line))
}

async fn all_pending(gateway: &Gateway, args: &Pending) -> Outcome<Vec<proto::PendingNotification>> {
    let mut notifications = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = proto::ListPendingRequest {
            user_id: args.user.clone(),
            device: args.device.clone(),
            page_size: limits::PAGE_ROWS_MAX as u32,
            page_token,
        };
        let answered = gateway.calls().list_pending(gateway.request(request)).await;
        let page = answered.map_err(|status| gateway.refused(&status))?.into_inner();
        notifications.extend(page.notifications);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(notifications);
        }
    }
}

/// Runs `pushgate purge`.
pub async fn purge(args: Purge) -> Outcome {
    let request = proto::PurgePendingRequest { user_id: args.user, device: args.device, force: args.force };
    let gateway = args.target.connect().await?;
    let answered = gateway.calls().purge_pending(gateway.request(request)).await;
    let answer = answered.map_err(|status| gateway.refused(&status))?.into_inner();
    if args.format.json {
        return output::document(&json::document("PurgePendingResponse", &answer));
    }
    let purged = count(answer.purged, "notification");
    output::line(&match args.force {
        true => format!("purged {purged}"),
        false => format!("would purge {purged}; --force does it"),
    })
}

/// Runs `pushgate devices`.
pub async fn devices(args: Devices) -> Outcome {
    let gateway = args.target.connect().await?;
    let request = proto::ListDevicesRequest { user_id: args.user };
    let answered = gateway.calls().list_devices(gateway.request(request)).await;
    let listed = answered.map_err(|status| gateway.refused(&status))?.into_inner();
    if args.format.json {
        return output::document(&json::document("ListDevicesResponse", &listed));
    }
    if listed.devices.is_empty() {
        return output::line("no devices");
    }
    let now = SystemTime::now();
    let row = |device: &proto::Device| {
        vec![
            device_name(&device.device),
            device.sessions.to_string(),
            device.pending.to_string(),
            device.pending_broadcasts.to_string(),
            device.topics.iter().map(|topic| topic.pending).sum::<u32>().to_string(),
            if device.gap { "yes" } else { "" }.to_owned(),
            age(device.last_seen, now),
            age(device.created_at, now),
            device.cursor.to_string(),
            device.broadcast_cursor.to_string(),
        ]
    };
    let rows: Vec<_> = listed.devices.iter().map(row).collect();
    table::lines(&DEVICE_COLUMNS, &rows, output::width()).iter().try_for_each(|line| output::line(line))
}

/// Runs `pushgate forget`.
pub async fn forget(args: Forget) -> Outcome {
    if args.device.is_none() && !args.force {
        let text = "without --device the whole user would be forgotten, and all that waits for him; that needs --force";
        return Err(Failure::usage(text));
    }
    let gateway = args.target.connect().await?;
    let user = clean(&args.user).into_owned();
    if let Some(device) = args.device {
        let name = device_name(&clean(&device));
        let request = proto::ForgetDeviceRequest { user_id: args.user, device: Some(device) };
        let answered = gateway.calls().forget_device(gateway.request(request)).await;
        let answer = answered.map_err(|status| gateway.refused(&status))?.into_inner();
        if args.format.json {
            return output::document(&json::document("ForgetDeviceResponse", &answer));
        }
        return output::line(&format!("forgot the device {name} of {user}"));
    }
    let request = proto::ForgetUserRequest { user_id: args.user };
    let answered = gateway.calls().forget_user(gateway.request(request)).await;
    let answer = answered.map_err(|status| gateway.refused(&status))?.into_inner();
    if args.format.json {
        return output::document(&json::document("ForgetUserResponse", &answer));
    }
    let (devices, notifications) = (count(answer.devices, "device"), count(answer.notifications, "notification"));
    output::line(&format!("forgot {user}: {devices}, {notifications}"))
}

/// A device's name where an empty one would not be seen.
fn device_name(name: &str) -> String {
    if name.is_empty() { "(unnamed)".to_owned() } else { name.to_owned() }
}
