//! Domain names as DHCP, DHCPv6 and router advertisements carry them (RFC 1035 3.1, 4.1.4).
//!
//! A list that does not fit is cut between names, never inside one, and keeps its order: what is lost is
//! what the user named last. A name that cannot be written at all (an empty or overlong label, more than
//! 255 bytes) is left out.

/// Longest name in wire form, in bytes.
const MAX_NAME: usize = 255;
/// Longest label, in bytes.
const MAX_LABEL: usize = 63;
/// The two high bits that tell a pointer from a label length.
const POINTER: u16 = 0xc000;

/// One name in wire form, uncompressed, ending with the root label.
#[derive(Clone, Copy)]
pub struct Name {
    bytes: [u8; MAX_NAME],
    len: usize,
}

impl Name {
    /// From text such as `example.org`, with or without a final dot; `None` when it is not a name, or is
    /// the root, which has no use in these protocols.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let mut name = Self {
            bytes: [0; MAX_NAME],
            len: 0,
        };
        for label in text.strip_suffix('.').unwrap_or(text).split('.') {
            let len = u8::try_from(label.len())
                .ok()
                .filter(|n| (1..=MAX_LABEL).contains(&usize::from(*n)))?;
            name.push(&[len])?;
            name.push(label.as_bytes())?;
        }
        name.push(&[0])?;
        Some(name)
    }

    /// The wire form.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn push(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.len.checked_add(bytes.len())?;
        self.bytes.get_mut(self.len..end)?.copy_from_slice(bytes);
        self.len = end;
        Some(())
    }
}

/// How much of a list went into a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Filled {
    /// Bytes written.
    pub len: usize,
    /// Entries of the list that are dealt with: written, or impossible to write.
    pub taken: usize,
}

/// Write as many whole names of `list` to `out` as fit, in order. With `compress`, a name may end in a
/// pointer to an earlier one's tail, counted from the start of `out`.
#[must_use]
pub fn fill(list: &[String], out: &mut [u8], compress: bool) -> Filled {
    let mut filled = Filled::default();
    for text in list {
        if let Some(name) = Name::new(text) {
            let Some(len) = append(out, filled.len, name.as_bytes(), compress) else {
                break;
            };
            filled.len = len;
        }
        filled.taken = filled.taken.saturating_add(1);
    }
    filled
}

/// Write one name behind the `used` bytes already in `out`; the bytes then in use, or `None` when it does not
/// fit.
fn append(out: &mut [u8], used: usize, name: &[u8], compress: bool) -> Option<usize> {
    let known = if compress {
        longest_known_tail(out.get(..used)?, name)
    } else {
        None
    };
    let (own, tail) = match &known {
        Some((own, pointer)) => (name.get(..*own)?, &pointer[..]),
        None => (name, &[][..]),
    };
    let middle = used.checked_add(own.len())?;
    let end = middle.checked_add(tail.len())?;
    let place = out.get_mut(used..end)?;
    let (own_place, tail_place) = place.split_at_mut_checked(own.len())?;
    own_place.copy_from_slice(own);
    tail_place.copy_from_slice(tail);
    Some(end)
}

/// How many bytes of the wire-form `name` precede the longest tail that is already in `written`, and a
/// pointer to that.
fn longest_known_tail(written: &[u8], name: &[u8]) -> Option<(usize, [u8; 2])> {
    // From the whole name towards its last label: the first tail found is the longest.
    let mut at = 0_usize;
    loop {
        let len = usize::from(*name.get(at).filter(|len| **len != 0)?);
        if let Some(pointer) = find(written, name.get(at..)?) {
            return Some((at, pointer));
        }
        at = at.checked_add(len)?.checked_add(1)?;
    }
}

/// A pointer to a place in `written` from where one reads exactly the wire-form name `tail`.
fn find(written: &[u8], tail: &[u8]) -> Option<[u8; 2]> {
    let mut at = 0_usize;
    loop {
        match *written.get(at)? {
            0 => at = at.checked_add(1)?,
            len if usize::from(len) > MAX_LABEL => at = at.checked_add(2)?,
            len => {
                if reads_as(written, at, tail) {
                    let offset = u16::try_from(at)
                        .ok()
                        .filter(|offset| offset & POINTER == 0)?;
                    return Some((POINTER | offset).to_be_bytes());
                }
                at = at.checked_add(usize::from(len))?.checked_add(1)?;
            }
        }
    }
}

