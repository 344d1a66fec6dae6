//! Modes as people, files and policies write them.

use crate::v1::Mode;

/// Every mode with its text, the lowest first.
const TEXTS: [(Mode, &str); 4] = [
    (Mode::Disabled, "disabled"),
    (Mode::ReadOnly, "read-only"),
    (Mode::Edit, "edit"),
    (Mode::Unrestricted, "unrestricted"),
];

impl Mode {
    /// As it is written everywhere; empty where no mode is said.
    pub fn text(self) -> &'static str {
        let found = TEXTS.iter().find(|(mode, _)| *mode == self);
        found.map_or("", |(_, text)| text)
    }

    /// The mode of a text; `plan` and `bypass`, the names of an older product, are understood too. `None` for any other.
    pub fn from_text(text: &str) -> Option<Self> {
        match text {
            "plan" => Some(Self::ReadOnly),
            "bypass" => Some(Self::Unrestricted),
            _ => TEXTS
                .iter()
                .find_map(|(mode, own)| (*own == text).then_some(*mode)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_back() {
        for number in 1.. {
            let Ok(mode) = Mode::try_from(number) else {
                return assert_eq!(number as usize, TEXTS.len() + 1);
            };
            assert_eq!(Mode::from_text(mode.text()), Some(mode));
        }
    }

    #[test]
    fn names_of_an_older_product_are_understood_and_others_are_not() {
        assert_eq!(Mode::from_text("plan"), Some(Mode::ReadOnly));
        assert_eq!(Mode::from_text("bypass"), Some(Mode::Unrestricted));
        assert_eq!(Mode::from_text("root"), None);
        assert_eq!(Mode::from_text(Mode::Unspecified.text()), None);
    }
}
