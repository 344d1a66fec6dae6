//! Reads a selector, and says at which character it stops making sense.

use super::{Condition, Key, Requirement, Selector};
use crate::model::FactKey;

/// A selector is at most this long, in bytes: room for a thousand host ids.
const TEXT_MAX: usize = 32 << 10;

/// Why a text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at character {position} of the selector")]
pub(crate) struct ParseError {
    /// What was found or is missing.
    pub(crate) what: String,
    /// Where, in characters from 0.
    pub(crate) position: usize,
}

/// One comma-separated part.
enum Part {
    Word(String),
    Requirement(Requirement),
}

pub(super) fn selector(text: &str) -> Result<Selector, ParseError> {
    if text.len() > TEXT_MAX {
        return Err(ParseError {
            what: format!("more than {TEXT_MAX} bytes"),
            position: 0,
        });
    }
    let mut reader = Reader::new(text);
    let mut words = Vec::new();
    let mut requirements = Vec::new();
    loop {
        let start = reader.skip_spaces();
        match reader.part()? {
            Part::Word(word) => words.push(word),
            Part::Requirement(requirement) => requirements.push(requirement),
        }
        if !words.is_empty() && !requirements.is_empty() {
            return Err(ParseError {
                what:
                    "host names and requirements do not mix (that a label exists is written key=*)"
                        .to_owned(),
                position: start,
            });
        }
        if !reader.comma_or_end()? {
            break;
        }
    }
    Ok(match words.as_slice() {
        [] => Selector::Requirements(requirements),
        [word] if word == "all" => Selector::All,
        _ => Selector::Hosts(words),
    })
}

struct Reader {
    characters: Vec<char>,
    position: usize,
}

impl Reader {
    fn new(text: &str) -> Self {
        Self {
            characters: text.chars().collect(),
            position: 0,
        }
    }

    fn part(&mut self) -> Result<Part, ParseError> {
        if self.eat('!') {
            self.skip_spaces();
            let key = self.key()?;
            return Ok(Part::Requirement(Requirement {
                key,
                condition: Condition::Absent,
            }));
        }
        let start = self.position;
        let word = self.word("a host name, a key or \"!\"")?;
        self.skip_spaces();
        let condition = if self.eat('!') {
            self.expect('=')?;
            Condition::NotIn(vec![self.value()?])
        } else if self.eat('=') {
            self.equals()?
        } else if self.eat_word("in") {
            Condition::In(self.values()?)
        } else if self.eat_word("notin") {
            Condition::NotIn(self.values()?)
        } else {
            return Ok(Part::Word(word));
        };
        let key = key(word, start)?;
        Ok(Part::Requirement(Requirement { key, condition }))
    }

    /// What follows the first "=".
    fn equals(&mut self) -> Result<Condition, ParseError> {
        self.eat('=');
        self.skip_spaces();
        if self.eat('*') {
            return Ok(Condition::Exists);
        }
        Ok(Condition::In(vec![self.value()?]))
    }

    fn key(&mut self) -> Result<Key, ParseError> {
        let start = self.position;
        let word = self.word("a key")?;
        key(word, start)
    }

    fn values(&mut self) -> Result<Vec<String>, ParseError> {
        self.skip_spaces();
        self.expect('(')?;
        let mut values = vec![self.value()?];
        loop {
            self.skip_spaces();
            if self.eat(')') {
                return Ok(values);
            }
            self.expect(',')?;
            values.push(self.value()?);
        }
    }

    fn value(&mut self) -> Result<String, ParseError> {
        self.skip_spaces();
        self.word("a value")
    }

    /// Letters, digits, and what names, labels and versions are made of.
    fn word(&mut self, expected: &str) -> Result<String, ParseError> {
        let start = self.position;
        while self.peek().is_some_and(is_word) {
            self.position += 1;
        }
        if start == self.position {
            return Err(self.missing(expected));
        }
        Ok(self.characters[start..self.position].iter().collect())
    }

    /// Whether another part follows.
    fn comma_or_end(&mut self) -> Result<bool, ParseError> {
        self.skip_spaces();
        if self.eat(',') {
            return Ok(true);
        }
        match self.peek() {
            None => Ok(false),
            Some(_) => Err(self.missing("\",\" or the end")),
        }
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let end = self.position + word.chars().count();
        let found = self.characters.len() >= end
            && self.characters[self.position..end]
                .iter()
                .copied()
                .eq(word.chars())
            && !self.characters.get(end).copied().is_some_and(is_word);
        if found {
            self.position = end;
        }
        found
    }

    fn eat(&mut self, character: char) -> bool {
        let found = self.peek() == Some(character);
        if found {
            self.position += 1;
        }
        found
    }

    fn expect(&mut self, character: char) -> Result<(), ParseError> {
        if self.eat(character) {
            return Ok(());
        }
        Err(self.missing(&format!("{character:?}").replace('\'', "\"")))
    }

    fn skip_spaces(&mut self) -> usize {
        while self.peek().is_some_and(char::is_whitespace) {
            self.position += 1;
        }
        self.position
    }

    fn peek(&self) -> Option<char> {
        self.characters.get(self.position).copied()
    }

    fn missing(&self, expected: &str) -> ParseError {
        let what = match self.peek() {
            Some(found) => format!("expected {expected} but found {found:?}"),
            None => format!("expected {expected} but found the end"),
        };
        ParseError {
            what,
            position: self.position,
        }
    }
}

fn key(word: String, position: usize) -> Result<Key, ParseError> {
    if let Some(fact) = FactKey::from_text(&word) {
        return Ok(Key::Fact(fact));
    }
    if word == "all" {
        return Err(ParseError {
            what: "\"all\" is not a key".to_owned(),
            position,
        });
    }
    Ok(Key::Label(word))
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric()
        || matches!(character, '-' | '_' | '.' | '/' | ':' | '+' | '~')
}
