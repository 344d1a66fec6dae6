//! The inventory: labels, facts, instruction, presence.
