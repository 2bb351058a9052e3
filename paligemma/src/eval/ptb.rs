//! Captions as words, as pycocoevalcap makes them: Stanford CoreNLP's Penn Treebank tokenizer 3.4.1 in lower case, and
//! then some punctuation left out.
//!
//! At each place the longest of several patterns is a token, as in the tokenizer's lexer. What it does with telephone
//! numbers, file names and markup of more than one word is not copied. `reference/caption_goldens.py` made the lines that
//! the tests compare.

/// What pycocoevalcap leaves out (ptbtokenizer.py). Its brackets are in capitals, the tokenizer's are not by then: they stay.
const LEFT_OUT: [&str; 15] =
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--"];
const ALSO_LEFT_OUT: [&str; 2] = ["...", ";"];

/// The words of a text of one line.
pub fn tokenize(text: &str) -> Vec<String> {
    let text: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < text.len() {
        if text[at].is_whitespace() {
            at += 1;
            continue;
        }
        let (len, words) = token(&text, at);
        tokens.extend(words);
        at += len;
    }
    let is_kept = |word: &String| {
        let word = word.as_str();
        !LEFT_OUT.contains(&word) && !ALSO_LEFT_OUT.contains(&word)
    };
    tokens
        .into_iter()
        .flat_map(|word| word.split(' ').map(str::to_lowercase).collect::<Vec<_>>())
        .filter(is_kept)
        .collect()
}

/// The text from `at` on: the token's length, and the words that it becomes.
fn token(text: &[char], at: usize) -> (usize, Vec<String>) {
    let rest = &text[at..];
    let written = |len: usize| rest[..len].iter().collect::<String>();
    let mut best = (0, Vec::new());
    let mut offer = |len: usize, words: Vec<String>| {
        if len > best.0 {
            best = (len, words);
        }
    };
    let one = |len: usize| vec![written(len)];
    for len in [markup(rest), address(rest), tag(rest)] {
        offer(len, one(len));
    }
    let (len, sign) = symbol(rest);
    offer(len, vec![sign]);
    for len in
        [word(rest), number(rest), hyphened(rest), slashed(rest), capitals(rest), with_apostrophe(rest)]
    {
        offer(len, one(len));
    }
    let before = at.checked_sub(1).map(|i| text[i]);
    let len = short_form(rest);
    offer(len, vec![written(len).replace(is_apostrophe, "'")]);
    for (whole, first) in
        [("cannot", 3), ("gonna", 3), ("gotta", 3), ("lemme", 3), ("gimme", 3), ("wanna", 3)]
    {
        let len = starts(rest, whole);
        if len > 0 && !is_alphanumeric(rest.get(len)) {
            let (a, b) = (written(first), rest[first..len].iter().collect());
            best = (len, vec![a, b]);
        }
    }
    // A verb before its n't ends one letter early; so does one of 'tis and 'twas before its verb.
    let len = before_not(rest);
    if len > 0 {
        best = (len, one(len));
    }
    if starts(rest, "'tis") == 4 || starts(rest, "'twas") == 5 {
        best = (2, one(2));
    }
    if let Some((len, ends_sentence)) = abbreviation(rest, before)
        && (len > best.0 || (len == best.0 && ends_sentence))
    {
        let mut words = one(len);
        if ends_sentence {
            words.push(".".into());
        }
        best = (len, words);
    }
    best
}

fn is_letter(c: char) -> bool {
    c.is_alphabetic() || matches!(c, '\u{300}'..='\u{36f}')
}

fn is_alphanumeric(c: Option<&char>) -> bool {
    c.is_some_and(|&c| is_letter(c) || c.is_ascii_digit())
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric()
}

fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '’')
}

/// How many characters at the beginning are so.
fn run(text: &[char], is_so: impl Fn(char) -> bool) -> usize {
    text.iter().position(|&c| !is_so(c)).unwrap_or(text.len())
}

