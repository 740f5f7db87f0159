//! The scheduler of the mesh.
pub mod store;
