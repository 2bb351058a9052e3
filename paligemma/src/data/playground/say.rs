//! What is seen, said in four languages.

use super::colours::COLOURS;
use super::scene::{Ground, Item, Texture};
use super::things::{Gender, THINGS};
use Gender::{Feminine, Masculine, Neuter};

/// A language of the playground.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lang {
    /// English.
    En,
    /// German.
    De,
    /// French.
    Fr,
    /// Spanish.
    Es,
}
use Lang::{De, En, Es, Fr};

impl Lang {
    /// All four.
    pub const ALL: [Lang; 4] = [En, De, Fr, Es];

    /// As prompts have it.
    pub fn code(self) -> &'static str {
        ["en", "de", "fr", "es"][self as usize]
    }
}

/// What a thing looks like, as far as it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) thing: usize,
    pub(super) colour: Option<usize>,
    /// [`Texture::Plain`] is not said.
    pub(super) texture: Texture,
}

impl Named {
    /// Thing alone.
    pub(super) fn thing(item: &Item) -> Named {
        Named { thing: item.thing, colour: None, texture: Texture::Plain }
    }

    /// Thing and colour.
    pub(super) fn coloured(item: &Item) -> Named {
        Named { colour: Some(item.colour), ..Named::thing(item) }
    }

    /// All that can be said.
    pub(super) fn whole(item: &Item) -> Named {
        Named { texture: item.texture, ..Named::coloured(item) }
    }

    /// Whether an item is so.
    pub(super) fn fits(&self, item: &Item) -> bool {
        self.thing == item.thing
            && self.colour.is_none_or(|colour| colour == item.colour)
            && (self.texture == Texture::Plain || self.texture == item.texture)
    }
}

/// The case of a German noun; others do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    Nominative,
    Dative,
}

/// `a striped red star`, `zwei rote Sterne`: a number of things that were not spoken of.
pub(super) fn some(lang: Lang, named: Named, count: usize, case: Case) -> String {
    let (gender, ..) = THINGS[named.thing].names[lang as usize];
    let article = match (lang, count, gender, case) {
        (En, 1, ..) => {
            let phrase = phrase(En, named, 1, "");
            let is_vowel = phrase.starts_with(['a', 'e', 'i', 'o', 'u']);
            return format!("{} {phrase}", if is_vowel { "an" } else { "a" });
        }
        (De, 1, Feminine, Case::Nominative) => "eine",
        (De, 1, Feminine, Case::Dative) => "einer",
        (De, 1, _, Case::Nominative) => "ein",
        (De, 1, _, Case::Dative) => "einem",
        (Fr, 1, Feminine, _) => "une",
        (Fr, 1, ..) => "un",
        (Es, 1, Feminine, _) => "una",
        (Es, 1, ..) => "un",
        _ => number(lang, count),
    };
    let ending = match (case, count, gender) {
        (Case::Dative, ..) => "en",
        (_, 1, Masculine) => "er",
        (_, 1, Neuter) => "es",
        _ => "e",
    };
    format!("{article} {}", phrase(lang, named, count, ending))
}

/// `the red star`, `der rote Stern`, in the nominative.
pub(super) fn the(lang: Lang, named: Named) -> String {
    let (gender, ..) = THINGS[named.thing].names[lang as usize];
    let phrase = phrase(lang, named, 1, "e");
    match (lang, gender) {
        (En, _) => format!("the {phrase}"),
        (De, Masculine) => format!("der {phrase}"),
        (De, Feminine) => format!("die {phrase}"),
        (De, Neuter) => format!("das {phrase}"),
        (Fr, _) if is_elided(&phrase) => format!("l'{phrase}"),
        (Fr, Feminine) => format!("la {phrase}"),
        (Fr, _) => format!("le {phrase}"),
        (Es, Feminine) => format!("la {phrase}"),
        (Es, _) => format!("el {phrase}"),
    }
}

/// Whether French le, la and de lose their vowel before a word.
fn is_elided(word: &str) -> bool {
    word.starts_with(['a', 'e', 'é', 'h', 'o', 'i', 'u'])
}

