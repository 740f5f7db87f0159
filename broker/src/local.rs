//! A whole mesh inside one process: one pipe of each kind and any number of brokers.
//!
//! ```text
//!   clients ─▶ [in pipe] ◀── broker-1 … broker-N ──▶ [worker pipe] ◀─ workers
//!                              └── [state pipe] ──┘
//! ```
//!
//! The same sockets as with a process for each role, so others can join it. One broker alone owns
//! the in pipe and the worker pipe itself, in its thread; several share pipes with threads of their
//! own, so that none depends on another. Used by `zex up`, and by the tests of everything that needs
//! a mesh.

use std::time::Duration;

use zex_core::mesh::Settings;
use zex_plumbing::{Context, FusedPipe, Limits, Pipe, PipeSettings, StatePipeSettings};

use crate::{Broker, BrokerSettings, Error};

/// Where the pipes of a local mesh listen.
#[derive(Debug, Clone)]
pub struct LocalEndpoints {
    /// For clients.
    pub in_pipe: String,
    /// For brokers.
    pub in_pipe_brokers: String,
    /// Where brokers speak.
    pub state_pipe: String,
    /// Where brokers listen.
    pub state_pipe_publish: String,
    /// For workers.
    pub worker_pipe: String,
    /// For brokers.
    pub worker_pipe_brokers: String,
    /// For clients of the old dialect, if they are to have an endpoint of their own.
    pub ez_clients: Option<String>,
    /// The same for workers.
    pub ez_workers: Option<String>,
}

impl Default for LocalEndpoints {
    /// Ports of loopback that the system picks.
    fn default() -> Self {
        let any = || "tcp://127.0.0.1:0".to_owned();
        Self {
            in_pipe: any(),
            in_pipe_brokers: any(),
            state_pipe: any(),
            state_pipe_publish: any(),
            worker_pipe: any(),
            worker_pipe_brokers: any(),
            ez_clients: None,
            ez_workers: None,
        }
    }
}

/// A running mesh. Dropping it stops everything at once.
pub struct LocalMesh {
    context: Context,
    at: LocalEndpoints,
    /// Those with a thread of their own.
    pipes: Vec<(&'static str, Pipe)>,
    brokers: Vec<(String, Broker)>,
}

impl LocalMesh {
    /// Binds the pipes and starts so many brokers, `broker-1` and so on. They are ready a second
    /// later; calls made before wait for them.
    ///
    /// # Errors
    /// [`Error`] if an endpoint is taken or malformed.
    pub fn start(brokers: u8, mut at: LocalEndpoints) -> Result<Self, Error> {
        let context = Context::new();
        let in_pipe = PipeSettings {
            name: "in-pipe".to_owned(),
            peers_endpoint: at.in_pipe,
            brokers_endpoint: at.in_pipe_brokers,
            ez_endpoint: at.ez_clients,
            limits: Limits::default(),
        };
        let worker_pipe = PipeSettings {
            name: "worker-pipe".to_owned(),
            peers_endpoint: at.worker_pipe,
            brokers_endpoint: at.worker_pipe_brokers,
            ez_endpoint: at.ez_workers,
            limits: Limits::default(),
        };
        let state_pipe = StatePipeSettings {
            name: "state-pipe".to_owned(),
            brokers_endpoint: at.state_pipe,
            publish_endpoint: at.state_pipe_publish,
        };
        let state_pipe = Pipe::start_state(&context, &state_pipe)?;
        at.state_pipe = state_pipe.front_endpoint().to_owned();
        at.state_pipe_publish = state_pipe.back_endpoint().to_owned();
        let (mut pipes, mut fused) = (vec![("state", state_pipe)], None);
        if brokers == 1 {
            let in_pipe = FusedPipe::in_pipe(&context, &in_pipe)?;
            let worker_pipe = FusedPipe::worker_pipe(&context, &worker_pipe)?;
            at.in_pipe = in_pipe.front_endpoint().to_owned();
            at.in_pipe_brokers = in_pipe.back_endpoint().to_owned();
            at.worker_pipe = worker_pipe.front_endpoint().to_owned();
            at.worker_pipe_brokers = worker_pipe.back_endpoint().to_owned();
            at.ez_clients = in_pipe.ez_endpoint().map(str::to_owned);
            at.ez_workers = worker_pipe.ez_endpoint().map(str::to_owned);
            fused = Some((in_pipe, worker_pipe));
        } else {
            let in_pipe = Pipe::start_in(&context, &in_pipe)?;
            let worker_pipe = Pipe::start_worker(&context, &worker_pipe)?;
            at.in_pipe = in_pipe.front_endpoint().to_owned();
            at.in_pipe_brokers = in_pipe.back_endpoint().to_owned();
            at.worker_pipe = worker_pipe.front_endpoint().to_owned();
            at.worker_pipe_brokers = worker_pipe.back_endpoint().to_owned();
            at.ez_clients = in_pipe.ez_endpoint().map(str::to_owned);
            at.ez_workers = worker_pipe.ez_endpoint().map(str::to_owned);
            pipes.extend([("in", in_pipe), ("worker", worker_pipe)]);
        }
        let mut mesh = Self { context, at, pipes, brokers: Vec::new() };
        match fused {
            Some((in_pipe, worker_pipe)) => mesh.start_owner(in_pipe, worker_pipe)?,
            None => (1..=brokers).try_for_each(|n| mesh.add_broker(format!("broker-{n}")))?,
        }
        Ok(mesh)
    }

