//! Garbage, half handshakes, frames without end, silent connections, false names, replies that
//! nobody asked for and a worker that claims everything: nobody else notices, memory stays bounded,
//! all is counted, and said about once a second.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use zex_faults::checks::{self, Normal};
use zex_faults::load::{self, Calls, Load};
use zex_faults::{Plan, Stage, alone, effects, flood, scaled, until};

/// The load has gone on so long before the flood.
const BEFORE: Duration = Duration::from_millis(3_000);
/// Memory of any role through all of it, bytes: what the endless frames may take, and its own.
const ROLE_BYTES: u64 = 400 << 20;
/// Lines of a log that are no complaints: starts, other lives.
const OTHER_LINES: usize = 40;
/// Pipes give up who does not say what he is after five seconds; and a margin.
const HUNG_UP: Duration = Duration::from_secs(9);

/// One kind of attack: from which thread, for how long, how often.
type Attack = Box<dyn FnOnce(Instant) -> usize + Send>;

struct Flood {
    stage: Stage,
    /// What was done, and when.
    phases: Vec<(String, Instant, Instant)>,
}

/// Has this thread, and the threads that it starts, wait for everybody else's: who attacks has a
/// machine of his own, and what is looked for is what he does by what he sends.
fn step_back() {
    if let Ok(thread) = std::fs::read_link("/proc/thread-self")
        && let Some(id) = thread.file_name()
    {
        // Where it cannot be done the victims have it harder.
        let _ = Command::new("renice").args(["-n", "10", "-p"]).arg(id).output();
    }
}

impl Flood {
    /// All of these at the same time; then everybody has to be there, within bounds.
    fn phase(&mut self, what: &str, attacks: Vec<Attack>) {
        let (begun, lasts) = (Instant::now(), scaled(2, 15));
        let end = begun + Duration::from_secs(lasts);
        let start = |attack: Attack| {
            thread::spawn(move || {
                step_back();
                attack(end)
            })
        };
        let threads: Vec<_> = attacks.into_iter().map(start).collect();
        let done: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(done > 0, "{what}: never got through");
        self.over(&format!("{what}, {done} times"), begun);
    }

    fn over(&mut self, what: &str, begun: Instant) {
        self.stage.check_alive();
        let most = self.stage.pids().into_keys().map(|name| {
            let bytes = self.stage.program(&name).memory_bytes();
            assert!(bytes < ROLE_BYTES, "{what}: {name} has {bytes} bytes");
            (bytes >> 20, name)
        });
        println!("{what}: the largest is {:?} MiB", most.max().unwrap());
        self.phases.push((what.to_owned(), begun, Instant::now()));
    }
}

#[test]
fn a_flood_harms_nobody() {
    let _alone = alone();
    let stage = Stage::start(Plan::default());
    let calls = Calls { rate: scaled(200, 1_000), ..Calls::default() };
    let load = Load::start(stage.runtime().handle(), &stage.in_pipes(), calls);
    let begun = Instant::now();
    thread::sleep(BEFORE);
    let quiet = (begun + BEFORE / 2, Instant::now());
    let mut flood = Flood { stage, phases: Vec::new() };

    let each = |endpoints: Vec<String>, attack: fn(&str, Instant) -> usize| -> Vec<Attack> {
        let one = |endpoint: String| -> Attack { Box::new(move |end| attack(&endpoint, end)) };
        endpoints.into_iter().map(one).collect()
    };
    let ports = flood.stage.all_ports();
    flood.phase("noise", each(ports.clone(), flood::noise));
    // Where brokers publish nobody is listened to.
    let publish = |port: &String| port.ends_with("3");
    let spoken_to: Vec<String> = ports.iter().filter(|port| !publish(port)).cloned().collect();
    flood.phase("frames", each(spoken_to.clone(), flood::frames));
    flood.phase("garbage", each(spoken_to, flood::garbage));
    false_peers(&mut flood);
    silent_peers(&mut flood, &ports);

    let (entries, _) = load.finish();
    checks::no_phantoms(&flood.stage);
    checks::all_answered(&entries, begun);
    checks::one_effect_each(&entries, &effects::read(&flood.stage.effects()));
    let normal = Normal::of(&entries, quiet.0, quiet.1);
    for (what, from, to) in &flood.phases {
        normal.during(what, &entries, *from, *to);
    }
    let lines = begun.elapsed().as_secs() as usize + OTHER_LINES;
    for name in flood.stage.pids().into_keys() {
        let log = flood.stage.program(&name).log();
        assert!(log.lines().count() <= lines, "{name} talks too much:\n{log}");
    }
    assert!(flood.stage.program("in-1").log().contains("malformed"));
}

/// Who speaks the dialect, and lies.
fn false_peers(flood: &mut Flood) {
    let owners = flood.stage.broker_ids();
    let [pipe, front] =
        [&flood.stage.worker_pipes()[0], &flood.stage.in_pipes()[0]].map(Clone::clone);
    let (at, of) = (pipe.clone(), owners.clone());
    flood.phase("replies", vec![Box::new(move |end| flood::replies(&at, &of, end))]);
    let name = flood.stage.worker_id("worker-1");
    let speak: Attack = Box::new(move |end| flood::false_words(&front, name, &owners, end));
    flood.phase("false words", vec![speak]);
    let real: Vec<String> = (0..load::SERVICES).map(load::service).collect();
    let greedy: Attack = Box::new(move |end| flood::greedy_worker(&pipe, &real, end));
    flood.phase("a greedy worker", vec![greedy]);
}

/// Who says nothing at all. Pipes hang up on them, in the end.
fn silent_peers(flood: &mut Flood, ports: &[String]) {
    let count = scaled(1_000, 10_000);
    let files = |flood: &Flood| -> usize {
        let pipes = flood.stage.names("").into_iter().filter(|name| !name.contains("broker"));
        pipes.map(|name| flood.stage.program(&name).open_files()).sum()
    };
    let (begun, before) = (Instant::now(), files(flood));
    let streams = flood::silence(ports, count);
    assert_eq!(streams.len(), count);
    until("pipes hang up on who says nothing", HUNG_UP, || {
        (files(flood) < before + count / 10).then_some(())
    });
    flood.over(&format!("{count} silent connections"), begun);
    drop(streams);
}