/// The length of `word` if the text starts with it, whatever its case, else 0; `'` is any apostrophe.
fn starts(text: &[char], word: &str) -> usize {
    let mut len = 0;
    for wanted in word.chars() {
        let is_same = text
            .get(len)
            .is_some_and(|&c| c.to_ascii_lowercase() == wanted || (wanted == '\'' && is_apostrophe(c)));
        if !is_same {
            return 0;
        }
        len += 1;
    }
    len
}

/// Letters and digits, a letter first or not; after a letter `.`, `!` and `?` may stand between.
fn word(text: &[char]) -> usize {
    let part = |text: &[char]| run(text, |c| is_letter(c) || c.is_ascii_digit());
    let mut len = part(text);
    if text.first().is_some_and(|&c| is_letter(c)) {
        while text.get(len).is_some_and(|&c| matches!(c, '.' | '!' | '?'))
            && text.get(len + 1).is_some_and(|&c| is_letter(c))
        {
            len += 1 + part(&text[len + 1..]);
        }
    }
    // Plain letters and digits may be joined by underscores.
    let plain = run(text, is_plain);
    if plain > 0 && plain >= run(text, |c| is_letter(c) || c.is_ascii_digit()) {
        let mut joined = plain;
        while text.get(joined) == Some(&'_') && text.get(joined + 1).is_some_and(|&c| is_plain(c)) {
            joined += 1 + run(&text[joined + 1..], is_plain);
        }
        len = len.max(joined);
    }
    len
}

/// `-1,000.50`, `10:30`, `.5`
fn number(text: &[char]) -> usize {
    let sign = usize::from(text.first().is_some_and(|&c| matches!(c, '-' | '+')));
    let mut len = sign + run(&text[sign..], |c| c.is_ascii_digit());
    while text.get(len).is_some_and(|&c| matches!(c, '.' | ':' | ',' | '·'))
        && text.get(len + 1).is_some_and(char::is_ascii_digit)
    {
        len += 1 + run(&text[len + 1..], |c| c.is_ascii_digit());
    }
    if len > sign { len } else { 0 }
}

/// `well-known`, `1,000-foot`, `U.S.-based`
fn hyphened(text: &[char]) -> usize {
    if !text.first().is_some_and(|&c| is_letter(c) || c.is_ascii_digit()) {
        return 0;
    }
    let mut len = run(text, |c| is_letter(c) || c.is_ascii_digit() || matches!(c, '.' | ','));
    let mut is_hyphened = false;
    while text.get(len) == Some(&'-') {
        let rest = &text[len + 1..];
        let part =
            run(rest, |c| is_letter(c) || c.is_ascii_digit()).max(acronym(rest).map_or(0, |len| len + 1));
        if part == 0 {
            break;
        }
        is_hyphened = true;
        len += 1 + part;
    }
    if is_hyphened { len } else { 0 }
}

/// `red/white`, `and/or`: up to three parts, each with up to two hyphens.
fn slashed(text: &[char]) -> usize {
    let part = |text: &[char]| {
        let mut len = run(text, is_plain);
        for _ in 0..2 {
            let letters = text.get(len + 1..).map_or(0, |rest| run(rest, |c| c.is_ascii_alphabetic()));
            if len == 0 || text.get(len) != Some(&'-') || letters == 0 {
                break;
            }
            len += 1 + letters;
        }
        len
    };
    let mut len = part(text);
    let mut parts = 1;
    while parts < 3 && len > 0 && text.get(len) == Some(&'/') {
        let more = part(&text[len + 1..]);
        if more == 0 {
            break;
        }
        (len, parts) = (len + 1 + more, parts + 1);
    }
    if parts > 1 { len } else { 0 }
}

/// `AT&T`, `C++`, `F#`, `US$`
fn capitals(text: &[char]) -> usize {
    for name in ["c++", "c#", "f#"] {
        let len = starts(text, name);
        if len > 0 && !is_alphanumeric(text.get(len)) {
            return len;
        }
    }
    let letters = |text: &[char]| run(text, |c| c.is_ascii_uppercase());
    let mut len = letters(text);
    if len > 0 && text.get(len) == Some(&'$') {
        return len + 1;
    }
    let mut is_joined = false;
    while len > 0 && text.get(len).is_some_and(|&c| matches!(c, '&' | '+')) {
        let more = letters(&text[len + 1..]);
        if more == 0 {
            break;
        }
        is_joined = true;
        len += 1 + more;
    }
    if is_joined { len } else { 0 }
}

