//! How long files and functions are. What is too long has a second job.

use std::ops::RangeInclusive;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::{Source, none, rust};

/// Lines of a file's program, without the tests at its end: of the longest, and of nineteen in twenty.
const PROGRAM: [usize; 2] = [450, 430];
/// Lines of a file of tests.
const TESTS_MAX: usize = 600;
/// Lines of nineteen in twenty functions of programs, without blanks and comments.
const FUNCTION: usize = 42;
/// Lines of the longest function.
const FUNCTION_MAX: usize = 125;

/// Files that are on their way to be split.
const FOR_NOW: [&str; 5] = [
    "control-plane/src/approvals.rs",
    "control-plane/src/connections/driver.rs",
    "control-plane/src/jobs/job.rs",
    "control-plane/src/jobs/recorder.rs",
    "control-plane/src/store/jobs.rs",
];

/// The length that nineteen in twenty do not exceed.
fn most(lengths: impl Iterator<Item = usize>) -> usize {
    let mut lengths: Vec<usize> = lengths.collect();
    lengths.sort_unstable();
    lengths[lengths.len() * 19 / 20]
}

/// Lines before the tests at the end of a file.
fn lines(source: &Source) -> usize {
    let lines: Vec<&str> = source.text.lines().collect();
    let tests = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].ends_with("mod tests {");
    lines.windows(2).position(tests).unwrap_or(lines.len())
}

#[test]
fn a_file_has_one_job() {
    let (tests, programs): (Vec<Source>, Vec<Source>) = rust().partition(Source::is_test);
    let longer = |sources: &[Source], most: usize| -> Vec<String> {
        let sources = sources.iter().map(|source| (&source.path, lines(source)));
        sources
            .filter(|(path, lines)| *lines > most && !FOR_NOW.contains(&path.as_str()))
            .map(|(path, lines)| format!("{path}: {lines} lines"))
            .collect()
    };
    let [longest, usual] = PROGRAM;
    none("too long for one job", longer(&programs, longest));
    none(
        "too long for stories of one kind",
        longer(&tests, TESTS_MAX),
    );
    let most = most(programs.iter().map(lines));
    assert!(
        most <= usual,
        "one file in twenty has more than {most} lines"
    );
    for path in FOR_NOW {
        let named = programs.iter().find(|source| source.path == path);
        let is_long = named.is_some_and(|source| lines(source) > longest);
        assert!(
            is_long,
            "{path} is no exception any more: take it off the list"
        );
    }
}

#[test]
fn a_function_fits_a_page() {
    let mut functions = Vec::new();
    for source in rust().filter(|source| !source.is_test()) {
        for (name, place) in functions_of(source.text.parse().unwrap()) {
            let of_code = |line: &&str| !line.is_empty() && !line.starts_with("//");
            let text = source.text.lines().map(str::trim);
            let text = text
                .skip(place.start() - 1)
                .take(place.end() + 1 - place.start());
            let lines = text.filter(of_code).count();
            functions.push((lines, format!("{}:{} {name}", source.path, place.start())));
        }
    }
    let longest = functions.iter().filter(|(lines, _)| *lines > FUNCTION_MAX);
    let longest = longest.map(|(lines, place)| format!("{place}: {lines} lines"));
    none("too long for one function", longest.collect());
    let most = most(functions.iter().map(|(lines, _)| *lines));
    assert!(
        most <= FUNCTION,
        "one function in twenty has more than {most} lines"
    );
}

/// Every function of a program with the lines that it takes, without those of tests.
fn functions_of(tokens: TokenStream) -> Vec<(String, RangeInclusive<usize>)> {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < trees.len() {
        match &trees[at] {
            TokenTree::Group(group) if crate::rooms::is_for_tests(group) => {
                at += trees[at..]
                    .iter()
                    .position(crate::rooms::ends_item)
                    .unwrap_or(0);
            }
            TokenTree::Group(group) => found.extend(functions_of(group.stream())),
            TokenTree::Ident(ident) if ident == "fn" => found.extend(function(&trees[at..])),
            _ => {}
        }
        at += 1;
    }
    found
}

/// The function that begins with these tokens; `None` for one without a body, and for a type.
fn function(trees: &[TokenTree]) -> Option<(String, RangeInclusive<usize>)> {
    let TokenTree::Ident(name) = trees.get(1)? else {
        return None;
    };
    match trees.iter().find(|tree| crate::rooms::ends_item(tree))? {
        TokenTree::Group(body) if body.delimiter() == Delimiter::Brace => {
            let place = trees[0].span().start().line..=body.span().end().line;
            Some((name.to_string(), place))
        }
        _ => None,
    }
}

#[test]
fn functions_are_found_wherever_they_stand() {
    let program = "fn one() {}\n\
                   impl Thing { async fn two(call: fn(u8) -> u8) -> u8\n{\n  fn three() {}\n 1 } }\n\
                   trait Open { fn four(); fn five() { } }\n\
                   #[cfg(test)] mod tests { fn six() {} }";
    let found = functions_of(program.parse().unwrap());
    let found: Vec<_> = found
        .iter()
        .map(|(name, at)| (&**name, at.clone()))
        .collect();
    let all = [
        ("one", 1..=1),
        ("two", 2..=5),
        ("three", 4..=4),
        ("five", 6..=6),
    ];
    assert_eq!(found, all);
}
