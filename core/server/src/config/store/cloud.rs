//! Entries of the reference for Azure and Google say nothing but where a key is. What the reference takes from its
//! environment beside that, its credential, is written here into the native form: `credential`, `secrets`, and `grants` for
//! the services that are asked.

use std::path::{Path, PathBuf};

use keystead_plugin_host::{Grant, Origin};
use serde_json::{Value, json};

use super::{Operation, Store};
use crate::config::Environment;
use crate::config::notice::Notice;
use crate::config::secret::SecretSource;

/// Where an Azure cloud asks who somebody is, by the end of its vaults' names (learn.microsoft.com, "Azure Key Vault basic
/// concepts", and the like for Managed HSM).
const AUTHORITIES: [(&str, &str); 3] = [
    (".azure.net", "https://login.microsoftonline.com"),
    (".azure.cn", "https://login.chinacloudapi.cn"),
    (".usgovcloudapi.net", "https://login.microsoftonline.us"),
];

/// Where the names of services lead that have a private endpoint, or stand behind an operator's own: RFC 1918, RFC 6598, RFC
/// 4193.
const PRIVATE: [&str; 5] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"];

/// Where a machine of either cloud learns who it is: a link-local address.
const METADATA: &str = "169.254.169.254";

/// Gives a legacy entry of a cloud what the environment has for it; answers what can't be had that way.
pub(super) fn complete(store: &mut Store, env: Environment<'_>) -> Vec<Notice> {
    let mut cloud = Cloud { store, env, warnings: Vec::new() };
    match cloud.store.plugin.as_str() {
        "azure" => cloud.azure(),
        "gcp" => cloud.google(),
        _ => return Vec::new(),
    }
    cloud.store.operations = [Operation::Sign].into(); // neither has raw RSA
    cloud.warnings
}

/// The service that the URI of a key in Azure is for: stores are made of those of one.
pub(super) fn vault(uri: &str) -> Option<&str> {
    let (host, _) = uri.strip_prefix("https://")?.split_once('/')?;
    Some(host)
}

struct Cloud<'a> {
    store: &'a mut Store,
    env: Environment<'a>,
    warnings: Vec<Notice>,
}

