//! The layout of map entries, read from the type information (BTF) of a map or of the compiled
//! programs: <https://docs.kernel.org/bpf/btf.html>.
//!
//! The kernel keeps the type information of a map as long as the map. So an agent can read the
//! entries of a map by the names of their fields, whichever version has created the map.
//!
//! `aya_obj::btf::Btf` parses the same bytes, but it exports no way to the members of a structure:
//! `Btf::type_by_id`, `Btf::string_at`, `Struct::members` and `BtfArray` are `pub(crate)` in
//! aya-obj 0.3.

/// A number, or an array of numbers, inside an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The names of the fields that lead to it: `request.end`. Empty if the entry is one number.
    pub path: String,
    /// In bytes.
    pub offset: usize,
    /// In bytes.
    pub size: usize,
}

/// The fields of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryLayout {
    pub size: usize,
    /// In the order of their offsets.
    pub fields: Vec<Field>,
}

impl EntryLayout {
    /// Returns the layout of an entry without type information.
    pub fn unknown(size: usize) -> Self {
        Self { size, fields: vec![Field { path: String::new(), offset: 0, size }] }
    }

    /// Reads the layout of a type. Returns `None` if the type information is damaged, or describes
    /// something that is no map entry.
    pub fn read(btf: &[u8], type_id: u32, size: usize) -> Option<Self> {
        let types = Types::parse(btf)?;
        let mut fields = Vec::new();
        types.add_fields(type_id, String::new(), 0, &mut fields, 0)?;
        fields.sort_by_key(|field| field.offset);
        let end = fields.last().map_or(0, |field| field.offset + field.size);
        (end <= size).then_some(Self { size, fields })
    }
}

/// The kinds of types (include/uapi/linux/btf.h).
mod kind {
    pub const INT: u32 = 1;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const FLOAT: u32 = 16;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// `struct btf_type`, with the data that follows it.
struct Type<'a> {
    kind: u32,
    /// `vlen`: the number of members.
    count: usize,
    /// The size in bytes, or the id of another type.
    size_or_type: u32,
    data: &'a [u8],
}

struct Types<'a> {
    types: Vec<Type<'a>>,
    strings: &'a [u8],
}

impl<'a> Types<'a> {
    fn parse(btf: &'a [u8]) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;
        let magic = u16::from_le_bytes(btf.get(..2)?.try_into().ok()?);
        let [header, type_offset, type_length, string_offset, string_length] =
            [4, 8, 12, 16, 20].map(|offset| number(btf, offset).map(|number| number as usize));
        let header = header?;
        if magic != MAGIC {
            return None;
        }
        let part = |offset: usize, length: usize| {
            let start = header.checked_add(offset)?;
            btf.get(start..start.checked_add(length)?)
        };
        let mut rest = part(type_offset?, type_length?)?;
        let strings = part(string_offset?, string_length?)?;
        let mut types = Vec::new();
        while !rest.is_empty() {
            let info = number(rest, 4)?;
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let length = match kind {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * count,
                kind::ENUM | kind::FUNC_PROTO => 8 * count,
                _ => 0,
            };
            let data = rest.get(12..12 + length)?;
            types.push(Type { kind, count, size_or_type: number(rest, 8)?, data });
            rest = &rest[12 + length..];
        }
        Some(Self { types, strings })
    }

    /// Returns the type with this id. Id 0 is `void`.
    fn get(&self, id: u32) -> Option<&Type<'a>> {
        self.types.get((id as usize).checked_sub(1)?)
    }

    fn name(&self, offset: u32) -> Option<&str> {
        let bytes = self.strings.get(offset as usize..)?;
        std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
    }

    /// Returns the size of a type in bytes.
    fn size(&self, id: u32, depth: u32) -> Option<usize> {
        let found = self.get(id).filter(|_| depth < MAX_DEPTH)?;
        match found.kind {
            kind::INT | kind::ENUM | kind::ENUM64 | kind::FLOAT | kind::STRUCT | kind::UNION => {
                Some(found.size_or_type as usize)
            }
            kind::ARRAY => {
                self.size(number(found.data, 0)?, depth + 1)?.checked_mul(number(found.data, 8)? as usize)
            }
            kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                self.size(found.size_or_type, depth + 1)
            }
            _ => None,
        }
    }

    fn add_fields(
        &self,
        id: u32,
        path: String,
        offset: usize,
        fields: &mut Vec<Field>,
        depth: u32,
    ) -> Option<()> {
        let found = self.get(id).filter(|_| depth < MAX_DEPTH)?;
        match found.kind {
            kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                self.add_fields(found.size_or_type, path, offset, fields, depth + 1)
            }
            kind::STRUCT => {
                for member in 0..found.count {
                    let at = 12 * member;
                    let name = self.name(number(found.data, at)?)?;
                    let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                    let bits = number(found.data, at + 8)? as usize;
                    self.add_fields(number(found.data, at + 4)?, path, offset + bits / 8, fields, depth + 1)?;
                }
                Some(())
            }
            _ => {
                let size = self.size(id, depth)?;
                fields.push(Field { path, offset, size });
                Some(())
            }
        }
    }
}

/// Types that are nested deeper are damaged.
const MAX_DEPTH: u32 = 16;

fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(offset..offset.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The type information of `struct { u16 port; u8 addr[4] } inner` inside `struct entry`.
    fn example() -> Vec<u8> {
        let strings = b"\0u16\0u8\0port\0addr\0inner\0entry\0";
        let name = |text: &str| {
            let text = format!("\0{text}\0");
            let position = strings.windows(text.len()).position(|window| window == text.as_bytes());
            position.map_or(0, |position| position as u32 + 1)
        };
        let kind = |kind: u32, count: u32| kind << 24 | count;
        let types: Vec<u32> = [
            vec![name("u16"), kind(kind::INT, 0), 2, 16], // 1
            vec![name("u8"), kind(kind::INT, 0), 1, 8],   // 2
            vec![0, kind(kind::ARRAY, 0), 0, 2, 1, 4],    // 3
            vec![0, kind(kind::STRUCT, 2), 6, name("port"), 1, 0, name("addr"), 3, 16], // 4
            vec![name("entry"), kind(kind::STRUCT, 2), 8, name("inner"), 4, 0, name("u16"), 1, 48], // 5
        ]
        .concat();
        let types: Vec<u8> = types.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut btf = vec![0x9f, 0xeb, 1, 0];
        for number in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            btf.extend(number.to_le_bytes());
        }
        btf.extend(types);
        btf.extend(strings);
        btf
    }

    #[test]
    fn fields_of_nested_structures_have_paths_and_offsets() {
        let layout = EntryLayout::read(&example(), 5, 8).unwrap();
        let fields: Vec<_> =
            layout.fields.iter().map(|field| (field.path.as_str(), field.offset, field.size)).collect();
        assert_eq!(fields, [("inner.port", 0, 2), ("inner.addr", 2, 4), ("u16", 6, 2)]);
    }

    #[test]
    fn damaged_type_information_is_refused() {
        let btf = example();
        assert_eq!(EntryLayout::read(&btf, 5, 7), None, "larger than the entry");
        assert_eq!(EntryLayout::read(&btf, 9, 8), None, "a type that does not exist");
        for length in 0..btf.len() - 1 {
            let _ = EntryLayout::read(&btf[..length], 5, 8);
        }
    }
}
