//! What a pick costs: a call in, its work out, its reply in, its answer out, through the public
//! surface of [`Mesh`], with few workers and with many; and what a worker weighs in memory, which a
//! process of its own says: what one has given back is used again and weighs nothing.

use std::collections::VecDeque;
use std::process::Command;
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

/// So many workers weigh more than the tables that hold them.
const MANY: u32 = 1_000;
/// Most workers that are weighed.
const MAX_WORKERS: u32 = 1_000_000;

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
    /// Only say what so many workers of so many services weigh, in bytes each
    #[arg(long, hide = true, num_args = 2)]
    weigh: Vec<u32>,
}

/// How many workers there are, and of how many services.
const SIZES: [(u32, u32); 4] = [(10, 1), (10_000, 1), (1_000, 1_000), (10_000, 1_000)];

/// Measures and prints.
pub(crate) fn run(args: &PickArgs) -> anyhow::Result<()> {
    if let [workers, services] = args.weigh[..] {
        let mut stage = Stage::new();
        let before = resident_bytes()?;
        stage.register(workers.clamp(1, MAX_WORKERS), services.clamp(1, MAX_WORKERS));
        println!("{:.0}", (resident_bytes()? - before) / f64::from(workers));
        return Ok(());
    }
    println!("| workers | services | ns a call, median | ratio | bytes a worker |");
    println!("| ---: | ---: | ---: | ---: | ---: |");
    let mut times = vec![Vec::new(); SIZES.len()];
    for _ in 0..args.rounds {
        // Taking turns, so that a slow minute of the machine is everybody's.
        for (times, (workers, services)) in times.iter_mut().zip(SIZES) {
            let mut stage = Stage::new();
            stage.register(workers, services);
            stage.fill()?;
            stage.calls(args.calls / 10)?;
            let begun = Instant::now();
            stage.calls(args.calls)?;
            times.push(begun.elapsed().as_nanos() as f64 / args.calls as f64);
        }
    }
    let medians: Vec<_> = times.iter_mut().map(|times| median(times)).collect();
    for ((workers, services), time) in SIZES.into_iter().zip(&medians) {
        let ratio = time / medians[0];
        let weight = weigh(workers, services)?;
        println!("| {workers} | {services} | {time:.0} | {ratio:.2} | {weight} |");
    }
    Ok(())
}

/// What a worker weighs, as a new process says. With few workers it is the tables that are weighed.
fn weigh(workers: u32, services: u32) -> anyhow::Result<String> {
    if workers < MANY {
        return Ok("–".to_owned());
    }
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["pick", "--weigh", &workers.to_string(), &services.to_string()]);
    let said = command.output()?;
    ensure!(said.status.success(), "weighing failed: {}", String::from_utf8_lossy(&said.stderr));
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
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
    works: VecDeque<(PeerId, zex_spec::Work)>,
    answered: u64,
}

impl Stage {
    /// A broker that knows its pipes and no worker.
    fn new() -> Self {
        let now = Time(1_000_000_000);
        let settings = Settings { state: false, ..Settings::default() };
        let me = Incarnation::new("broker", 1);
        let mut stage = Self {
            now,
            mesh: Mesh::new(now, settings, me, "broker".into()),
            services: Vec::new(),
            begun: 0,
            works: VecDeque::new(),
            answered: 0,
        };
        stage.says(Link::In(0), IN_PIPE, peer(0), PipeBeat { pipe: IN_PIPE });
        stage.says(Link::Worker(0), WORKER_PIPE, peer(0), PipeBeat { pipe: WORKER_PIPE });
        stage
    }

    /// It hears of so many workers; worker `n` serves service `n % services`.
    fn register(&mut self, workers: u32, services: u32) {
        for worker in 0..workers {
            let service = format!("bench.Service{}", worker % services);
            if worker < services {
                self.services.push(service.clone());
            }
            let name = format!("worker-{worker}");
            let (version, capacity, services) = (1, CAPACITY, vec![service]);
            let register = Register { name, version, capacity, services };
            self.says(Link::Worker(0), WORKER_PIPE, peer(worker + 1), register);
        }
    }

    /// Gives it the calls that are always underway.
    fn fill(&mut self) -> anyhow::Result<()> {
        for _ in 0..IN_FLIGHT {
            self.call();
        }
        ensure!(self.works.len() as u64 == IN_FLIGHT, "not every call was given to a worker");
        Ok(())
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
            metadata: Default::default(),
        };
        self.says(Link::In(0), IN_PIPE, peer(u32::MAX), call);
    }

    /// So many times: the oldest work is answered, and a new call comes in.
    fn calls(&mut self, count: u64) -> anyhow::Result<()> {
        let wanted = self.answered + count;
        for _ in 0..count {
            let (worker, work) = self.works.pop_front().context("a call got no worker")?;
            let (address, key) = (work.address, work.key);
            let reply = Reply { address, key, ..Reply::default() };
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
