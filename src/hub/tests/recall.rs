//! What is sent with `WAIT_ACCEPTED` and confirmed before it is written: it never is, and nothing else suffers by it. The
//! store commits when the test says so.

use std::sync::Arc;

use super::{
    super::*,
    support::{Bounds, Client, World, device, notification, plain, user},
};
use crate::{
    protocol::ack_mode::AckMode,
    store::double::Double,
    types::{CollapseKey, Device, NotificationId, Offset, UserId},
};

const START: Duration = Duration::from_secs(1_769_852_100);

struct Stage {
    world: World,
    ann: UserId,
}

impl Stage {
    fn over(double: &Arc<Double>) -> Stage {
        let world = World::by_hand(Arc::clone(double), Clock::simulated(START), Bounds::default());
        Stage { world, ann: user("ann") }
    }

    fn store(&self) -> &Store {
        self.world.hub.store()
    }

    fn write_all(&self) {
        while self.store().turn(true) {}
    }

    async fn attach(&self, name: &str, mode: AckMode) -> Client {
        let attaching = tokio::spawn(self.world.attaching(&self.ann, &device(name), mode));
        while !attaching.is_finished() {
            tokio::task::yield_now().await;
            self.store().turn(true);
        }
        let client = attaching.await.unwrap().unwrap();
        self.write_all();
        client
    }

    /// Sends what is staged and handed over, and for which nobody waits.
    async fn accepted(&self) -> Offset {
        self.world.send(&self.ann, 10).await.offset.unwrap()
    }

    /// Sends what is waited for; the call is left waiting.
    async fn stored(&self) {
        let begun = self.world.hub.begin_send(&self.ann, notification(10), plain(Wait::Stored)).await;
        drop(begun.unwrap());
    }

    /// The offsets that are on disk.
    async fn on_disk(&self) -> Vec<Offset> {
        let page = crate::store::PageLimit { records: 100, bytes: usize::MAX };
        let page = self.store().page(&self.log(), Offset::ZERO, Offset::MAX, page).await.unwrap();
        page.records.into_iter().map(|(offset, _)| offset).collect()
    }

    fn log(&self) -> crate::types::LogId {
        crate::types::LogId::User(self.ann.clone())
    }

    /// The daemon ends without a word; what is on disk fits together.
    async fn crash(self, double: &Arc<Double>) -> Stage {
        drop(self);
        let again = Stage::over(double);
        let mailbox = again.store().load(&again.ann).await.unwrap();
        assert_eq!(mailbox.damaged, None);
        again
    }
}

#[tokio::test(start_paused = true)]
async fn what_everybody_confirmed_before_it_is_written_never_is() {
    let double = Arc::<Double>::default();
    let stage = Stage::over(&double);
    let mut phone = stage.attach("phone", AckMode::Transport).await;
    let (rows, commits) = (double.rows(), double.commits_begun());
    for _ in 0..100 {
        stage.accepted().await;
        assert!(phone.confirm());
    }
    assert_eq!(phone.offsets().len(), 100);
    assert_eq!(stage.store().recalled(), 100);
    assert!(stage.on_disk().await.is_empty());
    assert_eq!(double.commits_begun(), commits, "nothing was written meanwhile");
    stage.write_all();
    assert_eq!(double.commits_begun(), commits + 1, "the cursor is");
    assert_eq!(double.rows(), rows);
    let user = stage.world.user(&stage.ann);
    {
        let state = user.state();
        assert_eq!(state.log.applied, state.log.last, "nothing is left that a session would wait for");
    }
    stage.crash(&double).await;
}

