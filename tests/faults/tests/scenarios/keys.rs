//! Keyed requests, each sent three times by different paths: as many effects as keys, and equal
//! answers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use zex_client::{Call, Client, ClientOptions, Status};
use zex_faults::load::service;
use zex_faults::{Plan, Stage, alone, body, checks, effects, scaled};

/// Keys that are underway at once. Copies of a call that come while it runs are answered when they
/// ask again, which takes seconds, so many have to be.
const UNDERWAY: usize = 4_000;
/// The copies of a call come within so many milliseconds: before it runs, while, and after.
const SPREAD_MS: u64 = 30;
/// How long a worker has with each.
const WORK: Duration = Duration::from_millis(10);

#[test]
fn what_is_sent_three_times_is_done_once() {
    let _alone = alone();
    let keys = scaled(5_000, 100_000_u64);
    let stage = Stage::start(Plan { old_workers: 0, ..Plan::default() });
    // By one pipe, by the other, and by both: three clients, three return paths.
    let pipes = stage.in_pipes();
    let paths = [&pipes[..1], &pipes[1..], &pipes[..]];
    let clients = paths.map(|path| Client::connect(path, ClientOptions::default()).unwrap());
    let underway = Arc::new(Semaphore::new(UNDERWAY));
    let answers = stage.runtime().block_on(async {
        let mut tasks = Vec::new();
        for number in 0..keys {
            let place = Arc::clone(&underway).acquire_owned().await.unwrap();
            let clients = clients.clone();
            tasks.push(tokio::spawn(async move {
                let answers = three_times(clients, number).await;
                drop(place);
                answers
            }));
        }
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.unwrap());
        }
        answers
    });
    checks::no_phantoms(&stage);
    let effects = effects::read(&stage.effects());
    for (number, (key, answers)) in (0..).zip(&answers) {
        let of_key = effects.get(key).map_or(0, Vec::len);
        let equal = answers.iter().all(|answer| answer.is_ok() && *answer == answers[0]);
        assert!(equal && of_key == 1, "{number}: {of_key} effects, {answers:?}");
        let said = answers[0].as_ref().ok().and_then(|answer| body::read_answer(answer));
        assert_eq!(said.map(|(said, _)| said), Some(number));
    }
    assert_eq!(effects.len() as u64, keys);
    println!("{keys} keys, {} calls, {} effects", 3 * keys, effects.len());
}

async fn three_times(
    clients: [Client; 3],
    number: u64,
) -> ([u8; 16], [Result<bytes::Bytes, Status>; 3]) {
    let key = zex_client::random_key();
    let copy = |client: Client| async move {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..SPREAD_MS))).await;
        let request = body::request(number, WORK);
        client.unary(Call::new(service(number as usize), "Do", request).key(key)).await
    };
    let [one, two, three] = clients.map(copy);
    let (one, two, three) = tokio::join!(one, two, three);
    (key.0, [one, two, three])
}
