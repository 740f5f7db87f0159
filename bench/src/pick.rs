//! What a pick costs: a call in, its work out, its reply in, its answer out, through the public
//! surface of [`Mesh`], with few workers and with many; and what a worker weighs in memory.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use clap::Args;
use zex_core::Time;
use zex_core::mesh::{Action, Event, Link, Mesh, Settings};
use zex_spec::{
    Call, DEFAULT_PRIORITY, Incarnation, Key, Message, Options, Packet, PeerId, PipeBeat, Register,
    Reply, ServiceHash, Steer,
};

const IN_PIPE: Incarnation = Incarnation(0x11);
const WORKER_PIPE: Incarnation = Incarnation(0x22);
/// Calls that are at a worker at any time: a pick among workers that have nothing is too easy.
const IN_FLIGHT: u64 = 512;
/// How far the mesh's clock goes on with each call, microseconds: all of them happen within the
/// time in which a silent worker is still alive.
const STEP_US: u64 = 1;
/// Most calls of one measurement: the mesh's clock stays below a second.
const MAX_CALLS: u64 = 1_000_000;
/// Work that a worker takes at once: more than all of it.
const CAPACITY: u32 = 10_000;

/// Measure what a pick costs, and what a worker weighs
#[derive(Args, Debug)]
pub(crate) struct PickArgs {
    /// Calls of one measurement
    #[arg(long, default_value_t = 300_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1_000..=MAX_CALLS))]
    calls: u64,
    /// Measurements, of which the median counts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=99))]
    rounds: u8,
}

/// How many workers there are, and of how many services.
const SIZES: [(u32, u32); 4] = [(10, 1), (10_000, 1), (1_000, 1_000), (10_000, 1_000)];

/// Measures and prints.
pub(crate) fn run(args: &PickArgs) -> anyhow::Result<()> {
    println!("| workers | services | ns a call, median | ratio | bytes a worker |");
    println!("| ---: | ---: | ---: | ---: | ---: |");
    let mut times = vec![Vec::new(); SIZES.len()];
    let mut weights = vec![0.0; SIZES.len()];
    for _ in 0..args.rounds {
        // Taking turns, so that a slow minute of the machine is everybody's.
        for (at, (workers, services)) in SIZES.into_iter().enumerate() {
            let before = resident_bytes()?;
            let mut stage = Stage::new(workers, services)?;
            let weight = (resident_bytes()? - before) / f64::from(workers);
            // What an earlier round gave back is used again, so the first is the true one.
            weights[at] = f64::max(weights[at], weight);
            stage.calls(args.calls / 10)?;
            let begun = Instant::now();
            stage.calls(args.calls)?;
            times[at].push(begun.elapsed().as_nanos() as f64 / args.calls as f64);
        }
    }
    let medians: Vec<_> = times.iter_mut().map(|times| median(times)).collect();
    for (at, (workers, services)) in SIZES.into_iter().enumerate() {
        let (time, ratio, weight) = (medians[at], medians[at] / medians[0], weights[at]);
        println!("| {workers} | {services} | {time:.0} | {ratio:.2} | {weight:.0} |");
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// One broker, fed by hand.
struct Stage {
    now: Time,
    mesh: Mesh,
    services: Vec<String>,
    begun: u64,
    /// Work that is not answered yet, oldest first.
    works: std::collections::VecDeque<(PeerId, zex_spec::Work)>,
    answered: u64,
}

impl Stage {
    /// A broker that knows these workers; worker `n` serves service `n % services`.
    fn new(workers: u32, services: u32) -> anyhow::Result<Self> {
        let now = Time(1_000_000_000);
        let settings = Settings { state: false, ..Settings::default() };
        let me = Incarnation::new("broker", 1);
        let mut stage = Self {
            now,
            mesh: Mesh::new(now, settings, me, "broker".into()),
            services: (0..services).map(|number| format!("bench.Service{number}")).collect(),
            begun: 0,
            works: Default::default(),
            answered: 0,
        };
        stage.says(Link::In(0), IN_PIPE, peer(0), PipeBeat { pipe: IN_PIPE });
        stage.says(Link::Worker(0), WORKER_PIPE, peer(0), PipeBeat { pipe: WORKER_PIPE });
        for worker in 0..workers {
            let service = stage.services[(worker % services) as usize].clone();
            let name = format!("worker-{worker}");
            let (version, capacity, services) = (1, CAPACITY, vec![service]);
            let register = Register { name, version, capacity, services };
            stage.says(Link::Worker(0), WORKER_PIPE, peer(worker + 1), register);
        }
        for _ in 0..IN_FLIGHT {
            stage.call();
        }
        ensure!(stage.works.len() as u64 == IN_FLIGHT, "not every call was given to a worker");
        Ok(stage)
    }

    fn says(&mut self, link: Link, pipe: Incarnation, from: PeerId, says: impl Into<Message>) {
        let mut packet = Packet::from_peer(Steer::All, says, Bytes::new());
        (packet.pipe, packet.peer) = (pipe, from);
        self.mesh.handle(self.now, Event::FromPipe(link, packet));
        while let Some(action) = self.mesh.poll_action() {
            let Action::ToPipe(_, packet) = action else { continue };
            match packet.message {
                Message::Work(work) => self.works.push_back((packet.peer, work)),
                Message::Reply(reply) if reply.code == 0 => self.answered += 1,
                _ => {}
            }
        }
    }

    /// A call comes in.
    fn call(&mut self) {
        let service = self.services[(self.begun % self.services.len() as u64) as usize].clone();
        self.begun += 1;
        self.now = Time(self.now.0 + STEP_US);
        let mut key = [0; 16];
        key[..8].copy_from_slice(&ServiceHash::of(&self.begun.to_be_bytes()).0.to_be_bytes());
        key[8..].copy_from_slice(&self.begun.to_be_bytes());
        let call = Call {
            key: Key(key),
            service,
            method: "Say".into(),
            deadline_ms: 30_000,
            attempt: 0,
            age_ms: 0,
            options: Options::default(),
            priority: DEFAULT_PRIORITY,
        };
        self.says(Link::In(0), IN_PIPE, peer(u32::MAX), call);
    }

    /// So many times: the oldest work is answered, and a new call comes in.
    fn calls(&mut self, count: u64) -> anyhow::Result<()> {
        let wanted = self.answered + count;
        for _ in 0..count {
            let (worker, work) = self.works.pop_front().context("a call got no worker")?;
            let (address, key) = (work.address, work.key);
            let reply = Reply { address, key, code: 0, message: String::new(), chunks: 0 };
            self.says(Link::Worker(0), WORKER_PIPE, worker, reply);
            self.call();
        }
        ensure!(self.answered == wanted, "{} of {wanted} were answered", self.answered);
        Ok(())
    }
}

fn peer(number: u32) -> PeerId {
    let mut id = [7; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    PeerId(id)
}

/// Memory of this process that is resident, bytes.
fn resident_bytes() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.context("/proc/self/status has no VmRSS")? * 1_024.0)
}
