//! A plugin that breaks every rule, for the tests of the host.
