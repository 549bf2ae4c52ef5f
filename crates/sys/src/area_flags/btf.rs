//! BTF, the kernel's own description of its types (`Documentation/bpf/btf.rst`): where a member is in a structure, and the number of a
//! function.

use std::io;

const MAGIC: u16 = 0xeb9f;
/// `BTF_KIND_*`.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
    pub(super) const LAST: u32 = ENUM64;
}
/// Bytes of the part that all types have, and of a member behind it.
const HEAD: usize = 12;
const MEMBER: usize = 12;
/// Unnamed structures inside each other.
const DEEPEST: u32 = 8;

/// A parsed description.
pub(super) struct Btf<'a> {
    /// Where each type begins; number 1 is the first.
    types: Vec<&'a [u8]>,
    names: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Of the bytes in `/sys/kernel/btf/vmlinux`.
    ///
    /// # Errors
    /// `InvalidData` when they are something else, or hold a kind of type that is not known.
    pub(super) fn parse(bytes: &'a [u8]) -> io::Result<Self> {
        if u16::try_from(word(bytes, 0)? & 0xffff) != Ok(MAGIC) {
            return Err(wrong("it does not begin like BTF"));
        }
        let part = |offset: usize, length: usize| -> io::Result<&'a [u8]> {
            let head = word(bytes, 4)? as usize;
            let (offset, length) = (word(bytes, offset)? as usize, word(bytes, length)? as usize);
            let part = bytes.get(head..).and_then(|rest| rest.get(offset..));
            part.and_then(|rest| rest.get(..length)).ok_or_else(cut)
        };
        let (mut rest, names) = (part(8, 12)?, part(16, 20)?);
        let mut types = Vec::new();
        while !rest.is_empty() {
            let (kind, members) = (kind_of(rest)?, members_of(rest)?);
            let more = match kind {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * members,
                kind::ENUM | kind::FUNC_PROTO => 8 * members,
                1..=kind::LAST => 0,
                _ => return Err(wrong("it has a kind of type that is not known")),
            };
            types.push(rest.get(..HEAD + more).ok_or_else(cut)?);
            rest = rest.get(HEAD + more..).ok_or_else(cut)?;
        }
        Ok(Self { types, names })
    }

    /// The number of a function.
    pub(super) fn function(&self, name: &str) -> io::Result<u32> {
        self.find(kind::FUNC, name).map(|(number, _)| number)
    }

    /// Where `member` is in structure `name`, bytes from its beginning; also inside unnamed structures and unions.
    pub(super) fn offset(&self, name: &str, member: &str) -> io::Result<u32> {
        let (_, structure) = self.find(kind::STRUCT, name)?;
        let bits = self
            .member(structure, member, 0)?
            .ok_or_else(|| wrong(&format!("{name} has no {member}")))?;
        Ok(bits / 8)
    }

    fn member(&self, of: &[u8], member: &str, depth: u32) -> io::Result<Option<u32>> {
        let kind = kind_of(of)?;
        if matches!(kind, kind::CONST | kind::VOLATILE | kind::TYPE_TAG) && depth < DEEPEST {
            return self.member(self.of_number(word(of, 8)?)?, member, depth + 1);
        }
        if !matches!(kind, kind::STRUCT | kind::UNION) || depth >= DEEPEST {
            return Ok(None);
        }
        let has_bit_fields = word(of, 4)? >> 31 == 1;
        for at in of.get(HEAD..).unwrap_or_default().chunks_exact(MEMBER) {
            let at_bits = word(at, 8)?;
            let bits = if has_bit_fields {
                at_bits & 0x00ff_ffff
            } else {
                at_bits
            };
            match self.name(at)? {
                b"" => {
                    let inner = self.of_number(word(at, 4)?)?;
                    if let Some(found) = self.member(inner, member, depth + 1)? {
                        return bits.checked_add(found).map(Some).ok_or_else(cut);
                    }
                }
                name if name == member.as_bytes() => return Ok(Some(bits)),
                _ => {}
            }
        }
        Ok(None)
    }

    fn find(&self, kind: u32, name: &str) -> io::Result<(u32, &'a [u8])> {
        for (number, of) in (1..).zip(&self.types) {
            if kind_of(of)? == kind && self.name(of)? == name.as_bytes() {
                return Ok((number, of));
            }
        }
        Err(wrong(&format!("it does not know {name}")))
    }

    fn of_number(&self, number: u32) -> io::Result<&'a [u8]> {
        let at = (number as usize).checked_sub(1);
        at.and_then(|at| self.types.get(at).copied())
            .ok_or_else(cut)
    }

    /// What a type or member that begins here is called.
    fn name(&self, of: &[u8]) -> io::Result<&'a [u8]> {
        let rest = self.names.get(word(of, 0)? as usize..).ok_or_else(cut)?;
        rest.split(|byte| *byte == 0).next().ok_or_else(cut)
    }
}

