//! Where the pipes are, for those who connect; where they shall listen, for those who bind.
//!
//! ```text
//!   who          connects to
//!   client       every in pipe's port               --in-pipe, or --in-pipe-host and --in-pipe-port
//!   worker       every worker pipe's port           likewise
//!   broker       the other port of every pipe       likewise, one port higher
//! ```
//!
//! Used by every command; `zex up` binds what the others connect to. `--port-base` stands for all
//! ports, for who binds and for who connects.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::OnceLock;

use anyhow::{Context as _, bail};
use clap::Args;
use zex_plumbing::Limits;

/// The ports of a mesh in one number.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct PortBase {
    /// First of a mesh's seven ports in a row, as 9000 for 9000 to 9005, and 9006 for the gateway, in
    /// place of the single ports; for `zex up` and for who connects to it. 0 lets the system pick each, as `zex demo` does if
    /// nothing is said
    #[arg(long, env = "ZEX_PORT_BASE", value_name = "PORT", global = true, help_heading = "Mesh")]
    #[arg(value_parser = clap::value_parser!(u16).range(0..=65_529))]
    port_base: Option<u16>,
}

/// What `main` has made of [`PortBase`]: ports are asked for in many places.
static PORT_BASE: OnceLock<PortBase> = OnceLock::new();

impl PortBase {
    /// Takes note of it; once, before anything connects or binds.
    pub(crate) fn take(self) {
        let _ = PORT_BASE.set(self);
    }
}

/// The ports of this process: these, or those that are `first` and more above `--port-base`.
pub(crate) fn ports<const N: usize>(own: [u16; N], first: u16) -> [u16; N] {
    above(PORT_BASE.get().and_then(|given| given.port_base), own, first)
}

fn above<const N: usize>(base: Option<u16>, own: [u16; N], first: u16) -> [u16; N] {
    match base {
        None => own,
        // The system picks them.
        Some(0) => [0; N],
        Some(base) => {
            let mut next = base.saturating_add(first);
            [(); N].map(|()| {
                let port = next;
                next = next.saturating_add(1);
                port
            })
        }
    }
}

/// The two ports of an in pipe.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct InPipePorts {
    /// Port of an in pipe for clients
    #[arg(long, env = "ZEX_IN_PIPE_PORT", value_name = "PORT", default_value_t = 9000)]
    #[arg(help_heading = "Mesh", hide_short_help = true)]
    pub(crate) in_pipe_port: u16,
    /// Port of an in pipe for brokers
    #[arg(long, env = "ZEX_IN_PIPE_BROKER_PORT", value_name = "PORT", default_value_t = 9001)]
    #[arg(help_heading = "Mesh", hide_short_help = true)]
    pub(crate) in_pipe_broker_port: u16,
}

/// The two ports of a state pipe.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct StatePipePorts {
    /// Port of a state pipe where brokers speak
    #[arg(long, env = "ZEX_STATE_PIPE_PORT", value_name = "PORT", default_value_t = 9002)]
    #[arg(help_heading = "Mesh", hide_short_help = true)]
    pub(crate) state_pipe_port: u16,
    /// Port of a state pipe where brokers listen
    #[arg(long, env = "ZEX_STATE_PIPE_PUBLISH_PORT", value_name = "PORT", default_value_t = 9003)]
    #[arg(help_heading = "Mesh", hide_short_help = true)]
    pub(crate) state_pipe_publish_port: u16,
}

/// The two ports of a worker pipe.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct WorkerPipePorts {
    /// Port of a worker pipe for workers
    #[arg(long, env = "ZEX_WORKER_PIPE_PORT", value_name = "PORT", default_value_t = 9004)]
    #[arg(help_heading = "Mesh", hide_short_help = true)]
    pub(crate) worker_pipe_port: u16,
    /// Port of a worker pipe for brokers
    #[arg(long, env = "ZEX_WORKER_PIPE_BROKER_PORT", value_name = "PORT", default_value_t = 9005)]
    #[arg(help_heading = "Mesh", hide_short_help = true)]
    pub(crate) worker_pipe_broker_port: u16,
}

