//! What is wrong with a configuration, all of it, each with its place.

use wharf_config::Node;

/// Collects what is wrong, each with the place of the key it is about.
pub(super) struct Problems<'d> {
    pub(super) document: &'d Node,
    pub(super) list: Vec<String>,
}

impl Problems<'_> {
    /// Reports a problem of the key at `path` (a dot enters a block).
    pub(super) fn at(&mut self, path: &str, message: impl std::fmt::Display) {
        self.at_node(self.document.at(path.split('.')), message);
    }

    pub(super) fn at_node(&mut self, node: Option<&Node>, message: impl std::fmt::Display) {
        match node
            .map(|node| &node.position)
            .filter(|position| position.is_in_file())
        {
            Some(position) => self.list.push(format!("{position}: {message}")),
            None => self.list.push(message.to_string()),
        }
    }

    /// The value, or a problem and a stand-in, so that the other keys are looked at too.
    pub(super) fn or_default<T: Default, E: std::fmt::Display>(
        &mut self,
        path: &str,
        result: Result<T, E>,
    ) -> T {
        result.unwrap_or_else(|error| {
            self.at(path, format!("{path}: {error}"));
            T::default()
        })
    }
}
