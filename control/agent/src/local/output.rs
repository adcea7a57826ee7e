//! Keeping the output of checks small: it is replicated with their status.

/// Cuts what a service reported, as Consul does: the beginning stays, and the cut is marked.
pub(crate) fn cut_report(output: &str, limit: usize) -> String {
    if output.len() <= limit {
        return output.to_owned();
    }
    let kept = &output[..floor_boundary(output, limit)];
    format!(
        "{kept} ... (captured {} of {} bytes)",
        kept.len(),
        output.len()
    )
}

/// The last character boundary at or before `at`.
fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|&index| text.is_char_boundary(index))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_report_is_cut_between_characters_and_marked() {
        assert_eq!(cut_report("fine", 4), "fine");
        assert_eq!(cut_report("fine!", 4), "fine ... (captured 4 of 5 bytes)");
        assert_eq!(cut_report("aé", 2), "a ... (captured 1 of 3 bytes)");
        assert_eq!(cut_report("é", 0), " ... (captured 0 of 2 bytes)");
    }
}
