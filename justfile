# `just` lists these. `just ci` is everything that a change must pass.

_default:
    @just --list

# Runs a fleet of one on this machine.
up *ARGS:
    cargo run -- up {{ARGS}}

# The README's test command.
test:
    cargo test --workspace

# The tests of one crate whose names contain FILTER.
only CRATE FILTER="":
    cargo test -p {{CRATE}} {{FILTER}}

# The stories about a whole fleet whose names contain FILTER.
story FILTER="":
    cargo test -p muster-tests --test scenarios {{FILTER}}

# Formatting and lints.
lint:
    cargo fmt --all
    cargo clippy --workspace --all-targets -- -D warnings

# What may be linked in: licences, banned crates, sources (needs cargo-deny).
deny:
    cargo deny check bans licenses sources

# The benchmarks.
bench *ARGS:
    cargo run --release -p muster-bench -- {{ARGS}}

# Everything that a change must pass.
ci:
    .ci/run
