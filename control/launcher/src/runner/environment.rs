//! What a task is told about itself: `WHARF_...` in its environment, and `${WHARF_...}` in its command and arguments.

use std::{collections::BTreeMap, net::IpAddr};

use wharf_registry::model::platform::{Alloc, TaskGroup};

use crate::services::upstream_env;

/// Where the running wharf binary is inside of a task that names `${WHARF_EXE}`.
pub(crate) const EXE: &str = "/run/wharf/bin/wharf";

/// The variables of a task, without its own.
pub(crate) fn variables(
    alloc: &Alloc,
    group: &TaskGroup,
    task: &str,
    address: Option<IpAddr>,
    own_network: bool,
) -> BTreeMap<String, String> {
    let ip = address
        .map(|address| address.to_string())
        .unwrap_or_default();
    let mut all = BTreeMap::from([
        ("WHARF_ALLOC_ID".to_owned(), alloc.id.to_string()),
        ("WHARF_ALLOC_NAME".to_owned(), alloc.name.to_string()),
        ("WHARF_ALLOC_INDEX".to_owned(), alloc.index.to_string()),
        ("WHARF_JOB_NAME".to_owned(), alloc.job_name.to_string()),
        ("WHARF_GROUP_NAME".to_owned(), alloc.group.to_string()),
        ("WHARF_TASK_NAME".to_owned(), task.to_owned()),
        ("WHARF_ALLOC_IP".to_owned(), ip.clone()),
    ]);
    for port in &alloc.ports {
        let label: String = port
            .label
            .chars()
            .map(|letter| {
                if letter.is_ascii_alphanumeric() {
                    letter
                } else {
                    '_'
                }
            })
            .collect();
        // In the node's own network there is nothing to map: the task listens on the node's port.
        let inside = match port.to {
            to if own_network && to != 0 => to,
            _ => port.value,
        };
        let host = match address {
            Some(IpAddr::V6(address)) => format!("[{address}]"),
            _ => ip.clone(),
        };
        all.insert(format!("WHARF_PORT_{label}"), inside.to_string());
        all.insert(format!("WHARF_HOST_PORT_{label}"), port.value.to_string());
        all.insert(format!("WHARF_ADDR_{label}"), format!("{host}:{inside}"));
    }
    all.extend(upstream_env(group));
    all
}

/// `text` with every `${NAME}` that is known replaced. What is not known stays: it may be meant for the program.
pub(crate) fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, from) = rest.split_at(start);
        expanded.push_str(before);
        let Some(end) = from.find('}') else {
            rest = from;
            break;
        };
        let name = &from[2..end];
        match variables.get(name) {
            Some(value) => expanded.push_str(value),
            None if name == "WHARF_EXE" => expanded.push_str(EXE),
            None => expanded.push_str(&from[..=end]),
        }
        rest = &from[end + 1..];
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wharf_registry::model::platform::AllocPort;

    use super::*;

    #[test]
    fn ports_are_told_as_seen_from_inside() {
        let alloc = Alloc {
            id: "a".into(),
            ports: vec![
                AllocPort {
                    label: "http".into(),
                    value: 20001,
                    to: 8080,
                },
                AllocPort {
                    label: "my-admin".into(),
                    value: 20002,
                    to: 0,
                },
            ],
            ..Alloc::default()
        };
        let group = TaskGroup::default();
        let address = Some("172.26.64.2".parse().unwrap());
        let own = variables(&alloc, &group, "web", address, true);
        assert_eq!(own["WHARF_PORT_http"], "8080");
        assert_eq!(own["WHARF_HOST_PORT_http"], "20001");
        assert_eq!(own["WHARF_ADDR_http"], "172.26.64.2:8080");
        assert_eq!(own["WHARF_PORT_my_admin"], "20002");
        let host = variables(&alloc, &group, "web", address, false);
        assert_eq!(host["WHARF_PORT_http"], "20001");
        assert_eq!(host["WHARF_TASK_NAME"], "web");
    }

    #[test]
    fn only_what_is_known_is_replaced() {
        let variables = BTreeMap::from([("WHARF_PORT_http".to_owned(), "8080".to_owned())]);
        let text = "-p ${WHARF_PORT_http} ${HOME} ${WHARF_EXE} $WHARF_PORT_http ${";
        assert_eq!(
            expand(text, &variables),
            format!("-p 8080 ${{HOME}} {EXE} $WHARF_PORT_http ${{")
        );
    }

    proptest! {
        #[test]
        fn without_variables_nothing_changes(text in "[${}a-z]*") {
            prop_assert_eq!(expand(&text, &BTreeMap::new()), text);
        }
    }
}
