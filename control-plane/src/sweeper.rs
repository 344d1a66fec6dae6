//! What time overtakes: silent hosts, expired tasks, old history.
