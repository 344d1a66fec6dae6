//! The rooms of a crate lean one way: none builds on a room that builds on it, however long the way around.
//!
//! A room is a top-level module with its folder. It builds on each room that its program names, in a `use` or in the
//! middle of a line; tests may name whom they like. The root of a crate only wires, and nobody names what it holds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proc_macro2::{Delimiter, Group, Ident, TokenStream, TokenTree};

use crate::{Source, none, rust};

/// The crates whose rooms are looked at, with their floors from the top: a room builds on its own floor and on those
/// below. A crate without floors only has no circles.
const CRATES: [(&str, &[&[&str]]); 6] = [
    ("agent", &[]),
    ("cli", &[]),
    ("client", &[]),
    ("control-plane", &CONTROL_PLANE),
    ("mcp-gateway", &[]),
    ("runtime", &[]),
];

/// Whoever wires; doors and whoever else asks; orders with their rights; what holds jobs back; jobs; live hosts; what is
/// known and decided; nouns and time.
const CONTROL_PLANE: [&[&str]; 8] = [
    &["server"],
    &[
        "api",
        "backup",
        "config",
        "connections",
        "rollouts",
        "schedules",
        "sweeper",
    ],
    &["orders", "rights"],
    &["approvals", "restores"],
    &["jobs"],
    &["sessions"],
    &[
        "access",
        "audit",
        "authority",
        "enrollment",
        "hosts",
        "oauth",
        "output",
        "policy",
        "redaction",
        "rotation",
        "seal",
        "secrets",
        "selector",
        "store",
    ],
    &["clock", "failpoint", "model", "times", "wire"],
];

/// Which room names which, and where: files with lines.
type Arrows = BTreeMap<(String, String), Vec<String>>;

#[test]
fn rooms_lean_one_way() {
    let mut breaches = Vec::new();
    for (of, floors) in CRATES {
        let (rooms, mut arrows) = rooms(of);
        let floor = |room: &str| floors.iter().position(|floor| floor.contains(&room));
        for ((from, to), places) in &arrows {
            let what = match (floor(from), floor(to)) {
                _ if !rooms.contains(to) => "names what is in no room",
                (None, _) if !floors.is_empty() => "has no floor",
                (from, to) if from > to => "builds on a floor above",
                _ => continue,
            };
            breaches.push(told(&format!("{of}: {from} {what}, {to}"), places));
        }
        while let Some(circle) = shortest_circle(&arrows) {
            // Most likely the wrong one: the arrow that stands in the fewest places.
            let closing = circle.iter().min_by_key(|arrow| arrows[arrow].len());
            let (from, to) = closing.unwrap().clone();
            let way: Vec<&str> = circle.iter().map(|(from, _)| &**from).collect();
            let way = way.join(" → ");
            let what = format!("{of}: a circle {way}, closed by {from} → {to}");
            breaches.push(told(&what, &arrows.remove(&(from, to)).unwrap()));
        }
    }
    none("rooms lean one way", breaches);
}

fn told(what: &str, places: &[String]) -> String {
    format!("{what}:\n  {}", places.join("\n  "))
}

/// The rooms of a crate, and every arrow that leaves one of them.
fn rooms(of: &str) -> (BTreeSet<String>, Arrows) {
    let mut rooms = BTreeSet::new();
    let mut arrows = Arrows::new();
    for source in rust().filter(|source| !source.is_test()) {
        let Some(mut module) = module(of, &source) else {
            continue;
        };
        let room = module[0].clone();
        let mut named = Vec::new();
        collect(source.text.parse().unwrap(), &mut module, &mut named);
        for name in named.into_iter().filter(|name| *name != room) {
            let place = format!("{}:{}", source.path, name.span().start().line);
            let arrow = (room.clone(), name.to_string());
            let places = arrows.entry(arrow).or_default();
            if places.last() != Some(&place) {
                places.push(place);
            }
        }
        rooms.insert(room);
    }
    (rooms, arrows)
}

/// The path of the module in a file; `None` if it is another crate's, or a root.
fn module(of: &str, source: &Source) -> Option<Vec<String>> {
    let path = source.path.strip_prefix(of)?.strip_prefix("/src/")?;
    let path = path.strip_suffix(".rs")?;
    let is_root = path == "lib" || path == "main" || path.starts_with("bin/");
    (!is_root).then(|| path.split('/').map(str::to_owned).collect())
}