/// Words with an apostrophe in them that stay whole: `o'clock`, `l'étoile`, `ma'am`, `'em`, `'80s`, `'n'`.
fn with_apostrophe(text: &[char]) -> usize {
    for whole in [
        "'em",
        "'till",
        "'til",
        "'cause",
        "'n'",
        "c'mon",
        "nor'easter",
        "e'er",
        "s'mores",
        "ev'ry",
        "li'l",
        "nat'l",
        "ol'",
        "somethin'",
        "dunkin'",
        "c'est",
    ] {
        let len = starts(text, whole);
        if len > 0 && !is_alphanumeric(text.get(len)) {
            return len;
        }
    }
    if text.first().is_some_and(|&c| is_apostrophe(c)) {
        let digits = run(&text[1..], |c| c.is_ascii_digit());
        let is_decade = digits == 2 && text[2] == '0' && text[1] > '1' && text.get(3) == Some(&'s');
        return match digits {
            2 if is_decade && !is_alphanumeric(text.get(4)) => 4,
            2 if text.get(3).is_none_or(|c| c.is_whitespace()) => 3,
            _ => 0,
        };
    }
    let letters = run(text, is_letter);
    if letters == 0 || !text.get(letters).is_some_and(|&c| is_apostrophe(c)) {
        return 0;
    }
    let behind = run(&text[letters + 1..], is_letter);
    let (first, last) = (text[0], text[letters - 1]);
    let next = text.get(letters + 1).copied().unwrap_or(' ');
    let is_prefix = letters == 1 && matches!(first.to_ascii_lowercase(), 'd' | 'o' | 'l') && behind > 0;
    let is_initial = letters == 1 && (matches!(first, 'A'..='H' | 'J'..='X' | 'Z' | 'n')) && behind > 1;
    let is_vowel = |c: char| matches!(c, 'a' | 'e' | 'i' | 'o' | 'u');
    let is_between = letters > 1
        && (is_vowel(last.to_ascii_lowercase()) || last.eq_ignore_ascii_case(&'y'))
        && (is_vowel(next) || next.is_ascii_uppercase());
    let is_short =
        |tail: &str| starts(&text[letters..], tail) > 0 && !is_alphanumeric(text.get(letters + tail.len()));
    if is_prefix && !(behind == 1 && is_short("'s")) || is_initial {
        return letters + 1 + behind;
    }
    // y'all, j'ai: the apostrophe goes with the letter.
    if letters == 1 && matches!(first.to_ascii_lowercase(), 'y' | 'j') && behind > 0 {
        return 2;
    }
    let is_verb = ["'s", "'m", "'d", "'re", "'ve", "'ll"].iter().any(|tail| is_short(tail));
    if is_between && !is_verb { letters + 1 + behind } else { 0 }
}

/// `'s`, `'m`, `'d`, `'re`, `'ve`, `'ll` and `n't`.
fn short_form(text: &[char]) -> usize {
    let forms = ["'s", "'m", "'d", "'re", "'ve", "'ll", "n't"];
    let len = forms.iter().map(|form| starts(text, form)).max().unwrap_or(0);
    if text.get(len).is_some_and(char::is_ascii_alphabetic) { 0 } else { len }
}

/// The length of a verb, where n't follows; else 0.
fn before_not(text: &[char]) -> usize {
    let letters = run(text, is_letter);
    // Its last letter is the n.
    let ends = letters > 1 && starts(&text[letters - 1..], "n't") == 3;
    if ends && !is_alphanumeric(text.get(letters + 2)) { letters - 1 } else { 0 }
}

/// `U.S`: single letters with dots between; the length without the last dot, which must be there.
fn acronym(text: &[char]) -> Option<usize> {
    let mut len = 1;
    if !text.first()?.is_ascii_alphabetic() {
        return None;
    }
    while text.get(len) == Some(&'.')
        && text.get(len + 1).is_some_and(char::is_ascii_alphabetic)
        && !is_alphanumeric(text.get(len + 2))
    {
        len += 2;
    }
    (len > 1 && text.get(len) == Some(&'.')).then_some(len)
}

