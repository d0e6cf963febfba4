//! A plugin that exports a root of another layout: its table has one function, of a kind that the contract doesn't know.

use abi_stable::{
    StableAbi, export_root_module, library::RootModule, package_version_strings,
    prefix_type::PrefixTypeTrait, sabi_types::VersionStrings,
};

/// A root that is called as the contract's is.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = RootRef)))]
#[sabi(missing_field(panic))]
pub struct Root {
    /// A table that isn't one.
    #[sabi(last_prefix_field)]
    pub backend: extern "C" fn(u64) -> u64,
}

impl RootModule for RootRef {
    abi_stable::declare_root_module_statics! {RootRef}
    const BASE_NAME: &'static str = "keystead_plugin";
    const NAME: &'static str = "keystead_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}

#[export_root_module]
fn root() -> RootRef {
    Root { backend: identity }.leak_into_prefix()
}

extern "C" fn identity(number: u64) -> u64 {
    number
}
