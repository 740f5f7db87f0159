//! Ten thousand workers, a thousand services: what a pick costs, and what a worker does.

use super::ez::{ez_beat, ez_call};
use super::*;
use crate::mesh::registry::{Service, Worker};

fn worker(n: u32) -> PeerId {
    let mut id = [7; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    PeerId(id)
}

/// A broker with so many workers, which all serve one service and one of a thousand others each;
/// half of them have a task.
fn with_workers(workers: u32) -> Stage {
    let mut stage = Stage::new(Settings::default());
    for n in 0..workers {
        let services = vec!["pkg.Echo".to_owned(), format!("pkg.S{}", n % 1_000)];
        let register = Register { name: "w".into(), version: 1, capacity: 9, services };
        stage.worker(worker(n), register, b"");
    }
    for n in 0..workers / 2 {
        let mut key = [0; 16];
        key[..4].copy_from_slice(&n.to_be_bytes());
        stage.client(id(9), Call { key: Key(key), ..call(1) }, b"");
    }
    stage.sent.clear();
    stage
}

/// Workers that were looked at since the last time.
fn steps(stage: &Stage) -> usize {
    stage.mesh.registry.services.iter().map(|(_, service)| service.list.steps.take()).sum()
}

#[test]
fn a_pick_costs_the_same_with_ten_workers_and_with_ten_thousand() {
    let cost = |workers| {
        let mut stage = with_workers(workers);
        steps(&stage);
        for n in 1..=100 {
            stage.client(id(9), call(n), b"");
            let (peer, work) = stage.works().remove(0);
            stage.answer(peer, &work, b"");
        }
        steps(&stage)
    };
    let few = cost(10);
    // A pick, and two services' lists told of one task more and of one less.
    assert!((100..=500).contains(&few), "{few}");
    assert_eq!(cost(10_000), few);
}

#[test]
fn so_does_a_busy_one_and_one_that_waits_for_room() {
    let cost = |workers: u32| {
        let mut stage = with_workers(workers);
        steps(&stage);
        stage.client(id(9), call(1), b"");
        // Ten are busy, one after the other.
        for _ in 0..4 {
            let (peer, work) = stage.works().remove(0);
            stage.worker(peer, Busy { address: work.address, key: work.key }, b"");
        }
        steps(&stage)
    };
    assert_eq!(cost(10_000), cost(10));
}

#[test]
fn so_does_an_ez_request() {
    let cost = |workers: u32| {
        let mut stage = Stage::new(Settings::default());
        stage.wait_ms(4_000);
        for n in 0..workers {
            let beat = EzBeat { peer: Bytes::copy_from_slice(&n.to_be_bytes()), ..ez_beat(b"w") };
            stage.ez(Link::Worker(0), WORKER_PIPE, beat, &[]);
        }
        steps(&stage);
        (0..5).for_each(|_| stage.ez(Link::In(0), IN_PIPE, ez_call(b"c", b"1234"), &[b"x"]));
        steps(&stage)
    };
    assert_eq!(cost(10_000), cost(10));
}

#[test]
fn a_worker_costs_a_broker_half_a_kilobyte_and_little_for_each_service() {
    // The entry, its place by id, one path, and the seats of its services at both ends; its name
    // and routing id, at most 255 bytes each, come on top, and eight bytes for each assignment.
    let path = size_of::<crate::mesh::registry::Path>();
    let by_id = size_of::<(PeerId, usize)>() + 1;
    let fixed = size_of::<Worker>() + by_id + path;
    assert!(fixed <= 512, "{fixed}");
    assert!(crate::mesh::pick::BYTES_OF_A_SEAT + size_of::<(usize, u32)>() <= 48);
    assert!(size_of::<Service>() <= 512, "{}", size_of::<Service>());
}
