//! The things that the playground's pictures show: how each is drawn and what it is called.

use std::sync::LazyLock;

use tiny_skia::Path;

use super::outline::outline;

/// Of a noun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gender {
    Masculine,
    Feminine,
    Neuter,
}
use Gender::{Feminine as F, Masculine as M, Neuter as N};

/// A noun: gender, singular, plural.
pub(super) type Noun = (Gender, &'static str, &'static str);

/// With what a part of a thing is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    /// The thing's colour, with its texture.
    Body,
    /// Its colour, darker.
    Deep,
    /// Its colour, lighter.
    Pale,
    Ink,
    Paper,
    Wood,
    Green,
    Metal,
    Glass,
    Flame,
}
use Fill::{Body, Deep, Flame, Glass, Green, Ink, Metal, Pale, Paper, Wood};

/// A kind of thing.
pub(super) struct Thing {
    /// Names in English, German, French, Spanish; the English gender means nothing.
    pub(super) names: [Noun; 4],
    /// Drawn one over the other, holes by the even-odd rule.
    parts: &'static [(Fill, &'static str)],
}

/// Paths of a thing's parts, in a square of 100 × 100, and all of them in one.
pub(super) struct Outlines {
    pub(super) parts: Vec<(Fill, Path)>,
}

/// The outlines of thing number `i`.
pub(super) fn outlines(i: usize) -> &'static Outlines {
    static ALL: LazyLock<Vec<Outlines>> = LazyLock::new(|| {
        let parts = |thing: &Thing| thing.parts.iter().map(|&(fill, text)| (fill, outline(text))).collect();
        THINGS.iter().map(|thing| Outlines { parts: parts(thing) }).collect()
    });
    &ALL[i]
}

const fn thing(
    en: (&'static str, &'static str),
    de: Noun,
    fr: Noun,
    es: Noun,
    parts: &'static [(Fill, &'static str)],
) -> Thing {
    Thing { names: [(N, en.0, en.1), de, fr, es], parts }
}

