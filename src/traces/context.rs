//! The trace context of a message: the header `traceparent` of the W3C recommendation "Trace Context", level 1.
//!
//! It knows headers as names and texts. Invariant: a header that is not well-formed counts as none, as the recommendation
//! asks.

/// Which trace an asset belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) trace: u128,
    /// The span that caused the message; none for a trace that begins here.
    pub(super) parent: Option<u64>,
    /// Whether whoever began the trace wants it; none when nobody said.
    pub(super) sampled: Option<bool>,
}

impl Context {
    /// The context in the headers, else one of its own.
    pub(super) fn of(headers: &[(String, Option<String>)]) -> Self {
        let named = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("traceparent"));
        named.and_then(|(_, value)| parse(value.as_deref()?)).unwrap_or_else(|| Self {
            trace: rand::random::<u128>().max(1),
            parent: None,
            sampled: None,
        })
    }
}

/// `version-trace-parent-flags`, in lower-case hexadecimal digits. A later version may have more behind the flags.
fn parse(header: &str) -> Option<Context> {
    let mut parts = header.trim().split('-');
    let [version, trace, parent, flags] =
        [(2, parts.next()?), (32, parts.next()?), (16, parts.next()?), (2, parts.next()?)].map(digits);
    let (version, flags) = (version?, flags?);
    let (trace, parent) = (trace?, u64::try_from(parent?).ok()?);
    let ends_well = version != 0 || parts.next().is_none();
    let is_valid = version != 0xff && trace != 0 && parent != 0 && ends_well;
    is_valid.then_some(Context { trace, parent: Some(parent), sampled: Some(flags & 1 == 1) })
}

fn digits((length, text): (usize, &str)) -> Option<u128> {
    let is_hexadecimal = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (text.len() == length && is_hexadecimal).then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn of(value: &str) -> Context {
        Context::of(&[("other".to_owned(), None), ("Traceparent".to_owned(), Some(value.to_owned()))])
    }

    #[test]
    fn the_context_of_a_message_is_continued() {
        let expected = Context {
            trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
            parent: Some(0xb7ad_6b71_6920_3331),
            sampled: Some(true),
        };
        assert_eq!(of(GOOD), expected);
        assert_eq!(of(&GOOD.replace("-01", "-00")).sampled, Some(false));
        assert_eq!(of(&format!("cc{}-more", &GOOD[2..])), expected, "a later version");
    }

    #[test]
    fn a_header_that_is_not_well_formed_counts_as_none() {
        let zero_trace = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
        let zero_parent = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", "0".repeat(16));
        let upper = GOOD.to_uppercase();
        for bad in
            ["", "x", &GOOD[1..], &zero_trace, &zero_parent, &upper, &format!("{GOOD}-x"), &format!("ff{}", &GOOD[2..])]
        {
            let context = of(bad);
            assert_eq!((context.parent, context.sampled), (None, None), "{bad}");
            assert_ne!(context.trace, 0);
        }
        assert_ne!(Context::of(&[]).trace, Context::of(&[]).trace);
    }
}
