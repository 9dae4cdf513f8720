//! `LIKE` under deterministic collations.
//!
//! Source: `MatchText` in `utils/adt/like_match.c`. The server recurses at each `%`; once a later `%` is reached its
//! answer is final, so remembering the last one is enough. Errors appear exactly where the server's match would read
//! the pattern's end after an escape.

use crate::row::Fault;

/// Length of the UTF-8 character that `first` begins; stray bytes count as one.
pub(super) fn char_len(first: u8) -> usize {
    match first {
        0xf0..=0xff => 4,
        0xe0..=0xef => 3,
        0xc0..=0xdf => 2,
        _ => 1,
    }
}

fn skip_char(text: &[u8]) -> &[u8] {
    let n = text.first().map_or(0, |b| char_len(*b)).min(text.len());
    &text[n..]
}

/// Whether `text` matches `pattern` with `%`, `_` and backslash escapes; 22025 for a reached escape at the end.
pub(super) fn like(text: &[u8], pattern: &[u8]) -> Result<bool, Fault> {
    let (mut t, mut p) = (text, pattern);
    // Where to try again after a mismatch: the text still to be skipped and the pattern behind the last `%`.
    let mut again: Option<(&[u8], &[u8])> = None;
    loop {
        let mismatch = if t.is_empty() {
            // What is left of the pattern must match nothing; skipping more text can't help.
            return Ok(p.iter().all(|&b| b == b'%'));
        } else {
            match p {
                [] => true,
                [b'\\'] => return Err(Fault::LIKE_ENDS_WITH_ESCAPE),
                [b'%', rest @ ..] => {
                    p = rest;
                    // Wildcards behind a `%` only say how many characters there must be at least.
                    while let [wildcard @ (b'%' | b'_'), rest @ ..] = p {
                        if *wildcard == b'_' {
                            if t.is_empty() {
                                return Ok(false);
                            }
                            t = skip_char(t);
                        }
                        p = rest;
                    }
                    if p.is_empty() {
                        return Ok(true);
                    }
                    match find_start(t, p)? {
                        Some(start) => t = start,
                        None => return Ok(false),
                    }
                    again = Some((t, p));
                    false
                }
                [b'_', rest @ ..] => {
                    t = skip_char(t);
                    p = rest;
                    false
                }
                [b'\\', wanted, rest @ ..] | [wanted, rest @ ..] => {
                    if *wanted == t[0] {
                        t = &t[1..];
                        p = rest;
                        false
                    } else {
                        true
                    }
                }
            }
        };
        if mismatch {
            let Some((from, behind)) = again else { return Ok(false) };
            match find_start(skip_char(from), behind)? {
                Some(start) => {
                    again = Some((start, behind));
                    (t, p) = (start, behind);
                }
                None => return Ok(false),
            }
        }
    }
}

/// The first place from `text` on where the next literal byte of the pattern stands.
fn find_start<'t>(text: &'t [u8], pattern: &[u8]) -> Result<Option<&'t [u8]>, Fault> {
    let wanted = match pattern {
        [b'\\', wanted, ..] => *wanted,
        [b'\\'] => return Err(Fault::LIKE_ENDS_WITH_ESCAPE),
        [wanted, ..] => *wanted,
        [] => return Ok(Some(text)),
    };
    let mut rest = text;
    while let [first, ..] = rest {
        if *first == wanted {
            return Ok(Some(rest));
        }
        rest = skip_char(rest);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_on_the_server() {
        for (text, pattern, want) in [
            ("", "", true),
            ("", "%", true),
            ("", "_", false),
            ("abc", "a%", true),
            ("abc", "%c", true),
            ("abc", "%b%", true),
            ("abc", "a_c", true),
            ("abc", "__", false),
            ("aab", "%ab", true),
            ("mississippi", "%iss%ip%i", true),
            ("mississippi", "m%iss%x", false),
            ("äöü", "_ö_", true),
            ("äöü", "___", true),
            ("äöü", "%_ü", true),
            ("100%", "100\\%", true),
            ("100x", "100\\%", false),
            ("a_b", "%\\_b", true),
            ("ab", "a%%_b", false),
            ("axb", "a%%_b", true),
            ("abab", "%ab_", false),
        ] {
            assert_eq!(like(text.as_bytes(), pattern.as_bytes()), Ok(want), "{text} like {pattern}");
        }
    }

    #[test]
    fn a_trailing_escape_fails_only_where_it_is_reached() {
        assert_eq!(like(b"a", b"\\"), Err(Fault::LIKE_ENDS_WITH_ESCAPE));
        assert_eq!(like(b"ab", b"a\\"), Err(Fault::LIKE_ENDS_WITH_ESCAPE));
        assert_eq!(like(b"b", b"a\\"), Ok(false));
        assert_eq!(like(b"a", b"a\\"), Ok(false));
        assert_eq!(like(b"a", b"%\\"), Err(Fault::LIKE_ENDS_WITH_ESCAPE));
    }
}
