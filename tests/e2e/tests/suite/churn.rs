//! Many containers leave nothing.

use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::{BUSYBOX, Container};

#[test]
fn two_in_a_row_and_four_at_once_leave_nothing() {
    churn(2, 4);
}

#[test]
#[ignore = "`make test-long`"]
fn fifty_in_a_row_and_ten_at_once_leave_nothing() {
    churn(50, 10);
}

fn churn(in_a_row: usize, at_once: usize) {
    // The first container may make what all share, such as a namespace's directory.
    run(0);
    let before = Traces::now();
    (0..in_a_row).for_each(run);
    assert_nothing_left_since(&before);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..at_once).map(|number| scope.spawn(move || run(number))).collect();
        for run in runs {
            run.join().expect("the run's thread does not panic");
        }
    });
    assert_nothing_left_since(&before);
}

/// Runs a container to its end, on each snapshotter in turn.
fn run(number: usize) {
    let snapshotter = if number.is_multiple_of(2) { "overlayfs" } else { "blockfile" };
    let finished = Container::new(BUSYBOX, snapshotter).shell(&format!("echo {number}")).run().success();
    assert_eq!(finished.stdout(), format!("{number}\n"));
}