/// An abbreviation with its dot, and whether the dot ends a sentence too.
fn abbreviation(text: &[char], before: Option<char>) -> Option<(usize, bool)> {
    // Months, days, states, companies, and what stands behind names: with a capital behind, the sentence ends.
    const ENDING: &str = " jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri ala ariz calif colo \
        conn ct dak fla ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis wisc wyo jr sr bros blvd rd \
        esq inc co cos corp ltd plc dept bhd assn univ intl sys etc al seq tel est ext sq ";
    const CAPITAL: &str = " Az Ark Del Ill La Mass Miss Ore Pa Tex Wash ";
    const TITLES: &str = " mr mrs ms dr drs prof profs sen sens rep reps atty attys lt col gen messrs gov govs adm rev maj sgt \
        cpl pvt mt capt st ste ave pres lieut hon brig comdr cmdr pfc spc supt supts det vs cf ft pty ";
    if is_alphanumeric(before.as_ref()) {
        return None;
    }
    if let Some(len) = acronym(text) {
        return Some((len + 1, false));
    }
    let ends_sentence = |len: usize| {
        let spaces = run(&text[len..], char::is_whitespace);
        spaces > 0 && text.get(len + spaces).is_some_and(char::is_ascii_uppercase)
    };
    for degree in ["ph.d.", "ed.d."] {
        let len = starts(text, degree);
        if len > 0 {
            return Some((len, ends_sentence(len)));
        }
    }
    let letters = run(text, |c| c.is_ascii_alphabetic());
    if letters == 0 || text.get(letters) != Some(&'.') {
        return None;
    }
    let word: String = text[..letters].iter().collect();
    let len = letters + 1;
    let is_in = |list: &str, word: &str| list.contains(&format!(" {word} "));
    let lower = word.to_lowercase();
    if lower == "no" {
        let spaces = run(&text[len..], char::is_whitespace);
        return text.get(len + spaces).is_some_and(char::is_ascii_digit).then_some((len, false));
    }
    if is_in(ENDING, &lower) || is_in(CAPITAL, &word) {
        return Some((len, ends_sentence(len)));
    }
    (letters == 1 || is_in(TITLES, &lower)).then_some((len, false))
}

/// `<b>`, `</a href="x">`
fn markup(text: &[char]) -> usize {
    let is_name =
        |c: Option<&char>| c.is_some_and(|c| c.is_ascii_alphabetic() || matches!(c, '/' | '!' | '?'));
    if text.first() != Some(&'<') || !is_name(text.get(1)) {
        return 0;
    }
    let end = run(&text[1..], |c| !matches!(c, '>' | '<' | '\n')) + 1;
    if text.get(end) == Some(&'>') { end + 1 } else { 0 }
}

/// Places on the net and addresses of mail.
fn address(text: &[char]) -> usize {
    let is_part = |c: char| !c.is_whitespace() && !matches!(c, '"' | '<' | '>' | '|' | '(' | ')');
    let trimmed = |mut len: usize| {
        while len > 0 && matches!(text[len - 1], '.' | '!' | '?' | ',' | ';' | ':' | '\'' | '&') {
            len -= 1;
        }
        len
    };
    for head in ["http://", "https://"] {
        let len = starts(text, head);
        if len > 0 {
            let whole = trimmed(len + run(&text[len..], is_part));
            return if whole > len { whole } else { 0 };
        }
    }
    let host = run(text, |c| is_plain(c) || matches!(c, '.' | '-' | '_'));
    if host > 0 && text.get(host) == Some(&'@') {
        let domain = run(&text[host + 1..], |c| is_plain(c) || matches!(c, '.' | '-'));
        let whole = trimmed(host + 1 + domain);
        return if whole > host + 1 { whole } else { 0 };
    }
    let host = trimmed(host);
    let name: String = text[..host].iter().collect();
    let is_host = name.starts_with("www.")
        || [".com", ".net", ".org", ".edu"].iter().any(|end| name.len() > end.len() && name.ends_with(end));
    if !is_host {
        return 0;
    }
    if text.get(host) == Some(&'/') { trimmed(host + run(&text[host..], is_part)) } else { host }
}

