//! Finding the node for an instance.

use std::sync::Arc;

use wharf_registry::model::{
    Str,
    platform::{AllocPort, NetworkMode, NodeScore, Placement, PlatformNode, Resources, TaskGroup},
};

use crate::{Candidate, ClusterView, Dimension, Nowhere, Random, Scoring, feasibility::lacks};

/// An instance that wants a node.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub job: &'a Str,
    pub group: &'a TaskGroup,
    /// What the group reserves.
    pub resources: Resources,
    /// The node on which it failed last.
    pub avoid: Option<&'a Str>,
}

/// Where an instance goes, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    pub node: Arc<PlatformNode>,
    pub ports: Vec<AllocPort>,
    pub placement: Placement,
}

/// What decides about a placement besides the cluster.
#[derive(Clone, Debug, Default)]
pub struct Scheduler {
    pub scoring: Scoring,
}

/// How many scores a placement keeps as its explanation.
const EXPLAINED: usize = 5;
/// How often a dynamic port is guessed before they are tried in order.
const GUESSES: usize = 20;
/// Nodes with a score below zero that do not count among those looked at.
const SKIPPED: usize = 3;

impl<'a> Ask<'a> {
    pub fn new(job: &'a Str, group: &'a TaskGroup, avoid: Option<&'a Str>) -> Ask<'a> {
        Ask {
            job,
            group,
            resources: group.resources(),
            avoid,
        }
    }
}

impl Scheduler {
    /// The best of a few nodes that can take the instance: log2 of their number, and at least two, in random
    /// order. Looking at more of a large cluster costs more than it gains. Up to [`SKIPPED`] nodes that something
    /// speaks against, such as another instance, are looked past: so a few instances spread over a few nodes.
    pub fn place(
        &self,
        ask: &Ask<'_>,
        cluster: &ClusterView,
        random: &mut Random,
    ) -> Result<Placed, Nowhere> {
        let mut candidates: Vec<&Candidate> = cluster.candidates().collect();
        random.shuffle(&mut candidates);
        let enough = (candidates.len().max(1).ilog2() as usize + 1).max(2);
        let mut nowhere = Nowhere {
            cpu: ask.resources.cpu,
            memory_mb: ask.resources.memory_mb,
            ..Nowhere::default()
        };
        let (mut filtered, mut skipped) = (0, 0);
        let mut found: Vec<(NodeScore, Arc<PlatformNode>, Vec<AllocPort>)> = Vec::new();
        for candidate in candidates {
            let Some(node) = candidate.node() else {
                continue;
            };
            nowhere.nodes += 1;
            let mut lacks = lacks(ask, candidate);
            let ports = match lacks.is_empty() {
                true => assign_ports(ask.group, candidate, random),
                false => None,
            };
            let Some(ports) = ports else {
                if lacks.is_empty() {
                    lacks.push(Dimension::DynamicPorts);
                }
                nowhere.note(candidate, lacks);
                filtered += 1;
                continue;
            };
            let (scores, final_score) = self.scoring.score(ask, candidate);
            let score = NodeScore {
                node_id: node.id.clone(),
                node: node.name.clone(),
                scores,
                final_score,
            };
            if score.final_score < 0.0 && skipped < SKIPPED {
                skipped += 1;
            }
            found.push((score, node.clone(), ports));
            if found.len() >= enough + skipped {
                break;
            }
        }
        let evaluated = nowhere.nodes;
        // The sort is stable: of equally good nodes the one that came first at random wins.
        found.sort_by(|(a, ..), (b, ..)| b.final_score.total_cmp(&a.final_score));
        let scores = found
            .iter()
            .take(EXPLAINED)
            .map(|(score, ..)| score.clone())
            .collect();
        match found.into_iter().next() {
            None => Err(nowhere),
            Some((_, node, ports)) => Ok(Placed {
                node,
                ports,
                placement: Placement {
                    nodes_evaluated: evaluated,
                    nodes_filtered: filtered,
                    scores,
                },
            }),
        }
    }
}

/// The node's ports for those of the group; `None`: there are not enough free ones.
fn assign_ports(
    group: &TaskGroup,
    candidate: &Candidate,
    random: &mut Random,
) -> Option<Vec<AllocPort>> {
    let range = candidate.node()?.dynamic_ports;
    let mut own: Vec<u16> = group
        .network
        .ports
        .iter()
        .map(|port| port.r#static)
        .filter(|port| *port != 0)
        .collect();
    let mut ports = Vec::with_capacity(group.network.ports.len());
    for port in &group.network.ports {
        let value = match port.r#static {
            0 => {
                let free = |port: &u16| !own.contains(port) && !candidate.is_port_taken(*port);
                let size = usize::from(range.max.checked_sub(range.min)?) + 1;
                let guess = (0..GUESSES)
                    .map(|_| range.min + random.below(size) as u16)
                    .find(free);
                let value = match guess {
                    Some(value) => value,
                    None => (range.min..=range.max).find(free)?,
                };
                own.push(value);
                value
            }
            fixed => fixed,
        };
        ports.push(AllocPort {
            label: port.label.clone(),
            value,
            to: match (group.network.mode, port.to) {
                (NetworkMode::Host, _) | (_, 0) => value,
                (NetworkMode::Bridge, to) => to,
            },
        });
    }
    Some(ports)
}
