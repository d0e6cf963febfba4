//! Flags of the command line that set options: those of the reference, by the same names.

use std::path::PathBuf;

use super::Level;
use super::secret::Secret;

/// The reference's flags. Each may be written with dashes or underscores, and wins over variable and file.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Configuration")]
#[non_exhaustive]
pub struct Flags {
    /// Configuration file; else ./keystead.yaml, ./gokeyless.yaml, /etc/keystead/keystead.yaml and
    /// /etc/keyless/gokeyless.yaml are tried
    #[arg(short = 'c', long, alias = "config_file", visible_alias = "config", value_name = "PATH")]
    pub config_file: Option<PathBuf>,
    /// Log level: 0 or debug, 1 or info (default), 2 or warn, 3 to 5 or error
    #[arg(short = 'l', long, value_name = "LEVEL")]
    pub loglevel: Option<Level>,
    /// Port of the key protocol, on all interfaces [default: 2407]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Port of metrics and health, on all interfaces [default: 2406]
    #[arg(long, alias = "metrics_port", value_name = "PORT")]
    pub metrics_port: Option<u16>,
    /// The server's own certificate [default: server.pem]
    #[arg(long, alias = "auth_cert", value_name = "PATH")]
    pub auth_cert: Option<PathBuf>,
    /// Private key of the server's own certificate [default: server-key.pem]
    #[arg(long, alias = "auth_key", value_name = "PATH")]
    pub auth_key: Option<PathBuf>,
    /// Authorities that client certificates must chain to [default: keyless_cacert.pem]
    #[arg(long, alias = "cloudflare_ca_cert", visible_alias = "client-ca", value_name = "PATH")]
    pub cloudflare_ca_cert: Option<PathBuf>,
    /// Directories of key files; replaces every store of the file
    #[arg(long, alias = "private_key_dirs", value_name = "PATH,…", value_delimiter = ',')]
    pub private_key_dirs: Option<Vec<String>>,
    /// Key files; replaces every store of the file
    #[arg(long, alias = "private_key_files", value_name = "PATH,…", value_delimiter = ',')]
    pub private_key_files: Option<Vec<String>>,
    /// Where to write the process id
    #[arg(long, alias = "pid_file", value_name = "PATH")]
    pub pid_file: Option<PathBuf>,
    /// Name of this server, for its certificate request
    #[arg(long, value_name = "NAME", hide = true)]
    pub hostname: Option<String>,
    /// Cloudflare zone, for enrolment
    #[arg(long, alias = "zone_id", value_name = "ID", hide = true)]
    pub zone_id: Option<String>,
    /// Origin CA key, for enrolment; visible to every process of the machine, so better in the file
    #[arg(long, alias = "origin_ca_api_key", value_name = "KEY", hide = true)]
    pub origin_ca_api_key: Option<Secret>,
    /// API token, for enrolment; visible to every process of the machine, so better in the file
    #[arg(long, alias = "api_token", value_name = "TOKEN", hide = true)]
    pub api_token: Option<Secret>,
    /// Address of the certificate service, for enrolment
    #[arg(long, alias = "init_endpoint", value_name = "URL", hide = true)]
    pub init_endpoint: Option<String>,
    /// Where the certificate request is written at enrolment
    #[arg(long, alias = "auth_csr", value_name = "PATH", hide = true)]
    pub auth_csr: Option<PathBuf>,
    /// Time to take for now, RFC 3339
    #[arg(long, alias = "current_time", value_name = "TIME", hide = true)]
    pub current_time: Option<String>,
    /// Whether spans are sent to a tracing agent
    #[arg(long, alias = "tracing_enabled", hide = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub tracing_enabled: Option<bool>,
    /// Address of the tracing agent
    #[arg(long, alias = "tracing_address", value_name = "ADDRESS", hide = true)]
    pub tracing_address: Option<String>,
    /// Share of requests that are traced, 0 to 1
    #[arg(long, alias = "tracing_sample_rate", value_name = "SHARE", hide = true)]
    pub tracing_sample_rate: Option<f64>,
}
