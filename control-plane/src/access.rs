//! Who may take part: principals, bearer tokens, exchanged tokens.
