//! What a broker says of the mesh: the methods of `zex.Mesh`, as Majordomo's `mmi.*` did
//! (ZeroMQ RFC 8). It answers from what it has heard, at once.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use zex_spec::proto::{
    BrokerInfo, BrokerList, BrokersRequest, DESCRIPTORS, ServiceInfo, ServiceList, ServicesRequest,
    WorkerInfo, WorkerList, WorkersRequest,
};
use zex_spec::{Code, DESCRIPTORS_METHOD, Dialect, MAX_BODY_BYTES, ServiceHash, home};

use super::Mesh;
use super::memory::Outcome;
use super::registry::Worker;
use crate::Time;

impl Mesh {
    /// The reply to a call of `zex.Mesh`.
    pub(super) fn answer_for_itself(&self, now: Time, method: &str, body: &[u8]) -> Outcome {
        let reply = match method {
            "Services" => {
                ServicesRequest::decode(body).map(|_| self.service_list().encode_to_vec())
            }
            "Workers" => {
                WorkersRequest::decode(body).map(|_| self.worker_list(now).encode_to_vec())
            }
            "Brokers" => {
                BrokersRequest::decode(body).map(|_| self.broker_list(now).encode_to_vec())
            }
            DESCRIPTORS_METHOD => Ok(DESCRIPTORS.to_vec()),
            other => {
                let text =
                    format!("zex.Mesh has no method {other}; it has Services, Workers and Brokers");
                return Outcome::error(Code::Unimplemented, text);
            }
        };
        match reply {
            // What is larger does not travel: a pipe would end our connection for it.
            Ok(body) if body.len() > MAX_BODY_BYTES => {
                let text = format!(
                    "what zex.Mesh/{method} tells has {} bytes here; {MAX_BODY_BYTES} travel at most",
                    body.len()
                );
                Outcome::error(Code::ResourceExhausted, text)
            }
            Ok(body) => Outcome { body: Bytes::from(body), ..Outcome::default() },
            Err(error) => {
                Outcome::error(Code::InvalidArgument, format!("zex.Mesh/{method}: {error}"))
            }
        }
    }

    fn service_list(&self) -> ServiceList {
        let brokers = || {
            let others = self.peers.iter().filter(|(_, peer)| peer.ready).map(|(id, _)| *id);
            others.chain(self.ready.then_some(self.me))
        };
        let name_of =
            |id| if id == self.me { self.name.clone() } else { self.peers[&id].name.clone() };
        let mut services = BTreeMap::new();
        for (_, service) in
            self.registry.services.iter().filter(|(_, service)| service.list.len() > 0)
        {
            let name = String::from_utf8_lossy(&service.name.1).into_owned();
            let hash = match service.name.0 {
                Dialect::Native => ServiceHash::of(&service.name.1),
                Dialect::Ez => ServiceHash::of_ez(&service.name.1),
            };
            let info = ServiceInfo {
                name: name.clone(),
                workers: service.list.len() as u32,
                home: home(hash, brokers()).map_or_else(String::new, name_of),
                queued: service.queue.len() as u32,
            };
            services.insert((name, service.name.0 == Dialect::Ez), info);
        }
        ServiceList { services: services.into_values().collect() }
    }

    fn worker_list(&self, now: Time) -> WorkerList {
        let mut workers: Vec<WorkerInfo> =
            self.registry.workers.iter().map(|(_, worker)| self.worker_info(now, worker)).collect();
        workers.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        WorkerList { workers }
    }

    fn worker_info(&self, now: Time, worker: &Worker) -> WorkerInfo {
        let names =
            worker.services.iter().map(|(service, _)| &self.registry.services[*service].name.1);
        let mut services: Vec<String> =
            names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        services.sort_unstable();
        let ez = worker.dialect == Dialect::Ez;
        WorkerInfo {
            id: worker.id.to_string(),
            name: worker.name.clone(),
            dialect: if ez { "ez" } else { "native" }.to_owned(),
            services,
            capacity: worker.capacity,
            assigned: worker.level(),
            assigned_here: worker.assigned.len() as u32,
            in_flight: if ez { worker.assigned.len() as u32 } else { worker.in_flight },
            last_beat_ms: now.since(worker.heard).as_millis() as u64,
        }
    }

    fn broker_list(&self, now: Time) -> BrokerList {
        let view = self.view_age();
        let own = BrokerInfo {
            id: self.me.to_string(),
            name: self.name.clone(),
            ready: self.ready,
            answering: true,
            assigned: self.assignments.len() as u32,
            last_heard_ms: 0,
            drift: self.stats.drift,
            dropped: self.stats.dropped,
            drifting: u32::try_from(self.drifting()).unwrap_or(u32::MAX),
            view_picks: view.samples,
            view_p50_ms: view.p50_ms,
            view_p99_ms: view.p99_ms,
            view_max_ms: view.max_ms,
        };
        let others = self.peers.iter().map(|(id, peer)| BrokerInfo {
            id: id.to_string(),
            name: peer.name.clone(),
            ready: peer.ready,
            answering: false,
            assigned: peer.counts.values().fold(0, |sum: u32, count| sum.saturating_add(*count)),
            last_heard_ms: now.since(peer.heard).as_millis() as u64,
            ..BrokerInfo::default()
        });
        BrokerList { brokers: std::iter::once(own).chain(others).collect() }
    }
}
