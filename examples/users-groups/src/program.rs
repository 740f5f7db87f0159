//! What the programs `users` and `groups` share: listen, say where on standard output,
//! run until a signal, stop gently.

use crate::{ServeError, Server};
use clap::Args;
use std::{
    io::{self, Write as _},
    process::ExitCode,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

/// Where to listen.
#[derive(Debug, Args)]
pub struct Listen {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// The port to listen on; 0 takes any free one. The address goes to standard output.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
}

/// Runs the server that `serve` makes until SIGTERM or SIGINT, and says in one line what
/// went wrong when something did.
pub async fn run<F>(name: &str, listen: Listen, serve: F) -> ExitCode
where
    F: FnOnce(TcpListener) -> Result<Server, ServeError>,
{
    match until_signal(listen, serve).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn until_signal<F>(listen: Listen, serve: F) -> Result<(), ServeError>
where
    F: FnOnce(TcpListener) -> Result<Server, ServeError>,
{
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let server = serve(bind(&listen).await?)?;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", server.url())?;
    stdout.flush()?;
    drop(stdout);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    server.stop().await
}

/// Like `TcpListener::bind`, but the error says which address.
async fn bind(Listen { host, port }: &Listen) -> io::Result<TcpListener> {
    TcpListener::bind((host.as_str(), *port))
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("{host}:{port}: {error}")))
}
