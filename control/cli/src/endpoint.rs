//! Which agent a command talks to, and how: the connection flags and environment variables.
//!
//! Names and precedence are Consul's (flag, then environment, then default). Each variable is read as
//! `WHARF_...` first and `CONSUL_...` after, so that both can be set on one machine.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Arg, ArgMatches};

use crate::{
    failure::Failure,
    flags::{Given, parse_bool, switch, value},
    tls::TlsOptions,
};

pub(crate) const HEADING: &str = "Connection flags";

const DEFAULT_PORT: u16 = 8500;
const DEFAULT_TLS_PORT: u16 = 8501;

/// The flags of every command that talks to an agent.
pub(crate) fn connection_flags() -> Vec<Arg> {
    let flags = [
        value(
            "http-addr",
            "address",
            "Agent to ask: host:port, http://, https:// or unix:///path (default 127.0.0.1:8500) [WHARF_HTTP_ADDR]",
        ),
        value("token", "token", "Token to send [WHARF_HTTP_TOKEN]"),
        value(
            "token-file",
            "file",
            "File with the token to send; goes before -token [WHARF_HTTP_TOKEN_FILE]",
        ),
        value(
            "ca-file",
            "file",
            "PEM file of the CAs to trust [WHARF_CACERT]",
        ),
        value(
            "ca-path",
            "dir",
            "Directory of PEM files of the CAs to trust [WHARF_CAPATH]",
        ),
        value(
            "client-cert",
            "file",
            "Certificate to present [WHARF_CLIENT_CERT]",
        ),
        value(
            "client-key",
            "file",
            "Key of the certificate to present [WHARF_CLIENT_KEY]",
        ),
        value(
            "tls-server-name",
            "name",
            "Name the agent's certificate must carry [WHARF_TLS_SERVER_NAME]",
        ),
        value(
            "datacenter",
            "name",
            "Datacenter to ask (default: the agent's)",
        ),
        switch("stale", "Let any server answer, with data that may be old"),
    ];
    flags
        .into_iter()
        .map(|flag| flag.help_heading(HEADING))
        .collect()
}

/// Reads environment variables; a closure so that tests bring their own.
pub(crate) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Where the address came from, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Default,
    Flag,
    Variable(String),
}

/// How bytes get to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Plain { host: String, port: u16 },
    Tls { host: String, port: u16 },
    Unix(PathBuf),
}

/// Everything the client needs to know. The secrets in it are kept out of `Debug`.
pub(crate) struct Endpoint {
    pub(crate) transport: Transport,
    /// What the `Host` header says.
    pub(crate) authority: String,
    /// A path that stands before `/v1`, for agents behind a reverse proxy; without a trailing slash.
    pub(crate) prefix: String,
    pub(crate) token: Option<String>,
    /// The value of the `Authorization` header for basic authentication.
    pub(crate) basic_auth: Option<String>,
    pub(crate) tls: TlsOptions,
    pub(crate) datacenter: Option<String>,
    pub(crate) stale: bool,
    origin: Origin,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("transport", &self.transport)
            .field("prefix", &self.prefix)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("datacenter", &self.datacenter)
            .finish_non_exhaustive()
    }
}

/// The address as a person would write it, and where it came from.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.transport {
            Transport::Plain { .. } => write!(f, "http://{}{}", self.authority, self.prefix)?,
            Transport::Tls { .. } => write!(f, "https://{}{}", self.authority, self.prefix)?,
            Transport::Unix(path) => write!(f, "unix://{}", path.display())?,
        }
        match &self.origin {
            Origin::Default => f.write_str(" (the default address)"),
            Origin::Flag => f.write_str(" (from -http-addr)"),
            Origin::Variable(name) => write!(f, " (from {name})"),
        }
    }
}

impl Endpoint {
    /// An agent on this machine, whatever flags and environment say.
    pub(crate) fn local(port: u16) -> Self {
        let host = "127.0.0.1".to_owned();
        Self {
            authority: format!("{host}:{port}"),
            transport: Transport::Plain { host, port },
            prefix: String::new(),
            token: None,
            basic_auth: None,
            tls: TlsOptions::default(),
            datacenter: None,
            stale: false,
            origin: Origin::Flag,
        }
    }

