//! Following a service through its life: stopped, killed, frozen, moody, changed.

#![allow(clippy::unwrap_used)] // All of this file is tests.

mod stage;

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use bytes::Bytes;
use stage::{
    Lazy, Moody, Mortal, PATIENCE, Valve, away, follower, listener, reflection, serves, until,
    users,
};
use tokio::{net::TcpListener, sync::mpsc};
use tonic::{codegen::http::uri::PathAndQuery, transport::Server};
use tonic_health::pb::{health_check_response::ServingStatus, health_server::HealthServer};
use users_groups::{GroupsOptions, UsersOptions, pb::users_server::UsersServer, serve_groups};
use zex_adapter::{Offer, call};

const USERS: &str = "example.v1.Users";
/// What is gone must be noticed within this.
const GONE_WITHIN: Duration = Duration::from_secs(3);
/// What is back must be noticed within this.
const BACK_WITHIN: Duration = Duration::from_secs(2);
/// What the service tells must be noticed within this.
const TOLD_WITHIN: Duration = Duration::from_millis(1_500);

#[tokio::test]
async fn health_takes_a_service_out_and_brings_it_back() {
    let server = users_groups::serve_users(listener().await, UsersOptions::default()).unwrap();
    let follower = follower(server.address());
    let mut offers = follower.offers();
    until(&mut offers, serves(&[USERS])).await;
    for _ in 0..3 {
        server.set_serving(false).await;
        assert!(until(&mut offers, serves(&[])).await < TOLD_WITHIN);
        server.set_serving(true).await;
        assert!(until(&mut offers, serves(&[USERS])).await < TOLD_WITHIN);
    }
    // The watches do not keep the server from ending.
    server.stop().await.unwrap();
    assert!(until(&mut offers, away).await < GONE_WITHIN);
}

