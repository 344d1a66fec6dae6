//! Knows every host, turns jobs into tasks, remembers what happened.