/// All things. Their order is part of what a seed means: new ones go to the end.
#[rustfmt::skip]
pub(super) const THINGS: [Thing; 46] = [
    thing(("circle", "circles"), (M, "Kreis", "Kreise"), (M, "cercle", "cercles"), (M, "círculo", "círculos"),
        &[(Body, "O 50 50 45 45")]),
    thing(("square", "squares"), (N, "Quadrat", "Quadrate"), (M, "carré", "carrés"), (M, "cuadrado", "cuadrados"),
        &[(Body, "R 10 10 80 80 3")]),
    thing(("triangle", "triangles"), (N, "Dreieck", "Dreiecke"), (M, "triangle", "triangles"), (M, "triángulo", "triángulos"),
        &[(Body, "M 50 8 L 96 90 L 4 90 Z")]),
    thing(("star", "stars"), (M, "Stern", "Sterne"), (F, "étoile", "étoiles"), (F, "estrella", "estrellas"),
        &[(Body, "M 50 3 L 62 37 L 98 38 L 69 60 L 79 95 L 50 74 L 21 95 L 31 60 L 2 38 L 38 37 Z")]),
    thing(("heart", "hearts"), (N, "Herz", "Herzen"), (M, "cœur", "cœurs"), (M, "corazón", "corazones"),
        &[(Body, "M 50 92 C 10 62 2 44 4 30 C 7 8 38 4 50 28 C 62 4 93 8 96 30 C 98 44 90 62 50 92 Z")]),
    thing(("ring", "rings"), (M, "Ring", "Ringe"), (M, "anneau", "anneaux"), (M, "anillo", "anillos"),
        &[(Body, "O 50 50 45 45 O 50 50 23 23")]),
    thing(("cross", "crosses"), (N, "Kreuz", "Kreuze"), (F, "croix", "croix"), (F, "cruz", "cruces"),
        &[(Body, "M 35 5 L 65 5 L 65 35 L 95 35 L 95 65 L 65 65 L 65 95 L 35 95 L 35 65 L 5 65 L 5 35 L 35 35 Z")]),
    thing(("diamond", "diamonds"), (F, "Raute", "Rauten"), (M, "losange", "losanges"), (M, "rombo", "rombos"),
        &[(Body, "M 50 3 L 88 50 L 50 97 L 12 50 Z")]),
    thing(("hexagon", "hexagons"), (N, "Sechseck", "Sechsecke"), (M, "hexagone", "hexagones"), (M, "hexágono", "hexágonos"),
        &[(Body, "M 27 10 L 73 10 L 96 50 L 73 90 L 27 90 L 4 50 Z")]),
    thing(("moon", "moons"), (M, "Mond", "Monde"), (F, "lune", "lunes"), (F, "luna", "lunas"),
        &[(Body, "M 62 4 C 20 6 4 50 30 80 C 50 100 82 92 92 68 C 66 76 42 60 42 38 C 42 22 50 10 62 4 Z")]),
    thing(("mug", "mugs"), (F, "Tasse", "Tassen"), (F, "tasse", "tasses"), (F, "taza", "tazas"),
        &[(Deep, "M 66 28 C 102 22 104 72 66 72 L 66 62 C 88 62 86 36 66 40 Z"),
          (Body, "M 12 16 L 72 16 L 70 82 Q 69 90 60 90 L 24 90 Q 15 90 14 82 Z"), (Deep, "O 42 17 30 6"), (Wood, "O 42 18 24 4")]),
    thing(("house", "houses"), (N, "Haus", "Häuser"), (F, "maison", "maisons"), (F, "casa", "casas"),
        &[(Deep, "R 68 14 10 22 0"), (Body, "R 16 44 68 48 0"), (Deep, "M 50 6 L 97 46 L 3 46 Z"), (Wood, "R 42 62 17 30 2"),
          (Glass, "R 22 54 13 14 1 R 66 54 13 14 1")]),
    thing(("tree", "trees"), (M, "Baum", "Bäume"), (M, "arbre", "arbres"), (M, "árbol", "árboles"),
        &[(Wood, "M 43 58 L 57 58 L 60 97 L 40 97 Z"), (Body, "M 50 3 C 72 2 80 16 78 24 C 98 28 98 58 78 62 C 66 72 34 72 22 62 C 2 58 2 28 22 24 C 20 16 28 2 50 3 Z")]),
    thing(("fish", "fish"), (M, "Fisch", "Fische"), (M, "poisson", "poissons"), (M, "pez", "peces"),
        &[(Deep, "M 66 50 L 97 24 Q 88 50 97 76 Z"), (Deep, "M 36 30 Q 46 10 62 14 L 58 34 Z"),
          (Body, "M 3 52 C 20 18 60 18 80 50 C 60 82 20 82 3 52 Z"), (Paper, "O 24 44 7 7"), (Ink, "O 24 44 4 4")]),
    thing(("key", "keys"), (M, "Schlüssel", "Schlüssel"), (F, "clé", "clés"), (F, "llave", "llaves"),
        &[(Body, "R 42 43 54 14 2"), (Body, "R 70 55 10 20 1"), (Body, "R 86 55 10 14 1"), (Body, "O 26 50 23 23 O 24 50 10 10")]),
    thing(("car", "cars"), (N, "Auto", "Autos"), (F, "voiture", "voitures"), (M, "coche", "coches"),
        &[(Body, "M 4 70 L 4 52 Q 6 46 20 44 L 32 24 Q 34 20 40 20 L 66 20 Q 71 20 74 24 L 84 44 Q 96 46 96 54 L 96 70 Z"),
          (Glass, "M 30 43 L 39 27 L 50 27 L 50 43 Z M 55 43 L 55 27 L 66 27 L 75 43 Z"), (Ink, "O 25 72 13 13"), (Ink, "O 75 72 13 13"),
          (Metal, "O 25 72 6 6"), (Metal, "O 75 72 6 6")]),
    thing(("boat", "boats"), (N, "Boot", "Boote"), (M, "bateau", "bateaux"), (M, "barco", "barcos"),
        &[(Wood, "R 47 6 5 62 1"), (Paper, "M 54 8 L 90 58 L 54 58 Z"), (Paper, "M 45 18 L 45 58 L 16 58 Z"),
          (Body, "M 4 64 L 96 64 L 80 92 L 20 92 Z")]),
    thing(("flower", "flowers"), (F, "Blume", "Blumen"), (F, "fleur", "fleurs"), (F, "flor", "flores"),
        &[(Green, "R 47 50 6 48 2"), (Green, "M 52 84 Q 60 64 84 62 Q 78 84 52 84 Z"), (Body, "O 50 15 13 13"), (Body, "O 71 30 13 13"),
          (Body, "O 63 54 13 13"), (Body, "O 37 54 13 13"), (Body, "O 29 30 13 13"), (Pale, "O 50 37 14 14"), (Flame, "O 50 37 9 9")]),
    thing(("leaf", "leaves"), (N, "Blatt", "Blätter"), (F, "feuille", "feuilles"), (F, "hoja", "hojas"),
        &[(Body, "M 88 8 C 96 60 70 92 22 84 C 6 40 36 8 88 8 Z"), (Deep, "M 4 98 L 10 96 L 80 22 L 76 19 Z")]),
    thing(("book", "books"), (N, "Buch", "Bücher"), (M, "livre", "livres"), (M, "libro", "libros"),
        &[(Deep, "R 14 8 72 86 4"), (Paper, "R 22 80 60 10 0"), (Body, "R 20 8 66 72 3"), (Paper, "R 34 22 38 10 1"), (Deep, "R 14 8 8 86 3")]),
    thing(("bottle", "bottles"), (F, "Flasche", "Flaschen"), (F, "bouteille", "bouteilles"), (F, "botella", "botellas"),
        &[(Wood, "R 42 2 16 10 2"), (Body, "M 42 10 L 58 10 L 58 30 Q 74 38 74 52 L 74 92 Q 74 97 69 97 L 31 97 Q 26 97 26 92 L 26 52 Q 26 38 42 30 Z"),
          (Paper, "R 31 56 38 24 1")]),
    thing(("umbrella", "umbrellas"), (M, "Schirm", "Schirme"), (M, "parapluie", "parapluies"), (M, "paraguas", "paraguas"),
        &[(Wood, "M 47 50 L 53 50 L 53 86 Q 53 98 40 98 Q 29 98 29 86 L 35 86 Q 35 92 40 92 Q 47 92 47 86 Z"), (Wood, "R 48 2 4 10 1"),
          (Body, "M 3 54 C 4 -4 96 -4 97 54 Q 84 44 74 54 Q 62 44 50 54 Q 38 44 26 54 Q 16 44 3 54 Z")]),
    thing(("hat", "hats"), (M, "Hut", "Hüte"), (M, "chapeau", "chapeaux"), (M, "sombrero", "sombreros"),
        &[(Body, "O 50 76 47 15"), (Body, "M 24 72 L 28 24 Q 50 8 72 24 L 76 72 Q 50 84 24 72 Z"), (Deep, "M 25 60 Q 50 72 75 60 L 76 72 Q 50 84 24 72 Z")]),
    thing(("mushroom", "mushrooms"), (M, "Pilz", "Pilze"), (M, "champignon", "champignons"), (F, "seta", "setas"),
        &[(Paper, "M 38 50 L 62 50 Q 62 76 70 94 L 30 94 Q 38 76 38 50 Z"), (Body, "M 4 54 C 6 -8 94 -8 96 54 Q 50 66 4 54 Z"),
          (Paper, "O 32 32 7 6 O 58 22 8 7 O 74 42 6 5")]),
    thing(("apple", "apples"), (M, "Apfel", "Äpfel"), (F, "pomme", "pommes"), (F, "manzana", "manzanas"),
        &[(Wood, "M 48 26 Q 48 10 56 3 L 61 6 Q 53 14 53 26 Z"), (Green, "M 55 16 Q 66 2 84 8 Q 76 24 55 16 Z"),
          (Body, "M 50 28 C 68 14 95 24 93 54 C 91 82 68 102 50 92 C 32 102 9 82 7 54 C 5 24 32 14 50 28 Z")]),
    thing(("bell", "bells"), (F, "Glocke", "Glocken"), (F, "cloche", "cloches"), (F, "campana", "campanas"),
        &[(Deep, "O 50 10 8 8"), (Deep, "O 50 88 11 9"), (Body, "M 50 10 C 84 10 78 56 92 76 L 92 82 L 8 82 L 8 76 C 22 56 16 10 50 10 Z")]),
    thing(("cloud", "clouds"), (F, "Wolke", "Wolken"), (M, "nuage", "nuages"), (F, "nube", "nubes"),
        &[(Body, "M 22 78 C -2 78 -2 46 22 46 C 20 20 54 12 64 34 C 84 26 96 42 88 52 C 102 58 98 78 82 78 Z")]),
    thing(("balloon", "balloons"), (M, "Ballon", "Ballons"), (M, "ballon", "ballons"), (M, "globo", "globos"),
        &[(Ink, "M 49 70 Q 40 84 50 99 L 52 98 Q 43 84 51 70 Z"), (Deep, "M 50 66 L 58 76 L 42 76 Z"), (Body, "O 50 36 32 34"), (Paper, "O 38 24 6 8")]),
    thing(("rocket", "rockets"), (F, "Rakete", "Raketen"), (F, "fusée", "fusées"), (M, "cohete", "cohetes"),
        &[(Flame, "M 38 78 L 50 99 L 62 78 Z"), (Deep, "M 34 50 L 14 82 L 36 76 Z"), (Deep, "M 66 50 L 86 82 L 64 76 Z"),
          (Body, "M 50 2 C 74 26 72 60 64 80 L 36 80 C 28 60 26 26 50 2 Z"), (Glass, "O 50 38 10 10")]),
    thing(("bird", "birds"), (M, "Vogel", "Vögel"), (M, "oiseau", "oiseaux"), (M, "pájaro", "pájaros"),
        &[(Flame, "M 78 30 L 98 36 L 78 42 Z"), (Wood, "R 44 76 4 20 0 R 56 76 4 20 0"), (Deep, "M 24 54 L 2 40 L 6 66 Z"), (Body, "M 14 56 C 20 34 48 44 54 30 C 58 10 86 12 84 38 C 84 66 70 82 46 82 C 28 82 16 70 14 56 Z"),
          (Deep, "M 28 56 Q 48 44 60 56 Q 50 74 34 70 Z"), (Ink, "O 70 30 4 4")]),
    thing(("lamp", "lamps"), (F, "Lampe", "Lampen"), (F, "lampe", "lampes"), (F, "lámpara", "lámparas"),
        &[(Metal, "R 46 48 8 44 1"), (Metal, "O 50 92 24 6"), (Body, "M 34 6 L 66 6 L 90 54 L 10 54 Z")]),
    thing(("candle", "candles"), (F, "Kerze", "Kerzen"), (F, "bougie", "bougies"), (F, "vela", "velas"),
        &[(Flame, "M 50 2 Q 66 20 50 30 Q 34 20 50 2 Z"), (Ink, "R 49 28 2 8 0"), (Body, "R 34 35 32 54 4"), (Metal, "R 20 86 60 10 4")]),
    thing(("butterfly", "butterflies"), (M, "Schmetterling", "Schmetterlinge"), (M, "papillon", "papillons"), (F, "mariposa", "mariposas"),
        &[(Body, "M 48 50 C 40 10 4 4 6 30 C 8 48 30 52 48 52 Z"), (Body, "M 52 50 C 60 10 96 4 94 30 C 92 48 70 52 52 52 Z"),
          (Deep, "M 48 50 C 24 52 10 66 20 82 C 30 96 46 74 48 54 Z"), (Deep, "M 52 50 C 76 52 90 66 80 82 C 70 96 54 74 52 54 Z"), (Ink, "O 50 50 4 28")]),
    thing(("chair", "chairs"), (M, "Stuhl", "Stühle"), (F, "chaise", "chaises"), (F, "silla", "sillas"),
        &[(Deep, "R 20 56 8 40 1 R 72 56 8 40 1"), (Body, "R 20 4 12 54 3"), (Body, "R 20 48 60 14 3")]),
    thing(("crown", "crowns"), (F, "Krone", "Kronen"), (F, "couronne", "couronnes"), (F, "corona", "coronas"),
        &[(Body, "M 6 22 L 28 52 L 50 10 L 72 52 L 94 22 L 86 88 L 14 88 Z"), (Deep, "R 14 76 72 12 0"), (Paper, "O 50 64 6 6 O 30 66 4 4 O 70 66 4 4")]),
    thing(("letter", "letters"), (M, "Brief", "Briefe"), (F, "lettre", "lettres"), (F, "carta", "cartas"),
        &[(Body, "R 4 20 92 62 3"), (Deep, "M 4 22 L 50 58 L 96 22 L 96 28 L 50 65 L 4 28 Z")]),
    thing(("flag", "flags"), (F, "Fahne", "Fahnen"), (M, "drapeau", "drapeaux"), (F, "bandera", "banderas"),
        &[(Wood, "R 12 4 7 94 2"), (Body, "M 19 8 Q 40 -2 58 8 Q 76 18 94 8 L 94 56 Q 76 66 58 56 Q 40 46 19 56 Z")]),
    thing(("shirt", "shirts"), (N, "Hemd", "Hemden"), (F, "chemise", "chemises"), (F, "camisa", "camisas"),
        &[(Body, "M 34 10 Q 50 24 66 10 L 80 14 L 98 40 L 82 50 L 76 42 L 76 92 L 24 92 L 24 42 L 18 50 L 2 40 L 20 14 Z"),
          (Deep, "M 34 10 Q 50 24 66 10 L 70 12 Q 50 32 30 12 Z")]),
    thing(("pear", "pears"), (F, "Birne", "Birnen"), (F, "poire", "poires"), (F, "pera", "peras"),
        &[(Wood, "M 48 16 Q 48 6 54 1 L 58 4 Q 53 8 53 16 Z"), (Body, "M 50 12 C 66 12 64 36 72 48 C 92 72 76 97 50 97 C 24 97 8 72 28 48 C 36 36 34 12 50 12 Z")]),
    thing(("cat", "cats"), (F, "Katze", "Katzen"), (M, "chat", "chats"), (M, "gato", "gatos"),
        &[(Body, "M 10 8 L 36 22 Q 50 17 64 22 L 90 8 L 92 58 C 90 84 68 94 50 94 C 32 94 10 84 8 58 Z"), (Paper, "O 32 50 10 9 O 68 50 10 9"),
          (Ink, "O 33 51 4 7 O 67 51 4 7"), (Ink, "M 44 66 L 56 66 L 50 73 Z"), (Paper, "R 14 72 18 2 0 R 68 72 18 2 0 R 15 79 16 2 0 R 69 79 16 2 0")]),
    thing(("drop", "drops"), (M, "Tropfen", "Tropfen"), (F, "goutte", "gouttes"), (F, "gota", "gotas"),
        &[(Body, "M 50 3 C 62 30 84 48 84 66 C 84 86 68 97 50 97 C 32 97 16 86 16 66 C 16 48 38 30 50 3 Z")]),
    thing(("drum", "drums"), (F, "Trommel", "Trommeln"), (M, "tambour", "tambours"), (M, "tambor", "tambores"),
        &[(Body, "M 8 30 L 92 30 L 92 76 Q 50 96 8 76 Z"), (Paper, "M 8 32 L 30 82 L 50 36 L 70 82 L 92 32 L 92 40 L 71 88 L 50 44 L 29 88 L 8 40 Z"),
          (Deep, "O 50 30 42 15"), (Paper, "O 50 29 37 12")]),
    thing(("ladder", "ladders"), (F, "Leiter", "Leitern"), (F, "échelle", "échelles"), (F, "escalera", "escaleras"),
        &[(Body, "R 24 2 10 96 2"), (Body, "R 66 2 10 96 2"), (Deep, "R 32 14 36 8 0 R 32 34 36 8 0 R 32 54 36 8 0 R 32 74 36 8 0")]),
    thing(("spoon", "spoons"), (M, "Löffel", "Löffel"), (F, "cuillère", "cuillères"), (F, "cuchara", "cucharas"),
        &[(Body, "M 45 44 L 55 44 L 59 94 Q 50 100 41 94 Z"), (Body, "O 50 27 20 25"), (Deep, "O 50 27 13 17")]),
    thing(("hammer", "hammers"), (M, "Hammer", "Hämmer"), (M, "marteau", "marteaux"), (M, "martillo", "martillos"),
        &[(Wood, "R 44 24 13 74 3"), (Body, "M 14 8 L 74 8 Q 92 10 95 32 L 86 34 Q 82 32 74 32 L 14 32 Z")]),
    thing(("kite", "kites"), (M, "Drachen", "Drachen"), (M, "cerf-volant", "cerfs-volants"), (F, "cometa", "cometas"),
        &[(Ink, "M 49 68 Q 62 80 48 88 Q 44 94 52 99 L 54 97 Q 49 94 52 89 Q 66 80 52 68 Z"), (Body, "M 50 2 L 84 32 L 50 74 L 16 32 Z"), (Deep, "M 50 2 L 84 32 L 50 32 Z M 50 32 L 50 74 L 16 32 Z")]),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn things_fill_their_square_and_have_names_of_their_own() {
        for (i, thing) in THINGS.iter().enumerate() {
            let parts = &outlines(i).parts;
            assert!(parts.iter().any(|part| part.0 == Body), "{}", thing.names[0].1);
            let bounds = parts.iter().filter_map(|part| part.1.compute_tight_bounds());
            let [l, t, r, b] = bounds.fold([100.0f32, 100.0, 0.0, 0.0], |[l, t, r, b], x| {
                [l.min(x.left()), t.min(x.top()), r.max(x.right()), b.max(x.bottom())]
            });
            assert!(
                l >= -1.0 && t >= -1.0 && r <= 101.0 && b <= 101.0,
                "{}: {l} {t} {r} {b}",
                thing.names[0].1
            );
            let (wide, high) = (r - l, b - t);
            assert!(
                wide >= 20.0 && high >= 45.0 && wide.max(high) >= 80.0,
                "{}: {wide} {high}",
                thing.names[0].1
            );
        }
        for lang in 0..4 {
            let names: HashSet<&str> = THINGS.iter().map(|thing| thing.names[lang].1).collect();
            assert_eq!(names.len(), THINGS.len());
        }
    }
}