    pub(crate) fn from_flags(matches: &ArgMatches, env: Env<'_>) -> Result<Self, Failure> {
        let env = Variables(env);
        let (address, origin) = match (matches.text("http-addr"), env.get("HTTP_ADDR")) {
            (Some(address), _) => (address.to_owned(), Origin::Flag),
            (None, Some((name, address))) => (address, Origin::Variable(name)),
            (None, None) => (format!("127.0.0.1:{DEFAULT_PORT}"), Origin::Default),
        };
        let tls_wanted = env.boolean("HTTP_SSL")?.unwrap_or(false);
        let address = Address::parse(&address, tls_wanted).map_err(|why| {
            Failure::new(format!("the agent address {address:?} is not usable")).because(why)
        })?;
        let file = |flag: &str, variable: &str| -> Option<PathBuf> {
            matches
                .text(flag)
                .map(PathBuf::from)
                .or_else(|| env.get(variable).map(|(_, value)| PathBuf::from(value)))
        };
        let tls = TlsOptions {
            ca_file: file("ca-file", "CACERT"),
            ca_path: file("ca-path", "CAPATH"),
            client_cert: file("client-cert", "CLIENT_CERT"),
            client_key: file("client-key", "CLIENT_KEY"),
            server_name: matches
                .text("tls-server-name")
                .map(str::to_owned)
                .or_else(|| env.get("TLS_SERVER_NAME").map(|(_, value)| value)),
            verify: env.boolean("HTTP_SSL_VERIFY")?.unwrap_or(true),
        };
        Ok(Self {
            transport: address.transport,
            authority: address.authority,
            prefix: address.prefix,
            token: token(matches, env)?,
            basic_auth: env
                .get("HTTP_AUTH")
                .map(|(_, user)| format!("Basic {}", STANDARD.encode(with_colon(user)))),
            tls,
            datacenter: matches.text("datacenter").map(str::to_owned),
            stale: matches.on("stale"),
            origin,
        })
    }
}

/// `user` alone means an empty password.
fn with_colon(user: String) -> String {
    if user.contains(':') { user } else { user + ":" }
}

/// The order is Consul's: `-token-file`, `-token`, the file named by the environment, the environment.
fn token(matches: &ArgMatches, env: Variables<'_>) -> Result<Option<String>, Failure> {
    if let Some(path) = matches.text("token-file") {
        return read_token(Path::new(path)).map(Some);
    }
    if let Some(token) = matches.text("token") {
        return Ok(Some(token.to_owned()));
    }
    if let Some((_, path)) = env.get("HTTP_TOKEN_FILE") {
        return read_token(Path::new(&path)).map(Some);
    }
    Ok(env.get("HTTP_TOKEN").map(|(_, token)| token))
}

fn read_token(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|error| {
            Failure::new(format!("Error loading token file {}", path.display())).because(error)
        })
}

#[derive(Clone, Copy)]
struct Variables<'a>(Env<'a>);

impl Variables<'_> {
    /// The value and the name of the variable that had it. An empty one counts as not set.
    fn get(self, name: &str) -> Option<(String, String)> {
        ["WHARF", "CONSUL"].into_iter().find_map(|prefix| {
            let name = format!("{prefix}_{name}");
            let value = (self.0)(&name)?;
            (!value.is_empty()).then_some((name, value))
        })
    }

    fn boolean(self, name: &str) -> Result<Option<bool>, Failure> {
        self.get(name)
            .map(|(name, value)| {
                parse_bool(&value).map_err(|why| {
                    Failure::new(format!("{name}={value} is not a boolean")).because(why)
                })
            })
            .transpose()
    }
}

struct Address {
    transport: Transport,
    authority: String,
    prefix: String,
}