    /// The only broker, with the pipes in its thread.
    fn start_owner(&mut self, in_pipe: FusedPipe, worker_pipe: FusedPipe) -> Result<(), Error> {
        let name = "broker-1".to_owned();
        let settings = BrokerSettings {
            name: name.clone(),
            in_pipes: Vec::new(),
            worker_pipes: Vec::new(),
            state_pipes: self.state_pipes(),
            bounds: Settings::default(),
        };
        let (ins, workers) = (vec![in_pipe], vec![worker_pipe]);
        let broker = Broker::start_with_pipes(&self.context, settings, ins, workers)?;
        self.brokers.push((name, broker));
        Ok(())
    }

    /// One broker more.
    ///
    /// # Errors
    /// [`Error`] if the system has no sockets or threads left.
    pub fn add_broker(&mut self, name: String) -> Result<(), Error> {
        let settings = BrokerSettings {
            name: name.clone(),
            in_pipes: vec![reachable(&self.at.in_pipe_brokers)],
            worker_pipes: vec![reachable(&self.at.worker_pipe_brokers)],
            state_pipes: self.state_pipes(),
            bounds: Settings::default(),
        };
        let broker = Broker::start(&self.context, settings)?;
        self.brokers.push((name, broker));
        Ok(())
    }

    fn state_pipes(&self) -> Vec<(String, String)> {
        vec![(reachable(&self.at.state_pipe), reachable(&self.at.state_pipe_publish))]
    }

    /// The context that its sockets share, for clients and workers of the same process.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Where clients of this process connect.
    pub fn for_clients(&self) -> String {
        reachable(&self.at.in_pipe)
    }

    /// Where workers of this process connect.
    pub fn for_workers(&self) -> String {
        reachable(&self.at.worker_pipe)
    }

    /// Where it really listens: port 0 has become a number.
    pub fn endpoints(&self) -> LocalEndpoints {
        self.at.clone()
    }

    /// Its brokers with their names.
    pub fn brokers(&self) -> &[(String, Broker)] {
        &self.brokers
    }

    /// Its pipes that have a thread of their own, each with its kind.
    pub fn pipes(&self) -> &[(&'static str, Pipe)] {
        &self.pipes
    }

    /// Whether every pipe and every broker lives.
    pub fn is_running(&self) -> bool {
        self.pipes.iter().all(|(_, pipe)| pipe.is_running())
            && self.brokers.iter().all(|(_, broker)| broker.is_running())
    }

    /// Takes a broker out as if it were killed: no drain, no goodbye. False if there is none of
    /// this name.
    pub fn kill_broker(&mut self, name: &str) -> bool {
        let at = self.brokers.iter().position(|(known, _)| known == name);
        at.map(|at| self.brokers.remove(at).1.stop()).is_some()
    }

    /// Lets the brokers finish what they hold, then stops everything. False if they were not done
    /// within `patience`. Blocks.
    pub fn drain(mut self, patience: Duration) -> bool {
        let drains = self
            .brokers
            .drain(..)
            .map(|(_, broker)| std::thread::spawn(move || broker.drain(patience)));
        let drains: Vec<_> = drains.collect();
        // Each is waited for, also behind one that was not done in time.
        let done: Vec<bool> =
            drains.into_iter().map(|drain| drain.join().unwrap_or(false)).collect();
        done.into_iter().all(|done| done)
    }
}

/// An endpoint to connect to: what listens everywhere is reached at loopback.
fn reachable(endpoint: &str) -> String {
    endpoint.replace("//0.0.0.0:", "//127.0.0.1:").replace("//*:", "//127.0.0.1:")
}
