//! The nodes of the platform.

use std::sync::Arc;

use imbl::OrdSet;

use super::{NodeEntry, PlatformState};
use crate::{
    command::PlatformRefusal,
    model::{
        Str,
        platform::{PlatformNode, UnixNanos},
    },
    state::Touched,
    watch::WatchKey,
};

impl PlatformState {
    pub(super) fn register_node(
        &mut self,
        index: u64,
        wanted: &PlatformNode,
        time: UnixNanos,
        touched: &mut Touched,
    ) -> Result<(), PlatformRefusal> {
        if wanted.id.is_empty() || wanted.name.is_empty() {
            return Err(PlatformRefusal::NodeNameMissing);
        }
        if self.nodes.contains_key(&wanted.id) {
            return self.change_node(index, &wanted.id, touched, |node| {
                let old = std::mem::replace(node, wanted.clone());
                node.eligible = old.eligible;
                node.create_index = old.create_index;
                node.modify_index = old.modify_index;
                node.status_time = match node.status == old.status {
                    true => old.status_time,
                    false => time,
                };
            });
        }
        let mut node = wanted.clone();
        node.create_index = index;
        node.modify_index = index;
        node.status_time = time;
        let id = node.id.clone();
        let entry = NodeEntry {
            node: Arc::new(node),
            allocs: OrdSet::new(),
            allocs_index: index,
        };
        self.nodes.insert(id.clone(), Arc::new(entry));
        self.node_changed(index, id, touched);
        Ok(())
    }

    /// Changes a node; a change that changes nothing moves no index.
    pub(super) fn change_node(
        &mut self,
        index: u64,
        id: &Str,
        touched: &mut Touched,
        change: impl FnOnce(&mut PlatformNode),
    ) -> Result<(), PlatformRefusal> {
        let Some(entry) = self.nodes.get_mut(id) else {
            return Err(PlatformRefusal::UnknownNode(id.clone()));
        };
        let mut node = PlatformNode::clone(&entry.node);
        change(&mut node);
        if node == *entry.node {
            return Ok(());
        }
        node.modify_index = index;
        Arc::make_mut(entry).node = Arc::new(node);
        self.node_changed(index, id.clone(), touched);
        Ok(())
    }

    pub(super) fn node_changed(&mut self, index: u64, id: Str, touched: &mut Touched) {
        self.indexes.nodes = index;
        touched.add(WatchKey::PlatformNodes);
        touched.add(WatchKey::PlatformNode(id));
    }
}
