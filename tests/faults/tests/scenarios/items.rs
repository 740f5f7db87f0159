//! A million items over `each`, on SQLite: each is recorded exactly once, memory stays flat, the
//! scheduler is killed at half-way and repeats no more than what was in flight, and `zex pipeline
//! show` answers within a second all along.
//!
//! `ZEX_FAULTS=full cargo test --release -p zex-faults items -- --nocapture` takes the million.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use prost::Message as _;
use zex_client::{Call, Client, ClientOptions};
use zex_faults::items::{self, Books, PIPELINE};
use zex_faults::{PATIENCE, Plan, Stage, alone, scaled, until};
use zex_spec::proto;

/// How many run at once.
const CONCURRENCY: u32 = 512;
/// How often the scheduler is looked at. A short run is over in a second or two.
const LOOK: Duration = Duration::from_millis(50);
const SHORT_LOOK: Duration = Duration::from_millis(10);
/// Of so many looks one is by the command.
const BY_COMMAND: usize = 20;
/// Every look is answered so soon.
const ANSWERED: Duration = Duration::from_secs(1);
/// What a short run's memory may grow: it has not warmed up in its first tenth.
const SHORT_GROWTH_BYTES: u64 = 24 << 20;

/// The scheduler at one time.
struct Look {
    taken: u64,
    bytes: u64,
    took: Duration,
}

/// A run of many items.
struct Many {
    stage: Stage,
    client: Client,
    books: Arc<Books>,
    items: u64,
    run_id: String,
    looks: Vec<Look>,
    slowest_command: Duration,
}

impl Many {
    fn ask<Reply: prost::Message + Default>(&self, method: &str, body: Vec<u8>) -> Option<Reply> {
        let call = Call::new("zex.Pipelines", method, body).deadline(PATIENCE);
        let answer = self.stage.runtime().block_on(self.client.unary(call));
        answer.ok().map(|body| Reply::decode(body).unwrap())
    }

    fn show(&self) -> Option<proto::RunView> {
        let request = proto::ShowRunRequest { run_id: self.run_id.clone(), ..Default::default() };
        self.ask("Show", request.encode_to_vec())
    }

    /// Looks at the run, and by the command now and then. False when it has ended.
    fn look(&mut self) -> bool {
        let began = Instant::now();
        let view = self.show().expect("the scheduler shows the run");
        let took = began.elapsed();
        let bytes = self.stage.program("scheduler").memory_bytes();
        // Counted last: the look at the end is one at all items.
        let taken = self.books.taken();
        self.looks.push(Look { taken, bytes, took });
        assert!(took < ANSWERED, "shown after {took:?}, {taken} items done");
        if self.looks.len().is_multiple_of(BY_COMMAND) {
            let began = Instant::now();
            let said = self.stage.zex(&["pipeline", "show", &self.run_id]);
            assert!(said.ok, "{said:?}");
            self.slowest_command = self.slowest_command.max(began.elapsed());
            assert!(self.slowest_command < ANSWERED, "{:?}", self.slowest_command);
        }
        if view.ended_ms == 0 {
            sleep(scaled(SHORT_LOOK, LOOK));
            return true;
        }
        assert_eq!(view.state(), proto::RunState::Succeeded, "{view:?}");
        assert_eq!(view.steps[1].done, self.items, "{view:?}");
        false
    }

    /// The most memory in the first tenth. A short run may be past it at the first look,
    /// on a busy machine; then that look counts.
    fn first_memory(&self) -> u64 {
        let first = self.memory(0.0, 0.1);
        let look = self.looks.first().map_or(0, |look| look.bytes);
        if first > 0 { first } else { scaled(look, 0) }
    }

    /// The most memory between two shares of the items.
    fn memory(&self, from: f64, to: f64) -> u64 {
        let share = |look: &&Look| {
            let share = look.taken as f64 / self.items as f64;
            share > from && share <= to
        };
        self.looks.iter().filter(share).map(|look| look.bytes).max().unwrap_or(0)
    }
}

fn start(items: u64) -> Many {
    let none = Plan { pipes: 1, brokers: 1, workers: 0, old_workers: 0, ..Plan::default() };
    let stage = Stage::start(Plan { scheduler: true, ..none });
    let client = Client::connect(stage.in_pipes(), ClientOptions::default()).unwrap();
    let (run_id, slowest_command) = (String::new(), Duration::ZERO);
    let books = Books::new(items);
    Many { stage, client, books, items, run_id, looks: Vec::new(), slowest_command }
}

#[test]
fn items() {
    let _alone = alone();
    let count = scaled(60_000, 1_000_000);
    let mut many = start(count);
    let runtime = many.stage.runtime().handle().clone();
    let workers = {
        let _in = runtime.enter();
        items::serve(&many.stage.worker_pipes(), CONCURRENCY * 2, &many.books)
    };
    let definition = PIPELINE.replace("CONCURRENCY", &CONCURRENCY.to_string());
    let request = proto::RunRequest {
        definition,
        parameters_json: format!("{{\"count\": {count}}}"),
        ..Default::default()
    };
    let began = Instant::now();
    many.run_id = until("the pipeline is taken", PATIENCE, || {
        many.ask::<proto::RunReply>("Run", request.encode_to_vec()).map(|reply| reply.run_id)
    });
    let killed = AtomicBool::new(false);
    while many.look() {
        if many.books.taken() >= count / 2 && !killed.swap(true, Ordering::Relaxed) {
            let at = (many.books.taken(), Instant::now());
            many.stage.kill("scheduler");
            many.stage.start_again("scheduler");
            println!("killed at {} items, ready again after {:?}", at.0, at.1.elapsed());
            until("it goes on", PATIENCE, || {
                many.look();
                (many.books.taken() > at.0 + u64::from(CONCURRENCY)).then_some(())
            });
            println!("it went on {:?} after the kill", at.1.elapsed());
        }
    }
    let took = began.elapsed();
    assert!(killed.into_inner(), "it was over before it was killed");
    many.stage.stop("scheduler");
    judge(&many, took);
    drop(workers);
}

fn judge(many: &Many, took: Duration) {
    let (missing, repeated) = many.books.missing_and_repeated();
    let store = many.stage.store();
    let recorded = items::recorded(&store, &many.run_id, many.items);
    let recorded = many.stage.runtime().block_on(recorded);
    let (first, last) = (many.first_memory(), many.memory(0.9, 1.0));
    let slowest = many.looks.iter().map(|look| look.took).max().unwrap_or_default();
    for tenth in 0..10 {
        let tenth = f64::from(tenth) / 10.0;
        println!("{:.1}: {} KiB", tenth, many.memory(tenth, tenth + 0.1) >> 10);
    }
    println!(
        "{} items in {took:?}, {:.0} a second; {repeated} repeated; {recorded:?}",
        many.items,
        many.items as f64 / took.as_secs_f64(),
    );
    println!(
        "memory {} KiB in the first tenth, {} KiB in the last; {} looks, the slowest {slowest:?}, by the command {:?}",
        first >> 10,
        last >> 10,
        many.looks.len(),
        many.slowest_command,
    );
    assert_eq!((missing, recorded.twice), (0, 0), "{recorded:?}");
    assert_eq!((recorded.items, recorded.done), (many.items, many.items));
    assert!(repeated <= u64::from(CONCURRENCY), "{repeated} items were done again");
    let bound = scaled(first + SHORT_GROWTH_BYTES, first + first / 10);
    assert!(first > 0 && last > 0 && last <= bound, "{first} bytes, then {last}");
}
