//! What may be registered, and how much of it.

use prost::Message as _;

use super::*;
use crate::mesh::registry::{MAX_SERVED, MAX_WORKERS};

#[test]
fn what_may_be_registered_is_bounded_and_counted() {
    let mut stage = Stage::new(Settings::default());
    let worker = |n: usize| {
        let mut id = [7; 16];
        id[..8].copy_from_slice(&(n as u64).to_be_bytes());
        PeerId(id)
    };
    let register = |stage: &mut Stage, n: usize, version: u32, services: Vec<String>| {
        let register = Register { name: "w".into(), version, capacity: 1, services };
        stage.worker(worker(n), register, b"");
        stage.sent.clear();
    };
    let services = |n: usize| (0..MAX_SERVICES).map(move |s| format!("s{n}.{s}")).collect();
    for n in 0..MAX_SERVED / MAX_SERVICES {
        register(&mut stage, n, 1, services(n));
    }
    assert_eq!(stage.mesh.stats().refused, 0);
    register(&mut stage, 0, 2, vec!["s1.1".into(), "one.more".into(), "and.another".into()]);
    assert_eq!((stage.mesh.stats().refused, stage.mesh.stats().dropped), (2, 0));
    for n in MAX_SERVED / MAX_SERVICES..=MAX_WORKERS {
        register(&mut stage, n, 1, vec!["s1.1".into()]);
    }
    assert_eq!(stage.mesh.stats().refused, 3);
    assert_eq!(stage.mesh.loads().count(), MAX_WORKERS);
    // Who is known goes on, and makes room when it leaves.
    stage.worker(worker(5), Goodbye {}, b"");
    register(&mut stage, MAX_WORKERS, 1, vec!["s1.1".into()]);
    assert_eq!((stage.mesh.loads().count(), stage.mesh.stats().refused), (MAX_WORKERS, 3));
}

#[test]
fn nobody_registers_the_service_of_the_mesh() {
    let mut stage = Stage::new(Settings::default());
    let services = vec![MESH_SERVICE.to_owned(), "pkg.Echo".to_owned()];
    stage.worker(id(1), Register { name: "w".into(), version: 1, capacity: 1, services }, b"");
    assert_eq!(stage.mesh.stats().refused, 1);
    let ask = Call { service: MESH_SERVICE.into(), method: "Services".into(), ..call(1) };
    stage.client(id(9), ask, b"");
    let list = proto::ServiceList::decode(stage.replies().remove(0).2).unwrap();
    let names: Vec<&str> = list.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["pkg.Echo"]);
}
