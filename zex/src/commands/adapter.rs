//! `zex adapter URL…`: a worker that stands next to gRPC services and calls them by their reflection.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;
use zex_adapter::{Adapter, Catalogue, Settings, Target, Tls};
use zex_spec::MAX_BODY_BYTES;
use zex_worker::Worker;

use crate::settings::keys;
use crate::settings::labels::Labels;
use crate::settings::mesh::WorkerPipes;
use crate::settings::name::Name;
use crate::stop::{DRAIN, Stop, ended};
use crate::{metrics, output};

/// Bring gRPC services into the mesh: reads their reflection, follows their health, calls them
///
/// A service may be there or not, may stop and come back: it is in the mesh while it is well. Of
/// several targets with the same service the one with the fewest calls under way gets the next.
#[derive(Args, Debug)]
pub(crate) struct AdapterArgs {
    /// Where a service is, http://host:port or https://host:port
    #[arg(required = true, value_name = "URL")]
    urls: Vec<String>,
    /// How many calls the services take at once, all together
    #[arg(long, visible_alias = "concurrency", env = "ZEX_CAPACITY", value_name = "CALLS")]
    #[arg(default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    capacity: u32,
    /// What the services are, if they have no reflection: a serialized FileDescriptorSet, as
    /// `protoc --include_imports -o FILE` writes it
    #[arg(long, value_name = "FILE")]
    descriptors: Option<PathBuf>,
    /// Compress requests, as long as the service takes them so; answers it may always compress
    #[arg(long, value_name = "HOW")]
    compress: Option<Compress>,
    /// Largest request and answer, in bytes; the mesh carries no more than 16777216
    #[arg(long, value_name = "BYTES", default_value_t = MAX_BODY_BYTES as u32)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MAX_BODY_BYTES as i64))]
    max_message: u32,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    labels: Labels,
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    worker_pipes: WorkerPipes,
    /// Say in JSON that it has started
    #[arg(long)]
    json: bool,
}

/// The ways to compress that gRPC services may take.
#[derive(ValueEnum, Clone, Copy, Debug)]
enum Compress {
    Gzip,
    Zstd,
}

/// Who is who at https:// targets. The keys of the mesh are others: `--key`.
#[derive(Args, Debug)]
struct TlsArgs {
    /// Authorities that may vouch for https:// targets, PEM; those of the system if not given
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The adapter's own certificate, PEM, for services that ask for one
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The name in the service's certificate, if it is not the host of its URL
    #[arg(long, value_name = "NAME")]
    tls_name: Option<String>,
}

impl TlsArgs {
    fn read(&self) -> anyhow::Result<Tls> {
        let authorities = self.tls_ca.as_ref().map(read).transpose()?;
        let identity = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            // clap sees to it that there is neither or both.
            _ => None,
        };
        Ok(Tls { authorities, identity, name: self.tls_name.clone() })
    }

    fn any(&self) -> bool {
        self.tls_ca.is_some() || self.tls_cert.is_some() || self.tls_name.is_some()
    }
}

fn read(file: &PathBuf) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

impl AdapterArgs {
    fn settings(&self) -> anyhow::Result<Settings> {
        let catalogue = match &self.descriptors {
            None => None,
            Some(file) => Some(Catalogue::of_descriptors(&read(file)?).map_err(|why| {
                anyhow!("--descriptors {}: no usable FileDescriptorSet: {why}", file.display())
            })?),
        };
        let compression = self.compress.map(|how| match how {
            Compress::Gzip => zex_adapter::Compression::Gzip,
            Compress::Zstd => zex_adapter::Compression::Zstd,
        });
        Ok(Settings {
            tls: self.tls.read()?,
            compression,
            max_message_bytes: self.max_message as usize,
            catalogue: catalogue.map(Arc::new),
        })
    }

    fn targets(&self) -> anyhow::Result<Vec<Target>> {
        let settings = Arc::new(self.settings()?);
        let targets = self.urls.iter().map(|url| Target::parse(url, Arc::clone(&settings)));
        let targets = targets.collect::<Result<Vec<_>, _>>()?;
        ensure!(
            !self.tls.any() || targets.iter().any(Target::is_encrypted),
            "--tls-… is for https:// targets, and there is none; write the URL so"
        );
        Ok(targets)
    }
}

/// Runs the adapter until it is asked to stop; then it drains.
pub(crate) async fn run(args: AdapterArgs) -> anyhow::Result<()> {
    let stop = Stop::catch()?;
    let targets = args.targets()?;
    let urls: Vec<_> = targets.iter().map(|target| target.url().to_owned()).collect();
    let name = args.name.or_own("adapter");
    let pipes = args.worker_pipes.for_workers()?;
    tracing::info!(worker_pipes = pipes.join(","), "connects");
    let worker = Worker::builder()
        .worker_pipes(pipes)
        .name(&name)
        .capacity(args.capacity)
        .labels(args.labels.labels)
        .middleware(metrics::around("worker"))
        .context(keys::context());
    let adapter = Adapter::start(targets, worker)?;
    let id = adapter.worker().id().to_string();
    if args.json {
        output::json(&json!({"started": "adapter", "urls": urls, "name": name, "id": id}))?;
    } else {
        let urls = urls.join(" ");
        output::line(&format!(
            "adapter {name} follows {urls}; `zex services` shows what it serves"
        ))?;
    }
    tokio::select! {
        () = stop.asked() => {}
        () = ended(|| adapter.worker().is_running()) => {
            bail!("the adapter has ended by itself; its log says why")
        }
    }
    // The adapter itself ends what is not done by then; a little more lets that be said.
    let drained = tokio::time::timeout(DRAIN + Duration::from_secs(1), adapter.drain(DRAIN)).await;
    if drained.is_err() {
        tracing::warn!("not drained after {} s; what was left is given up", DRAIN.as_secs());
    }
    Ok(())
}
