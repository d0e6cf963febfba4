//! Builds the plugin libraries that tests load.
