//! DNS: limits, recursors, domains.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::{DnsConfig, Problems, SoaConfig, file};

pub(super) fn dns(file: &file::Dns, recursors: &[String], p: &mut Problems<'_>) -> DnsConfig {
    let mut limit = |key: &str, value: i64| {
        usize::try_from(value).unwrap_or_else(|_| {
            let message = format!(
                "dns_config.{key} cannot be {value}. Must be greater than or equal to zero"
            );
            p.at(&format!("dns_config.{key}"), message);
            0
        })
    };
    let (udp_answer_limit, a_record_limit) = (
        limit("udp_answer_limit", file.udp_answer_limit),
        limit("a_record_limit", file.a_record_limit),
    );
    let random_recursor = match file.recursor_strategy.as_str() {
        "random" => true,
        "" | "sequential" => false,
        other => {
            let message = format!(
                "dns_config.recursor_strategy: unknown strategy {other:?}: sequential or random"
            );
            p.at("dns_config.recursor_strategy", message);
            false
        }
    };
    let recursors = recursors.iter().filter_map(|text| {
        let address = recursor(text);
        if address.is_none() {
            p.at(
                "recursors",
                format!("recursors: {text:?} is not an address with or without a port"),
            );
        }
        address
    });
    DnsConfig {
        recursors: recursors.collect(),
        only_passing: file.only_passing,
        allow_stale: file.allow_stale,
        max_stale: file.max_stale.to_std(),
        node_ttl: file.node_ttl.to_std(),
        service_ttl: file
            .service_ttl
            .iter()
            .map(|(name, ttl)| (name.clone(), ttl.to_std()))
            .collect::<BTreeMap<_, Duration>>(),
        enable_truncate: file.enable_truncate,
        udp_answer_limit,
        a_record_limit,
        disable_compression: file.disable_compression,
        node_meta_txt: file.enable_additional_node_meta_txt,
        soa: SoaConfig {
            refresh: file.soa.refresh,
            retry: file.soa.retry,
            expire: file.soa.expire,
            min_ttl: file.soa.min_ttl,
        },
        random_recursor,
        recursor_timeout: file.recursor_timeout.to_std(),
    }
}

fn recursor(text: &str) -> Option<SocketAddr> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    text.parse()
        .ok()
        .or_else(|| Some(SocketAddr::new(bare.parse().ok()?, 53)))
}

/// A domain with its closing dot.
pub(super) fn domain(p: &mut Problems<'_>, key: &str, text: &str) -> String {
    let name = text.trim_matches('.').to_lowercase();
    let good_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if name.len() > 200 || !name.split('.').all(good_label) {
        p.at(key, format!("{key}: {text:?} is not a domain"));
    }
    format!("{name}.")
}

/// The alternative domain. Its first label must not look like a part of a name in the domain.
pub(super) fn domain_alt(p: &mut Problems<'_>, text: &str, datacenter: &str) -> String {
    let name = domain(p, "alt_domain", text);
    let first = name.split('.').next().unwrap_or_default();
    if ["service", "connect", "node", "query", "addr", datacenter].contains(&first) {
        p.at(
            "alt_domain",
            format!(
                "alt_domain cannot start with {{service,connect,node,query,addr,{datacenter}}}"
            ),
        );
    }
    name
}
