//! The settings of the autopilot.

use std::sync::Arc;

use super::State;
use crate::{
    command::{AutopilotCommand, Outcome},
    model::AutopilotConfig,
};

impl State {
    pub(super) fn apply_autopilot(&mut self, index: u64, command: &AutopilotCommand) -> Outcome {
        let current = self.autopilot.as_deref();
        let config = match command {
            AutopilotCommand::Set { config } => config,
            AutopilotCommand::CompareAndSet {
                config,
                index: expected,
            } => {
                if current.map_or(0, |current| current.modify_index) != *expected {
                    return Outcome::Applied(false);
                }
                config
            }
        };
        self.autopilot = Some(Arc::new(AutopilotConfig {
            create_index: current.map_or(index, |current| current.create_index),
            modify_index: index,
            ..config.clone()
        }));
        Outcome::Applied(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{command::Command, state::Touched};

    #[test]
    fn settings_are_made_once_compared_and_replaced() {
        let mut state = State::default();
        let mut apply = |command| {
            let index = state.applied() + 1;
            let command = Command::Autopilot(command);
            let outcome = state.apply(index, &command, &mut Touched::default());
            let config = state.autopilot.as_deref();
            let found =
                config.map(|found| (found.min_quorum, found.create_index, found.modify_index));
            (outcome == Outcome::Applied(true), found)
        };
        let config = |min_quorum| AutopilotConfig {
            min_quorum,
            ..AutopilotConfig::default()
        };
        let initial = |n| AutopilotCommand::CompareAndSet {
            config: config(n),
            index: 0,
        };
        assert_eq!(apply(initial(3)), (true, Some((3, 1, 1))));
        assert_eq!(apply(initial(5)), (false, Some((3, 1, 1))));
        let set = AutopilotCommand::Set { config: config(1) };
        assert_eq!(apply(set), (true, Some((1, 1, 3))));
        let compared = AutopilotCommand::CompareAndSet {
            config: config(0),
            index: 3,
        };
        assert_eq!(apply(compared), (true, Some((0, 1, 4))));
    }
}
