//! Rust source with everything blanked out that is not code, so that a search for a word finds code only.
//!
//! Comments (nested too), string, byte string, raw string and character literals become spaces; line breaks
//! stay, so that a line number in the masked text is one in the file. A lifetime is told from a character
//! literal by the missing closing quote.

/// `source` with comments and literals replaced by spaces, of the same number of characters and lines.
pub fn mask(source: &str) -> String {
    let text: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < text.len() {
        let end = literal_end(&text, at);
        if end > at {
            out.extend(text[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else {
            out.push(text[at]);
            at += 1;
        }
    }
    out
}

/// Where the comment or literal that starts at `at` ends; `at` itself if none starts there.
fn literal_end(text: &[char], at: usize) -> usize {
    let follows_word = at > 0 && is_word(text[at - 1]);
    match (text[at], text.get(at + 1)) {
        ('/', Some('/')) => text[at..].iter().position(|&c| c == '\n').map_or(text.len(), |length| at + length),
        ('/', Some('*')) => block_comment_end(text, at),
        ('"', _) => string_end(text, at + 1),
        ('b' | 'c', Some('"')) if !follows_word => string_end(text, at + 2),
        ('r', _) if !follows_word => raw_string_end(text, at, at + 1),
        ('b' | 'c', Some('r')) if !follows_word => raw_string_end(text, at, at + 2),
        ('\'', _) => character_end(text, at),
        _ => at,
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn block_comment_end(text: &[char], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = start;
    while at + 1 < text.len() {
        match (text[at], text[at + 1]) {
            ('/', '*') => {
                depth += 1;
                at += 2;
            }
            ('*', '/') => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    text.len()
}

fn string_end(text: &[char], mut at: usize) -> usize {
    while at < text.len() {
        match text[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// The end of `r"…"` or `r#"…"#` whose hashes start at `at`; `start` if it is a name such as `r#type` or `row`.
fn raw_string_end(text: &[char], start: usize, at: usize) -> usize {
    let hashes = text[at..].iter().take_while(|&&c| c == '#').count();
    if text.get(at + hashes) != Some(&'"') {
        return start;
    }
    let mut at = at + hashes + 1;
    while at < text.len() {
        if text[at] == '"' && text[at + 1..].iter().take_while(|&&c| c == '#').count() >= hashes {
            return at + 1 + hashes;
        }
        at += 1;
    }
    text.len()
}

fn character_end(text: &[char], start: usize) -> usize {
    match (text.get(start + 1), text.get(start + 2)) {
        (Some('\\'), _) => {
            // The character after the backslash may itself be a quote.
            let rest = text.get(start + 3..).unwrap_or(&[]);
            rest.iter().take(12).position(|&c| c == '\'').map_or(start, |length| start + 3 + length + 1)
        }
        (Some(_), Some('\'')) => start + 3,
        _ => start,
    }
}

/// Whether `word` stands in `line` as a whole word.
pub fn has_word(line: &str, word: &str) -> bool {
    let whole = |index: usize| {
        let before = line[..index].chars().next_back();
        let after = line[index + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    };
    line.match_indices(word).any(|(index, _)| whole(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_comments_and_literals_and_keeps_lines() {
        let cases = [
            ("a // unsafe\nb", "a b"),
            ("a /* x /* y */ z */ b", "a b"),
            ("f(\"un\\\"safe\") g", "f( ) g"),
            ("r#\"a \" b\"# c", "c"),
            ("br\"a\" c", "c"),
            ("let c = '\"'; d", "let c = ; d"),
            ("'\\'' d", "d"),
            ("'\\u{1F600}' d", "d"),
        ];
        for (source, words) in cases {
            let masked = mask(source);
            assert_eq!(masked.split_whitespace().collect::<Vec<_>>(), words.split(' ').collect::<Vec<_>>(), "{source}");
            assert_eq!(masked.chars().count(), source.chars().count());
            assert_eq!(masked.lines().count(), source.lines().count());
        }
    }

    #[test]
    fn keeps_lifetimes_and_raw_names() {
        for source in ["fn f<'a>(x: &'a str)", "r#type", "for row in rows", "&'static str"] {
            assert_eq!(mask(source), source);
        }
    }

    #[test]
    fn survives_what_is_not_closed() {
        for source in ["\"abc", "/* abc", "r#\"abc", "'", "'\\", "\"\\", "b", "r"] {
            assert_eq!(mask(source).chars().count(), source.chars().count(), "{source}");
        }
    }

    #[test]
    fn finds_whole_words_only() {
        assert!(has_word("unsafe { }", "unsafe"));
        assert!(has_word("}unsafe{", "unsafe"));
        assert!(!has_word("#![forbid(unsafe_code)]", "unsafe"));
        assert!(!has_word("not_unsafe", "unsafe"));
    }
}