/// Noun and adjectives without article; `ending` is that of German adjectives.
pub(super) fn phrase(lang: Lang, named: Named, count: usize, ending: &str) -> String {
    let (gender, singular, plural) = THINGS[named.thing].names[lang as usize];
    let noun = if count == 1 { singular } else { plural };
    let form = usize::from(gender == Feminine) + if count == 1 { 0 } else { 2 };
    let colour = named.colour.map(|i| &COLOURS[i]);
    let texture = match (lang, named.texture) {
        (_, Texture::Plain) => String::new(),
        (En, Texture::Striped) => "striped".into(),
        (En, Texture::Dotted) => "dotted".into(),
        (De, Texture::Striped) => format!("gestreift{ending}"),
        (De, Texture::Dotted) => format!("gepunktet{ending}"),
        (Fr, Texture::Striped) => ["rayé", "rayée", "rayés", "rayées"][form].into(),
        (Fr, Texture::Dotted) => "à pois".into(),
        (Es, Texture::Striped) => ["rayado", "rayada", "rayados", "rayadas"][form].into(),
        (Es, Texture::Dotted) => "de lunares".into(),
    };
    let colour = match (lang, colour) {
        (_, None) => String::new(),
        (En, Some(c)) => c.en.into(),
        // orange and -e: one e.
        (De, Some(c)) if c.de.ends_with('e') => format!("{}{}", c.de, &ending[1..]),
        (De, Some(c)) => format!("{}{ending}", c.de),
        (Fr, Some(c)) => c.fr[form].into(),
        (Es, Some(c)) => c.es[form].into(),
    };
    let words = match lang {
        En | De => [&texture, &colour, noun],
        Fr | Es => [noun, &colour, &texture],
    };
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The word for a number up to 12; digits beyond.
pub(super) fn number(lang: Lang, n: usize) -> &'static str {
    const WORDS: [[&str; 13]; 4] = [
        [
            "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
            "twelve",
        ],
        [
            "kein", "ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf",
            "zwölf",
        ],
        [
            "aucun", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf", "dix", "onze",
            "douze",
        ],
        [
            "ningún", "un", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "diez",
            "once", "doce",
        ],
    ];
    WORDS[lang as usize].get(n).copied().unwrap_or("many")
}

/// `a, b and c`
pub(super) fn list(lang: Lang, parts: &[String]) -> String {
    let and = ["and", "und", "et", "y"][lang as usize];
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} {and} {last}", first.join(", ")),
    }
}

/// `on a green background`, `auf einer Wiese`.
pub(super) fn ground(lang: Lang, ground: Ground) -> String {
    let scenery = |words: [&str; 4]| words[lang as usize].to_owned();
    match ground {
        Ground::Plain(i) => {
            let c = &COLOURS[i];
            match lang {
                En => {
                    let an = if c.en.starts_with('o') { "an" } else { "a" };
                    format!("on {an} {} background", c.en)
                }
                De => format!("vor {}em Hintergrund", c.de.trim_end_matches('e')),
                Fr => format!("sur fond {}", c.fr[0]),
                Es => format!("sobre fondo {}", c.es[0]),
            }
        }
        Ground::Checked(i) => {
            let c = &COLOURS[i];
            match lang {
                En => format!("on a checkered {} background", c.en),
                De => format!("vor kariertem {}em Hintergrund", c.de.trim_end_matches('e')),
                Fr => format!("sur fond {} à carreaux", c.fr[0]),
                Es => format!("sobre fondo {} a cuadros", c.es[0]),
            }
        }
        Ground::Meadow => scenery(["on a meadow", "auf einer Wiese", "dans un pré", "en un prado"]),
        Ground::Sea => scenery(["at sea", "auf dem Meer", "en mer", "en el mar"]),
        Ground::Beach => scenery(["on a beach", "am Strand", "sur une plage", "en una playa"]),
        Ground::Snow => scenery(["in the snow", "im Schnee", "dans la neige", "en la nieve"]),
        Ground::Night => scenery(["at night", "in der Nacht", "dans la nuit", "de noche"]),
        Ground::Room => scenery(["in a room", "in einem Zimmer", "dans une pièce", "en una habitación"]),
        Ground::Land => {
            scenery(["seen from above", "von oben gesehen", "vu d'en haut", "visto desde arriba"])
        }
    }
}

/// Groups of things that are said together, in the order in which they are first met, with their numbers.
pub(super) fn groups(items: &[Item], name: fn(&Item) -> Named) -> Vec<(Named, usize)> {
    let mut groups: Vec<(Named, usize)> = Vec::new();
    for item in items {
        let named = name(item);
        match groups.iter_mut().find(|group| group.0 == named) {
            Some(group) => group.1 += 1,
            None => groups.push((named, 1)),
        }
    }
    groups
}

/// `Is there a …?`, `What color is …?`: questions whose answers are English.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asking {
    Colour,
    Count,
    Presence,
    Where,
}

