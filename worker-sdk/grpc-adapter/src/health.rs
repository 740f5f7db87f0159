//! Asks a gRPC server for its health (`grpc.health.v1`): once, or for every change.
//!
//! A name is a service's, or empty for the server as a whole. Servers need not know every
//! name, need not offer `Watch`, and need not have the health service at all; what that means
//! is `follow`'s to decide.

use std::time::Duration;

use tokio::{sync::mpsc, task::JoinSet};
use tonic::{Code, Request, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use crate::{cause::Cause, target::Line};

/// The name under which a server tells its own health.
pub(crate) const OVERALL: &str = "";

/// What is known about one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// It takes work.
    Serving,
    /// It is there and takes none.
    NotServing,
    /// The server has nothing to say about this name.
    Untold,
}

/// Why a question about health has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoHealth {
    /// There is no health service.
    Unimplemented,
    /// The connection is gone.
    Gone(String),
    /// No answer in time.
    Late,
}

/// Asks once.
pub(crate) async fn check(line: &Line, name: &str, limit: Duration) -> Result<Health, NoHealth> {
    let mut request = Request::new(HealthCheckRequest { service: name.to_owned() });
    request.set_timeout(limit);
    let mut client = HealthClient::new(line.channel());
    let Ok(answer) = tokio::time::timeout(limit, client.check(request)).await else {
        return Err(NoHealth::Late);
    };
    match answer {
        Ok(response) => {
            line.heard();
            Ok(health(response.get_ref()))
        }
        Err(status) => match (Cause::of(&status), status.code()) {
            (Cause::Gone(why) | Cause::NotReached(why), _) => Err(NoHealth::Gone(why)),
            (Cause::NotBegun, _) => Err(NoHealth::Gone("the connection closes".to_owned())),
            (Cause::Late, _) => Err(NoHealth::Late),
            (Cause::Service, code) => {
                line.heard();
                match code {
                    Code::Unimplemented => Err(NoHealth::Unimplemented),
                    // A proxy that has lost the server behind it.
                    Code::Unavailable => Ok(Health::NotServing),
                    // Not found; or not for us to know.
                    _ => Ok(Health::Untold),
                }
            }
        },
    }
}

fn health(response: &HealthCheckResponse) -> Health {
    match response.status() {
        ServingStatus::Serving => Health::Serving,
        ServingStatus::ServiceUnknown => Health::Untold,
        ServingStatus::Unknown | ServingStatus::NotServing => Health::NotServing,
    }
}

/// News from a watch about a name: its health, or `None` when the watch has ended.
pub(crate) type News = (String, Option<Health>);

/// Watches over names. Dropping it hangs up.
pub(crate) struct Watches {
    tasks: JoinSet<()>,
    news: mpsc::Receiver<News>,
}

/// How many pieces of news wait to be read; a watch waits when there are more.
const NEWS_QUEUE: usize = 64;

impl Watches {
    /// Opens one watch for each name.
    pub(crate) fn open<'a>(line: &Line, names: impl IntoIterator<Item = &'a str>) -> Self {
        let (sender, news) = mpsc::channel(NEWS_QUEUE);
        let mut tasks = JoinSet::new();
        for name in names {
            tasks.spawn(watch(line.clone(), name.to_owned(), sender.clone()));
        }
        Self { tasks, news }
    }

    /// The next piece of news; pending for ever when no watch is left.
    pub(crate) async fn next(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => news,
            None => std::future::pending().await,
        }
    }

    /// Hangs up.
    pub(crate) fn close(&mut self) {
        self.tasks.abort_all();
        self.news.close();
    }
}

async fn watch(line: Line, name: String, news: mpsc::Sender<News>) {
    // However it ended, the name is asked for by `Check` from now on.
    let _ = follow_watch(&line, &name, &news).await;
    let _ = news.send((name, None)).await;
}

async fn follow_watch(line: &Line, name: &str, news: &mpsc::Sender<News>) -> Result<(), Status> {
    let request = HealthCheckRequest { service: name.to_owned() };
    let mut changes = HealthClient::new(line.channel()).watch(request).await?.into_inner();
    while let Some(change) = changes.message().await? {
        line.heard();
        if news.send((name.to_owned(), Some(health(&change)))).await.is_err() {
            break;
        }
    }
    Ok(())
}
