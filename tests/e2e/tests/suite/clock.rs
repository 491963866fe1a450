//! The guest's wall clock follows the node's.

use e2e::{BUSYBOX, Container, FOREVER, Running, eventually, run};

const HOUR: i64 = 3600;

#[test]
fn a_pod_follows_when_the_nodes_clock_is_set() {
    let pod = Container::new(BUSYBOX, "overlayfs").command(&FOREVER).start();
    let later = Moved::by(HOUR);
    eventually("the pod's clock is an hour ahead too", || difference(&pod).abs() <= 2);
    drop(later);
    eventually("and back", || difference(&pod).abs() <= 2);
}

/// In seconds.
fn difference(pod: &Running) -> i64 {
    let there = seconds(&pod.exec(&["/bin/date", "+%s"]).success().stdout());
    there - here()
}

fn here() -> i64 {
    seconds(&run(&["date", "+%s"]))
}

fn seconds(text: &str) -> i64 {
    text.trim().parse().expect("seconds")
}

/// The node's clock, until it is dropped.
struct Moved(i64);

impl Moved {
    fn by(seconds: i64) -> Self {
        run(&["date", "--set", &format!("@{}", here() + seconds)]);
        Self(seconds)
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        run(&["date", "--set", &format!("@{}", here() - self.0)]);
    }
}
