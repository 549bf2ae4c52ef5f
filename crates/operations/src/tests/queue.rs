//! Who waits for whom.

use offshoot_engine::Reach;
use offshoot_model::{Code, EnvironmentState, OperationState};

use super::*;
use crate::locks::Locks;

#[tokio::test(start_paused = true)]
async fn an_environment_is_held_by_one_at_a_time_in_the_order_of_asking() {
    let locks = Locks::default();
    let (a, b) = (EnvId::random(), EnvId::random());
    let first = locks.queue(vec![a.clone()]);
    let second = locks.queue(vec![b.clone(), a.clone(), a.clone()]);
    let third = locks.queue(vec![a.clone()]);
    // Awaited the other way round: what counts is who asked first.
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (third, second) = [(3, third), (2, second)]
        .map(|(number, turn)| {
            let order = Arc::clone(&order);
            tokio::spawn(async move {
                let held = turn.await;
                order.lock().unwrap().push(number);
                held.len()
            })
        })
        .into();
    let held = first.await;
    assert!(locks.try_hold(&a).is_none());
    drop(held);
    assert_eq!((second.await.unwrap(), third.await.unwrap()), (2, 1));
    assert_eq!(*order.lock().unwrap(), [2, 3]);
    assert!(locks.try_hold(&a).is_some() && locks.try_hold(&b).is_some());
}

#[tokio::test(start_paused = true)]
async fn changes_of_one_environment_follow_each_other_and_others_go_on_beside_them() {
    let world = World::new();
    world.created("shop", vec![layer("web")]).await;
    world.created("blog", vec![layer("app")]).await;
    world.engine.hang("stop web-1");
    let stop = world.submit(Request::Stop("shop".into())).await;
    world.engine.hangs.notified().await;
    let start = world
        .shared
        .submit(Request::Start("shop".into()))
        .await
        .unwrap();
    assert_eq!(start.state, OperationState::Waiting);

    let other = world.run(Request::Stop("blog".into())).await;
    assert_eq!(other.state, OperationState::Done, "it waits for nobody");
    let calls = world.engine.calls();
    assert!(!calls.contains(&"start web-1".to_owned()), "{calls:?}");

    world.engine.go_on();
    assert_eq!(world.ended(stop).await.state, OperationState::Done);
    assert_eq!(world.ended(start.id).await.state, OperationState::Done);
    assert_eq!(world.state("shop"), Some(EnvironmentState::Running));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_change_that_is_cancelled_ends_at_once_and_touches_nothing() {
    for request in [
        Request::Start("shop".into()),
        Request::Stop("shop".into()),
        Request::Remove("shop".into()),
        super::rename("shop", "store"),
        clone_of("shop"),
    ] {
        let world = World::new();
        let shop = world.created("shop", vec![layer("web")]).await;
        let held = world.shared.locks.queue(vec![shop.id.clone()]).await;

        let waiting = world.submit(request.clone()).await;
        tokio::task::yield_now().await;
        world.shared.live_of(waiting).unwrap().cancel();
        let ended = world.ended(waiting).await;
        assert_eq!(ended.state, OperationState::Cancelled, "{request:?}");
        assert_eq!(world.engine.calls(), [""; 0], "{request:?}");
        assert_eq!(world.state("shop"), Some(EnvironmentState::Running));
        assert_eq!(world.named("shop-clone"), None);
        drop(held);
    }
}

#[tokio::test(start_paused = true)]
async fn what_one_operation_announced_is_not_taken_back_by_the_end_of_another() {
    let world = World::new();
    let shop = world.created("shop", vec![layer("web")]).await;
    world.run(Request::Stop("shop".into())).await;
    world.created("blog", vec![layer("web")]).await;
    // `shop` is announced by its start, which has not ended.
    let opener = OperationId::new();
    let open = crate::shared::Change::Open(&shop.id);
    world.shared.expose(Some(opener), open).await.unwrap();
    let held = world.shared.locks.queue(vec![shop.id.clone()]).await;
    let waiting = world.submit(Request::Stop("shop".into())).await;
    world.shared.live_of(waiting).unwrap().cancel();
    world.ended(waiting).await;
    world.run(super::rename("blog", "news")).await;
    assert_eq!(world.reach("shop"), Some(Reach::Open));
    world.shared.forget_announced(opener);
    world.run(super::rename("news", "blog")).await;
    assert_eq!(
        world.reach("shop"),
        Some(Reach::Closed),
        "as the store says"
    );
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn removing_what_is_being_made_ends_the_making() {
    let world = World::new();
    world.engine.hang("start web-1");
    let making = world
        .submit(create(
            "shop",
            vec![
                layer("web"),
                after(
                    layer("late"),
                    "web",
                    offshoot_model::manifest::Condition::Started,
                ),
            ],
        ))
        .await;
    world.engine.hangs.notified().await;
    let id = world.named("shop").unwrap().id;
    let removing = world.submit(Request::Remove("shop".into())).await;
    world.engine.go_on();
    assert_eq!(world.ended(making).await.state, OperationState::Cancelled);
    assert_eq!(world.ended(removing).await.state, OperationState::Done);
    assert!(world.engine.nothing_of(&id, "shop.localhost"));
    assert_eq!(world.named("shop"), None);
}

#[tokio::test(start_paused = true)]
async fn the_queue_of_an_environment_is_bounded() {
    let world = World::new();
    let shop = world.created("shop", vec![layer("web")]).await;
    world.created("blog", vec![layer("web")]).await;
    let held = world.shared.locks.queue(vec![shop.id.clone()]).await;
    for _ in 0..64 {
        world.submit(Request::Start("shop".into())).await;
    }
    let refused = world
        .shared
        .submit(Request::Start("shop".into()))
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::Busy);
    let cloned = world.shared.submit(clone_of("shop")).await.unwrap_err();
    assert_eq!(cloned.code, Code::Busy);
    assert_eq!(world.named("shop-clone"), None);
    let other = world.run(Request::Start("blog".into())).await;
    assert_eq!(other.state, OperationState::Done);
    drop(held);
    world
        .until("the queue to empty", || {
            world.shared.holder(&shop.id).is_none().then_some(())
        })
        .await;
    world.run(Request::Start("shop".into())).await;
}
