//! The processes of a mesh by their names, on a loopback address of this stage's own, so that every
//! port stays the same over a restart and is nobody else's.
//!
//! ```text
//!   in-1  :9000 clients :9001 brokers      state-1 :9002 :9003      worker-pipe-1 :9004 :9005
//!   in-2  :9010 …                          state-2 :9012 …          worker-pipe-2 :9014 …
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use serde_json::Value;
use zex_client::{Client, ClientOptions};
use zex_spec::{BrokerId, Incarnation, PeerId};

use crate::load::SERVICES;
use crate::program::{Program, zex};
use crate::{PATIENCE, until};

/// The port of the gateway.
const GATEWAY_PORT: u16 = 8080;
/// Calls that the adapter takes at once: all that a scenario makes.
const ADAPTER_CALLS: &str = "1000";
/// Ports between two pipes of a kind.
const PORT_STEP: usize = 10;

/// How many of each there are.
#[derive(Debug, Clone)]
pub struct Plan {
    /// In pipes, worker pipes and state pipes, of each so many.
    pub pipes: usize,
    /// Brokers.
    pub brokers: usize,
    /// Native workers.
    pub workers: usize,
    /// Workers of the old dialect, each at one worker pipe.
    pub old_workers: usize,
    /// Whether there is a scheduler, with its store in [`Stage::store`].
    pub scheduler: bool,
    /// Schedulers that share a database: how many, and its URL. They are `scheduler-1` and so on.
    pub shared: Option<(usize, String)>,
    /// Where the scheduler has its store, if not in [`Stage::store`].
    pub data: Option<PathBuf>,
    /// Further arguments of native workers by their name.
    pub worker_arguments: BTreeMap<String, Vec<String>>,
    /// Where brokers run and how they reach the pipes, if not here.
    pub broker_places: Vec<Place>,
    /// The address that the pipes listen on, if it is not this stage's own.
    pub host: Option<String>,
    /// A gRPC service with its adapter, and the gateway before the mesh.
    pub door: Option<Door>,
}

/// A gRPC service that is in the mesh.
#[derive(Debug, Clone)]
pub struct Door {
    /// Where it is.
    pub url: String,
    /// What it is: a file with its descriptors.
    pub descriptors: PathBuf,
}

/// Where a broker runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// What goes in front of its command line.
    pub command: Vec<String>,
    /// The address at which it finds the pipes.
    pub host: String,
}

impl Default for Plan {
    /// Three brokers, two of each pipe, eight workers and two old ones.
    fn default() -> Self {
        Self {
            pipes: 2,
            brokers: 3,
            workers: 8,
            old_workers: 2,
            scheduler: false,
            shared: None,
            data: None,
            worker_arguments: BTreeMap::new(),
            broker_places: Vec::new(),
            host: None,
            door: None,
        }
    }
}

/// What a role is and how it is started.
#[derive(Debug)]
struct Role {
    name: String,
    command: Vec<String>,
    lives: usize,
    program: Option<Program>,
}

/// A running mesh.
#[derive(Debug)]
pub struct Stage {
    plan: Plan,
    host: String,
    roles: Vec<Role>,
    runtime: tokio::runtime::Runtime,
    /// Goes last: the programs read their logs there when they end.
    directory: tempfile::TempDir,
}

/// What a command has said when it ended.
#[derive(Debug)]
pub struct Said {
    /// Whether it ended well.
    pub ok: bool,
    /// Its stdout.
    pub out: String,
    /// Its stderr.
    pub err: String,
}

