//! The security context of containers, as it holds in the guest: for the first process, and for added ones alike.

use e2e::cri::messages::{Device, Int64Value, security_profile::ProfileType};
use e2e::cri::messages::{LinuxContainerSecurityContext, SecurityProfile};
use e2e::cri::{Container, NewContainer, Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::{BUSYBOX, FOREVER};
use std::collections::BTreeMap;

crate::for_each_sandboxer!(long: a_security_context_holds_in_the_guest, bad_input_of_a_pod_is_named);

/// What the node's own containers see in /dev, and nothing that the node has.
const DEVICES: &str = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";

/// Six of them are nearly 1 MiB, and more would be refused by containerd 1.7.
const DOMAIN: usize = 170_000;

/// One pod, many containers: a boot takes seconds under emulation.
fn a_security_context_holds_in_the_guest(sandboxer: Sandboxer) {
    let sysctls = [
        ("net.ipv4.ip_unprivileged_port_start", "80"),
        ("net.ipv4.ping_group_range", "0\t1000"),
        ("kernel.shm_rmid_forced", "1"),
        ("kernel.msgmax", "12345"),
    ];
    let pod = Pod::new("secure", sandboxer).security(|security| security.privileged = true);
    let pod = pod.config(|config| {
        let wanted = &mut config.linux.mut_or_insert_default().sysctls;
        wanted.extend(sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())));
    });
    let pod = pod.run();
    let restricted = restricted(pod.container("restricted", BUSYBOX)).start();
    let ordinary = pod.container("ordinary", BUSYBOX).command(&FOREVER);
    let ordinary = ordinary.security(|security| set_seccomp(security, ProfileType::RUNTIME_DEFAULT, "")).start();
    let open = pod.container("open", BUSYBOX).command(&FOREVER);
    let open = open.security(|security| security.privileged = true).start();

    for (name, value) in sysctls {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        assert_eq!(ordinary.exec(&["/bin/cat", &file]).stdout().trim(), value, "{name}");
    }
    user_and_capabilities_are_those_of_the_specification(&restricted, &ordinary, &open);
    a_profile_of_the_node_filters_every_process(&restricted);
    the_default_profile_filters_every_process(&ordinary);
    paths_are_masked_and_read_only(&restricted, &open);
    a_privileged_container_may_do_everything_to_its_guest_and_sees_no_device_of_the_node(&open);
    devices_are_the_basic_ones(&ordinary);
}

fn restricted(container: NewContainer<'_>) -> NewContainer<'_> {
    let mkdir = r#"{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}"#;
    let seccomp = profile_file(
        "no-mkdir.json",
        &format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [{mkdir}]}}"#
        ),
    );
    let change = |security: &mut LinuxContainerSecurityContext| {
        security.run_as_user = Some(Int64Value { value: 1000, ..Default::default() }).into();
        security.run_as_group = Some(Int64Value { value: 1001, ..Default::default() }).into();
        security.supplemental_groups = vec![2000, 3000];
        security.readonly_rootfs = true;
        security.no_new_privs = true;
        let capabilities = security.capabilities.mut_or_insert_default();
        capabilities.drop_capabilities = vec!["ALL".into()];
        capabilities.add_capabilities = vec!["NET_BIND_SERVICE".into()];
        set_seccomp(security, ProfileType::LOCALHOST, &seccomp);
        security.masked_paths = vec!["/proc/uptime".into(), "/sys/kernel".into()];
        security.readonly_paths = vec!["/proc/sys".into()];
    };
    let container = container.command(&FOREVER).security(change);
    container.resources(|resources| resources.oom_score_adj = 985)
}

/// Of the first process and of an added one.
fn states(container: &Container<'_>) -> [BTreeMap<String, String>; 2] {
    let parse = |text: String| {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        fields.map(|(name, value)| (name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" "))).collect()
    };
    ["/proc/1/status", "/proc/self/status"].map(|file| parse(container.exec(&["/bin/cat", file]).success().stdout()))
}

