//! Merkle trees as RFC 6962, section 2.1, has them: one hash for many leaves, and a short proof that a leaf is among them.

use aws_lc_rs::digest::{Context, SHA256};

use super::Hash;

/// The hash of a leaf: SHA-256 over a zero byte and the leaf.
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    hash(&[&[0], leaf])
}

/// The root over these hashes of leaves, which are at least one.
pub(super) fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => hash(&[]),
        [leaf] => *leaf,
        leaves => {
            let (left, right) = leaves.split_at(left_of(leaves.len()));
            node(&root(left), &root(right))
        }
    }
}

/// What proves that the leaf at `index` is under the root over `leaves`: one hash for each level, from the leaf upwards
/// (RFC 6962, section 2.1.1). Empty where there is no such leaf.
pub(super) fn path(leaves: &[Hash], index: usize) -> Vec<Hash> {
    if leaves.len() < 2 || index >= leaves.len() {
        return Vec::new();
    }
    let (left, right) = leaves.split_at(left_of(leaves.len()));
    let (mut path, other) = match index < left.len() {
        true => (self::path(left, index), root(right)),
        false => (self::path(right, index - left.len()), root(left)),
    };
    path.push(other);
    path
}

/// The root that a leaf's hash and its path lead to (RFC 9162, section 2.1.3.2); `None` if there is no such place among
/// `count` leaves, or the path is too long or too short for it.
pub(super) fn root_by(leaf: Hash, index: u64, count: u64, path: &[Hash]) -> Option<Hash> {
    if index >= count {
        return None;
    }
    let (mut at, mut last) = (index, count - 1);
    let mut reached = leaf;
    for other in path {
        if last == 0 {
            return None;
        }
        if at & 1 == 1 || at == last {
            reached = node(other, &reached);
            // Levels where the last subtree has no neighbour leave no trace in the path.
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            reached = node(&reached, other);
        }
        at >>= 1;
        last >>= 1;
    }
    (last == 0).then_some(reached)
}

/// How many of so many leaves the left subtree has: the largest power of two that is less.
fn left_of(count: usize) -> usize {
    count.next_power_of_two() / 2
}

fn node(left: &Hash, right: &Hash) -> Hash {
    hash(&[&[1], left, right])
}

fn hash(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let digest = context.finish();
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;

    fn leaves(count: usize) -> Vec<Hash> {
        (0..count).map(|n| leaf_hash(&n.to_be_bytes())).collect()
    }

    /// The test vectors that Certificate Transparency's reference implementation has.
    #[test]
    fn roots_are_those_of_certificate_transparency() {
        let inputs: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let leaves: Vec<_> = inputs.iter().map(|leaf| leaf_hash(leaf)).collect();
        for (count, expected) in [
            (
                1,
                "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            ),
            (
                2,
                "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            ),
            (
                3,
                "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            ),
            (
                8,
                "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
            ),
        ] {
            assert_eq!(HEXLOWER.encode(&root(&leaves[..count])), expected);
        }
    }

    #[test]
    fn a_path_of_another_length_or_place_proves_nothing() {
        let leaves = leaves(7);
        let path = path(&leaves, 3);
        let by = |index, count, path: &[Hash]| root_by(leaves[3], index, count, path);
        assert_eq!(by(3, 7, &path), Some(root(&leaves)));
        assert_eq!(by(3, 7, &path[1..]), None);
        assert_eq!(by(3, 7, &[&path[..], &[leaves[0]]].concat()), None);
        assert_eq!(by(7, 7, &path), None);
        assert_eq!(by(0, 0, &[]), None);
        assert_ne!(by(2, 7, &path), Some(root(&leaves)));
    }

    proptest! {
        #[test]
        fn each_leaf_and_its_path_lead_to_the_root(count in 1_usize..200, seed in any::<prop::sample::Index>()) {
            let leaves = leaves(count);
            let index = seed.index(count);
            let path = path(&leaves, index);
            prop_assert!(path.len() <= 8);
            prop_assert_eq!(root_by(leaves[index], index as u64, count as u64, &path), Some(root(&leaves)));
            // Nor does any other leaf take its place.
            let other = leaf_hash(b"another");
            prop_assert_ne!(root_by(other, index as u64, count as u64, &path), Some(root(&leaves)));
        }
    }
}
