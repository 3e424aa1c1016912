//! `hyprstream serve`.

use std::io::Write;

use hypr_common::Error;
use hypr_server::config::listen_overrides;
use tokio::signal::unix::{SignalKind, signal};

use crate::Failure;
use crate::cli::ServeArgs;

/// Serves until SIGTERM or SIGINT, then drains; returns when everything is durable.
pub async fn run(args: ServeArgs) -> Result<(), Failure> {
    let listen = args.listen.as_deref().map(listen_overrides).transpose().map_err(Failure::Usage)?;
    let config = args.directory.load(listen.into_iter().flatten().collect())?;
    let shutdown = stop_signal()?;
    let announce = |address| {
        let mut out = std::io::stdout();
        // Whoever waits for the line has gone if it cannot be written; the server is of use to others.
        let _ = writeln!(out, "hyprstream ready on http://{address}").and_then(|()| out.flush());
    };
    Ok(hypr_server::serve(config, announce, shutdown).await?)
}

/// Completes at the first SIGTERM or SIGINT. Listens from the call on, not from the first poll.
fn stop_signal() -> Result<impl Future<Output = ()>, Error> {
    let listen = |kind| signal(kind).map_err(|error| Error::io("cannot listen for signals", error));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
