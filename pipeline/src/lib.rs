//! The decisions of a pipeline, pure.
pub mod catalog;
pub mod definition;
pub mod document;
pub mod expression;
pub mod input;
pub mod key;
pub mod message;
mod names;
pub mod plan;
pub mod problem;
#[cfg(test)]
mod testing;
