use super::*;

const TOTAL: u64 = 100 << 10;

/// A guest with 100 MiB, of which 60 are free and containers use 20.
fn guest() -> (tempfile::TempDir, Arc<Pressure>) {
    let root = tempfile::tempdir().unwrap();
    let group = root.path().join(CGROUP_PARENT);
    std::fs::create_dir(&group).unwrap();
    std::fs::write(group.join("memory.current"), format!("{}\n", 20 << 20)).unwrap();
    let meminfo = root.path().join("meminfo");
    let pressure = Pressure { meminfo, ..Pressure::new(root.path()) };
    has(&pressure, TOTAL);
    (root, Arc::new(pressure))
}

fn has(pressure: &Pressure, total_kib: u64) {
    let free = total_kib - (40 << 10);
    std::fs::write(&pressure.meminfo, format!("MemTotal: {total_kib} kB\nMemFree: {free} kB\n")).unwrap();
}

fn brake(pressure: &Pressure) -> String {
    std::fs::read_to_string(pressure.group.join("memory.high")).unwrap_or_default()
}

#[tokio::test]
async fn a_guest_that_cannot_grow_has_no_brake() {
    let (_root, pressure) = guest();
    assert!(!pressure.start(0));
    pressure.adjust();
    pressure.added(64).await;
    assert_eq!((brake(&pressure), pressure.most()), (String::new(), None));
}

#[tokio::test(start_paused = true)]
async fn the_brake_follows_what_there_is_and_goes_with_the_last_of_it() {
    let (_root, pressure) = guest();
    assert!(pressure.start(256));
    assert_eq!(pressure.most(), Some(356 << 20));
    let at = |free: u64, total: u64| ((free + 20 - 24) * (1 << 20) - total * (1 << 20) / 64).to_string();
    assert_eq!(brake(&pressure), at(60, 100));
    has(&pressure, TOTAL + (128 << 10));
    pressure.added(128).await;
    assert_eq!(brake(&pressure), at(188, 228));
    has(&pressure, TOTAL + (256 << 10));
    pressure.added(256).await;
    assert_eq!(brake(&pressure), "max");
    pressure.adjust();
    assert_eq!(brake(&pressure), "max");
}

#[tokio::test(start_paused = true)]
async fn memory_that_does_not_come_is_not_waited_for_for_ever() {
    let (_root, pressure) = guest();
    assert!(pressure.start(256));
    let before = brake(&pressure);
    pressure.added(128).await;
    assert_eq!(brake(&pressure), before);
    pressure.added(u32::MAX).await;
    assert_eq!(brake(&pressure), "max");
}

#[tokio::test]
async fn a_kernel_that_cannot_tell_leaves_no_brake() {
    let (_root, pressure) = guest();
    pressure.begin(256);
    // Its group has no file of events.
    while brake(&pressure) != "max" {
        tokio::task::yield_now().await;
    }
}
