//! The daemon: serves containerd on the pod's socket until the pod is over.

use crate::args::{ArgumentError, Arguments};
use crate::events::Events;
use crate::identifier::Identifier;
use crate::log::FifoLog;
use crate::task::vm::RealBoot;
use crate::task::{self, Pod};
use crate::{sandbox_api, start, trace};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing::Level;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

/// containerd's socket for events.
const EVENTS_ADDRESS: &str = "TTRPC_ADDRESS";

/// For containerd to take the last events.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// For the answer to `Shutdown` to leave.
const LAST_ANSWER: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    #[error("standard input is not the pod's listening socket")]
    Listener(#[source] io::Error),
    #[error("cannot read the working directory")]
    Bundle(#[source] io::Error),
    #[error("cannot read the pod sandbox's runtime options")]
    Options(#[source] io::Error),
    #[error("cannot run the event loop")]
    Runtime(#[source] io::Error),
    #[error("cannot serve the pod's socket")]
    Server(#[source] ttrpc::Error),
}

pub fn serve(arguments: &Arguments) -> Result<(), ServeError> {
    trace::begin_if_asked();
    let (namespace, id) = (arguments.namespace()?.clone(), arguments.id()?.clone());
    let bundle = std::env::current_dir().map_err(ServeError::Bundle)?;
    log_to(&bundle, arguments.debug, &namespace, &id);
    // Already a session's leader only when run by hand.
    let _ = nix::unistd::setsid();
    raise_descriptor_limit();
    let options = start::options::take(&bundle).map_err(ServeError::Options)?;
    let listener = take_listener().map_err(ServeError::Listener)?;
    // containerd removes the bundle while we live.
    std::env::set_current_dir("/").map_err(ServeError::Bundle)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ServeError::Runtime)?;
    let result = runtime.block_on(run(listener, namespace, id, options));
    // Without waiting: a thread may hang in a system call.
    runtime.shutdown_background();
    if let Err(error) = &result {
        tracing::error!(error = error as &dyn std::error::Error, "shim failed");
    }
    result
}

fn log_to(bundle: &Path, debug: bool, namespace: &Identifier, id: &Identifier) {
    let level = if debug { Level::DEBUG } else { Level::INFO };
    let common = [("namespace", namespace.as_str()), ("pod", id.as_str())];
    // Without containerd there is no log; the pod runs all the same.
    if let Ok(log) = FifoLog::open(&bundle.join("log"), level, &common) {
        log.install();
    }
}

/// Takes the listener from standard input, where `start` put it, and leaves nothing there for our children.
fn take_listener() -> io::Result<UnixListener> {
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    listener.local_addr()?;
    let null = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(null)?;
    Ok(listener)
}

/// Every channel of every process takes a few descriptors.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

async fn run(listener: UnixListener, namespace: Identifier, id: Identifier, options: Any) -> Result<(), ServeError> {
    let socket = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
    let events = Events::to_containerd(namespace.clone(), &std::env::var(EVENTS_ADDRESS).unwrap_or_default());
    let pod = Arc::new(Pod::new(namespace, id, events, Box::new(RealBoot)));
    let listener = Listener::try_from(listener).map_err(ServeError::Listener)?;
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(task::services(&pod))
        .register_service(sandbox_api::services(&pod, options));
    let mut terminated = signal(SignalKind::terminate()).map_err(ServeError::Runtime)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(ServeError::Runtime)?;
    server.start().await.map_err(ServeError::Server)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "shim serves");

    tokio::select! {
        () = pod.over() => {}
        _ = terminated.recv() => tracing::info!("shim was asked to end by a signal"),
        _ = interrupted.recv() => tracing::info!("shim was asked to end by a signal"),
    }
    // First, so that nobody who starts the same pod again finds us.
    if let Some(socket) = socket {
        let _ = std::fs::remove_file(socket);
    }
    pod.destroy_vm().await;
    pod.events.flush(FLUSH_LIMIT).await;
    tokio::time::sleep(LAST_ANSWER).await;
    tracing::info!("shim ends");
    Ok(())
}