/// Does a reader who starts at `at`, following pointers, read `name`?
fn reads_as(written: &[u8], at: usize, name: &[u8]) -> bool {
    let (mut rest, mut name) = (written.get(at..).unwrap_or_default(), name);
    loop {
        let Some((&len, after)) = rest.split_first() else {
            return false;
        };
        if usize::from(len) > MAX_LABEL {
            let Some(&low) = after.first() else {
                return false;
            };
            let target = u16::from_be_bytes([len, low]) & !POINTER;
            rest = written.get(usize::from(target)..).unwrap_or_default();
            continue;
        }
        if name.first() != Some(&len) {
            return false;
        }
        if len == 0 {
            return true;
        }
        // Length and label together.
        let Some(size) = usize::from(len).checked_add(1) else {
            return false;
        };
        match (rest.split_at_checked(size), name.split_at_checked(size)) {
            (Some((a, after)), Some((b, left))) if a == b => (rest, name) = (after, left),
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::services::decode;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn wire_form() {
        assert_eq!(
            Name::new("example.org").unwrap().as_bytes(),
            b"\x07example\x03org\0"
        );
        assert_eq!(
            Name::new("example.org.").unwrap().as_bytes(),
            b"\x07example\x03org\0"
        );
        assert_eq!(Name::new("a").unwrap().as_bytes(), b"\x01a\0");
        let label = "x".repeat(63);
        assert!(Name::new(&label).is_some());
        // 3 * 64 + 62 + 1 = 255 bytes, and one more.
        let long = |last: usize| format!("{label}.{label}.{label}.{}", "y".repeat(last));
        assert_eq!(Name::new(&long(61)).unwrap().as_bytes().len(), 255);
        for bad in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a..",
            &long(62),
            &"x".repeat(64),
        ] {
            assert!(Name::new(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn compression() {
        // The example of RFC 3397 section 2, and its bytes.
        let list = strings(&["eng.apple.com.", "marketing.apple.com."]);
        let mut out = [0; 64];
        let filled = fill(&list, &mut out, true);
        assert_eq!(filled, Filled { len: 27, taken: 2 });
        assert_eq!(
            &out[..27],
            b"\x03eng\x05apple\x03com\0\x09marketing\xc0\x04"
        );

        let list = strings(&["a.b.c", "b.c", "x.a.b.c", "a.b.c", "c", "b", "a.b"]);
        let filled = fill(&list, &mut out, true);
        assert_eq!(
            &out[..filled.len],
            b"\x01a\x01b\x01c\0\xc0\x02\x01x\xc0\x00\xc0\x00\xc0\x04\x01b\0\x01a\xc0\x11"
        );
        assert_eq!(
            decode::names(&out[..filled.len]),
            ["a.b.c.", "b.c.", "x.a.b.c.", "a.b.c.", "c.", "b.", "a.b."]
        );
    }

    #[test]
    fn cut_between_names_and_impossible_ones_left_out() {
        let list = strings(&["one.example", "", "two.example", "three.example", "x"]);
        let mut out = [0xee; 64];
        let whole = fill(&list, &mut out, false).len;
        assert_eq!(
            decode::names(&out[..whole]),
            ["one.example.", "two.example.", "three.example.", "x."]
        );
        for room in 0..whole {
            let mut out = [0xee; 64];
            let filled = fill(&list, &mut out[..room], false);
            let names = decode::names(&out[..filled.len]);
            assert_eq!(
                names.len(),
                filled.taken - usize::from(filled.taken > 1),
                "{room}"
            );
            assert!(
                out[filled.len..].iter().all(|b| *b == 0xee),
                "{room}: half a name written"
            );
        }
    }

    proptest! {
        #[test]
        fn a_reader_gets_the_list_back(
            list in prop::collection::vec("[a-c]{1,2}(\\.[a-c]{1,2}){0,4}", 0..20), room in 0usize..400, compress: bool,
        ) {
            let mut out = vec![0; room];
            let filled = fill(&list, &mut out, compress);
            let want: Vec<String> = list[..filled.taken].iter().map(|n| format!("{n}.")).collect();
            prop_assert_eq!(decode::names(&out[..filled.len]), want);
            if filled.taken < list.len() {
                let next = Name::new(&list[filled.taken]).unwrap().as_bytes().len();
                prop_assert!(filled.len + next > room, "it would have fitted");
            }
        }

        #[test]
        fn any_text(list in prop::collection::vec(".{0,80}", 0..8), room in 0usize..300, compress: bool) {
            let mut out = vec![0; room];
            let filled = fill(&list, &mut out, compress);
            prop_assert!(filled.len <= room && filled.taken <= list.len());
            let whole = list.iter().filter_map(|n| Name::new(n)).map(|n| n.as_bytes().len()).sum::<usize>();
            prop_assert!(filled.taken == list.len() || whole > room);
        }
    }
}
