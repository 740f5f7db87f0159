//! A definition and parameters into what runs: read, checked, planned.
//!
//! Once when a run is accepted, against the services that are known then, and again
//! when it is loaded, against the descriptors that were kept with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use minijinja::Value;
use zex_pipeline::catalog::Catalog;
use zex_pipeline::definition::{self, Definition};
use zex_pipeline::plan::Plan;
use zex_pipeline::problem::Problems;

use crate::extensions::Extended;
use crate::known::Asked;
use crate::saved;
use crate::scheduler::Shared;
use crate::store::{DescriptorId, SharedStore, StoreError, StoredRun};

/// The most bytes of parameters: they are evaluated into every item.
const PARAMETERS_MAX_BYTES: usize = 1 << 20;

/// Why a kept run is not loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The store does not give it now.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is kept of it is not understood, and will not be by trying again.
    #[error("{0}")]
    Broken(String),
}

/// A pipeline that is ready to run.
pub(crate) struct Prepared {
    pub(crate) plan: Arc<Plan>,
    /// Its text, with the steps that others add.
    pub(crate) definition: String,
    pub(crate) parameters: Value,
    pub(crate) descriptors: Vec<DescriptorId>,
}

impl Prepared {
    /// Checks a pipeline against the services that are known. One that is not known
    /// yet is asked for first: its worker may have come a moment ago.
    pub(crate) async fn new(
        shared: &Shared,
        text: &str,
        parameters_json: &str,
    ) -> Result<Self, Problems> {
        let extended = Extended::read(shared, text).await?;
        let definition = &extended.definition;
        let parameters = parameters(definition, parameters_json)?;
        Self::ask(shared, definition).await;
        let services = definition.services();
        let (catalog, ids) = shared.known.now();
        let descriptors = services.iter().filter_map(|service| ids.get(*service).copied());
        let descriptors: BTreeSet<DescriptorId> = descriptors.collect();
        let named = definition.steps.iter().any(|step| step.own.is_some());
        let plan = match named.then_some(saved::all(shared)) {
            None => extended.plan(&catalog)?,
            Some(all) => {
                let mut catalog = (*catalog).clone();
                // A store that does not say it now is asked again when the step runs.
                if let Ok(all) = all.await {
                    catalog.set_pipelines(all);
                }
                extended.plan(&catalog)?
            }
        };
        let ((plan, definition), descriptors) = (plan, descriptors.into_iter().collect());
        Ok(Self { plan: Arc::new(plan), definition, parameters, descriptors })
    }

    /// Asks for the services of a definition that are not known.
    pub(crate) async fn ask(shared: &Shared, definition: &Definition) {
        for service in definition.services() {
            let unknown = shared.known.now().0.service(service).is_none();
            if unknown {
                let asked = shared.known.ask(&shared.store, &shared.client, service).await;
                let answered = asked == Asked::Answered;
                if !answered && !shared.alone {
                    shared.known.look(&shared.store, service).await;
                }
                tracing::debug!(service, answered, "an unknown service was asked");
            }
        }
    }

    /// Makes the plan of a kept run again.
    pub(crate) async fn again(store: &SharedStore, run: &StoredRun) -> Result<Self, LoadError> {
        let missing = || LoadError::Broken("descriptors of it are missing".to_owned());
        let definition = definition::parse(&run.definition).map_err(words)?;
        let parameters = parameters(&definition, &run.parameters_json).map_err(words)?;
        let mut sets = BTreeMap::new();
        for id in &run.descriptors {
            sets.insert(*id, store.descriptors(*id).await?.ok_or_else(missing)?);
        }
        let mut catalog = Catalog::default();
        for service in definition.services() {
            // Every set was kept for one of the services; which one, it says itself.
            let found = sets.values().any(|set| catalog.insert(service, set).is_ok());
            if !found {
                let why = format!("no descriptors of {service} were kept with it");
                return Err(LoadError::Broken(why));
            }
        }
        let plan = Arc::new(Plan::new(definition, &catalog).map_err(words)?);
        let definition = run.definition.clone();
        Ok(Self { plan, definition, parameters, descriptors: run.descriptors.clone() })
    }
}

fn parameters(definition: &Definition, json: &str) -> Result<Value, Problems> {
    if json.len() > PARAMETERS_MAX_BYTES {
        let place = zex_pipeline::problem::Place::root().field("parameters");
        let message = format!("{} bytes; the most is {PARAMETERS_MAX_BYTES}", json.len());
        return Err(place.problem(message).into());
    }
    definition.parameters(json)
}

fn words(problems: Problems) -> LoadError {
    LoadError::Broken(format!("its definition is not understood any more: {problems}"))
}