fn user_and_capabilities_are_those_of_the_specification(
    restricted: &Container<'_>,
    ordinary: &Container<'_>,
    open: &Container<'_>,
) {
    let all = "000001ffffffffff";
    let default = "00000000a80425fb";
    let none = "0000000000000000";
    // A user other than root keeps no capability over an exec; the bounding set tells what it may get.
    let expected = [
        (
            restricted,
            [
                ("Uid", "1000 1000 1000 1000"),
                ("Gid", "1001 1001 1001 1001"),
                ("NoNewPrivs", "1"),
                ("Groups", "1001 2000 3000"),
                ("CapBnd", "0000000000000400"),
                ("CapEff", none),
                ("Seccomp", "2"),
            ],
        ),
        (
            ordinary,
            [
                ("Uid", "0 0 0 0"),
                ("Gid", "0 0 0 0"),
                ("NoNewPrivs", "0"),
                ("Groups", "0"),
                ("CapBnd", default),
                ("CapEff", default),
                ("Seccomp", "2"),
            ],
        ),
        (
            open,
            [
                ("Uid", "0 0 0 0"),
                ("Gid", "0 0 0 0"),
                ("NoNewPrivs", "0"),
                ("Groups", "0"),
                ("CapBnd", all),
                ("CapEff", all),
                ("Seccomp", "0"),
            ],
        ),
    ];
    for (container, fields) in expected {
        for state in states(container) {
            for (name, value) in fields {
                assert_eq!(state[name], value, "{name} of {}", state["Name"]);
            }
        }
    }
    let score = restricted.exec(&["/bin/cat", "/proc/1/oom_score_adj", "/proc/self/oom_score_adj"]);
    assert_eq!(score.stdout(), "985\n985\n");
}

/// Error 122, EDQUOT, is what nothing else in the guest says.
fn a_profile_of_the_node_filters_every_process(restricted: &Container<'_>) {
    let refused = restricted.exec(&["/bin/mkdir", "/dev/shm/directory"]);
    assert!(refused.code != 0 && refused.stderr().contains("uota exceeded"), "{}", refused.stderr());
    assert_eq!(restricted.shell("echo > /dev/shm/file").code, 0);
    let refused = restricted.shell("echo > /file");
    assert!(refused.stderr().contains("Read-only file system"), "{}", refused.stderr());
}

fn the_default_profile_filters_every_process(ordinary: &Container<'_>) {
    let refused = ordinary.exec(&["/bin/unshare", "-U", "true"]);
    assert!(refused.code != 0 && refused.stderr().contains("not permitted"), "{}", refused.stderr());
}

fn paths_are_masked_and_read_only(restricted: &Container<'_>, open: &Container<'_>) {
    assert_eq!(restricted.shell("cat /proc/uptime; ls /sys/kernel").stdout(), "");
    let mounts = |container: &Container<'_>| container.exec(&["/bin/cat", "/proc/self/mounts"]).stdout();
    let below = |mounts: &str| -> Vec<String> {
        let lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let below = lines.filter(|line| line[1].starts_with("/proc/") || line[1].starts_with("/sys/kernel"));
        below.map(|line| format!("{} {}", line[1], line[3].split(',').next().unwrap_or_default())).collect()
    };
    let mut found = below(&mounts(restricted));
    found.sort();
    assert_eq!(found, ["/proc/sys ro", "/proc/uptime ro", "/sys/kernel ro"]);
    assert_eq!(below(&mounts(open)), Vec::<String>::new());
}

fn a_privileged_container_may_do_everything_to_its_guest_and_sees_no_device_of_the_node(open: &Container<'_>) {
    let script = "mkdir -p /mnt && mount -t tmpfs none /mnt && echo 5 > /proc/sys/kernel/printk && ls /sys/class/block";
    let blocks = open.shell(script).success().stdout();
    let node = std::fs::read_dir("/sys/class/block").expect("the node's disks");
    for disk in node.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        assert!(!blocks.lines().any(|block| block == disk), "{disk} of the node is in the guest: {blocks}");
    }
    devices_are_the_basic_ones(open);
}

