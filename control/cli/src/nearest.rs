//! The known name a person probably meant.

/// The candidate closest to `given`, if one is close enough to be worth suggesting: at most one edit in
/// three characters, a swap of neighbours counting as one, or a candidate that continues what was typed.
pub(crate) fn nearest<'a>(
    given: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let given = given.to_ascii_lowercase();
    let allowed = (given.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|name| {
            let edits = strsim::damerau_levenshtein(&given, &name.to_ascii_lowercase());
            let continues = given.len() >= 3 && name.starts_with(&given);
            (if continues { edits.min(allowed) } else { edits }, name)
        })
        .filter(|(edits, _)| *edits <= allowed)
        .min_by_key(|(edits, name)| (*edits, *name))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_a_slip_and_nothing_far_off() {
        let known = ["agent", "catalog", "config", "members", "services", "kv"];
        assert_eq!(nearest("memebrs", known), Some("members"));
        assert_eq!(nearest("service", known), Some("services"));
        assert_eq!(nearest("serv", known), Some("services"));
        assert_eq!(nearest("KV", known), Some("kv"));
        assert_eq!(nearest("kc", known), Some("kv"));
        assert_eq!(nearest("frobnicate", known), None);
        assert_eq!(nearest("", known), None);
    }
}
