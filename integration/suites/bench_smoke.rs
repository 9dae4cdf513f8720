//! The benchmark of operator classes with little data: it still runs, and what it measures is right.

#[path = "../../benches/operators/classes.rs"]
mod classes;

use crate::harness::servers::for_each_major;

#[tokio::test(flavor = "multi_thread")]
async fn the_benchmark_of_operator_classes_runs_and_every_class_is_right_and_tells_its_state() {
    for_each_major(async |server| {
        let mut world = classes::World::start(server, 400).await;
        for class in classes::CLASSES {
            let figures = world.measure(class, 2).await.json();
            let bytes = |key: &str| figures[key].as_f64().unwrap();
            assert!(bytes("own_bytes_per_row") + bytes("shared_bytes_per_row") > 0.0, "{figures}");
            assert!(bytes("changes_per_s") > 0.0, "{figures}");
        }
        world.stop().await;
    })
    .await;
}
