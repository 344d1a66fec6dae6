//! The entities that policies and questions are about, by the types of the schema.

use std::sync::LazyLock;

use cedar_policy::{Entity, EntityId, EntityTypeName, EntityUid};

use super::Right;

/// The types of the schema that a question is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Type {
    Principal,
    Role,
    Fleet,
    Host,
    Action,
}

/// Read once: to read the names of one question takes as long as to answer it.
pub(super) static TYPES: LazyLock<[EntityTypeName; 5]> = LazyLock::new(|| {
    [
        "Muster::Principal",
        "Muster::Role",
        "Muster::Fleet",
        "Muster::Host",
        "Muster::Action",
    ]
    .map(|name| name.parse().expect("the names of types are our own"))
});

impl Type {
    /// The entity of this type that has this id.
    pub(super) fn uid(self, id: &str) -> EntityUid {
        EntityUid::from_type_name_and_id(TYPES[self as usize].clone(), EntityId::new(id))
    }
}

/// An entity that has nothing but its name.
pub(super) fn bare(uid: EntityUid) -> Entity {
    Entity::with_uid(uid)
}

/// A right as Cedar has it.
pub(super) fn action_uid(right: Right) -> EntityUid {
    Type::Action.uid(right.text())
}
