//! A volume on a server that takes the node's root for nobody: the users of its containers own what is there.

use e2e::cri::messages::{Int64Value, LinuxContainerSecurityContext};
use e2e::cri::{Container, Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::{DEBIAN, FOREVER, run, try_run};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

crate::for_each_sandboxer!(long: a_user_has_what_it_owns_on_a_server_that_does_not_trust_root);

const USER: u32 = 1000;
const GROUP: u32 = 1001;

/// What a home directory sees, each step of which the server decides on.
const EVERYDAY: &str = "set -e
    umask 077; cd /home
    mkdir d; echo one > d/a; mv d/a d/b; ln d/b d/c; ln -s b d/l; mkfifo d/p
    chmod 640 d/b; truncate -s 2 d/b; echo two >> d/b; touch -d '2020-01-02 03:04:05' d/b; mkdir d/e; mv d/e d/f
    fallocate -l 8192 d/sparse; python3 -c 'import os; print(os.lseek(os.open(\"d/b\", os.O_RDONLY), 0, os.SEEK_HOLE))'
    cat d/l; readlink d/l; ls d; stat -c '%a %u:%g %h %Y' d/b; cat /home/.kept";

const SEEN: &str = "6\nontwo\nb\nb\nc\nf\nl\np\nsparse\n640 1000:1001 2 1577934245\nkept\n";

/// NFS keeps a removed file under another name while the file server has it open.
const REMOVALS: &str = "set -e
    cd /home; rm -r d
    for round in 1 2 3 4 5; do
        mkdir d; for file in 1 2 3 4 5 6 7 8 9 10; do echo $file > d/$file; done; cat d/* > sum; rm -r d
    done
    rm sum; mkdir d d/e; if rmdir d; then exit 3; fi; rmdir d/e d; ls -A";

fn a_user_has_what_it_owns_on_a_server_that_does_not_trust_root(sandboxer: Sandboxer) {
    let before = Traces::now();
    let pod = Pod::new("nfs", sandboxer);
    let server = NfsServer::start(&pod.directory());
    let pod = pod.run();
    let container = |name, user: u32, group: u32| {
        let change = |security: &mut LinuxContainerSecurityContext| {
            security.run_as_user = Some(Int64Value { value: user.into(), ..Default::default() }).into();
            security.run_as_group = Some(Int64Value { value: group.into(), ..Default::default() }).into();
        };
        pod.container(name, DEBIAN).mount(&server.home, "/home").command(&FOREVER).security(change).start()
    };
    let owner = container("owner", USER, GROUP);
    assert_eq!(owner.shell(EVERYDAY).success().stdout(), SEEN);
    assert_eq!(owner.shell(REMOVALS).success().stdout(), ".kept\n");

    for other in [container("other", 2000, 2000), container("root", 0, 0)] {
        is_refused(&other);
    }
    drop(pod);
    drop(server);
    assert_nothing_left_since(&before);
}

fn is_refused(other: &Container) {
    for command in ["ls /home", "cat /home/.kept", "touch /home/new", "rm /home/.kept", "chmod 777 /home"] {
        let refused = other.shell(command);
        assert_ne!(refused.code, 0, "{command}");
        let reason = refused.stderr();
        assert!(
            ["Permission denied", "Operation not permitted"].iter().any(|known| reason.contains(known)),
            "{reason}"
        );
    }
}

/// The node's own NFS server, and what the node mounted of it, as kubelet does for a volume.
struct NfsServer {
    directory: PathBuf,
    /// The user's directory, as the node sees it.
    home: String,
    /// Tells the kernel's server what it exports.
    mountd: Child,
}

impl NfsServer {
    fn start(pod: &Path) -> Self {
        let directory = std::env::temp_dir().join("e2e-nfs");
        let exported = directory.join("exported");
        let home = exported.join("home");
        let mounted = pod.join("volumes/e2e/nfs");
        fs::create_dir_all(&exported).and_then(|()| fs::create_dir_all(&mounted)).expect("new directories");
        run(&["mount", "-t", "tmpfs", "exported", path(&exported)]);
        fs::create_dir(&home).and_then(|()| fs::write(home.join(".kept"), "kept\n")).expect("an empty file system");
        for (name, mode) in [(home.join(".kept"), 0o600), (home.clone(), 0o700)] {
            let (user, group) = (Some(USER), Some(GROUP));
            chown(&name, user, group)
                .and_then(|()| fs::set_permissions(&name, Permissions::from_mode(mode)))
                .expect("root may");
        }
        run(&["mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd"]);
        run(&[
            "exportfs",
            "-i",
            "-o",
            "rw,root_squash,fsid=0,no_subtree_check",
            &format!("127.0.0.1:{}", path(&exported)),
        ]);
        let mountd = Command::new("rpc.mountd")
            .args(["--foreground", "--no-nfs-version", "3"])
            .spawn()
            .expect("it is installed");
        // Nobody can open anything before the time has passed in which clients of a server that started anew come back.
        run(&["rpc.nfsd", "--no-nfs-version", "3", "--grace-time", "10", "--lease-time", "10", "2"]);
        run(&["mount", "-t", "nfs4", "127.0.0.1:/", path(&mounted)]);
        let home = path(&mounted.join("home")).to_owned();
        Self { directory, home, mountd }
    }
}

impl Drop for NfsServer {
    fn drop(&mut self) {
        let exported = self.directory.join("exported");
        let volume = Path::new(&self.home).parent().expect("it has one");
        // What a failed test never mounted is not there.
        try_run(&["umount", path(volume)]);
        try_run(&["rpc.nfsd", "0"]);
        try_run(&["exportfs", "-ua"]);
        self.mountd.kill().and_then(|()| self.mountd.wait()).ok();
        for mounted in ["/proc/fs/nfsd", path(&exported)] {
            try_run(&["umount", mounted]);
        }
        for directory in exported.ancestors().take(2).chain(volume.ancestors().take(4)) {
            fs::remove_dir(directory).ok();
        }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}
