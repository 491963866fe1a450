//! Many containers leave nothing.

use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::{BUSYBOX, Container};

#[test]
fn fifty_in_a_row_and_ten_at_once_leave_nothing() {
    // The first container may make what all share, such as a namespace's directory.
    Container::new(BUSYBOX, "overlayfs").shell("true").run().success();
    let before = Traces::now();
    for number in 0..50 {
        let snapshotter = if number % 2 == 0 { "overlayfs" } else { "blockfile" };
        let finished = Container::new(BUSYBOX, snapshotter).shell(&format!("echo {number}")).run().success();
        assert_eq!(finished.stdout(), format!("{number}\n"));
    }
    assert_nothing_left_since(&before);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..10)
            .map(|number| {
                let snapshotter = if number % 2 == 0 { "overlayfs" } else { "blockfile" };
                scope.spawn(move || Container::new(BUSYBOX, snapshotter).shell(&format!("echo {number}")).run())
            })
            .collect();
        for (number, run) in runs.into_iter().enumerate() {
            let finished = run.join().expect("the run's thread does not panic").success();
            assert_eq!(finished.stdout(), format!("{number}\n"));
        }
    });
    assert_nothing_left_since(&before);
}
