//! Which target gets a call: of those that offer its method and are well, the one with the fewest
//! calls of ours under way.
//!
//! Made anew by the adapter at each change, one for each service; asked by the service's handler.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::reflection::{Catalogue, Method, Service};
use crate::target::Line;

/// A target that offers a service now.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    /// Which of the adapter's targets.
    pub(crate) target: usize,
    /// Counts the lines to it, so that one can tell a new one.
    pub(crate) line_number: u64,
    pub(crate) line: Line,
    pub(crate) catalogue: Arc<Catalogue>,
}

impl Route {
    fn service(&self, name: &str) -> Option<&Service> {
        self.catalogue.services.get(name)
    }
}

/// The ways to one service.
#[derive(Debug)]
pub(crate) struct Routes {
    service: String,
    routes: Vec<Route>,
    /// Where the next look begins, so that of equals each has its turn.
    turn: AtomicUsize,
}

/// What tells two lists of routes apart: for each the target, its line, what it offers.
pub(crate) type Mark = Vec<(usize, u64, Bytes)>;

/// Why no route will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoRoute {
    /// Nobody has the method.
    Method,
    /// Who has it has another schema: this one.
    Schema(String),
    /// All that have it were tried.
    Tried,
}

impl Routes {
    pub(crate) fn new(service: String) -> Self {
        Self { service, routes: Vec::new(), turn: AtomicUsize::new(0) }
    }

    pub(crate) fn add(&mut self, route: Route) {
        self.routes.push(route);
    }

    /// What they offer, as the first of them says.
    pub(crate) fn offered(&self) -> Option<&Service> {
        self.routes.first().and_then(|route| route.service(&self.service))
    }

    /// Whether all say the same.
    pub(crate) fn agree(&self) -> bool {
        let mut all = self.routes.iter().map(|route| route.service(&self.service));
        let first = all.next();
        all.all(|service| first == Some(service))
    }

    pub(crate) fn mark(&self) -> Mark {
        let mark = |route: &Route| {
            let descriptors = route.service(&self.service).map(|it| it.descriptors.clone());
            (route.target, route.line_number, descriptors.unwrap_or_default())
        };
        self.routes.iter().map(mark).collect()
    }

    /// The least busy that has the method, with the schema that is asked for, and is not among the
    /// `tried`.
    pub(crate) fn pick(
        &self,
        method: &str,
        schema: Option<&[u8]>,
        tried: &[usize],
    ) -> Result<(&Route, &Method), NoRoute> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut reason = NoRoute::Method;
        let mut best: Option<(&Route, &Method)> = None;
        for at in 0..self.routes.len() {
            let route = &self.routes[(turn + at) % self.routes.len()];
            let known = route.service(&self.service).and_then(|it| it.methods.get(method));
            let Some(known) = known else { continue };
            if schema.is_some_and(|schema| schema != known.schema.as_bytes()) {
                reason = NoRoute::Schema(known.schema.clone());
            } else if tried.contains(&route.target) {
                reason = NoRoute::Tried;
            } else if best.is_none_or(|(least, _)| route.line.calls() < least.line.calls()) {
                best = Some((route, known));
            }
        }
        best.ok_or(reason)
    }
}