/// `@name`, `#word`
fn tag(text: &[char]) -> usize {
    let is_tag = text.first().is_some_and(|&c| matches!(c, '@' | '#'))
        && text.get(1).is_some_and(char::is_ascii_alphabetic);
    if is_tag { 1 + run(&text[1..], |c| is_plain(c) || c == '_') } else { 0 }
}

/// Everything that is no word: its length and how it is written.
fn symbol(text: &[char]) -> (usize, String) {
    let first = text[0];
    let same = run(text, |c| c == first);
    for (entity, written) in [("&amp;", "&"), ("&quot;", "''"), ("&lt;", "<"), ("&gt;", ">"), ("&apos;", "'")]
    {
        let len = starts(text, entity);
        if len > 0 {
            return (len, written.into());
        }
    }
    if let Some((len, face)) = face(text) {
        return (len, face);
    }
    match first {
        '.' => {
            // Three dots with single spaces between are one ellipsis too.
            let spaced = text.len() >= 5 && text[..5].iter().collect::<String>() == ". . .";
            match same {
                1 if spaced => (5, "...".into()),
                1 | 2 => (1, ".".into()),
                n => (n, "...".into()),
            }
        }
        '…' => (1, "...".into()),
        '!' | '?' => {
            let len = run(text, |c| matches!(c, '!' | '?'));
            (len, text[..len].iter().collect())
        }
        '-' if same > 1 => (same, "--".into()),
        '–' | '—' | '―' => (same, "--".into()),
        '(' => (1, "-lrb-".into()),
        ')' => (1, "-rrb-".into()),
        '[' => (1, "-lsb-".into()),
        ']' => (1, "-rsb-".into()),
        '{' => (1, "-lcb-".into()),
        '}' => (1, "-rcb-".into()),
        '"' | '“' | '”' | '«' | '»' => (1, "''".into()),
        '\'' | '`' if same == 2 => (2, "''".into()),
        '\'' | '`' | '‘' | '’' | '‹' | '›' => (1, "'".into()),
        '£' => (1, "#".into()),
        '€' => (1, "$".into()),
        '¢' => (1, "cents".into()),
        '½' => (1, "1/2".into()),
        '¼' => (1, "1/4".into()),
        '¾' => (1, "3/4".into()),
        '*' | '_' | '#' | '<' | '>' => (same, text[..same].iter().collect()),
        other => (1, other.to_string()),
    }
}

/// `:-)`; its bracket is written as others are.
fn face(text: &[char]) -> Option<(usize, String)> {
    let mut at = 0;
    if !matches!(text.first()?, ':' | ';' | '=') {
        return None;
    }
    at += 1;
    if matches!(text.get(at), Some('-' | 'o' | '*' | '\'')) {
        at += 1;
    }
    let mouth = *text.get(at)?;
    if !matches!(mouth, '(' | ')' | 'D' | 'P' | 'd' | 'p' | 'O' | '\\' | '{' | '@' | '|' | '[' | ']')
        || text.get(at + 1).is_some_and(char::is_ascii_alphabetic)
    {
        return None;
    }
    let head: String = text[..at].iter().collect();
    let written = match mouth {
        '(' => "-lrb-".to_owned(),
        ')' => "-rrb-".to_owned(),
        other => other.to_string(),
    };
    Some((at + 1, head + &written))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines and their words as pycocoevalcap has them, a tab between.
    const GOLDEN: &str = include_str!("../../../goldens/eval/ptb.tsv");

    #[test]
    fn words_are_those_of_pycocoevalcap() {
        let mut wrong = Vec::new();
        let mut count = 0;
        for line in GOLDEN.lines() {
            let (text, want) = line.split_once('\t').unwrap();
            let got = tokenize(text).join(" ");
            count += 1;
            if got != want {
                wrong.push(format!("{text}\n  want {want}\n  got  {got}"));
            }
        }
        assert!(count > 90, "{count}");
        assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    }
}
