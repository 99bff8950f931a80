//! Converts map entries from one layout to another, field by field.

use crate::btf::{EntryLayout, Field};

/// Fields with these names are padding. They are zero in every layout.
const PADDING: [&str; 3] = ["pad", "reserved", "padding"];

/// The conversion of entries from one layout to another.
///
/// A field keeps its value if both layouts have a field with its name. A number that became wider
/// is extended by zeros. A field that the old layout does not have is zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldCopy {
    from: usize,
    to: usize,
    /// Old offset, new offset, and number of bytes.
    copies: Vec<(usize, usize, usize)>,
    /// The fields of the old layout that the new one does not have, or only with fewer bytes.
    pub lost: Vec<String>,
}

impl FieldCopy {
    /// Returns `None` if the layouts have no field in common.
    pub fn new(from: &EntryLayout, to: &EntryLayout) -> Option<Self> {
        let mut copies = Vec::new();
        let mut lost = Vec::new();
        for old in from.fields.iter().filter(|field| !is_padding(&field.path)) {
            let new = to.fields.iter().find(|field| field.path == old.path);
            if let Some(new) = new {
                copies.push((old.offset, new.offset, old.size.min(new.size)));
            }
            if new.is_none_or(|new| new.size < old.size) {
                lost.push(old.path.clone());
            }
        }
        (!copies.is_empty()).then_some(Self { from: from.size, to: to.size, copies, lost })
    }

    /// Converts an entry. `entry` has the size of the old layout.
    pub fn apply(&self, entry: &[u8]) -> Vec<u8> {
        let mut converted = vec![0; self.to];
        for &(from, to, length) in &self.copies {
            converted[to..to + length].copy_from_slice(&entry[from..from + length]);
        }
        converted
    }

    /// Returns the size of entries of the old layout.
    pub fn old_size(&self) -> usize {
        self.from
    }
}

/// Returns whether entries of one layout are entries of the other one as they are: each field is in
/// its place, and a field that the old layout does not have is where this one has padding.
pub fn is_same(from: &EntryLayout, to: &EntryLayout) -> bool {
    let is_within = |inner: &Field, outer: &Field| {
        outer.offset <= inner.offset && inner.offset + inner.size <= outer.offset + outer.size
    };
    let is_field = |field: &&Field| !is_padding(&field.path);
    let fits =
        |new: &Field| from.fields.iter().any(|old| old == new || (!is_field(&old) && is_within(new, old)));
    from.size == to.size
        && to.fields.iter().filter(is_field).all(fits)
        && from.fields.iter().filter(is_field).all(|old| to.fields.contains(old))
}

fn is_padding(path: &str) -> bool {
    let name = path.rsplit('.').next().unwrap_or(path);
    PADDING.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, fields: &[(&str, usize, usize)]) -> EntryLayout {
        let fields = fields
            .iter()
            .map(|&(path, offset, size)| Field { path: path.to_owned(), offset, size })
            .collect();
        EntryLayout { size, fields }
    }

    #[test]
    fn fields_move_grow_and_appear() {
        let old = layout(8, &[("id", 0, 2), ("side.end", 4, 4), ("pad", 2, 2)]);
        let new = layout(16, &[("side.end", 0, 4), ("pad", 4, 4), ("id", 8, 4), ("next_hop", 12, 4)]);
        let upgrade = FieldCopy::new(&old, &new).unwrap();
        assert_eq!(upgrade.lost, [""; 0]);
        let entry = upgrade.apply(&[1, 2, 0xff, 0xff, 5, 6, 7, 8]);
        assert_eq!(entry, [5, 6, 7, 8, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0]);

        let downgrade = FieldCopy::new(&new, &old).unwrap();
        assert_eq!(downgrade.lost, ["id", "next_hop"], "narrower, and unknown to the older version");
        assert_eq!(downgrade.apply(&entry), [1, 2, 0, 0, 5, 6, 7, 8]);
    }

    #[test]
    fn layouts_without_a_common_field_are_refused() {
        assert_eq!(FieldCopy::new(&EntryLayout::unknown(4), &layout(4, &[("id", 0, 4)])), None);
        let copy = FieldCopy::new(&EntryLayout::unknown(4), &EntryLayout::unknown(4)).unwrap();
        assert_eq!(copy.apply(&[1, 2, 3, 4]), [1, 2, 3, 4]);
    }

    #[test]
    fn a_field_in_the_place_of_padding_needs_no_conversion() {
        let old = layout(8, &[("id", 0, 4), ("class", 4, 1), ("pad", 5, 3)]);
        for (new, expected) in [
            (&old, true),
            (&layout(8, &[("id", 0, 4), ("class", 4, 1), ("pad", 5, 1), ("opened", 6, 2)]), true),
            (&layout(8, &[("id", 0, 4), ("class", 4, 1)]), true),
            (&layout(8, &[("class", 0, 1), ("pad", 1, 3), ("id", 4, 4)]), false),
            (&layout(8, &[("id", 0, 4), ("opened", 4, 4)]), false),
            (&layout(8, &[("id", 0, 4), ("class", 4, 1), ("opened", 4, 4)]), false),
            (&layout(12, &[("id", 0, 4), ("class", 4, 1), ("pad", 5, 3), ("opened", 8, 4)]), false),
        ] {
            assert_eq!(is_same(&old, new), expected, "{new:?}");
        }
        // An older agent does not know the field, and must not read it as padding.
        let new = layout(8, &[("id", 0, 4), ("class", 4, 1), ("pad", 5, 1), ("opened", 6, 2)]);
        assert!(!is_same(&new, &old));
    }
}
