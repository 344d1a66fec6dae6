//! What a file holds, in the words of the Internet.

use std::path::Path;

/// Text by the ending of its name. Its first bytes say little, and what they say is often wrong.
const ENDINGS: [(&str, &[&str]); 22] = [
    (
        "application/json",
        &["json", "jsonl", "ipynb", "webmanifest"],
    ),
    ("application/pdf", &["pdf"]),
    ("application/postscript", &["ps", "eps"]),
    ("application/rtf", &["rtf"]),
    ("application/sql", &["sql"]),
    ("application/toml", &["toml"]),
    ("application/x-pem-file", &["pem", "crt", "csr", "key"]),
    ("application/xml", &["xml", "xsd", "xsl", "plist"]),
    ("application/yaml", &["yaml", "yml"]),
    ("image/svg+xml", &["svg"]),
    ("text/css", &["css"]),
    ("text/csv", &["csv"]),
    ("text/html", &["html", "htm", "xhtml"]),
    ("text/javascript", &["js", "mjs", "cjs"]),
    ("text/markdown", &["md", "markdown"]),
    ("text/tab-separated-values", &["tsv"]),
    ("text/x-c", &["c", "h", "cc", "cpp", "hpp", "cxx"]),
    ("text/x-diff", &["diff", "patch"]),
    ("text/x-go", &["go"]),
    ("text/x-python", &["py", "pyi"]),
    ("text/x-rust", &["rs"]),
    ("text/x-shellscript", &["sh", "bash", "zsh"]),
];

/// By its first bytes and its name. Empty files are text.
pub(super) fn of(head: &[u8], path: &Path) -> &'static str {
    let by_bytes = infer::get(head).map(|found| found.mime_type());
    if !is_text(head) {
        return by_bytes.unwrap_or("application/octet-stream");
    }
    let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
    let ending = ending.as_deref().and_then(|ending| ending.to_str());
    let by_name = ending.and_then(|ending| {
        let mut kinds = ENDINGS.iter();
        kinds.find(|(_, endings)| endings.contains(&ending))
    });
    match (by_name, by_bytes) {
        (Some((name, _)), _) => name,
        (None, Some(name)) if name.starts_with("text/") => name,
        _ => "text/plain",
    }
}

/// Whether this is UTF-8 without NUL, but for a last character that is not whole.
fn is_text(head: &[u8]) -> bool {
    let is_utf8 = match std::str::from_utf8(head) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    is_utf8 && !head.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_tell_what_is_no_text_and_names_what_is() {
        let of = |head: &[u8], name: &str| of(head, Path::new(name));
        assert_eq!(of(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a.txt"), "image/png");
        assert_eq!(of(b"\x1f\x8b\x08\0\0", "b"), "application/gzip");
        let program = [&b"\x7fELF\x02\x01\x01"[..], &[0; 60]].concat();
        assert_eq!(of(&program, "c"), "application/x-executable");
        assert_eq!(of(b"\0\x01\x02", "d.json"), "application/octet-stream");
        assert_eq!(of(b"{}", "e.JSON"), "application/json");
        assert_eq!(of(b"fn main() {}", "src/main.rs"), "text/x-rust");
        assert_eq!(of(b"BM is a fine beginning", "f"), "text/plain");
        assert_eq!(of(b"#!/bin/sh\n", "g"), "text/x-shellscript");
        assert_eq!(of(b"", "h"), "text/plain");
        assert_eq!(
            of("né".as_bytes().split_last().unwrap().1, "i"),
            "text/plain"
        );
    }
}