impl InPipePorts {
    /// For clients and for brokers.
    pub(crate) fn both(self) -> [u16; 2] {
        ports([self.in_pipe_port, self.in_pipe_broker_port], 0)
    }
}

impl StatePipePorts {
    /// Where brokers speak and where they listen.
    pub(crate) fn both(self) -> [u16; 2] {
        ports([self.state_pipe_port, self.state_pipe_publish_port], 2)
    }
}

impl WorkerPipePorts {
    /// For workers and for brokers.
    pub(crate) fn both(self) -> [u16; 2] {
        ports([self.worker_pipe_port, self.worker_pipe_broker_port], 4)
    }
}

/// The in pipes, for who connects to them.
#[derive(Args, Clone, Debug)]
pub(crate) struct InPipes {
    /// In pipes where clients connect, such as tcp://127.0.0.1:9000; a comma between several.
    /// Brokers connect to the port above
    #[arg(long, env = "ZEX_IN_PIPE", value_name = "ENDPOINTS", value_delimiter = ',')]
    #[arg(help_heading = "Mesh")]
    pub(crate) in_pipe: Vec<String>,
    /// Hosts of the in pipes, where --in-pipe is not given; a comma between several
    #[arg(long, env = "ZEX_IN_PIPE_HOST", value_name = "HOSTS", value_delimiter = ',')]
    #[arg(help_heading = "Mesh", hide_short_help = true, default_value = "127.0.0.1")]
    pub(crate) in_pipe_host: Vec<String>,
    #[command(flatten)]
    pub(crate) ports: InPipePorts,
}

/// The state pipes, for who connects to them.
#[derive(Args, Clone, Debug)]
pub(crate) struct StatePipes {
    /// State pipes where brokers speak, such as tcp://127.0.0.1:9002; a comma between several.
    /// They listen at the port above
    #[arg(long, env = "ZEX_STATE_PIPE", value_name = "ENDPOINTS", value_delimiter = ',')]
    #[arg(help_heading = "Mesh")]
    pub(crate) state_pipe: Vec<String>,
    /// Hosts of the state pipes, where --state-pipe is not given; a comma between several
    #[arg(long, env = "ZEX_STATE_PIPE_HOST", value_name = "HOSTS", value_delimiter = ',')]
    #[arg(help_heading = "Mesh", hide_short_help = true, default_value = "127.0.0.1")]
    pub(crate) state_pipe_host: Vec<String>,
    #[command(flatten)]
    pub(crate) ports: StatePipePorts,
}

/// The worker pipes, for who connects to them.
#[derive(Args, Clone, Debug)]
pub(crate) struct WorkerPipes {
    /// Worker pipes where workers connect, such as tcp://127.0.0.1:9004; a comma between several.
    /// Brokers connect to the port above
    #[arg(long, env = "ZEX_WORKER_PIPE", value_name = "ENDPOINTS", value_delimiter = ',')]
    #[arg(help_heading = "Mesh")]
    pub(crate) worker_pipe: Vec<String>,
    /// Hosts of the worker pipes, where --worker-pipe is not given; a comma between several
    #[arg(long, env = "ZEX_WORKER_PIPE_HOST", value_name = "HOSTS", value_delimiter = ',')]
    #[arg(help_heading = "Mesh", hide_short_help = true, default_value = "127.0.0.1")]
    pub(crate) worker_pipe_host: Vec<String>,
    #[command(flatten)]
    pub(crate) ports: WorkerPipePorts,
}

/// Where a pipe listens.
#[derive(Args, Clone, Debug)]
pub(crate) struct Bind {
    /// Address to listen on; 0.0.0.0 for every one that this machine has
    #[arg(long, env = "ZEX_BIND", value_name = "HOST", default_value = "127.0.0.1")]
    #[arg(help_heading = "Mesh")]
    pub(crate) bind: String,
}

/// Where old peers connect.
#[derive(Args, Clone, Debug)]
pub(crate) struct EzListen {
    /// Endpoint of its own for peers of the old dialect, who know no keys, such as
    /// tcp://0.0.0.0:9010: whoever reaches it needs none. That dialect is then spoken there alone.
    /// `zex up` takes two with a comma between, for clients and for workers
    #[arg(long, env = "ZEX_EZ_LISTEN", value_name = "ENDPOINTS", value_delimiter = ',')]
    #[arg(help_heading = "Mesh")]
    pub(crate) ez_listen: Vec<String>,
}