impl Stage {
    /// Starts all processes and waits until every broker is ready and knows every worker.
    ///
    /// # Panics
    /// If they do not come up in a minute.
    pub fn start(plan: Plan) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let host = plan.host.clone().unwrap_or_else(own_address);
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("effects")).unwrap();
        let mut stage = Self { directory, plan, host, roles: Vec::new(), runtime };
        stage.add_roles();
        // All at once: nobody needs anybody to have come before.
        let names: Vec<String> = stage.roles.iter().map(|role| role.name.clone()).collect();
        names.iter().for_each(|name| stage.spawn(name));
        names.iter().for_each(|name| drop(stage.program_mut(name).first_line()));
        stage.until_whole(PATIENCE);
        stage
    }

    fn add_roles(&mut self) {
        let plan = self.plan.clone();
        for number in 0..plan.pipes {
            let port = |first: usize| (first + number * PORT_STEP).to_string();
            for (kind, name, first) in [
                ("in", "in", ["--in-pipe-port", "--in-pipe-broker-port"]),
                ("state", "state", ["--state-pipe-port", "--state-pipe-publish-port"]),
                ("worker", "worker-pipe", ["--worker-pipe-port", "--worker-pipe-broker-port"]),
            ] {
                let base = match kind {
                    "in" => 9000,
                    "state" => 9002,
                    _ => 9004,
                };
                let name = format!("{name}-{}", number + 1);
                let (front, back) = (port(base), port(base + 1));
                let mut command = strings(&[zex(), "pipe", kind, "--json", "--name", &name]);
                command.extend(strings(&[
                    "--plain", "--bind", &self.host, first[0], &front, first[1], &back,
                ]));
                self.add(name, command);
            }
        }
        for number in 0..plan.brokers {
            let place = plan.broker_places.get(number);
            let host = place.map_or(&self.host, |place| &place.host);
            let name = format!("broker-{}", number + 1);
            let mut command = place.map_or_else(Vec::new, |place| place.command.clone());
            command.extend(strings(&[zex(), "broker", "--json", "--name", &name]));
            for (flag, first) in [("in", 9000), ("state", 9002), ("worker", 9004)] {
                command.push(format!("--{flag}-pipe"));
                command.push(endpoints(host, first, plan.pipes).join(","));
            }
            self.add(name, command);
        }
        for number in 0..plan.workers {
            let name = format!("worker-{}", number + 1);
            let command = self.worker_command(&name);
            self.add(name, command);
        }
        for number in 0..plan.old_workers {
            let name = format!("old-{}", number + 1);
            let pipes = &self.worker_pipes()[number % plan.pipes];
            let command =
                strings(&[&built("faults-worker"), "--name", &name, "--pipes", pipes, "--old"]);
            self.add(name, command);
        }
        if plan.scheduler {
            let data = self.store().parent().unwrap().to_owned();
            self.add_scheduler("scheduler", ["--data", data.to_str().unwrap()]);
        }
        let (count, url) = plan.shared.unwrap_or_default();
        for number in 1..=count {
            self.add_scheduler(&format!("scheduler-{number}"), ["--store", &url]);
        }
        if let Some(door) = &plan.door {
            self.add_door(door);
        }
    }

    fn add_scheduler(&mut self, name: &str, store: [&str; 2]) {
        let (pipes, workers) = (self.in_pipes().join(","), self.worker_pipes().join(","));
        let mut command = strings(&[zex(), "scheduler", "--json", "--name", name]);
        command.extend(strings(&store));
        command.extend(strings(&["--in-pipe", &pipes, "--worker-pipe", &workers]));
        self.add(name.to_owned(), command);
    }

    fn add_door(&mut self, door: &Door) {
        let (pipes, workers) = (self.in_pipes().join(","), self.worker_pipes().join(","));
        let mut command = strings(&[zex(), "adapter", "--json", "--name", "adapter"]);
        command.extend(strings(&["--capacity", ADAPTER_CALLS, "--worker-pipe", &workers]));
        command.extend(strings(&["--descriptors", door.descriptors.to_str().unwrap(), &door.url]));
        self.add("adapter".to_owned(), command);
        let mut command = strings(&[zex(), "gateway", "--json", "--plain", "--bind", &self.host]);
        command.extend(strings(&["--gateway-port", &GATEWAY_PORT.to_string()]));
        command.extend(strings(&["--in-pipe", &pipes, "--worker-pipe", &workers]));
        self.add("gateway".to_owned(), command);
    }

    /// Where the gateway listens.
    ///
    /// # Panics
    /// If the host is no address.
    pub fn gateway(&self) -> SocketAddr {
        SocketAddr::new(self.host.parse().unwrap(), GATEWAY_PORT)
    }

    fn worker_command(&self, name: &str) -> Vec<String> {
        let pipes = self.worker_pipes().join(",");
        let mut command = strings(&[&built("faults-worker"), "--name", name, "--pipes", &pipes]);
        command.extend(self.plan.worker_arguments.get(name).cloned().unwrap_or_default());
        command
    }

    /// Starts a further process, which is killed and started again like the others, and waits
    /// until it says that it is ready.
    ///
    /// # Panics
    /// If it does not.
    pub fn start_more(&mut self, name: &str, command: Vec<String>) {
        self.add(name.to_owned(), command);
        self.start_again(name);
    }

    fn add(&mut self, name: String, command: Vec<String>) {
        self.roles.push(Role { name, command, lives: 0, program: None });
    }

    /// Where clients connect.
    pub fn in_pipes(&self) -> Vec<String> {
        endpoints(&self.host, 9000, self.plan.pipes)
    }

    /// Where workers connect.
    pub fn worker_pipes(&self) -> Vec<String> {
        endpoints(&self.host, 9004, self.plan.pipes)
    }

    /// Every port of every pipe.
    pub fn all_ports(&self) -> Vec<String> {
        (9000..9006).flat_map(|first| endpoints(&self.host, first, self.plan.pipes)).collect()
    }

    /// The runtime that loads run on.
    pub fn runtime(&self) -> &tokio::runtime::Runtime {
        &self.runtime
    }

    /// Where the effects are.
    pub fn effects(&self) -> PathBuf {
        self.directory.path().join("effects")
    }

    /// The file of the scheduler's store.
    pub fn store(&self) -> PathBuf {
        let own = || self.directory.path().join("scheduler");
        self.plan.data.clone().unwrap_or_else(own).join("scheduler.db")
    }

    /// The names of all roles, or of those that begin so.
    pub fn names(&self, begin: &str) -> Vec<String> {
        let names = self.roles.iter().map(|role| role.name.clone());
        names.filter(|name| name.starts_with(begin)).collect()
    }

    fn role_mut(&mut self, name: &str) -> &mut Role {
        self.roles.iter_mut().find(|role| role.name == name).unwrap()
    }

    fn program_mut(&mut self, name: &str) -> &mut Program {
        self.role_mut(name).program.as_mut().unwrap()
    }

    /// A running process by its name.
    ///
    /// # Panics
    /// If it does not run.
    pub fn program(&self, name: &str) -> &Program {
        let role = self.roles.iter().find(|role| role.name == name).unwrap();
        role.program.as_ref().unwrap()
    }

    fn spawn(&mut self, name: &str) {
        let directory = self.directory.path().to_owned();
        let role = self.role_mut(name);
        role.lives += 1;
        let mut command = role.command.clone();
        if name.starts_with("worker-") && !name.starts_with("worker-pipe")
            || name.starts_with("old-")
        {
            let file = directory.join("effects").join(format!("{name}.{}", role.lives));
            command.extend(strings(&["--effects", file.to_str().unwrap()]));
        }
        role.program = Some(Program::start(&directory, name, &command));
    }

    /// Starts a process again, and waits until it says that it is ready.
    ///
    /// # Panics
    /// If it does not.
    pub fn start_again(&mut self, name: &str) {
        self.spawn(name);
        self.program_mut(name).first_line();
    }

    /// `kill -9`.
    pub fn kill(&mut self, name: &str) {
        self.role_mut(name).program.take().unwrap().kill();
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Panics
    /// If it does not in 20 s, or fails.
    pub fn stop(&mut self, name: &str) {
        let program = self.role_mut(name).program.take().unwrap();
        let old = name.starts_with("old-");
        let status = program.stop(Duration::from_secs(20));
        // The old workers know no signals.
        assert!(old || status.success(), "{name} ended with {status}");
    }

    /// Freezes a process, `SIGSTOP`.
    pub fn freeze(&self, name: &str) {
        self.program(name).signal("-STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self, name: &str) {
        self.program(name).signal("-CONT");
    }

    /// The ids of all processes that run, by name: none of them was started anew if they stay.
    pub fn pids(&self) -> BTreeMap<String, u32> {
        let running = self.roles.iter().filter_map(|role| Some((role, role.program.as_ref()?)));
        running.map(|(role, program)| (role.name.clone(), program.pid())).collect()
    }

    /// Fails if a process has ended that nobody ended.
    ///
    /// # Panics
    /// If so.
    pub fn check_alive(&mut self) {
        for role in &mut self.roles {
            let Some(program) = &mut role.program else { continue };
            assert!(program.runs(), "{} has ended by itself\n{}", role.name, program.log());
        }
    }

    /// Runs `zex` with the in pipes of this stage.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn zex(&self, arguments: &[&str]) -> Said {
        let pipes = self.in_pipes().join(",");
        let output =
            Command::new(zex()).args(arguments).args(["--in-pipe", &pipes]).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Said { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The ids of the brokers that one of them hears, as `zex brokers --json` has them.
    ///
    /// # Panics
    /// If it fails.
    pub fn broker_ids(&self) -> Vec<BrokerId> {
        let said = self.zex(&["brokers", "--json"]);
        assert!(said.ok, "{said:?}");
        let id = |line: &str| {
            let broker: Value = serde_json::from_str(line).unwrap();
            let hex = broker["id"].as_str().unwrap().replace('.', "");
            Incarnation(u64::from_str_radix(&hex, 16).unwrap())
        };
        said.out.lines().map(id).collect()
    }

    /// The instance id of a native worker, as it has said it.
    ///
    /// # Panics
    /// If it has not.
    pub fn worker_id(&mut self, name: &str) -> PeerId {
        let line = self.program_mut(name).first_line();
        let hex = line.strip_prefix("ready ").unwrap();
        PeerId(u128::from_str_radix(hex, 16).unwrap().to_be_bytes())
    }

    /// What `zex workers --json` says: assigned, and in flight by the last beat, by name.
    ///
    /// # Panics
    /// If it fails.
    pub fn counts(&self) -> BTreeMap<String, (u64, u64)> {
        let said = self.zex(&["workers", "--json"]);
        assert!(said.ok, "{said:?}");
        let count = |line: &str| {
            let worker: Value = serde_json::from_str(line).unwrap();
            let number = |field: &str| worker[field].as_u64().unwrap();
            let old = worker["dialect"] == "ez";
            let id = worker["id"].as_str().unwrap();
            let name = worker["name"].as_str().unwrap();
            // An old worker has no name, only a routing id that the pipe made up.
            let name = if old { format!("old {id}") } else { name.to_owned() };
            (name, (number("assigned"), number("in_flight")))
        };
        said.out.lines().map(count).collect()
    }

    /// Waits until every broker that runs is ready, and every worker that runs is known.
    ///
    /// # Panics
    /// If it is not within this time.
    pub fn until_whole(&self, within: Duration) {
        let client = Client::connect(self.in_pipes(), ClientOptions::default()).unwrap();
        let running = |begin: &str| {
            let roles = self.roles.iter().filter(|role| role.name.starts_with(begin));
            roles.filter(|role| role.program.is_some()).count()
        };
        let workers = running("worker-") - running("worker-pipe");
        let (brokers, old) = (running("broker-"), running("old-"));
        until("the mesh is whole", within, || {
            let whole = self.runtime.block_on(async {
                let told = client.mesh().brokers().await.ok()?;
                let services = client.mesh().services().await.ok()?;
                let ready = told.brokers.iter().filter(|broker| broker.ready).count();
                let full = services.services.iter().filter(|service| {
                    let is_old = service.name == crate::old::SERVICE;
                    service.workers as usize == if is_old { old } else { workers }
                });
                let wanted = usize::from(workers > 0) * SERVICES + usize::from(old > 0);
                Some(ready == brokers && full.count() == wanted)
            });
            whole.unwrap_or(false).then_some(())
        });
    }
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// The first ports of the pipes of a kind.
fn endpoints(host: &str, first: usize, pipes: usize) -> Vec<String> {
    (0..pipes).map(|number| format!("tcp://{host}:{}", first + number * PORT_STEP)).collect()
}

/// A program of this crate, which cargo has built for its tests.
///
/// # Panics
/// If this is no test.
pub fn built(name: &str) -> String {
    let own = std::env::current_exe().unwrap();
    let profile = own.parent().and_then(std::path::Path::parent).unwrap();
    profile.join(name).to_str().unwrap().to_owned()
}

/// A loopback address that no other stage has: all of 127/8 is this machine.
fn own_address() -> String {
    static STAGES: AtomicU8 = AtomicU8::new(1);
    let process = std::process::id();
    let (high, low) = (64 + (process >> 8 & 63), process & 255);
    format!("127.{high}.{low}.{}", STAGES.fetch_add(1, Ordering::Relaxed))
}
