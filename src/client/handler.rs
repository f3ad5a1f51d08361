//! The task that hands messages to the application, one after the other, in the order of their delivery.
//!
//! It is not the task that reads from the gateway, so that pings are answered however long a handler takes.

use std::{any::Any, future::Future, panic::AssertUnwindSafe, pin::Pin, sync::Arc, time::Duration};

use futures_util::FutureExt as _;

use super::{
    error::{BoxError, Error},
    events::Event,
    message::Message,
    retry::{Backoff, random},
    shared::{Delivery, Shared},
};

/// A handler's future.
pub type Handling = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;
/// The application's handler.
pub type Handler = Arc<dyn Fn(Message) -> Handling + Send + Sync>;

/// The bounds of the wait before a message that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// Runs until no more comes. A client whose messages nobody takes any more ends, rather than looking as if it lived.
pub async fn run(shared: Arc<Shared>, handler: Option<Handler>) {
    if AssertUnwindSafe(take(&shared, handler)).catch_unwind().await.is_err() {
        tracing::error!("client: the task that hands messages over panicked; the client ends");
        shared.cancel.cancel();
    }
}

async fn take(shared: &Arc<Shared>, handler: Option<Handler>) {
    loop {
        let Some(delivery) = shared.delivery().await else { return };
        let repeat = shared.core.lock().ledger.is_repeat(&delivery.message);
        if repeat {
            // Acked in its turn, and kept from the application.
            shared.handled(&delivery.message);
            continue;
        }
        let event = Event::Message(delivery.message.clone());
        match &handler {
            Some(handler) => {
                shared.events.show(&event);
                handle(shared, handler, &delivery).await;
            }
            None => hand_out(shared, &event, &delivery).await,
        }
    }
}

/// Gives it to whoever reads the events, once there is one with room for it. What its session takes along with its end
/// comes again.
async fn hand_out(shared: &Shared, event: &Event, delivery: &Delivery) {
    let mut session = shared.session.subscribe();
    // A reader that had room may be gone a moment later.
    while !shared.events.hand_out(event) {
        tokio::select! {
            () = shared.events.some_room(event) => {}
            () = shared.closing.cancelled() => return,
            _ = session.wait_for(|now| *now != delivery.session), if delivery.acked => return,
        }
    }
    if !delivery.acked {
        // Who reads the events says when it was handled; where nothing is acked there is nothing to say.
        shared.handled(&delivery.message);
    }
}

/// Hands it over until it was handled. What the gateway will not deliver again is tried once; the rest until its session
/// ends, since from then on it comes again.
async fn handle(shared: &Shared, handler: &Handler, delivery: &Delivery) {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut session = shared.session.subscribe();
    for attempt in 1.. {
        let message = delivery.message.clone();
        // The error is the application's own: putting it into words and dropping it are, too.
        let handling = async { handler(message).await.map_err(|error| error.to_string()) };
        let problem = match AssertUnwindSafe(handling).catch_unwind().await {
            Ok(Ok(())) => return shared.handled(&delivery.message),
            Ok(Err(problem)) => problem,
            Err(panic) => format!("it panicked: {}", text_of(&*panic)),
        };
        shared.error(Error::Handler {
            id: delivery.message.id().unwrap_or_default().to_owned(),
            offset: delivery.message.offset(),
            attempt,
            problem,
        });
        if !delivery.acked {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next(random())) => {}
            () = shared.closing.cancelled() => return,
            _ = session.wait_for(|now| *now != delivery.session) => return,
        }
    }
}

/// What a panic said.
fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}