/// What a pipe takes of its peers.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct PipeLimits {
    /// Messages that one client or worker may send through this pipe in a second; what is above is
    /// given back to it
    #[arg(long, env = "ZEX_PEER_RATE", value_name = "MESSAGES", help_heading = "Mesh")]
    #[arg(default_value_t = Limits::PEER_RATE, value_parser = clap::value_parser!(u32).range(10..))]
    #[arg(hide_short_help = true)]
    peer_rate: u32,
    /// Connections at one port of this pipe; the newest above are closed. Must be below the number
    /// of files that the process may open (`ulimit -n`) to be of use
    #[arg(long, env = "ZEX_MAX_CONNECTIONS", value_name = "COUNT", help_heading = "Mesh")]
    #[arg(default_value_t = Limits::CONNECTIONS as u32)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..), hide_short_help = true)]
    max_connections: u32,
}

impl From<PipeLimits> for Limits {
    fn from(given: PipeLimits) -> Self {
        Self { peer_rate: given.peer_rate, connections: given.max_connections as usize }
    }
}

impl EzListen {
    /// The one of a pipe.
    pub(crate) fn of_pipe(&self) -> anyhow::Result<Option<String>> {
        match &self.ez_listen[..] {
            [] => Ok(None),
            [endpoint] => Ok(Some(endpoint.clone())),
            more => bail!("--ez-listen: a pipe takes one endpoint, not {}", more.len()),
        }
    }

    /// Those of a whole mesh: for clients, for workers.
    pub(crate) fn of_mesh(&self) -> anyhow::Result<[Option<String>; 2]> {
        match &self.ez_listen[..] {
            [] => Ok([None, None]),
            [clients, workers] => Ok([Some(clients.clone()), Some(workers.clone())]),
            other => bail!(
                "--ez-listen: a mesh takes two endpoints, for clients and for workers, not {}",
                other.len()
            ),
        }
    }
}

impl InPipes {
    /// The endpoints for clients.
    pub(crate) fn for_clients(&self) -> anyhow::Result<Vec<String>> {
        let [port, _] = self.ports.both();
        endpoints("in-pipe", &self.in_pipe, &self.in_pipe_host, port, 0)
    }

    /// The endpoints for brokers.
    pub(crate) fn for_brokers(&self) -> anyhow::Result<Vec<String>> {
        let [_, port] = self.ports.both();
        endpoints("in-pipe", &self.in_pipe, &self.in_pipe_host, port, 1)
    }
}

impl StatePipes {
    /// The endpoints where brokers speak.
    pub(crate) fn to_speak(&self) -> anyhow::Result<Vec<String>> {
        let [port, _] = self.ports.both();
        endpoints("state-pipe", &self.state_pipe, &self.state_pipe_host, port, 0)
    }

    /// The endpoints where they listen, in the same order.
    pub(crate) fn to_listen(&self) -> anyhow::Result<Vec<String>> {
        let [_, port] = self.ports.both();
        endpoints("state-pipe", &self.state_pipe, &self.state_pipe_host, port, 1)
    }
}

impl WorkerPipes {
    /// The endpoints for workers.
    pub(crate) fn for_workers(&self) -> anyhow::Result<Vec<String>> {
        let [port, _] = self.ports.both();
        endpoints("worker-pipe", &self.worker_pipe, &self.worker_pipe_host, port, 0)
    }

    /// The endpoints for brokers.
    pub(crate) fn for_brokers(&self) -> anyhow::Result<Vec<String>> {
        let [_, port] = self.ports.both();
        endpoints("worker-pipe", &self.worker_pipe, &self.worker_pipe_host, port, 1)
    }
}

