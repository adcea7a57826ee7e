//! What nodes and users say of allocations.

use super::PlatformState;
use crate::{
    command::PlatformRefusal,
    model::{
        Str,
        platform::{Alloc, AllocUpdate, DesiredStatus, MAX_TASK_EVENTS, UnixNanos},
    },
    state::Touched,
};

impl PlatformState {
    /// What a node reports. A report about an allocation of another node, or one that is forgotten, is
    /// dropped, and so is one that would bring an ended allocation back: it may have been replaced.
    pub(super) fn update_alloc(
        &mut self,
        index: u64,
        node_id: &Str,
        update: &AllocUpdate,
        time: UnixNanos,
        touched: &mut Touched,
    ) {
        let Some(old) = self.allocs.get(&update.id) else {
            return;
        };
        if old.node_id != *node_id || (!old.is_live() && !update.client_status.is_final()) {
            return;
        }
        let mut alloc = Alloc::clone(old);
        alloc.client_status = update.client_status;
        alloc.client_description = update.client_description.clone();
        alloc.address = update.address.clone();
        alloc.task_states = update.task_states.clone();
        for state in alloc.task_states.values_mut() {
            let excess = state.events.len().saturating_sub(MAX_TASK_EVENTS);
            state.events.drain(..excess);
        }
        if alloc == **old {
            return;
        }
        if old.is_live() && !alloc.is_live() {
            alloc.end_time = time;
        }
        alloc.modify_time = time;
        self.put_alloc(index, alloc, touched);
    }

    pub(super) fn stop_alloc(
        &mut self,
        index: u64,
        id: &Str,
        time: UnixNanos,
        touched: &mut Touched,
    ) -> Result<(), PlatformRefusal> {
        let Some(alloc) = self.allocs.get(id) else {
            return Err(PlatformRefusal::UnknownAlloc(id.clone()));
        };
        if !alloc.is_live() {
            return Err(PlatformRefusal::AllocEnded {
                id: id.clone(),
                status: alloc.client_status,
            });
        }
        if alloc.desired_status == DesiredStatus::Run {
            let mut alloc = Alloc::clone(alloc);
            alloc.desired_status = DesiredStatus::Stop;
            alloc.desired_description = "stopped by a user".into();
            alloc.stop_time = time;
            alloc.alloc_modify_index = index;
            alloc.modify_time = time;
            self.put_alloc(index, alloc, touched);
        }
        Ok(())
    }
}
