//! Patterns over names of attributes (`unset_attributes` of the data API). Prepared once per record: a record may bring a hundred patterns, and
//! its user have two thousand names, and folding the case of each name for each pattern would be most of the work.

use millstream_model::proto::Match;
use millstream_model::proto::r#match::Kind;
use std::cell::OnceCell;

/// A pattern, ready to be compared.
pub(crate) struct Pattern {
    kind: Kind,
    case_sensitive: bool,
    wanted: String,
}

impl Pattern {
    pub(crate) fn new(pattern: &Match) -> Pattern {
        let case_sensitive = pattern.case_sensitive;
        let wanted = if case_sensitive { pattern.pattern.clone() } else { pattern.pattern.to_lowercase() };
        Pattern { kind: pattern.kind(), case_sensitive, wanted }
    }

    pub(crate) fn matches(&self, name: &Name<'_>) -> bool {
        let name = if self.case_sensitive { name.exact } else { name.folded() };
        match self.kind {
            Kind::Prefix => name.starts_with(&self.wanted),
            Kind::Suffix => name.ends_with(&self.wanted),
            Kind::Contains => name.contains(&self.wanted),
            Kind::Equals => name == self.wanted,
            Kind::Unspecified => false,
        }
    }
}

/// A name that is compared with several patterns; it is folded at most once.
pub(crate) struct Name<'a> {
    exact: &'a str,
    folded: OnceCell<String>,
}

impl<'a> Name<'a> {
    pub(crate) fn new(name: &'a str) -> Name<'a> {
        Name { exact: name, folded: OnceCell::new() }
    }

    fn folded(&self) -> &str {
        self.folded.get_or_init(|| self.exact.to_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_matches_what_it_says() {
        let hits = |kind: Kind, pattern: &str, case_sensitive, name: &str| {
            let pattern = Match { kind: kind.into(), pattern: pattern.to_owned(), case_sensitive };
            Pattern::new(&pattern).matches(&Name::new(name))
        };
        for (kind, pattern) in
            [(Kind::Prefix, "Tmp"), (Kind::Suffix, "_b"), (Kind::Contains, "p_"), (Kind::Equals, "Tmp_b")]
        {
            assert!(hits(kind, pattern, true, "Tmp_b"), "{kind:?}");
            assert!(hits(kind, &pattern.to_uppercase(), false, "Tmp_b"), "{kind:?}");
            assert!(!hits(kind, &pattern.to_uppercase(), true, "Tmp_b"), "{kind:?}");
            assert!(!hits(kind, "x", false, "Tmp_b"), "{kind:?}");
        }
        assert!(!hits(Kind::Unspecified, "Tmp_b", true, "Tmp_b"));
    }
}