/// A question in a language.
pub(super) fn question(lang: Lang, asking: Asking, named: Named) -> String {
    let (gender, ..) = THINGS[named.thing].names[lang as usize];
    let many = || phrase(lang, named, 2, "e");
    match (asking, lang) {
        (Asking::Colour, En) => format!("What color is {}?", the(lang, named)),
        (Asking::Colour, De) => format!("Welche Farbe hat {}?", the(lang, named)),
        (Asking::Colour, Fr) => format!("De quelle couleur est {} ?", the(lang, named)),
        (Asking::Colour, Es) => format!("¿De qué color es {}?", the(lang, named)),
        (Asking::Count, En) => format!("How many {} are there?", many()),
        (Asking::Count, De) => format!("Wie viele {} gibt es?", many()),
        (Asking::Count, Fr) if is_elided(&many()) => format!("Combien d'{} y a-t-il ?", many()),
        (Asking::Count, Fr) => format!("Combien de {} y a-t-il ?", many()),
        (Asking::Count, Es) if gender == Feminine => format!("¿Cuántas {} hay?", many()),
        (Asking::Count, Es) => format!("¿Cuántos {} hay?", many()),
        (Asking::Presence, En) => format!("Is there {}?", some(lang, named, 1, Case::Nominative)),
        (Asking::Presence, De) => {
            // The accusative, which differs in the masculine alone.
            let one = some(lang, named, 1, Case::Nominative);
            let one = match gender {
                Masculine => format!("einen {}", phrase(lang, named, 1, "en")),
                _ => one,
            };
            format!("Gibt es {one}?")
        }
        (Asking::Presence, Fr) => format!("Y a-t-il {} ?", some(lang, named, 1, Case::Nominative)),
        (Asking::Presence, Es) => format!("¿Hay {}?", some(lang, named, 1, Case::Nominative)),
        (Asking::Where, En) => format!("Where is {}?", the(lang, named)),
        (Asking::Where, De) => format!("Wo ist {}?", the(lang, named)),
        (Asking::Where, Fr) => format!("Où est {} ?", the(lang, named)),
        (Asking::Where, Es) => format!("¿Dónde está {}?", the(lang, named)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By English names.
    fn named(thing: &str, colour: &str, texture: Texture) -> Named {
        Named {
            thing: THINGS.iter().position(|t| t.names[0].1 == thing).unwrap(),
            colour: COLOURS.iter().position(|c| c.en == colour),
            texture,
        }
    }

    #[test]
    fn nouns_have_their_articles_and_adjectives_their_endings() {
        let star = named("star", "orange", Texture::Striped);
        let cat = named("cat", "white", Texture::Plain);
        let book = named("book", "green", Texture::Dotted);
        let check = |lang: Lang, n: Named, count: usize, want: &str| {
            assert_eq!(some(lang, n, count, Case::Nominative), want);
        };
        check(En, star, 1, "a striped orange star");
        check(En, named("apple", "", Texture::Plain), 1, "an apple");
        check(En, named("star", "orange", Texture::Plain), 1, "an orange star");
        check(De, star, 1, "ein gestreifter oranger Stern");
        check(De, star, 2, "zwei gestreifte orange Sterne");
        check(De, cat, 1, "eine weiße Katze");
        check(De, book, 1, "ein gepunktetes grünes Buch");
        check(Fr, star, 1, "une étoile orange rayée");
        check(Fr, cat, 3, "trois chats blancs");
        check(Fr, book, 2, "deux livres verts à pois");
        check(Es, star, 2, "dos estrellas naranjas rayadas");
        check(Es, cat, 1, "un gato blanco");
        assert_eq!(some(De, cat, 1, Case::Dative), "einer weißen Katze");
        assert_eq!(some(De, star, 1, Case::Dative), "einem gestreiften orangen Stern");
        let check = |lang: Lang, n: Named, want: &str| assert_eq!(the(lang, n), want);
        check(En, cat, "the white cat");
        check(De, book, "das gepunktete grüne Buch");
        check(De, star, "der gestreifte orange Stern");
        check(Fr, star, "l'étoile orange rayée");
        check(Fr, cat, "le chat blanc");
        check(Es, cat, "el gato blanco");
    }

    #[test]
    fn questions_are_asked_in_four_languages() {
        let tree = named("tree", "", Texture::Plain);
        let check = |lang: Lang, asking: Asking, want: &str| assert_eq!(question(lang, asking, tree), want);
        check(En, Asking::Colour, "What color is the tree?");
        check(De, Asking::Colour, "Welche Farbe hat der Baum?");
        check(Fr, Asking::Count, "Combien d'arbres y a-t-il ?");
        check(Es, Asking::Count, "¿Cuántos árboles hay?");
        check(De, Asking::Presence, "Gibt es einen Baum?");
        check(Fr, Asking::Where, "Où est l'arbre ?");
        check(Es, Asking::Where, "¿Dónde está el árbol?");
    }
}
