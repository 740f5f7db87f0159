//! The services that are known, by their descriptors: what a pipeline is checked against.
//!
//! A service's descriptors come as an encoded `FileDescriptorSet`. Every set is a
//! pool of its own, because two services may bring different files under one name;
//! so types of two services are compared by their full names.
//!
//! Filled by the scheduler, read by `plan`.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost_reflect::ServiceDescriptor;
use prost_reflect::{DescriptorError, DescriptorPool, MessageDescriptor, MethodDescriptor};

use crate::problem::suggest;

/// The services that are known.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    services: BTreeMap<String, ServiceDescriptor>,
    /// The pipelines that are stored, by their names, when that is known.
    pipelines: Option<BTreeMap<String, Arc<str>>>,
}

/// A set of descriptors that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// It is no set of descriptors, or files are missing in it.
    #[error("not a usable FileDescriptorSet: {0}")]
    Descriptors(#[from] DescriptorError),
    /// Two files in it define the same name.
    #[error("not a usable FileDescriptorSet: its files contradict one another")]
    Contradiction,
    /// It does not hold the service it was given for.
    #[error("the descriptors given for {0} do not have it")]
    NoService(String),
}

/// Reads an encoded `FileDescriptorSet` that came from outside.
///
/// prost-reflect 0.16 panics where it should say that two files define one name, so the panic is
/// caught here; nothing but the new pool is touched by it.
///
/// # Errors
/// [`CatalogError::Descriptors`], or [`CatalogError::Contradiction`].
pub fn pool(descriptor_set: &[u8]) -> Result<DescriptorPool, CatalogError> {
    let decoded = std::panic::catch_unwind(|| DescriptorPool::decode(descriptor_set));
    Ok(decoded.map_err(|_| CatalogError::Contradiction)??)
}

impl Catalog {
    /// Adds a service by an encoded `FileDescriptorSet` that holds it. When it was
    /// known, it is known by these descriptors from now on.
    pub fn insert(&mut self, service: &str, descriptor_set: &[u8]) -> Result<(), CatalogError> {
        let pool = pool(descriptor_set)?;
        let Some(found) = pool.get_service_by_name(service) else {
            return Err(CatalogError::NoService(service.to_owned()));
        };
        self.services.insert(service.to_owned(), found);
        Ok(())
    }

    /// Adds a service whose descriptors are read already.
    pub fn insert_known(&mut self, service: ServiceDescriptor) {
        self.services.insert(service.full_name().to_owned(), service);
    }

    /// Sets which pipelines are stored, by their names. Until then steps may name any.
    pub fn set_pipelines(&mut self, pipelines: BTreeMap<String, Arc<str>>) {
        self.pipelines = Some(pipelines);
    }

    /// The pipelines that are stored, when that is known.
    pub(crate) fn pipelines(&self) -> Option<&BTreeMap<String, Arc<str>>> {
        self.pipelines.as_ref()
    }

    /// A service by its full name.
    pub fn service(&self, name: &str) -> Option<&ServiceDescriptor> {
        self.services.get(name)
    }

    /// The names of all services.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.services.keys().map(String::as_str)
    }

    /// A message type by its full name, from any service that brought it.
    pub fn message(&self, name: &str) -> Option<MessageDescriptor> {
        self.services.values().find_map(|service| service.parent_pool().get_message_by_name(name))
    }

    /// What to say of a service that was never there.
    pub fn no_service(&self, service: &str) -> String {
        let near = suggest(service, self.names());
        format!(
            "no service `{service}` was ever registered{near} (`zex adapter URL` brings in a gRPC \
             service)"
        )
    }

    /// A method, or what to say when there is none.
    pub fn method(&self, service: &str, method: &str) -> Result<MethodDescriptor, String> {
        let Some(found) = self.services.get(service) else {
            return Err(self.no_service(service));
        };
        let methods: Vec<_> = found.methods().collect();
        let named = methods.iter().find(|found| found.name() == method);
        named.cloned().ok_or_else(|| {
            let near = suggest(method, methods.iter().map(MethodDescriptor::name));
            format!("{service} has no method `{method}`{near}")
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::catalog;

    #[test]
    fn methods_are_found_or_the_nearest_is_named() {
        let catalog = catalog();
        assert!(catalog.method("test.Users", "List").is_ok());
        for (service, method, want) in [
            (
                "test.User",
                "List",
                "no service `test.User` was ever registered; did you mean `test.Users`?",
            ),
            ("test.Users", "Lst", "test.Users has no method `Lst`; did you mean `List`?"),
            (
                "nothing.Like.It",
                "X",
                "no service `nothing.Like.It` was ever registered; there is test.Groups",
            ),
        ] {
            let why = catalog.method(service, method).expect_err(service);
            assert!(why.starts_with(want), "{why}");
        }
    }

    #[test]
    fn descriptors_that_do_not_fit_are_refused() {
        let mut catalog = crate::catalog::Catalog::default();
        assert!(catalog.insert("test.Users", &[0xff, 0x01, 0x02]).is_err());
        let error = catalog.insert("test.Nobody", &crate::testing::descriptors()).unwrap_err();
        assert_eq!(error.to_string(), "the descriptors given for test.Nobody do not have it");
        assert_eq!(catalog.names().count(), 0);
    }
}