fn devices_are_the_basic_ones(container: &Container<'_>) {
    let devices = container.shell("echo $(ls /dev)").stdout();
    assert_eq!(devices.trim(), DEVICES);
    // The guest's own: of another class than those that a container may use.
    let opened = container.shell("mknod /tmp/hwrng c 10 183 && head -c 1 /tmp/hwrng");
    assert!(opened.stderr().contains("not permitted"), "{}", opened.stderr());
}

fn bad_input_of_a_pod_is_named(sandboxer: Sandboxer) {
    let before = Traces::now();
    let pod = Pod::new("bad", sandboxer);
    let domain = "x".repeat(DOMAIN);
    let pod = pod.config(|config| config.dns_config.mut_or_insert_default().searches = vec![domain; 6]).run();
    let container = |name: &str| pod.container(name, BUSYBOX).shell("exit 0");

    let mut many = pod.container("many", BUSYBOX).shell("env | grep -c ^VARIABLE_; wc -c < /etc/resolv.conf");
    for number in 0..300 {
        many = many.env(&format!("VARIABLE_{number}"), &"x".repeat(200));
    }
    let many = many.start();
    let resolv_conf = "search\n".len() + 6 * (1 + DOMAIN);
    assert_eq!((many.wait(), many.log().stdout()), (0, format!("300\n{resolv_conf}\n")));

    for (name, command, words) in [
        ("absolute", "/no/such/command", "executable file `/no/such/command` not found"),
        ("in-path", "no-such-command", "executable file `no-such-command` not found in $PATH"),
        ("not-a-program", "/etc/passwd", "`/etc/passwd` exists but it is not executable"),
    ] {
        does_not_start(pod.container(name, BUSYBOX).command(&[command]), words);
    }
    for (name, text, words) in [
        ("action", r#"{"defaultAction": "SCMP_ACT_NONSENSE"}"#, "invalid seccomp action `SCMP_ACT_NONSENSE`"),
        (
            "architecture",
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_NONSENSE"]}"#,
            "seccomp unknown architecture `NONSENSE`",
        ),
    ] {
        let file = profile_file(&format!("{name}.json"), text);
        let change = |security: &mut _| set_seccomp(security, ProfileType::LOCALHOST, &file);
        does_not_start(container(name).security(change), words);
    }
    let device = Device {
        host_path: "/dev/kvm".into(),
        container_path: "/dev/kvm".into(),
        permissions: "rw".into(),
        ..Default::default()
    };
    does_not_start(
        container("device").config(|config| config.devices.push(device)),
        "device /dev/kvm of the node cannot be used in a microVM",
    );
    // None of it has harmed the pod.
    assert_eq!(container("last").start().wait(), 0);
    drop(pod);
    assert_nothing_left_since(&before);
}

/// The error has the words once, in one line, and the container ends with the code that stands for a failed start.
#[track_caller]
fn does_not_start(container: NewContainer<'_>, words: &str) {
    let container = container.create();
    let error = container.start().expect_err("it cannot start").message;
    assert_eq!(error.matches(words).count(), 1, "{error}");
    assert!(!error.contains('\n'), "{error}");
    let status = container.status();
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
}

fn set_seccomp(security: &mut LinuxContainerSecurityContext, kind: ProfileType, localhost: &str) {
    let profile = SecurityProfile { profile_type: kind.into(), localhost_ref: localhost.into(), ..Default::default() };
    security.seccomp = Some(profile).into();
}

/// The path of a file of the node with a seccomp profile.
fn profile_file(name: &str, text: &str) -> String {
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).expect("the scratch directory takes a file");
    path.to_str().expect("a plain path").to_owned()
}
