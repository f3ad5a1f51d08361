//! A client of the gateway: prints what comes, and asks for an echo.
//!
//! ```sh
//! cargo run -- serve --dev                                   # in one terminal; it prints a token for alice
//! cargo run --example client -- ws://127.0.0.1:7000/ws TOKEN # in another
//! cargo run -- send alice '{"hello":"world"}'                # in a third
//! ```
//!
//! The address and the token may also be in `PUSHGATE_URL` and `PUSHGATE_TOKEN`. A third argument is the number of messages
//! after which it ends; without it Ctrl-C does. It asks for an echo, or for what `PUSHGATE_REQUEST` names: see `service.rs`.

use std::{env, time::Duration};

use pushgate::client::{BoxError, Client};
use serde_json::json;
use tokio::sync::mpsc;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut args = env::args().skip(1);
    let url = args.next().or_else(|| env::var("PUSHGATE_URL").ok()).ok_or("give the address: ws://HOST:PORT/ws")?;
    let token = args.next().or_else(|| env::var("PUSHGATE_TOKEN").ok()).ok_or("give the token")?;
    let wanted: Option<u64> = args.next().map(|text| text.parse()).transpose()?;
    let (came, mut coming) = mpsc::unbounded_channel();

    let client = Client::builder(url)
        // An application would fetch a fresh one from its login here.
        .token_provider(move || {
            let token = token.clone();
            async move { Ok(token) }
        })
        .device("example")
        .on_connect(|session| println!("session {}: {} as {}", session.number, session.id, session.user_id))
        .on_disconnect(|end| println!("disconnected: {end}"))
        .on_error(|error| println!("error: {error}"))
        .on_give_up(|why| println!("gave up: {why}"))
        // The message is confirmed to the gateway when this returns Ok, and comes again if it does not.
        .on_message(move |message| {
            let came = came.clone();
            async move {
                println!("{}: {}", message.type_name(), message.data().unwrap_or("bytes"));
                came.send(())?;
                Ok(())
            }
        })
        .connect()
        .await?;

    let answer = match env::var("PUSHGATE_REQUEST") {
        Ok(request) => client.request(&request, &json!({ "order": 7 }), Duration::from_secs(5)).await?,
        Err(_) => client.request("echo", &json!({ "are you": "there" }), Duration::from_secs(5)).await?,
    };
    println!("{}: {}", answer.type_name(), answer.data().unwrap_or_default());

    let mut states = client.states();
    let mut left = wanted;
    while left != Some(0) {
        tokio::select! {
            Some(()) = coming.recv() => left = left.map(|left| left - 1),
            _ = tokio::signal::ctrl_c() => break,
            state = states.next() => match state {
                Some(state) => println!("state: {state:?}"),
                None => return Err("the client gave up".into()),
            },
        }
    }
    // The last message is acked before the connection is closed.
    client.close().await;
    println!("closed");
    Ok(())
}
