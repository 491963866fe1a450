//! Sockets of the node that the operator lists, and pods connect to.

use e2e::cri::{Container, NewContainer, Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::node_config::NodeConfig;
use e2e::{BUSYBOX, DEBIAN, FOREVER, eventually};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

crate::for_each_sandboxer!(long: a_listed_socket_reaches_its_program);

/// Sends 1 MiB, then the end; what comes back is the same, then the end.
const ECHO: &str = r"
import socket, threading
content = bytes(range(256)) * 4096
s = socket.socket(socket.AF_UNIX); s.connect('/run/agent.sock')
def send(): s.sendall(content); s.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
back = b''
while part := s.recv(65536): back += part
print('same' if back == content else len(back))
";

/// A hundred programs that stay connected; says how many the node has taken, and then lets go of all.
const CROWD: &str = r"
import socket, select, sys, time
every = []
for n in range(100):
    s = socket.socket(socket.AF_UNIX); s.settimeout(60); s.connect('/run/agent.sock'); s.sendall(b'x'); every.append(s)
answered, end = set(), time.monotonic() + 8
while time.monotonic() < end:
    for s in select.select([s for s in every if s not in answered], [], [], 1)[0]:
        s.recv(1); answered.add(s)
print(len(answered), flush=True)
for s in answered: s.close()
late = [s for s in every if s not in answered]
for s in late: assert s.recv(1) == b'x'
print(len(late))
";

/// One pod: a boot takes seconds under emulation.
fn a_listed_socket_reaches_its_program(sandboxer: Sandboxer) {
    let before = Traces::now();
    let node = Node::new();
    let listed = node.directory.join("listed.sock");
    let echo = Echo::new(&listed);
    fs::set_permissions(&listed, fs::Permissions::from_mode(0o660)).expect("root may");
    std::os::unix::fs::chown(&listed, Some(1000), Some(2000)).expect("root may");
    let other = node.directory.join("other.sock");
    let _other = UnixListener::bind(&other).expect("a socket");
    let _config = NodeConfig::with(&format!("host_sockets = [{listed:?}]\nhost_paths = [{:?}]\n", node.directory));

    let pod = Pod::new("sockets", sandboxer).run();
    let refused = with(pod.container("other", BUSYBOX), &other).command(&FOREVER);
    let refusal = refused.try_create().and_then(|container| container.start()).expect_err("it is refused").message;
    let sentence = format!("mount /run/agent.sock: {} of the node is a socket, and not allowed", other.display());
    assert!(refusal.contains(&sentence) && refusal.contains("see host_sockets in config.toml"), "{refusal}");

    let container = with(pod.container("client", DEBIAN), &listed).command(&FOREVER).start();
    assert_eq!(container.shell("stat -c '%F %a %u:%g' /run/agent.sock").stdout(), "socket 660 1000:2000\n");
    assert_eq!(python(&container, ECHO), "same\n");
    many_at_once_are_bounded_and_all_are_served(&container, &echo);
    assert_eq!(python(&container, ECHO), "same\n");
    let second = with(pod.container("second", DEBIAN), &listed).command(&FOREVER).start();
    assert_eq!(python(&second, ECHO), "same\n");
    second.stop(Duration::ZERO).expect("it stops");
    second.remove().expect("it has ended");
    assert_eq!(python(&container, ECHO), "same\n");

    let directory = node.directory.to_str().expect("a plain path");
    let whole = pod.container("directory", DEBIAN).mount(directory, "/srv/run").mount(directory, "/srv/seen");
    let whole = whole.config(|config| config.mounts[1].readonly = true).command(&FOREVER).start();
    let [writable, seen] =
        ["/srv/run", "/srv/seen"].map(|at| ECHO.replace("/run/agent.sock", &format!("{at}/listed.sock")));
    let unlisted = "import socket\ntry: socket.socket(socket.AF_UNIX).connect('/srv/seen/other.sock')\n\
                    except ConnectionRefusedError: print('refused')";
    assert_eq!([&writable, &seen, unlisted].map(|script| python(&whole, script)), ["same\n", "same\n", "refused\n"]);

    drop(echo);
    let gone = "import socket\ns = socket.socket(socket.AF_UNIX); s.settimeout(30); s.connect('/run/agent.sock')\n\
                try: print(s.recv(1))\nexcept ConnectionError as error: print(b'')";
    assert_eq!(python(&container, gone), "b''\n", "a program that is gone does not end the connection");
    drop(pod);
    drop(node);
    assert_nothing_left_since(&before);
}

fn many_at_once_are_bounded_and_all_are_served(container: &Container, echo: &Echo) {
    let numbers = python(container, CROWD);
    let numbers: Vec<usize> = numbers.lines().map(|line| line.parse().expect("a number")).collect();
    assert_eq!(numbers, [64, 36]);
    assert!(echo.most.load(Ordering::Relaxed) <= 64, "{echo:?}");
    eventually("the connections end on the node", || echo.now.load(Ordering::Relaxed) == 0);
}

fn with<'pod>(container: NewContainer<'pod>, socket: &Path) -> NewContainer<'pod> {
    container.mount(socket.to_str().expect("a plain path"), "/run/agent.sock")
}

fn python(container: &Container, script: &str) -> String {
    container.exec(&["/usr/bin/python3", "-c", script]).success().stdout()
}

/// A program of the node that sends back what it gets, until the end, and counts who is connected.
#[derive(Debug)]
struct Echo {
    path: PathBuf,
    over: Arc<AtomicBool>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Echo {
    fn new(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        let (over, now, most) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicUsize>::default(), Arc::default());
        let shared = (over.clone(), now.clone(), Arc::<AtomicUsize>::clone(&most));
        let thread = std::thread::spawn(move || {
            let (over, now, most) = shared;
            for connection in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                let now = now.clone();
                std::thread::spawn(move || {
                    serve(connection.expect("a connection"));
                    now.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { path: path.to_owned(), over, now, most, thread: Some(thread) }
    }
}

fn serve(mut connection: UnixStream) {
    let mut part = [0; 65536];
    while let Ok(length @ 1..) = connection.read(&mut part) {
        if connection.write_all(&part[..length]).is_err() {
            return;
        }
    }
}

impl Drop for Echo {
    /// Nobody listens when this returns. The socket stays where it is, as that of a program that crashed.
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        drop(UnixStream::connect(&self.path));
        self.thread.take().expect("it is joined once").join().expect("it does not panic");
    }
}

struct Node {
    directory: PathBuf,
}

impl Node {
    fn new() -> Self {
        let directory = PathBuf::from(format!("/srv/e2e-sockets-{}", std::process::id()));
        fs::create_dir(&directory).expect("a new directory");
        Self { directory }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.directory).ok();
    }
}
