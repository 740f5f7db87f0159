//! A client of the mesh for commands that ask once: connected, and with the words for when nobody
//! answers.

use zex_client::{Client, ClientOptions, Code, Status};

use crate::metrics;
use crate::settings::keys;
use crate::settings::mesh::InPipes;

/// The mesh as a command sees it.
pub(crate) struct Reach {
    pub(crate) client: Client,
    pub(crate) endpoints: Vec<String>,
}

impl Reach {
    /// Connects; whether anybody is there, the first question shows.
    pub(crate) fn connect(in_pipes: &InPipes) -> anyhow::Result<Self> {
        let endpoints = in_pipes.for_clients()?;
        let client = Client::connect(&endpoints, options())?;
        Ok(Self { client, endpoints })
    }

    /// What to say when a question to the mesh itself fails.
    pub(crate) fn explain(&self, status: Status) -> anyhow::Error {
        match status.code {
            Code::Unavailable | Code::DeadlineExceeded => {
                anyhow::Error::msg(nobody(&self.endpoints))
            }
            _ => status.into(),
        }
    }
}

/// How a command's clients connect: with the process's key, if it has one.
pub(crate) fn options() -> ClientOptions {
    let middleware = metrics::around("client");
    ClientOptions { context: Some(keys::context()), middleware, ..Default::default() }
}

/// Nobody answers, and what to do.
pub(crate) fn nobody(endpoints: &[String]) -> String {
    if let Some(refusal) = keys::context().refusal() {
        return refusal;
    }
    let endpoints = endpoints.join(", ");
    format!(
        "no mesh answers at {endpoints}; start one with `zex up`, or say where it is with --in-pipe \
         or --port-base"
    )
}
