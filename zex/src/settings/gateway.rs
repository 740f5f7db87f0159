//! Where the gateway listens, and within which bounds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use zex_adapter::{Adapter, Target};
use zex_gateway::{
    Adapters, DEFAULT_CONNECTIONS, DEFAULT_MAX_MESSAGE_BYTES, DEFAULT_RECORDINGS, DEFAULT_STREAMS,
    Settings,
};
use zex_plumbing::Context;
use zex_worker::Worker;

use super::duration;
use super::mesh::{Bind, ports};
use crate::metrics;

/// The gateway of a mesh.
#[derive(Args, Clone, Debug)]
pub(crate) struct FrontDoor {
    /// Port of the gateway. 8080 if not given, or the seventh after --port-base
    #[arg(long, env = "ZEX_GATEWAY_PORT", value_name = "PORT", help_heading = "Gateway")]
    gateway_port: Option<u16>,
    /// Largest request message that the gateway takes, bytes; 16 MiB at most
    #[arg(long, env = "ZEX_GRPC_MAX_MESSAGE", value_name = "BYTES", help_heading = "Gateway")]
    #[arg(hide_short_help = true, default_value_t = DEFAULT_MAX_MESSAGE_BYTES)]
    grpc_max_message: usize,
    /// How long a call through the gateway may take that brings no deadline, as 30s, 5m, 2h
    #[arg(long, env = "ZEX_GRPC_DEADLINE", value_name = "TIME", help_heading = "Gateway")]
    #[arg(hide_short_help = true, default_value = "5m", value_parser = duration)]
    grpc_deadline: Duration,
    /// Connections to the gateway at once; more are closed as soon as they are open
    #[arg(long, env = "ZEX_GRPC_CONNECTIONS", value_name = "COUNT", help_heading = "Gateway")]
    #[arg(hide_short_help = true, default_value_t = DEFAULT_CONNECTIONS)]
    grpc_connections: usize,
    /// Calls at once on one connection to the gateway; a client waits with more
    #[arg(long, env = "ZEX_GRPC_STREAMS", value_name = "COUNT", help_heading = "Gateway")]
    #[arg(hide_short_help = true, default_value_t = DEFAULT_STREAMS)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    grpc_streams: u32,
    /// A connection to the gateway that is silent for so long is asked whether it lives
    #[arg(long, env = "ZEX_GRPC_KEEPALIVE", value_name = "TIME", help_heading = "Gateway")]
    #[arg(hide_short_help = true, default_value = "60s", value_parser = duration)]
    grpc_keepalive: Duration,
    /// Origins whose pages may call by gRPC-Web, such as https://example.org; a comma between
    /// several; * for all
    #[arg(long, env = "ZEX_GRPC_WEB_ORIGINS", value_name = "ORIGINS", value_delimiter = ',')]
    #[arg(help_heading = "Gateway", hide_short_help = true)]
    grpc_web_origins: Vec<String>,
    /// Recordings of pipelines in the gateway at once
    #[arg(long, env = "ZEX_GRPC_RECORDINGS", value_name = "COUNT", help_heading = "Gateway")]
    #[arg(hide_short_help = true, default_value_t = DEFAULT_RECORDINGS)]
    grpc_recordings: usize,
    /// How long the gateway keeps a recording that nobody touches
    #[arg(long, env = "ZEX_GRPC_RECORDING_TIME", value_name = "TIME", help_heading = "Gateway")]
    #[arg(hide_short_help = true, default_value = "15m", value_parser = duration)]
    grpc_recording_time: Duration,
    /// Let clients of the gateway register services by their addresses (Register of zex.v1.Zex): it
    /// starts an adapter for each, so whoever reaches the gateway can have it connect anywhere
    #[arg(long, env = "ZEX_GRPC_REGISTER", help_heading = "Gateway", hide_short_help = true)]
    grpc_register: bool,
}

/// The port of a gateway of which nothing is said.
const PORT: u16 = 8080;

impl FrontDoor {
    /// How the gateway starts adapters, if it may.
    pub(crate) fn adapters(
        &self,
        worker_pipes: Vec<String>,
        context: &Context,
    ) -> Option<Adapters> {
        let context = context.clone();
        self.grpc_register.then(|| {
            Adapters::new(move |address| {
                let target = Target::parse(address, Arc::default());
                let target = target.map_err(|error| error.to_string())?;
                let worker = Worker::builder()
                    .worker_pipes(&worker_pipes)
                    .name(format!("adapter-{address}"))
                    .middleware(metrics::around("worker"))
                    .context(context.clone());
                let adapter = Adapter::start(vec![target], worker);
                Ok(Box::new(adapter.map_err(|error| error.to_string())?))
            })
        })
    }

    /// The settings.
    pub(crate) fn settings(&self, bind: &Bind, plain: bool) -> anyhow::Result<Settings> {
        let [beside] = ports([PORT], 6);
        let port = self.gateway_port.unwrap_or(beside);
        let endpoint = bind.endpoint(port)?;
        let listen: SocketAddr = endpoint.trim_start_matches("tcp://").parse()?;
        if !plain && !listen.ip().is_loopback() {
            bail!(
                "the gateway at {listen} could be reached by others, and asks nobody who he is: \
                 listen on 127.0.0.1 behind a proxy that does, or say --plain"
            );
        }
        Ok(Settings {
            max_message_bytes: self.grpc_max_message,
            deadline: self.grpc_deadline,
            connections: self.grpc_connections,
            streams: self.grpc_streams,
            keepalive: self.grpc_keepalive,
            origins: self.grpc_web_origins.clone(),
            recordings: self.grpc_recordings,
            recording_time: self.grpc_recording_time,
            ..Settings::new(listen)
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        gateway: FrontDoor,
        #[command(flatten)]
        bind: Bind,
    }

    fn port(args: &[&str]) -> u16 {
        let line = Line::parse_from([&["zex"], args].concat());
        line.gateway.settings(&line.bind, false).unwrap().listen.port()
    }

    #[test]
    fn the_port_is_given_or_the_usual_one() {
        assert_eq!((port(&[]), port(&["--gateway-port", "81"])), (8080, 81));
    }

    #[test]
    fn whoever_can_be_reached_by_others_says_so() {
        let line = Line::parse_from(["zex", "--bind", "0.0.0.0"]);
        assert!(line.gateway.settings(&line.bind, true).is_ok());
        let refused = line.gateway.settings(&line.bind, false).unwrap_err().to_string();
        assert!(refused.contains("--plain"), "{refused}");
    }

    #[test]
    fn the_defaults_are_those_of_the_library() {
        let line = Line::parse_from(["zex"]);
        let settings = line.gateway.settings(&line.bind, false).unwrap();
        let library = Settings::new(settings.listen);
        assert_eq!(format!("{settings:?}"), format!("{library:?}"));
    }
}
