//! Stories about a fleet, over real TLS, real SQLite and real processes.
#![allow(clippy::unwrap_used)]

mod access;
mod adoption;
mod approvals;
mod attach;
mod audit;
mod bad_commands;
mod bad_starts;
mod catch_up;
mod cuts;
mod deadlines;
mod enrollment;
mod evil_agents;
mod evil_clients;
mod files;
mod gateway;
mod heads;
mod hidden;
mod identities;
mod kills;
mod locks;
mod people;
mod policies;
mod restores;
mod road;
mod rotations;
mod secrets;
mod services;
mod sessions;
mod settings;
mod spools;
mod survivals;
mod torture;
mod unrecorded;
mod upgrades;