impl Bind {
    /// The endpoint to bind for a port. libzmq binds addresses, not names, so a name is looked up.
    pub(crate) fn endpoint(&self, port: u16) -> anyhow::Result<String> {
        let host = match self.bind.as_str() {
            "*" => "0.0.0.0",
            other => other,
        };
        let address = match host.parse::<IpAddr>() {
            Ok(address) => SocketAddr::new(address, port),
            Err(_) => (host, port)
                .to_socket_addrs()
                .ok()
                .and_then(|mut found| found.find(SocketAddr::is_ipv4))
                .with_context(|| format!("--bind {host}: no such address on this machine"))?,
        };
        if address.is_ipv6() {
            bail!("--bind {host}: pipes listen on IPv4 addresses only");
        }
        Ok(format!("tcp://{address}"))
    }
}

/// What was given, or one endpoint for each host; `above` is added to the ports of what was given.
fn endpoints(
    setting: &str,
    given: &[String],
    hosts: &[String],
    port: u16,
    above: u16,
) -> anyhow::Result<Vec<String>> {
    let given = given.iter().map(|endpoint| {
        let (host, first) = split(endpoint).with_context(|| {
            format!("--{setting} {endpoint}: write it as tcp://host:port, the port from 1 to 65534")
        })?;
        Ok(format!("tcp://{host}:{}", first + above))
    });
    let given = given.collect::<anyhow::Result<Vec<_>>>()?;
    if !given.is_empty() {
        return Ok(given);
    }
    if port == 0 || hosts.iter().any(|host| host.is_empty()) {
        bail!(
            "--{setting}-host and --{setting}-port (or --port-base) must name a host and a port to \
             connect to"
        );
    }
    Ok(hosts.iter().map(|host| format!("tcp://{host}:{port}")).collect())
}

/// The host and the port of `tcp://host:port`.
fn split(endpoint: &str) -> Option<(&str, u16)> {
    let (host, port) = endpoint.strip_prefix("tcp://")?.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| (1..u16::MAX).contains(port))?;
    (!host.is_empty() && !host.contains('\0')).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_given_endpoint_goes_before_hosts_and_brokers_take_the_port_above() {
        let given = texts(&["tcp://a:9000", "tcp://b.example:1"]);
        let hosts = texts(&["elsewhere"]);
        let clients = endpoints("in-pipe", &given, &hosts, 9000, 0).unwrap();
        assert_eq!(clients, given);
        let brokers = endpoints("in-pipe", &given, &hosts, 9001, 1).unwrap();
        assert_eq!(brokers, texts(&["tcp://a:9001", "tcp://b.example:2"]));
    }

    #[test]
    fn hosts_have_the_port_that_is_set() {
        let hosts = texts(&["in-1", "in-2"]);
        let found = endpoints("in-pipe", &[], &hosts, 9001, 1).unwrap();
        assert_eq!(found, texts(&["tcp://in-1:9001", "tcp://in-2:9001"]));
    }

    #[test]
    fn what_is_no_endpoint_is_named() {
        for bad in
            ["", "a:9000", "tcp://a", "tcp://:9000", "tcp://a:0", "tcp://a:65535", "tcp://a:x"]
        {
            let error = endpoints("in-pipe", &texts(&[bad]), &[], 1, 0).unwrap_err();
            assert!(
                error.to_string().starts_with(&format!("--in-pipe {bad}: write it as")),
                "{error}"
            );
        }
        assert!(endpoints("in-pipe", &[], &texts(&[""]), 1, 0).is_err());
        assert!(endpoints("in-pipe", &[], &texts(&["a"]), 0, 0).is_err());
    }

    #[test]
    fn six_ports_in_a_row_are_one_number() {
        assert_eq!(above(None, [1, 2], 4), [1, 2]);
        assert_eq!(above(Some(9_100), [1, 2], 4), [9_104, 9_105]);
        assert_eq!(above(Some(0), [1, 2], 4), [0, 0]);
        assert_eq!(above(Some(65_530), [0; 6], 0)[5], 65_535);
    }

    #[test]
    fn names_are_looked_up_to_be_bound() {
        let bind = |host: &str| Bind { bind: host.to_owned() }.endpoint(7);
        assert_eq!(bind("127.0.0.1").unwrap(), "tcp://127.0.0.1:7");
        assert_eq!(bind("localhost").unwrap(), "tcp://127.0.0.1:7");
        assert_eq!(bind("*").unwrap(), "tcp://0.0.0.0:7");
        assert!(bind("::1").is_err());
        assert!(bind("no such host").is_err());
    }
}
