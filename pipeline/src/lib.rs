//! The decisions of a pipeline, pure.
