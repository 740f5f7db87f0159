//! What a broker says of itself: drift, and how old its view of the others was.

use prost::Message as _;
use zex_spec::proto::{BrokerInfo, BrokerList};

use super::*;

fn of_itself(stage: &mut Stage) -> BrokerInfo {
    stage.replies();
    let service = MESH_SERVICE.into();
    let key = Key(stage.now.0.to_be_bytes().repeat(2).try_into().unwrap());
    stage.client(id(9), Call { key, service, method: "Brokers".into(), ..call(1) }, b"");
    let (_, _, body) = stage.replies().remove(0);
    BrokerList::decode(body).unwrap().brokers.remove(0)
}

#[test]
fn drift_is_seen_while_it_lasts_and_counted_when_it_is_mended() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 10);
    (1..=3).for_each(|n| stage.client(id(9), call(n), b""));
    // It holds one of the three, and one that nobody here knows.
    let beat = |stage: &mut Stage| {
        let held = vec![Held { owner: me(), seen: 9, numbers: vec![2, 9] }];
        stage.worker(id(1), Heartbeat { version: 1, held }, b"");
    };
    beat(&mut stage);
    assert_eq!((of_itself(&mut stage).drifting, of_itself(&mut stage).drift), (3, 0));
    stage.wait_ms(500);
    beat(&mut stage);
    let info = of_itself(&mut stage);
    assert_eq!((info.drifting, info.drift), (1, 2));
}

#[test]
fn the_age_of_the_view_is_told() {
    let mut stage = Stage::new(Settings::default());
    stage.register(id(1), 200);
    let other = Steer::Owner(Incarnation::new("b2", 1));
    let share = |stage: &mut Stage, sequence, snapshot| {
        let share = Share { sequence, snapshot, counts: vec![(id(1), 1)], age_us: 4_000 };
        stage.event(Event::FromState(Packet::from_peer(other, share, Bytes::new())));
    };
    share(&mut stage, 1, true);
    assert_eq!(of_itself(&mut stage).view_picks, 0, "nobody picked");
    for n in 1..=100 {
        stage.client(id(9), call(n), b"");
        stage.now = stage.now.plus_ms(1);
    }
    // It comes 4 ms after the change that it tells: the last picks did without.
    share(&mut stage, 2, false);
    let info = of_itself(&mut stage);
    assert_eq!((info.view_picks, info.view_p50_ms), (100, 0));
    assert!((3..=5).contains(&info.view_p99_ms), "{info:?}");
}
