//! Finds, checks, loads and distrusts key plugins.
