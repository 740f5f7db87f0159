//! A chain of three stages that take 2, 6 and 2 ms for an item, and from half of the items on 6, 2
//! and 6: it is as fast as its slowest stage, no buffer is above its bound, no item is lost and
//! none recorded or done twice; also when a worker of the slow stage is killed, which may have done
//! a few that are done again.
//!
//! `ZEX_FAULTS=full cargo test --release -p zex-faults chain -- --nocapture` wants the rate within
//! a tenth of the limit; a short run wants half of it, for its machine has other things to do.

use std::thread::sleep;
use std::time::Duration;

use prost::Message as _;
use zex_client::{Call, Client, ClientOptions};
use zex_faults::chain::{self, BUFFER, CONCURRENCY, Done, PIPELINE, STAGES};
use zex_faults::{PATIENCE, Plan, Stage, alone, built, scaled, until};
use zex_spec::proto;

/// Workers of each stage.
const WORKERS: u64 = 4;
/// What the stages take for an item, ms: before half of the items, and from there on.
const TAKES_MS: [[u64; 2]; 3] = [[2, 6], [6, 2], [2, 6]];
/// What the slowest stage takes.
const SLOWEST_MS: u64 = 6;
/// How often the run is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// What a worker may have in hand when it is killed: its capacity.
const HELD: u64 = 12;

struct Chain {
    stage: Stage,
    client: Client,
    items: u64,
    run_id: String,
    shown: proto::RunView,
}

impl Chain {
    fn ask<Reply: prost::Message + Default>(&self, method: &str, body: Vec<u8>) -> Option<Reply> {
        let call = Call::new("zex.Pipelines", method, body).deadline(PATIENCE);
        let answer = self.stage.runtime().block_on(self.client.unary(call));
        answer.ok().map(|body| Reply::decode(body).unwrap())
    }

    /// Looks at the run. False when it has ended.
    fn look(&mut self) -> bool {
        let request = proto::ShowRunRequest { run_id: self.run_id.clone(), ..Default::default() };
        self.shown = self.ask("Show", request.encode_to_vec()).expect("it is shown");
        for step in &self.shown.steps[2..] {
            let Some(stage) = &step.stage else { continue };
            assert_eq!(stage.buffer_bound, BUFFER, "{step:?}");
            assert!(stage.buffer_most <= BUFFER, "{step:?}");
        }
        self.shown.ended_ms == 0
    }

    fn done(&self, stage: &str) -> Done {
        chain::done(&self.stage.effects(), stage)
    }
}

/// A mesh with a scheduler and the workers of all stages.
fn start(items: u64) -> (Chain, zex_worker::WorkerHandle) {
    let none = Plan { pipes: 1, brokers: 1, workers: 0, old_workers: 0, ..Plan::default() };
    let mut stage = Stage::start(Plan { scheduler: true, ..none });
    for (name, takes) in STAGES.iter().zip(TAKES_MS) {
        let effects = stage.effects().join(name);
        std::fs::create_dir(&effects).unwrap();
        for number in 0..WORKERS {
            let worker = format!("{name}-{number}");
            let effects = effects.join(&worker);
            let command = [
                &*built("chain-worker"),
                "--name",
                &worker,
                "--stage",
                name,
                "--pipes",
                &stage.worker_pipes().join(","),
                "--effects",
                effects.to_str().unwrap(),
                "--takes",
                &takes.map(|ms| ms.to_string()).join(","),
                "--turn",
                &(items / 2).to_string(),
            ];
            stage.start_more(&worker, command.map(str::to_owned).to_vec());
        }
    }
    let source = {
        let runtime = stage.runtime().handle().clone();
        let _in = runtime.enter();
        chain::serve_source(&stage.worker_pipes())
    };
    let client = Client::connect(stage.in_pipes(), ClientOptions::default()).unwrap();
    let mut chain =
        Chain { stage, client, items, run_id: String::new(), shown: proto::RunView::default() };
    let request = proto::RunRequest {
        definition: PIPELINE.to_owned(),
        parameters_json: format!("{{\"count\": {items}}}"),
        ..Default::default()
    };
    chain.run_id = until("the pipeline is taken", PATIENCE, || {
        chain.ask::<proto::RunReply>("Run", request.encode_to_vec()).map(|reply| reply.run_id)
    });
    (chain, source)
}

