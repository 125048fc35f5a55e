//! A workaround: `Content-Length` near and beyond 2^64.
//!
//! hyper answers 431 (header fields too large) to lengths of 2^64-2 and 2^64-1, and 400 to longer
//! ones, before anybody here sees the request. To the client they say nothing but that the body is
//! far too large. So such a length is replaced, as it arrives, by the longest that hyper takes: the
//! request is then refused like any other whose body is too large, with 413 and the limit.
//!
//! Caveat: a number that arrives in several pieces, or while the request before it is being answered,
//! is left as it is.

/// The longest length that hyper takes, in decimal.
const LENGTH_MAX: &[u8; 20] = b"18446744073709551613";

const FIELD: &[u8] = b"content-length:";

/// Shortens the lengths in what has arrived of a request's head. What follows the head stays as it
/// is.
pub(super) fn shorten(arrived: &mut [u8]) {
    let mut at = LENGTH_MAX.len() - 1;
    // A number so long has a digit at one of these places. Most heads have none.
    while at < arrived.len() {
        if arrived[at].is_ascii_digit() {
            let digits = |part: &[u8]| part.iter().take_while(|b| b.is_ascii_digit()).count();
            let before = arrived[..at].iter().rev().take_while(|b| b.is_ascii_digit()).count();
            let (start, end) = (at - before, at + digits(&arrived[at..]));
            if is_too_long(&arrived[start..end]) && is_length(&arrived[..start]) {
                let (zeros, digits) =
                    arrived[start..end].split_at_mut(end - start - LENGTH_MAX.len());
                zeros.fill(b'0');
                digits.copy_from_slice(LENGTH_MAX);
            }
            at = end;
        }
        at += LENGTH_MAX.len();
    }
}

fn is_too_long(digits: &[u8]) -> bool {
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
    let digits = &digits[zeros..];
    digits.len() > LENGTH_MAX.len() || digits.len() == LENGTH_MAX.len() && digits > &LENGTH_MAX[..]
}

/// Whether what stands before a number makes it a length, in a head that has not ended yet.
fn is_length(before: &[u8]) -> bool {
    let before = before.trim_ascii_end();
    let name = before.len().checked_sub(FIELD.len()).map(|at| (before[..at].last(), &before[at..]));
    let is_field = name.is_some_and(|(line_end, name)| {
        line_end.is_none_or(|byte| *byte == b'\n') && name.eq_ignore_ascii_case(FIELD)
    });
    is_field && !before.windows(4).any(|bytes| bytes == b"\r\n\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shortened(text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        shorten(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lengths_that_hyper_does_not_take_become_the_longest_that_it_does() {
        let head = |length: &str| {
            format!("PUT /a HTTP/1.1\r\nhost: n\r\nContent-Length: {length}\r\n\r\n")
        };
        let longest = head("18446744073709551613");
        for length in ["18446744073709551615", "18446744073709551614"] {
            assert_eq!(shortened(&head(length)), longest, "{length}");
        }
        assert_eq!(shortened(&head("99999999999999999999999")), head("00018446744073709551613"));
        assert_eq!(
            shortened("content-length:18446744073709551615"),
            "content-length:18446744073709551613"
        );
        assert_eq!(
            shortened("CONTENT-LENGTH:\t 18446744073709551615\r\n"),
            "CONTENT-LENGTH:\t 18446744073709551613\r\n"
        );
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        for same in [
            "content-length: 18446744073709551613\r\n",
            "content-length: 5\r\n",
            "content-length: 000000000000000000000000005\r\n",
            "x-content-length: 18446744073709551615\r\n",
            "content-length: x18446744073709551615\r\n",
            "content-length: 5, 18446744073709551615\r\n",
            "x: 99999999999999999999999999999999999999999999999\r\n",
            "PUT / HTTP/1.1\r\n\r\ncontent-length: 18446744073709551615\r\n",
            "18446744073709551615",
            "",
        ] {
            assert_eq!(shortened(same), same);
        }
    }

    #[test]
    fn a_length_is_found_wherever_it_stands() {
        for before in 0..60 {
            let head = |length| format!("{}\ncontent-length: {length}\n", "9".repeat(before));
            assert_eq!(shortened(&head("18446744073709551615")), head("18446744073709551613"));
        }
    }
}
