//! The answer language: a table of malformed answers, and the way there and back.

use paligemma::text::{Bins, Fault, NUM_CODES, Object, parse_answer, write_answer};

/// `{1 2}` stands for `<loc0001><loc0002>`, `[5 6]` for `<seg005><seg006>`, `[5*16]` for sixteen of them.
fn expand(short: &str) -> String {
    let mut text = String::new();
    let mut rest = short;
    while let Some(at) = rest.find(['{', '[']) {
        text.push_str(&rest[..at]);
        let is_loc = rest[at..].starts_with('{');
        let (inside, after) = rest[at + 1..].split_once(if is_loc { '}' } else { ']' }).unwrap();
        for number in inside.split(' ') {
            let (number, times) = number.split_once('*').unwrap_or((number, "1"));
            let number: u32 = number.parse().unwrap();
            for _ in 0..times.parse().unwrap() {
                let token = if is_loc { format!("<loc{number:04}>") } else { format!("<seg{number:03}>") };
                text.push_str(&token);
            }
        }
        rest = after;
    }
    text + rest
}

/// Every piece: the label of an object, or the fault and the text that has it.
#[derive(Debug, PartialEq)]
enum Piece {
    Is(&'static str),
    Not(Fault, &'static str),
}
use Fault::*;
use Piece::{Is, Not};

/// Answers that are malformed in at least one piece, as they are to be read.
const MALFORMED: &[(&str, &[Piece])] = &[
    // No box.
    ("a cat on a sofa", &[Not(NoBox, "a cat on a sofa")]),
    ("cat", &[Not(NoBox, "cat")]),
    (" cat ", &[Not(NoBox, "cat")]),
    ("cat ; dog", &[Not(NoBox, "cat"), Not(NoBox, "dog")]),
    ("猫", &[Not(NoBox, "猫")]),
    ("[0*16]", &[Not(NoBox, "[0*16]")]),
    ("[0*16] cat", &[Not(NoBox, "[0*16] cat")]),
    ("[1]", &[Not(NoBox, "[1]")]),
    ("cat {1 2 3 4}", &[Not(NoBox, "cat {1 2 3 4}")]),
    ("cat{1 2 3 4} cat", &[Not(NoBox, "cat{1 2 3 4} cat")]),
    ("detect cat\n{1 2 3 4} cat", &[Not(NoBox, "detect cat\n{1 2 3 4} cat")]),
    ("<loc> cat", &[Not(NoBox, "<loc> cat")]),
    ("<loc", &[Not(NoBox, "<loc")]),
    ("<loc0001", &[Not(NoBox, "<loc0001")]),
    ("<loc-001> cat", &[Not(NoBox, "<loc-001> cat")]),
    ("<loc+001> cat", &[Not(NoBox, "<loc+001> cat")]),
    ("<loc00 1> cat", &[Not(NoBox, "<loc00 1> cat")]),
    ("<locabcd> cat", &[Not(NoBox, "<locabcd> cat")]),
    ("<LOC0001> cat", &[Not(NoBox, "<LOC0001> cat")]),
    ("<loc٠٠٠١> cat", &[Not(NoBox, "<loc٠٠٠١> cat")]),
    ("< loc0001> cat", &[Not(NoBox, "< loc0001> cat")]),
    ("<pad>{1 2 3 4} cat", &[Not(NoBox, "<pad>{1 2 3 4} cat")]),
    ("1 2 3 4 cat", &[Not(NoBox, "1 2 3 4 cat")]),
    // Too few or too many locations.
    ("{1}", &[Not(Locations(1), "{1}")]),
    ("{1} cat", &[Not(Locations(1), "{1} cat")]),
    ("{1 2}", &[Not(Locations(2), "{1 2}")]),
    ("{1 2 3}", &[Not(Locations(3), "{1 2 3}")]),
    ("{1 2 3} cat", &[Not(Locations(3), "{1 2 3} cat")]),
    ("{1 2 3 4 5} cat", &[Not(Locations(5), "{1 2 3 4 5} cat")]),
    ("{1 2 3 4 5 6 7 8} cat", &[Not(Locations(8), "{1 2 3 4 5 6 7 8} cat")]),
    ("{1*64}", &[Not(Locations(64), "{1*64}")]),
    ("{1 2 3}[0*16] cat", &[Not(Locations(3), "{1 2 3}[0*16] cat")]),
    ("{1 2}[0*3]", &[Not(Locations(2), "{1 2}[0*3]")]),
    ("{1 2 3}  ", &[Not(Locations(3), "{1 2 3}")]),
    ("{1 2 3 4} cat ; <loc00", &[Is("cat"), Not(NoBox, "<loc00")]),
    ("{1 2 3 4} cat ; {1 2}", &[Is("cat"), Not(Locations(2), "{1 2}")]),
    ("{1 2 3 4} cat ; {1 2 3}<loc00", &[Is("cat"), Not(Locations(3), "{1 2 3}<loc00")]),
    // Too few or too many codes.
    ("{1 2 3 4}[0] cat", &[Not(Codes(1), "{1 2 3 4}[0] cat")]),
    ("{1 2 3 4}[0*15] cat", &[Not(Codes(15), "{1 2 3 4}[0*15] cat")]),
    ("{1 2 3 4}[0*17] cat", &[Not(Codes(17), "{1 2 3 4}[0*17] cat")]),
    ("{1 2 3 4}[0*32] cat", &[Not(Codes(32), "{1 2 3 4}[0*32] cat")]),
    ("{1 2 3 4}[0*15]", &[Not(Codes(15), "{1 2 3 4}[0*15]")]),
    ("{1 2 3 4}[0*7] ; {1 2 3 4} b", &[Not(Codes(7), "{1 2 3 4}[0*7]"), Is("b")]),
    ("{1 2 3 4}[0*15]<seg", &[Not(Codes(15), "{1 2 3 4}[0*15]<seg")]),
    ("{1 2 3 4}[0*15]<seg> cat", &[Not(Codes(15), "{1 2 3 4}[0*15]<seg> cat")]),
    ("{1 2 3 4} cat ; {1 2 3 4}[9*8]", &[Is("cat"), Not(Codes(8), "{1 2 3 4}[9*8]")]),
    // Tokens behind their place.
    ("{1 2 3 4} cat {5 6 7 8} dog", &[Not(Misplaced, "{1 2 3 4} cat {5 6 7 8} dog")]),
    ("{1 2 3 4} {5 6 7 8}", &[Not(Misplaced, "{1 2 3 4} {5 6 7 8}")]),
    ("{1 2} {3 4} cat", &[Not(Locations(2), "{1 2} {3 4} cat")]),
    ("{1 2 3 4} [0*16] cat", &[Not(Misplaced, "{1 2 3 4} [0*16] cat")]),
    ("{1 2 3 4} cat [0*16]", &[Not(Misplaced, "{1 2 3 4} cat [0*16]")]),
    ("{1 2 3 4}[0*16]{5} cat", &[Not(Misplaced, "{1 2 3 4}[0*16]{5} cat")]),
    ("{1 2 3 4}[0*16] cat[3]", &[Not(Misplaced, "{1 2 3 4}[0*16] cat[3]")]),
    ("{1 2 3 4} cat{5}", &[Not(Misplaced, "{1 2 3 4} cat{5}")]),
    ("{1 2 3 4} <<loc0005>", &[Not(Misplaced, "{1 2 3 4} <{5}")]),
    ("{1 2 3 4} 猫{5}猫", &[Not(Misplaced, "{1 2 3 4} 猫{5}猫")]),
    ("{1 2 3 4}[1*16][2*0]{1 2 3 4}", &[Not(Misplaced, "{1 2 3 4}[1*16]{1 2 3 4}")]),
    // Numbers that there are not.
    ("<loc1024>{2 3 4} cat", &[Not(UnknownToken, "<loc1024>{2 3 4} cat")]),
    ("{1 2 3}<loc1024> cat", &[Not(UnknownToken, "{1 2 3}<loc1024> cat")]),
    ("{1 2 3}<loc9999> cat", &[Not(UnknownToken, "{1 2 3}<loc9999> cat")]),
    ("{1 2 3}<loc004> cat", &[Not(UnknownToken, "{1 2 3}<loc004> cat")]),
    ("{1 2 3}<loc00004> cat", &[Not(UnknownToken, "{1 2 3}<loc00004> cat")]),
    (
        "{1 2 3}<loc99999999999999999999999> cat",
        &[Not(UnknownToken, "{1 2 3}<loc99999999999999999999999> cat")],
    ),
    ("{1 2 3 4}[0*15]<seg128> cat", &[Not(UnknownToken, "{1 2 3 4}[0*15]<seg128> cat")]),
    ("{1 2 3 4}[0*15]<seg0000> cat", &[Not(UnknownToken, "{1 2 3 4}[0*15]<seg0000> cat")]),
    ("{1 2 3 4}<seg1>", &[Not(UnknownToken, "{1 2 3 4}<seg1>")]),
    ("{1 2 3 4} cat <loc1024>", &[Not(UnknownToken, "{1 2 3 4} cat <loc1024>")]),
    ("{1 2 3 4} cat <seg500>", &[Not(UnknownToken, "{1 2 3 4} cat <seg500>")]),
    // The label.
    ("{1 2 3 4}cat", &[Not(NoSpace, "{1 2 3 4}cat")]),
    ("{1 2 3 4}[0*16]cat", &[Not(NoSpace, "{1 2 3 4}[0*16]cat")]),
    ("{1 2 3 4}, cat", &[Not(NoSpace, "{1 2 3 4}, cat")]),
    ("{1 2 3 4}猫", &[Not(NoSpace, "{1 2 3 4}猫")]),
    ("{1 2 3 4}<seg", &[Not(NoSpace, "{1 2 3 4}<seg")]),
    ("{1 2 3 4}<loc00", &[Not(NoSpace, "{1 2 3 4}<loc00")]),
    ("{1 2 3 4}<eos>", &[Not(NoSpace, "{1 2 3 4}<eos>")]),
    ("{1 2 3 4} black\ncat", &[Not(ControlCharacter, "{1 2 3 4} black\ncat")]),
    ("{1 2 3 4}\n{5 6 7 8}", &[Not(Misplaced, "{1 2 3 4}\n{5 6 7 8}")]),
    ("{1 2 3 4}\ncat", &[Not(ControlCharacter, "{1 2 3 4}\ncat")]),
    ("{1 2 3 4}\tcat", &[Not(ControlCharacter, "{1 2 3 4}\tcat")]),
    ("{1 2 3 4} c\0at", &[Not(ControlCharacter, "{1 2 3 4} c\0at")]),
    ("{1 2 3 4} c\u{7f}at", &[Not(ControlCharacter, "{1 2 3 4} c\u{7f}at")]),
    ("{1 2 3 4} cat\r\ndog", &[Not(ControlCharacter, "{1 2 3 4} cat\r\ndog")]),
    // The box.
    ("{3 2 1 4} cat", &[Not(Inverted, "{3 2 1 4} cat")]),
    ("{1 4 3 2} cat", &[Not(Inverted, "{1 4 3 2} cat")]),
    ("{3 4 1 2} cat", &[Not(Inverted, "{3 4 1 2} cat")]),
    ("{1023 1023 0 0} cat", &[Not(Inverted, "{1023 1023 0 0} cat")]),
    ("{1 4 1 2} cat", &[Not(Inverted, "{1 4 1 2} cat")]),
    ("{1 2 1 4} cat", &[Not(NoArea, "{1 2 1 4} cat")]),
    ("{1 2 3 2} cat", &[Not(NoArea, "{1 2 3 2} cat")]),
    ("{0 0 0 0}", &[Not(NoArea, "{0 0 0 0}")]),
    ("{5 5 5 5}[0*16] cat", &[Not(NoArea, "{5 5 5 5}[0*16] cat")]),
    ("{9 2 3 4}[0*16]", &[Not(Inverted, "{9 2 3 4}[0*16]")]),
    // Separators.
    (";", &[Not(Empty, ""), Not(Empty, "")]),
    (" ; ", &[Not(Empty, ""), Not(Empty, "")]),
    ("{1 2 3 4} cat ;", &[Is("cat"), Not(Empty, "")]),
    ("{1 2 3 4} cat ; ", &[Is("cat"), Not(Empty, "")]),
    ("; {1 2 3 4} cat", &[Not(Empty, ""), Is("cat")]),
    ("{1 2 3 4} a ;; {1 2 3 4} b", &[Is("a"), Not(Empty, ""), Is("b")]),
    ("{1 2 3 4} a ; ; {1 2 3 4} b", &[Is("a"), Not(Empty, ""), Is("b")]),
    ("{1 2 3 4} a , {1 2 3 4} b", &[Not(Misplaced, "{1 2 3 4} a , {1 2 3 4} b")]),
    ("{1 2 3 4} a ； {1 2 3 4} b", &[Not(Misplaced, "{1 2 3 4} a ； {1 2 3 4} b")]),
    ("{1 2 3 4} a ; b", &[Is("a"), Not(NoBox, "b")]),
    ("a ; {1 2 3 4} b", &[Not(NoBox, "a"), Is("b")]),
    ("{1 2 3 4} a ; {3 2 1 4} b ; {1 2 3 4} c", &[Is("a"), Not(Inverted, "{3 2 1 4} b"), Is("c")]),
];

#[test]
fn a_hundred_malformed_answers_are_read_as_written_down() {
    assert!(MALFORMED.len() >= 100, "{}", MALFORMED.len());
    for (short, pieces) in MALFORMED {
        let text = expand(short);
        let parsed = parse_answer(&text);
        let mut objects = parsed.objects.iter();
        let mut malformed = parsed.malformed.iter();
        let mut end = 0;
        for piece in *pieces {
            let at = match piece {
                Is(label) => {
                    let found = objects.next().unwrap_or_else(|| panic!("{text}: {parsed:?}"));
                    assert_eq!(found.object.label, *label, "{text}");
                    found.at.clone()
                }
                Not(fault, piece) => {
                    let found = malformed.next().unwrap_or_else(|| panic!("{text}: {parsed:?}"));
                    assert_eq!((found.fault, &text[found.at.clone()]), (*fault, &*expand(piece)), "{text}");
                    found.at.clone()
                }
            };
            assert!(at.start >= end, "{text}: {parsed:?}");
            end = at.end;
        }
        assert!(objects.next().is_none() && malformed.next().is_none(), "{text}: {parsed:?}");
        assert!(parsed.malformed.iter().all(|m| !m.fault.to_string().is_empty()));
    }
}

#[test]
fn good_answers() {
    let check = |short: &str, labels: &[&str]| {
        let parsed = parse_answer(&expand(short));
        assert!(parsed.malformed.is_empty(), "{short}: {parsed:?}");
        assert_eq!(parsed.objects.iter().map(|f| f.object.label.as_str()).collect::<Vec<_>>(), labels);
    };
    check("", &[]);
    check(" \n ", &[]);
    check("{1 2 3 4}", &[""]);
    check("{1 2 3 4}[0*16]", &[""]);
    check("{1 2 3 4} ; {1 2 3 4}", &["", ""]);
    check("{1 2 3 4} cat", &["cat"]);
    check("{1 2 3 4} cat\n", &["cat"]);
    check("{1 2 3 4} black cat;{5 6 7 8}[0*16]  dog ", &["black cat", "dog"]);
    check(
        "{1 2 3 4} 黒い猫 ; {1 2 3 4} l'œil gauche ; {0 0 1023 1023} a < b > c",
        &["黒い猫", "l'œil gauche", "a < b > c"],
    );
    check("{1 2 3 4} <loc> <locx> <seg", &["<loc> <locx> <seg"]);
}

/// A generator of any objects that can be written.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }

    fn pair(&mut self) -> (u16, u16) {
        let (a, b) = (self.below(1023) as u16, self.below(1023) as u16);
        (a.min(b), a.max(b) + 1)
    }

    fn object(&mut self) -> Object {
        const LETTERS: &[char] = &[
            'a', 'Z', '0', ' ', '\'', '"', '-', '.', ',', '<', '>', '&', 'é', 'ß', '猫', 'ي', 'и', '😀',
            '\u{301}', '；',
        ];
        let ((y_min, y_max), (x_min, x_max)) = (self.pair(), self.pair());
        let label: String = (0..self.below(12)).map(|_| LETTERS[self.below(LETTERS.len())]).collect();
        let codes = (self.below(2) == 0).then(|| [(); NUM_CODES].map(|()| self.below(128) as u8));
        Object { bins: Bins { y_min, x_min, y_max, x_max }, codes, label: label.trim().to_owned() }
    }
}

#[test]
fn ten_thousand_answers_come_back_as_they_were() {
    let mut random = Random(7);
    for _ in 0..10_000 {
        let objects: Vec<Object> = (0..random.below(6)).map(|_| random.object()).collect();
        let text = write_answer(&objects).unwrap();
        let parsed = parse_answer(&text);
        assert!(parsed.malformed.is_empty(), "{text}: {parsed:?}");
        let read: Vec<Object> = parsed.objects.into_iter().map(|found| found.object).collect();
        assert_eq!(read, objects, "{text}");
        assert_eq!(write_answer(&read).unwrap(), text);
    }
}
