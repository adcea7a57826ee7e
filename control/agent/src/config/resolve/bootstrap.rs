//! The rules of starting a cluster.

use super::Problems;

/// Returns how many servers start it.
pub(super) fn check_bootstrap(
    server: bool,
    bootstrap: bool,
    expect: i64,
    dev: bool,
    p: &mut Problems<'_>,
    warnings: &mut Vec<String>,
) -> u32 {
    if expect < 0 {
        p.at(
            "bootstrap_expect",
            format!("bootstrap_expect cannot be {expect}. Must be greater than or equal to zero"),
        );
    }
    if expect > 0 && dev {
        p.at(
            "bootstrap_expect",
            "'bootstrap_expect' not allowed in dev mode",
        );
    }
    if expect > 0 && !server {
        p.at(
            "bootstrap_expect",
            "'bootstrap_expect > 0' requires 'server = true'",
        );
    }
    if expect > 0 && bootstrap {
        p.at(
            "bootstrap",
            "'bootstrap_expect > 0' and 'bootstrap = true' are mutually exclusive",
        );
    }
    if bootstrap && !server {
        p.at("bootstrap", "'bootstrap = true' requires 'server = true'");
    }
    if bootstrap {
        warnings.push("bootstrap = true: do not enable unless necessary".to_owned());
    }
    match expect {
        1 => warnings.push("BootstrapExpect is set to 1; this is the same as Bootstrap mode.".to_owned()),
        2 => warnings.push(
            "bootstrap_expect = 2: A cluster with 2 servers will provide no failure tolerance. See \
             https://www.consul.io/docs/internals/consensus.html#deployment-table"
                .to_owned(),
        ),
        even if even > 2 && even % 2 == 0 => warnings.push(
            "bootstrap_expect is even number: A cluster with an even number of servers does not achieve optimum fault \
             tolerance. See https://www.consul.io/docs/internals/consensus.html#deployment-table"
                .to_owned(),
        ),
        _ => {}
    }
    u32::try_from(expect).unwrap_or_default()
}
