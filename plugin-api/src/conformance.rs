//! The cases that every plugin passes.