/// Items a second that so many workers of the slowest stage do.
fn limit(workers: u64) -> f64 {
    workers as f64 * 1e3 / SLOWEST_MS as f64
}

/// The rate is near the limit, and not above it.
fn judge_rate(what: &str, times: Vec<u64>, limit: f64) {
    let rate = chain::rate(times, 0.1, 0.9);
    println!("{what}: {rate:.1} items a second, {:.1} % of {limit:.1}", 100.0 * rate / limit);
    let least = scaled(0.5, 0.9) * limit;
    assert!((least..=1.05 * limit).contains(&rate), "{what}: {rate} of {limit} items a second");
}

/// Every item was done by every stage and recorded once; as many effects more as are allowed in
/// the middle. No buffer had too much in it, by the effects.
fn judge_items(chain: &mut Chain, again: u64) {
    assert_eq!(chain.shown.state(), proto::RunState::Succeeded, "{:?}", chain.shown);
    let said = chain.stage.zex(&["pipeline", "show", &chain.run_id]);
    println!("{}", said.out);
    chain.stage.stop("scheduler");
    let store = chain.stage.store();
    let recorded = chain::recorded(&store, &chain.run_id);
    let recorded = chain.stage.runtime().block_on(recorded);
    let done = STAGES.map(|stage| chain.done(stage));
    for (at, done) in done.iter().enumerate() {
        let recorded = &recorded[&(at as u32 + 1)];
        assert!((0..chain.items).all(|item| recorded.get(&item) == Some(&1)), "{}", STAGES[at]);
        assert!((0..chain.items).all(|item| done.contains_key(&item)), "{}", STAGES[at]);
        let effects: u64 = done.values().map(|times| times.len() as u64).sum();
        let repeated = effects - chain.items;
        println!("{}: {repeated} done again", STAGES[at]);
        assert!(repeated <= if at == 1 { again } else { 0 }, "{}: {repeated}", STAGES[at]);
    }
    for pair in done.windows(2) {
        let most = chain::most_between(&pair[0], &pair[1]);
        println!("at most {most} items between two stages, {BUFFER} + {CONCURRENCY} may be");
        assert!(most <= BUFFER + CONCURRENCY, "{most} items between two stages");
    }
}

/// When the last stage has done items of these numbers.
fn times(chain: &Chain, numbers: std::ops::Range<u64>) -> Vec<u64> {
    chain.done("last").range(numbers).map(|(_, times)| times[0]).collect()
}

#[test]
fn chain_is_as_fast_as_its_slowest_stage() {
    let _alone = alone();
    let items = scaled(2_000, 12_000);
    let (mut chain, source) = start(items);
    while chain.look() {
        sleep(LOOK);
    }
    judge_items(&mut chain, 0);
    judge_rate("2, 6, 2 ms", times(&chain, 0..items / 2), limit(WORKERS));
    judge_rate("6, 2, 6 ms", times(&chain, items / 2..items), limit(WORKERS));
    drop(source);
}

#[test]
fn chain_loses_nothing_with_a_worker_of_the_slow_stage() {
    let _alone = alone();
    let items = scaled(2_000, 12_000);
    let (mut chain, source) = start(items);
    let mut killed = None;
    while chain.look() {
        let done = chain.shown.steps[2].done;
        if done > items / 8 && killed.is_none() {
            chain.stage.kill("middle-1");
            killed = Some(done);
        }
        sleep(LOOK);
    }
    let killed = killed.expect("it was killed");
    assert!(killed < items / 3, "it was killed after {killed} items, too late to say anything");
    judge_items(&mut chain, HELD);
    // From some items behind those that it held: they are tried again after a while.
    let after = killed + CONCURRENCY + BUFFER;
    judge_rate("one of four killed", times(&chain, after..items / 2), limit(WORKERS - 1));
    judge_rate("and 6, 2, 6 ms", times(&chain, items / 2..items), limit(WORKERS));
    drop(source);
}