impl Cloud<'_> {
    fn azure(&mut self) {
        let vault = self.store.config.pointer("/uris/0").and_then(Value::as_str).and_then(vault);
        let vault = vault.unwrap_or_default().to_ascii_lowercase();
        self.grant(&format!("https://{vault}"), &["GET", "POST"], &[], &PRIVATE);
        let host = vault.split(':').next().unwrap_or_default();
        let known = AUTHORITIES.iter().find(|(end, _)| host.ends_with(end)).map(|(_, authority)| *authority);
        let authority = self.variable("AZURE_AUTHORITY_HOST");
        let authority = authority.as_deref().or(known).unwrap_or("https://login.microsoftonline.com");
        let authority = authority.trim_end_matches('/');
        let credential = self.azure_credential(authority);
        self.set_credential(credential);
    }

    /// In the order of the reference; a workload's identity, which it doesn't know, before the machine's.
    fn azure_credential(&mut self, authority: &str) -> Value {
        let (tenant, client) = (self.variable("AZURE_TENANT_ID"), self.variable("AZURE_CLIENT_ID"));
        if let Some(file) = self.variable("AZURE_AUTH_LOCATION") {
            for (name, pointer, exposed) in [
                ("client_id", "/clientId", true),
                ("tenant", "/tenantId", true),
                ("client_secret", "/clientSecret", false),
            ] {
                self.secret(name, member(&file, pointer), exposed);
            }
            self.grant(authority, &["POST"], &["client_secret"], &[]);
            return json!({"type": "client_secret", "authority": authority});
        }
        if self.variable("AZURE_CLIENT_SECRET").is_some() {
            self.secret("client_secret", SecretSource::Env("AZURE_CLIENT_SECRET".to_owned()), false);
            self.grant(authority, &["POST"], &["client_secret"], &[]);
            return json!({"type": "client_secret", "authority": authority, "tenant": tenant, "client_id": client});
        }
        if let Some(file) = self.variable("AZURE_FEDERATED_TOKEN_FILE") {
            self.secret("federated_token", SecretSource::File(file.into()), false);
            self.grant(authority, &["POST"], &["federated_token"], &[]);
            return json!({"type": "workload_identity", "authority": authority, "tenant": tenant, "client_id": client});
        }
        if let (Some(_), Some(_)) = (&tenant, &client) {
            self.warn(
                "`AZURE_TENANT_ID` and `AZURE_CLIENT_ID` are set and `AZURE_CLIENT_SECRET` isn't: the entries of Azure ask \
                 as the machine itself",
                "set it for the server, in its unit for example, or unset the tenant where that is meant",
            );
        }
        for variable in ["AZURE_CERTIFICATE_PATH", "AZURE_USERNAME"] {
            if self.variable(variable).is_some() {
                self.warn(
                    &format!("`{variable}` has no effect: the entries of Azure ask as the machine itself"),
                    "for a certificate, write the native form, with `credential: {type: client_certificate}`",
                );
            }
        }
        self.machine_of_azure(client)
    }

    fn machine_of_azure(&mut self, client: Option<String>) -> Value {
        let app_service =
            self.variable("IDENTITY_ENDPOINT").filter(|_| self.variable("IDENTITY_HEADER").is_some());
        if let Some(endpoint) = app_service {
            self.secret("identity_header", SecretSource::Env("IDENTITY_HEADER".to_owned()), false);
            let local = ["127.0.0.0/8", "169.254.0.0/16"];
            self.grant(&origin_of(&endpoint), &["GET"], &["identity_header"], &local);
            return json!({"type": "app_service", "endpoint": endpoint, "client_id": client});
        }
        self.grant(&format!("http://{METADATA}"), &["GET"], &[], &[]);
        json!({"type": "managed_identity", "client_id": client})
    }

    fn google(&mut self) {
        self.grant("https://cloudkms.googleapis.com", &["GET", "POST"], &[], &PRIVATE);
        let file = self.default_credentials().map(|file| file.to_string_lossy().into_owned());
        let credential = match &file {
            Some(file) => self.google_file(file),
            None => {
                let host = self.variable("GCE_METADATA_HOST");
                let endpoint = format!("http://{}", host.as_deref().unwrap_or("metadata.google.internal"));
                self.grant(&endpoint, &["GET"], &[], &[&[METADATA][..], &PRIVATE].concat());
                json!({"type": "metadata", "endpoint": endpoint})
            }
        };
        self.set_credential(credential);
        let of_file = || text(file.as_deref()?, "/quota_project_id");
        if let Some(project) = self.variable("GOOGLE_CLOUD_QUOTA_PROJECT").or_else(of_file) {
            self.set("quota_project", project.into());
        }
    }

    /// The file of application default credentials (google.aip.dev/auth/4110).
    fn default_credentials(&self) -> Option<PathBuf> {
        if let Some(file) = self.variable("GOOGLE_APPLICATION_CREDENTIALS") {
            return Some(file.into());
        }
        let home = PathBuf::from(self.variable("HOME")?);
        Some(home.join(".config/gcloud/application_default_credentials.json")).filter(|file| file.is_file())
    }

    /// A file that can't be read is taken for a service account's: the plugin then says what is wrong with it.
    fn google_file(&mut self, file: &str) -> Value {
        match text(file, "/type").as_deref() {
            Some("authorized_user") => {
                let names = ["client_id", "client_secret", "refresh_token"];
                for name in names {
                    self.secret(name, member(file, &format!("/{name}")), false);
                }
                self.grant("https://oauth2.googleapis.com", &["POST"], &names, &[]);
                json!({"type": "authorized_user"})
            }
            Some("external_account") => self.federated(file),
            Some(other) if other != "service_account" => {
                let problem =
                    format!("`{file}`: credentials of type `{}` are not supported", other.escape_debug());
                self.warn(&problem, "`service_account`, `authorized_user` and `external_account` are");
                json!({"type": "service_account"})
            }
            _ => {
                for (name, exposed) in
                    [("client_email", true), ("private_key_id", true), ("private_key", false)]
                {
                    self.secret(name, member(file, &format!("/{name}")), exposed);
                }
                json!({"type": "service_account"})
            }
        }
    }

    /// Workload identity federation, with a subject token in a file (google.aip.dev/auth/4117).
    fn federated(&mut self, file: &str) -> Value {
        let Some(token) = text(file, "/credential_source/file") else {
            let problem = format!("`{file}`: its `credential_source` is no `file`, which isn't supported");
            self.warn(&problem, "have the subject token written to a file, and name that there");
            return json!({"type": "workload_identity"});
        };
        let field = text(file, "/credential_source/format/subject_token_field_name");
        let source = match field {
            Some(field) => member(&token, &format!("/{}", field.replace('~', "~0").replace('/', "~1"))),
            None => SecretSource::File(token.into()),
        };
        self.secret("subject_token", source, false);
        let token_url =
            text(file, "/token_url").unwrap_or_else(|| "https://sts.googleapis.com/v1/token".to_owned());
        self.grant(&origin_of(&token_url), &["POST"], &["subject_token"], &[]);
        let impersonation = text(file, "/service_account_impersonation_url");
        let (endpoint, email) = impersonation.as_deref().and_then(impersonated).unzip();
        if let Some(endpoint) = endpoint {
            self.grant(endpoint, &["POST"], &[], &[]);
        }
        json!({
            "type": "workload_identity",
            "token_url": token_url,
            "audience": text(file, "/audience"),
            "subject_token_type": text(file, "/subject_token_type"),
            "impersonation_endpoint": endpoint,
            "impersonate": email,
        })
    }

    fn variable(&self, name: &str) -> Option<String> {
        (self.env)(name)?.into_string().ok().filter(|value| !value.is_empty())
    }

    fn secret(&mut self, name: &str, source: SecretSource, exposed: bool) {
        self.store.secrets.insert(name.to_owned(), source);
        if exposed {
            self.store.exposed.insert(name.to_owned());
        }
    }

    /// Whatever isn't there is left out.
    fn set_credential(&mut self, mut credential: Value) {
        if let Some(members) = credential.as_object_mut() {
            members.retain(|_, value| !value.is_null());
        }
        self.set("credential", credential);
    }

    fn set(&mut self, key: &str, value: Value) {
        if let Some(config) = self.store.config.as_object_mut() {
            config.insert(key.to_owned(), value);
        }
    }

    fn grant(&mut self, url: &str, methods: &[&str], secrets: &[&str], addresses: &[&str]) {
        let Ok(origin) = url.parse::<Origin>() else {
            let problem = format!("`{}` is no `https://HOST`: nothing is granted there", url.escape_debug());
            return self.warn(&problem, "put the URI or the variable that has it right");
        };
        let proxy = if origin.is_https() { self.proxy(url) } else { None };
        self.store.grants.push(Grant {
            origin,
            methods: methods.iter().map(|&method| method.to_owned()).collect(),
            secrets: secrets.iter().map(|&secret| secret.to_owned()).collect(),
            addresses: addresses.iter().filter_map(|network| network.parse().ok()).collect(),
            ca: None,
            client: None,
            proxy,
        });
    }

    /// The proxy of the environment, which the reference goes by, too.
    fn proxy(&mut self, url: &str) -> Option<Origin> {
        let either =
            |upper: &str| self.variable(upper).or_else(|| self.variable(&upper.to_ascii_lowercase()));
        let (proxy, exceptions) = (either("HTTPS_PROXY")?, either("NO_PROXY").unwrap_or_default());
        let host = url.rsplit('/').next().and_then(|host| host.split(':').next()).unwrap_or_default();
        if exceptions.split(',').any(|exception| is_excepted(host, exception.trim())) {
            return None;
        }
        let proxy = if proxy.contains("://") { proxy } else { format!("http://{proxy}") };
        let origin = proxy.parse::<Origin>().ok().filter(|origin| !origin.is_https());
        if origin.is_none() {
            let hint = "expected `http://HOST:PORT`, without a user";
            self.warn("`HTTPS_PROXY` has no effect for the clouds' entries", hint);
        }
        origin
    }

    fn warn(&mut self, problem: &str, hint: &str) {
        let notice = Notice { position: self.store.position, ..Notice::new(problem) };
        let notice = notice.about(super::entry::LIST).hint(hint);
        if !self.warnings.contains(&notice) {
            self.warnings.push(notice);
        }
    }
}

/// Whether an entry of `NO_PROXY` is for a host: `*`, its name, or a domain that it is in.
fn is_excepted(host: &str, exception: &str) -> bool {
    let domain = exception.trim_start_matches("*.").trim_start_matches('.');
    let inside = || host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    exception == "*" || (!domain.is_empty() && inside())
}

fn member(file: impl AsRef<Path>, pointer: &str) -> SecretSource {
    SecretSource::Member(SecretSource::File(file.as_ref().to_owned()).into(), pointer.to_owned())
}

/// What is no secret of such a file.
fn text(file: &str, pointer: &str) -> Option<String> {
    String::from_utf8(member(file, pointer).read().ok()?.to_vec()).ok()
}

/// The origin of a URL with a path.
fn origin_of(url: &str) -> String {
    url.splitn(4, '/').take(3).collect::<Vec<_>>().join("/")
}

/// The service and the account of `https://HOST/v1/projects/-/serviceAccounts/EMAIL:generateAccessToken`.
fn impersonated(url: &str) -> Option<(&str, &str)> {
    let (before, email) = url.strip_suffix(":generateAccessToken")?.rsplit_once('/')?;
    Some((before.strip_suffix("/v1/projects/-/serviceAccounts")?, email))
}