impl Address {
    /// `tls_wanted` decides where the address names no scheme.
    fn parse(text: &str, tls_wanted: bool) -> Result<Self, String> {
        let (tls, implied_port, rest) = match text.split_once("://") {
            None if tls_wanted => (true, DEFAULT_TLS_PORT, text),
            None => (false, DEFAULT_PORT, text),
            Some(("http", rest)) => (tls_wanted, 80, rest),
            Some(("https", rest)) => (true, 443, rest),
            Some(("unix", "")) => {
                return Err("a unix:// address needs a path".to_owned());
            }
            Some(("unix", path)) => {
                return Ok(Self {
                    transport: Transport::Unix(PathBuf::from(path)),
                    authority: "localhost".to_owned(),
                    prefix: String::new(),
                });
            }
            Some((scheme, _)) => {
                return Err(format!(
                    "Unknown protocol scheme: {scheme} (http, https and unix are known)"
                ));
            }
        };
        let (authority, prefix) = match rest.split_once('/') {
            Some((authority, path)) => (authority, path.trim_matches('/')),
            None => (rest, ""),
        };
        let authority: http::uri::Authority = authority
            .parse()
            .map_err(|error: http::uri::InvalidUri| error.to_string())?;
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        if host.is_empty() {
            return Err("the host is missing".to_owned());
        }
        // `Authority` reads a port it cannot represent as none.
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if authority.as_str().ends_with(authority.host()) => implied_port,
            None => return Err("the port is not a number from 0 to 65535".to_owned()),
        };
        let transport = if tls {
            Transport::Tls { host, port }
        } else {
            Transport::Plain { host, port }
        };
        Ok(Self {
            transport,
            authority: format!("{}:{port}", authority.host()),
            prefix: if prefix.is_empty() {
                String::new()
            } else {
                format!("/{prefix}")
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    fn read(args: &[&str], env: &[(&str, &str)]) -> Result<Endpoint, Failure> {
        let command = Command::new("test")
            .no_binary_name(true)
            .args(connection_flags());
        let matches = command
            .try_get_matches_from(args)
            .expect("well-formed flags");
        Endpoint::from_flags(&matches, &|name| {
            env.iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    fn plain(host: &str, port: u16) -> Transport {
        Transport::Plain {
            host: host.to_owned(),
            port,
        }
    }

    fn tls(host: &str, port: u16) -> Transport {
        Transport::Tls {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn address_from_flag_then_wharf_then_consul_then_default() {
        let both = [("CONSUL_HTTP_ADDR", "c:1"), ("WHARF_HTTP_ADDR", "w:2")];
        let flagged = read(&["--http-addr=f:3"], &both).expect("flag");
        assert_eq!(flagged.to_string(), "http://f:3 (from -http-addr)");
        let wharf = read(&[], &both).expect("wharf");
        assert_eq!(wharf.to_string(), "http://w:2 (from WHARF_HTTP_ADDR)");
        let consul = read(&[], &both[..1]).expect("consul");
        assert_eq!(consul.to_string(), "http://c:1 (from CONSUL_HTTP_ADDR)");
        let default = read(&[], &[]).expect("default");
        assert_eq!(
            default.to_string(),
            "http://127.0.0.1:8500 (the default address)"
        );
    }

    #[test]
    fn forms_of_an_address() {
        for (text, transport, authority, prefix) in [
            ("10.0.0.5", plain("10.0.0.5", 8500), "10.0.0.5:8500", ""),
            (
                "http://consul.example",
                plain("consul.example", 80),
                "consul.example:80",
                "",
            ),
            (
                "https://consul.example",
                tls("consul.example", 443),
                "consul.example:443",
                "",
            ),
            ("http://a:1/consul/", plain("a", 1), "a:1", "/consul"),
            ("[::1]:8500", plain("::1", 8500), "[::1]:8500", ""),
            (
                "unix:///run/w.sock",
                Transport::Unix("/run/w.sock".into()),
                "localhost",
                "",
            ),
        ] {
            let endpoint = read(&["--http-addr", text], &[]).expect(text);
            assert_eq!(endpoint.transport, transport, "{text}");
            assert_eq!(endpoint.authority, authority, "{text}");
            assert_eq!(endpoint.prefix, prefix, "{text}");
        }
        let ssl = read(&["--http-addr=a:1"], &[("CONSUL_HTTP_SSL", "true")]).expect("ssl");
        assert_eq!(ssl.transport, tls("a", 1));
    }

    #[test]
    fn unusable_addresses_and_variables_are_refused() {
        for text in [
            "gopher://a:1",
            "a:port",
            "a:99999",
            "http://",
            ":8500",
            "unix://",
            "a b:1",
        ] {
            assert!(read(&["--http-addr", text], &[]).is_err(), "{text}");
        }
        assert!(read(&[], &[("CONSUL_HTTP_SSL", "maybe")]).is_err());
        assert!(read(&["--token-file=/nonexistent"], &[]).is_err());
    }

    #[test]
    fn token_precedence_is_consuls() {
        let dir = tempfile::tempdir().expect("directory");
        let file = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, format!("{name}\n")).expect("token file");
            path.to_str().expect("path").to_owned()
        };
        let (flag_file, env_file) = (file("flag-file"), file("env-file"));
        let env = [
            ("CONSUL_HTTP_TOKEN_FILE", env_file.as_str()),
            ("CONSUL_HTTP_TOKEN", "env"),
        ];
        let token = |args: &[&str], env: &[(&str, &str)]| read(args, env).expect("endpoint").token;
        let given = format!("--token-file={flag_file}");
        assert_eq!(
            token(&[&given, "--token=flag"], &env).as_deref(),
            Some("flag-file")
        );
        assert_eq!(token(&["--token=flag"], &env).as_deref(), Some("flag"));
        assert_eq!(token(&[], &env).as_deref(), Some("env-file"));
        assert_eq!(token(&[], &env[1..]).as_deref(), Some("env"));
        assert_eq!(token(&[], &[]), None);
    }

    #[test]
    fn secrets_stay_out_of_debug() {
        let endpoint =
            read(&["--token=s3cret"], &[("CONSUL_HTTP_AUTH", "me:pass")]).expect("endpoint");
        assert_eq!(endpoint.basic_auth.as_deref(), Some("Basic bWU6cGFzcw=="));
        let debug = format!("{endpoint:?}");
        assert!(
            !debug.contains("s3cret") && !debug.contains("bWU6"),
            "{debug}"
        );
    }
}