/// Finds what the tokens of a module name at the root of its crate.
fn collect(tokens: TokenStream, module: &mut Vec<String>, named: &mut Vec<Ident>) {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < trees.len() {
        match &trees[at] {
            TokenTree::Group(group) if is_for_tests(group) => {
                at += trees[at..].iter().position(ends_item).unwrap_or(0);
            }
            TokenTree::Group(group) => {
                let inline = at >= 2 && trees[at - 2].to_string() == "mod";
                let depth = module.len();
                module.extend(inline.then(|| trees[at - 1].to_string()));
                collect(group.stream(), module, named);
                module.truncate(depth);
            }
            TokenTree::Ident(_) => named.extend(of_path(&trees[at..], module.len())),
            _ => {}
        }
        at += 1;
    }
}

pub(crate) fn is_for_tests(attribute: &Group) -> bool {
    let is_attribute = attribute.delimiter() == Delimiter::Bracket;
    is_attribute && attribute.to_string().replace(' ', "") == "[cfg(test)]"
}

pub(crate) fn ends_item(tree: &TokenTree) -> bool {
    match tree {
        TokenTree::Punct(punct) => punct.as_char() == ';',
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        _ => false,
    }
}

/// What a path names at the root, if it leads there by `crate::` or by as many `super::` as it takes.
fn of_path(path: &[TokenTree], depth: usize) -> Vec<Ident> {
    let up = match path {
        [TokenTree::Ident(ident), TokenTree::Punct(colon), ..] if colon.as_char() == ':' => ident,
        _ => return Vec::new(),
    };
    match &*up.to_string() {
        "crate" => behind(&path[3..], 0),
        "super" => behind(&path[3..], depth.saturating_sub(1)),
        _ => Vec::new(),
    }
}

/// The same for what comes behind that, in a module so deep below the root: one name, or each in braces.
fn behind(path: &[TokenTree], depth: usize) -> Vec<Ident> {
    match path.first() {
        Some(TokenTree::Ident(ident)) if ident == "super" => of_path(path, depth),
        Some(TokenTree::Ident(ident)) if depth == 0 => vec![ident.clone()],
        Some(TokenTree::Group(group)) => {
            let trees: Vec<TokenTree> = group.stream().into_iter().collect();
            let parts = trees.split(|tree| tree.to_string() == ",");
            parts.flat_map(|part| behind(part, depth)).collect()
        }
        _ => Vec::new(),
    }
}

/// A circle of the fewest arrows, if there is any.
fn shortest_circle(arrows: &Arrows) -> Option<Vec<(String, String)>> {
    let rooms: BTreeSet<&str> = arrows.keys().map(|(from, _)| &**from).collect();
    let circles = rooms.into_iter().filter_map(|room| circle(room, arrows));
    circles.min_by_key(Vec::len)
}

/// The shortest way from a room to itself.
fn circle(room: &str, arrows: &Arrows) -> Option<Vec<(String, String)>> {
    let mut ways: VecDeque<Vec<(String, String)>> = VecDeque::from([Vec::new()]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        let end = way.last().map_or(room, |(_, to)| to);
        for arrow in arrows.keys().filter(|(from, _)| from == end) {
            let longer = [&*way, std::slice::from_ref(arrow)].concat();
            if arrow.1 == room {
                return Some(longer);
            }
            if seen.insert(&arrow.1) {
                ways.push_back(longer);
            }
        }
    }
    None
}

#[test]
fn a_room_is_found_wherever_it_is_named() {
    let program = r#"
        //! crate::comment
        use std::fmt;
        use crate::{first::{Thing, inner::crates}, second};
        pub(crate) use super::{super::third::Other, ours::Own};
        #[cfg(test)]
        use crate::unseen;
        fn f(at: crate::fourth::At) -> &'static str { select! { _ = super::super::fifth::now() => "crate::text" } }
        mod inline { use super::sibling; use super::super::super::sixth; }
        #[cfg(test)]
        mod tests { use crate::unseen; }
        const LAST: u8 = crate::seventh::LAST;
    "#;
    let mut named = Vec::new();
    let mut module = vec!["room".to_owned(), "part".to_owned()];
    collect(program.parse().unwrap(), &mut module, &mut named);
    let named: Vec<String> = named.iter().map(Ident::to_string).collect();
    assert_eq!(
        named,
        [
            "first", "second", "third", "fourth", "fifth", "sixth", "seventh"
        ]
    );
}