#[tokio::test]
async fn a_stop_is_noticed_and_the_return_with_other_services_too() {
    let server = users_groups::serve_users(listener().await, UsersOptions::default()).unwrap();
    let address = server.address();
    let follower = follower(address);
    let mut offers = follower.offers();
    until(&mut offers, serves(&[USERS])).await;
    let begun = Instant::now();
    server.stop().await.unwrap();
    until(&mut offers, away).await;
    assert!(begun.elapsed() < GONE_WITHIN, "{:?}", begun.elapsed());

    let dir = tempfile::tempdir().unwrap();
    let options = GroupsOptions {
        process: "groups-1".into(),
        ledger: dir.path().join("ledger"),
        delay: Duration::ZERO,
    };
    let server = serve_groups(TcpListener::bind(address).await.unwrap(), options).unwrap();
    assert!(until(&mut offers, serves(&["example.v1.Groups"])).await < BACK_WITHIN);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn death_is_noticed_at_once_even_without_health() {
    let router =
        || Server::builder().add_service(users(1)).add_service(reflection().build_v1().unwrap());
    let mut server = Mortal::start(router()).await;
    let address = server.address;
    let follower = follower(address);
    let mut offers = follower.offers();
    until(&mut offers, serves(&[USERS])).await;
    for _ in 0..3 {
        server.kill();
        assert!(until(&mut offers, away).await < Duration::from_secs(1));
        server = Mortal::start_on(TcpListener::bind(address).await.unwrap(), router());
        assert!(until(&mut offers, serves(&[USERS])).await < BACK_WITHIN);
    }
}

#[tokio::test]
async fn a_service_that_is_not_there_yet_is_waited_for() {
    let place = listener().await;
    let address = place.local_addr().unwrap();
    drop(place);
    let follower = follower(address);
    let mut offers = follower.offers();
    let refused = |offer: &Offer| matches!(offer, Offer::Away { why } if why.contains("refused"));
    until(&mut offers, refused).await;
    let listener = TcpListener::bind(address).await.unwrap();
    let server = users_groups::serve_users(listener, UsersOptions::default()).unwrap();
    assert!(until(&mut offers, serves(&[USERS])).await < BACK_WITHIN);
    drop(follower);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_frozen_service_is_noticed_and_its_thaw_too() {
    let server = users_groups::serve_users(listener().await, UsersOptions::default()).unwrap();
    let valve = Valve::before(server.address()).await;
    let follower = follower(valve.address);
    let mut offers = follower.offers();
    until(&mut offers, serves(&[USERS])).await;
    valve.freeze(true);
    // Half a second beyond what a service at the other end of a socket needs: here the silence
    // counts from the last word.
    let noticed = until(&mut offers, away).await;
    assert!(noticed < GONE_WITHIN + Duration::from_millis(500), "{noticed:?}");
    valve.freeze(false);
    let back = until(&mut offers, serves(&[USERS])).await;
    assert!(back < Duration::from_secs(4), "{back:?}");
}

async fn moody(moody: &Moody) -> Mortal {
    let (begun, _) = mpsc::unbounded_channel();
    let (dropped, _) = mpsc::unbounded_channel();
    let router = Server::builder()
        .add_service(UsersServer::new(Lazy { begun, dropped }))
        .add_service(HealthServer::new(moody.clone()))
        .add_service(reflection().build_v1alpha().unwrap());
    Mortal::start(router).await
}

#[tokio::test]
async fn the_server_as_a_whole_speaks_for_services_it_says_nothing_about() {
    for watchable in [true, false] {
        let health = Moody::new(watchable);
        let server = moody(&health).await;
        let follower = follower(server.address);
        let mut offers = follower.offers();
        until(&mut offers, serves(&[USERS])).await;
        for (status, serving) in [
            (ServingStatus::NotServing, vec![]),
            (ServingStatus::Serving, vec![USERS]),
            (ServingStatus::Unknown, vec![]),
            (ServingStatus::ServiceUnknown, vec![USERS]),
        ] {
            health.overall.send_replace(status);
            assert!(until(&mut offers, serves(&serving)).await < TOLD_WITHIN, "{status:?}");
        }
    }
}

#[tokio::test]
async fn a_server_that_its_watches_starve_is_asked_without_them() {
    let mut health = Moody::new(true);
    health.starves = true;
    let server = moody(&health).await;
    let follower = follower(server.address);
    let mut offers = follower.offers();
    until(&mut offers, serves(&[USERS])).await;
    // It never leaves, though the first checks with watches open get no answer; and once those
    // are hung up it is followed by checks.
    let answered = async {
        let enough = health.checks.load(Ordering::SeqCst) + 12;
        while health.checks.load(Ordering::SeqCst) < enough {
            assert!(!away(&offers.borrow()), "{:?}", *offers.borrow());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.unwrap();
    health.overall.send_replace(ServingStatus::NotServing);
    assert!(until(&mut offers, serves(&[])).await < TOLD_WITHIN);
}

#[tokio::test]
async fn a_server_too_busy_to_answer_stays_while_an_idle_one_goes() {
    let health = Moody::new(false);
    let server = moody(&health).await;
    let follower = follower(server.address);
    let mut offers = follower.offers();
    until(&mut offers, serves(&[USERS])).await;
    let Offer::There { line, .. } = offers.borrow().clone() else { panic!("away") };
    // A call that never ends, and no answer to checks meanwhile.
    let get = PathAndQuery::from_static("/example.v1.Users/Get");
    let deadline = Instant::now() + PATIENCE;
    let ask = stage::ask(&get, Bytes::new(), deadline);
    let call = tokio::spawn(async move { call::unary(&line, &ask).await });
    let begun = Instant::now();
    health.stuck.store(true, Ordering::SeqCst);
    let left = tokio::time::timeout(GONE_WITHIN * 2, offers.wait_for(away)).await.map(drop);
    assert!(left.is_err(), "left after {:?}", begun.elapsed());
    // The call is given up; now there is no excuse.
    call.abort();
    until(&mut offers, away).await;
    health.stuck.store(false, Ordering::SeqCst);
    until(&mut offers, serves(&[USERS])).await;
}

#[tokio::test]
async fn renewed_connections_are_no_reason_to_leave() {
    let health = Moody::new(true);
    let router = Server::builder()
        .max_connection_age(Duration::from_millis(1_500))
        .add_service(users(5))
        .add_service(HealthServer::new(health))
        .add_service(reflection().build_v1().unwrap());
    let server = Mortal::start(router).await;
    let follower = follower(server.address);
    let mut offers = follower.offers();
    until(&mut offers, serves(&[USERS])).await;
    let Offer::There { line, catalogue, .. } = offers.borrow().clone() else { panic!("away") };
    let get = &catalogue.services[USERS].methods["Get"].path;
    let deadline = Instant::now() + PATIENCE;
    let mut link = line.link();
    while link.borrow_and_update().number < 4 {
        assert!(Instant::now() < deadline);
        let ask = stage::ask(get, Bytes::from_static(&[8, 2]), deadline);
        let answer = call::unary(&line, &ask).await;
        assert!(answer.as_ref().is_ok_and(|answer| answer.outcome.is_ok()), "{answer:?}");
        assert!(!away(&offers.borrow_and_update()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