#[tokio::test(start_paused = true)]
async fn what_another_device_lacks_is_written_and_comes_to_it() {
    let double = Arc::<Double>::default();
    let stage = Stage::over(&double);
    drop(stage.attach("desk", AckMode::Transport).await.detach());
    let mut phone = stage.attach("phone", AckMode::Transport).await;
    let offset = stage.accepted().await;
    assert!(phone.confirm());
    assert_eq!(stage.store().recalled(), 0);
    stage.write_all();
    let mut desk = stage.attach("desk", AckMode::Transport).await;
    desk.settle().await;
    assert_eq!(desk.offsets(), [offset.get()]);
    stage.write_all();
    assert!(stage.on_disk().await.is_empty(), "now both have it");
    stage.crash(&double).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_session_of_the_device_has_yet_to_pull_is_written() {
    let double = Arc::<Double>::default();
    let stage = Stage::over(&double);
    let mut first = stage.attach("phone", AckMode::Transport).await;
    let offset = stage.accepted().await;
    // It comes while that is staged, and so it pulls.
    let mut second = stage.world.attach(&stage.ann, &device("phone")).await;
    assert!(!second.is_live());
    assert!(first.confirm());
    assert_eq!(stage.store().recalled(), 0, "the other session finds it in the store only");
    assert_eq!(stage.world.hub.plan_pull(&second.handle), Pull::Wait);
    assert!(stage.store().turn(false), "who waits for it does not wait for its time");
    second.settle().await;
    assert_eq!(second.offsets(), [offset.get()]);
}

#[tokio::test(start_paused = true)]
async fn what_is_staged_behind_it_is_counted_without_it() {
    let double = Arc::<Double>::default();
    let stage = Stage::over(&double);
    let mut phone = stage.attach("phone", AckMode::Client).await;
    let first = stage.accepted().await;
    stage.stored().await;
    let third = stage.accepted().await;
    phone.ack_first(1);
    assert_eq!(stage.store().recalled(), 1);
    assert!(stage.store().turn(false), "somebody waits for the second");
    let stored = stage.on_disk().await;
    assert_eq!((stored.len(), stored[1]), (2, third), "what is there goes with what is waited for");
    assert!(first < stored[0]);
    assert_eq!(stage.store().totals().count, 2);
    let stage = stage.crash(&double).await;
    assert_eq!(stage.on_disk().await, stored);
}

#[tokio::test(start_paused = true)]
async fn nothing_delays_what_is_waited_for_and_what_has_an_id_to_be_remembered() {
    let double = Arc::<Double>::default();
    let stage = Stage::over(&double);
    let mut phone = stage.attach("phone", AckMode::Transport).await;
    stage.accepted().await;
    assert!(!stage.store().turn(false), "nobody waits");
    let mut own = notification(10);
    own.id = NotificationId::parse("own").unwrap();
    let options = SendOptions { wait: Wait::Accepted, own_id: true };
    stage.world.hub.send(&stage.ann, own, options).await.unwrap();
    phone.settle().await;
    assert_eq!(stage.store().recalled(), 1, "not what has an id of its caller's own");
    assert!(stage.store().turn(false));
    stage.stored().await;
    phone.settle().await;
    assert_eq!(stage.store().recalled(), 1, "nor what somebody waits for");
    assert!(stage.store().turn(false));
    stage.write_all();
    stage.crash(&double).await;
}

#[tokio::test(start_paused = true)]
async fn what_takes_another_s_place_is_written_since_the_other_may_be() {
    let double = Arc::<Double>::default();
    let stage = Stage::over(&double);
    let mut phone = stage.attach("phone", AckMode::Client).await;
    let collapsed = || {
        let mut one = notification(10);
        one.collapse_key = Some(CollapseKey::parse("k").unwrap());
        stage.world.hub.send(&stage.ann, one, plain(Wait::Accepted))
    };
    collapsed().await.unwrap();
    stage.write_all();
    collapsed().await.unwrap();
    assert!(phone.ack());
    assert_eq!(stage.store().recalled(), 0);
    stage.write_all();
    assert!(stage.on_disk().await.is_empty());
    stage.crash(&double).await;
}

/// The row of an expiry bucket goes with the last that stands in it, also where that one was never written.
#[tokio::test(start_paused = true)]
async fn a_bucket_goes_with_the_last_although_that_is_not_written() {
    let double = Arc::<Double>::default();
    let stage = Stage::over(&double);
    let mut phone = stage.attach("phone", AckMode::Client).await;
    stage.accepted().await;
    stage.write_all();
    phone.ack_first(1);
    stage.write_all();
    let rows = double.rows();
    stage.accepted().await;
    stage.write_all();
    stage.accepted().await;
    // The second is deleted, the third stands in its bucket; then that one is taken back.
    phone.ack_first(2);
    phone.ack_first(3);
    assert_eq!(stage.store().recalled(), 1);
    stage.write_all();
    assert_eq!(double.rows(), rows);
    stage.crash(&double).await;
}

#[tokio::test]
async fn it_is_on_disk_in_a_while_where_nobody_confirms_it() {
    let world = World::new(Bounds::default());
    let ann = user("ann");
    let mut held = Vec::new();
    for name in [Device::UNNAMED, device("phone")] {
        world.known(&ann, &name).await;
        held.push(world.attach(&ann, &name).await);
    }
    let offset = world.offset(&ann, 10).await;
    world.applied(&ann, offset).await;
    assert_eq!(world.hub.store().recalled(), 0);
}
