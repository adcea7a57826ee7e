//! What the parts of the agent are told of its configuration. DNS: [`super::dns`].

use http::{HeaderName, HeaderValue};
use tracing::level_filters::LevelFilter;

use crate::{
    config::{LogLevel, RuntimeConfig},
    http::HttpSettings,
    local,
    rates::Rates,
};

pub(super) fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

pub(super) fn local_options(config: &RuntimeConfig) -> local::Options {
    local::Options {
        data_dir: config.data_dir.clone(),
        server: config.server,
        check_output_max_size: config.check_output_max_size,
        discard_check_output: config.reloadable.discard_check_output,
        check_update_interval: config.check_update_interval,
        sidecar_ports: config.sidecar_ports.clone(),
    }
}

/// `rates`: those in force, which are told of the limits too.
pub(super) fn http_settings(config: &RuntimeConfig, rates: Rates) -> HttpSettings {
    let limits = &config.reloadable.limits;
    rates.set(limits.rates);
    let headers = config
        .http
        .response_headers
        .iter()
        .filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, HeaderValue::from_str(value).ok()?))
        });
    HttpSettings {
        pretty: config.dev_mode,
        default_query_time: config.default_query_time,
        max_query_time: config.max_query_time,
        kv_max_value_size: usize::try_from(limits.kv_max_value_size).unwrap_or(usize::MAX),
        response_headers: headers.collect(),
        block_endpoints: config.http.block_endpoints.clone(),
        allow_write_from: config.http.allow_write_from.clone(),
        max_conns_per_client: limits.http_max_conns_per_client as usize,
        handshake_timeout: limits.https_handshake_timeout,
        rates,
    }
}