fn kind_of(of: &[u8]) -> io::Result<u32> {
    Ok(word(of, 4)? >> 24 & 0x1f)
}

fn members_of(of: &[u8]) -> io::Result<usize> {
    Ok((word(of, 4)? & 0xffff) as usize)
}

fn word(bytes: &[u8], at: usize) -> io::Result<u32> {
    let rest = bytes.get(at..).ok_or_else(cut)?;
    let word = rest.first_chunk().ok_or_else(cut)?;
    Ok(u32::from_ne_bytes(*word))
}

fn cut() -> io::Error {
    wrong("it ends too early, or refers to what is not there")
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the kernel's description of its types (BTF): {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types and names, as the kernel lays them out.
    fn btf(types: &[&[u32]], names: &str) -> Vec<u8> {
        let types: Vec<u8> = types
            .concat()
            .iter()
            .flat_map(|w| w.to_ne_bytes())
            .collect();
        let (types_len, names_len) = (types.len() as u32, names.len() as u32);
        let head = [
            u32::from(MAGIC) | 1 << 16,
            24,
            0,
            types_len,
            types_len,
            names_len,
        ];
        let mut bytes: Vec<u8> = head.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(types);
        bytes.extend(names.bytes());
        bytes
    }

    /// `struct s { int a; union { int b; const struct { int c; } }; int d:3; }` and a function `f`.
    fn example() -> Vec<u8> {
        let names = "\0s\0a\0b\0c\0d\0f\0";
        let (s, a, b, c, d, f) = (1, 3, 5, 7, 9, 11);
        btf(
            &[
                &[0, 1 << 24, 4, 32],                    // 1: int
                &[0, 4 << 24 | 1, 4, c, 1, 0],           // 2: struct { c }
                &[0, 10 << 24, 2],                       // 3: const 2
                &[0, 5 << 24 | 2, 8, b, 1, 0, 0, 3, 64], // 4: union { b, struct at bit 64 }
                &[
                    s,
                    1 << 31 | 4 << 24 | 3,
                    16,
                    a,
                    1,
                    0,
                    0,
                    4,
                    64,
                    d,
                    1,
                    3 << 24 | 200,
                ],
                &[f, 12 << 24, 1], // 6: function
            ],
            names,
        )
    }

    #[test]
    fn members_are_found_also_in_unnamed_structures() {
        let bytes = example();
        let btf = Btf::parse(&bytes).unwrap();
        let at = ["a", "b", "c", "d"].map(|member| btf.offset("s", member).unwrap());
        assert_eq!(at, [0, 8, 16, 25]);
        assert_eq!(btf.function("f").unwrap(), 6);
        assert!(
            btf.offset("s", "e")
                .unwrap_err()
                .to_string()
                .contains("s has no e")
        );
        assert!(btf.function("s").is_err());
    }

    #[test]
    fn whatever_is_cut_off_or_changed_is_an_error_or_an_answer() {
        let whole = example();
        for end in 0..whole.len() {
            assert!(Btf::parse(&whole[..end]).is_err(), "{end}");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 4, 5, 10, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                if let Ok(btf) = Btf::parse(&bytes) {
                    let _ = (btf.offset("s", "c"), btf.function("f"));
                }
            }
        }
    }
}
