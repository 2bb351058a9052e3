//! The colours of things: how they look and what they are called.

/// A colour.
pub(super) struct Colour {
    pub(super) rgb: [u8; 3],
    pub(super) en: &'static str,
    /// Without ending.
    pub(super) de: &'static str,
    /// Masculine, feminine, and the plurals of both.
    pub(super) fr: [&'static str; 4],
    /// The same.
    pub(super) es: [&'static str; 4],
}

const fn colour(
    rgb: [u8; 3],
    en: &'static str,
    de: &'static str,
    fr: [&'static str; 4],
    es: [&'static str; 4],
) -> Colour {
    Colour { rgb, en, de, fr, es }
}

/// All colours. Their order is part of what a seed means.
#[rustfmt::skip]
pub(super) const COLOURS: [Colour; 11] = [
    colour([213, 38, 42], "red", "rot", ["rouge", "rouge", "rouges", "rouges"], ["rojo", "roja", "rojos", "rojas"]),
    colour([243, 130, 24], "orange", "orange", ["orange", "orange", "orange", "orange"], ["naranja", "naranja", "naranjas", "naranjas"]),
    colour([250, 214, 46], "yellow", "gelb", ["jaune", "jaune", "jaunes", "jaunes"], ["amarillo", "amarilla", "amarillos", "amarillas"]),
    colour([48, 158, 70], "green", "grün", ["vert", "verte", "verts", "vertes"], ["verde", "verde", "verdes", "verdes"]),
    colour([44, 104, 214], "blue", "blau", ["bleu", "bleue", "bleus", "bleues"], ["azul", "azul", "azules", "azules"]),
    colour([130, 62, 178], "purple", "violett", ["violet", "violette", "violets", "violettes"], ["morado", "morada", "morados", "moradas"]),
    colour([246, 136, 186], "pink", "pink", ["rose", "rose", "roses", "roses"], ["rosa", "rosa", "rosas", "rosas"]),
    colour([122, 74, 40], "brown", "braun", ["marron", "marron", "marron", "marron"], ["marrón", "marrón", "marrones", "marrones"]),
    colour([36, 36, 42], "black", "schwarz", ["noir", "noire", "noirs", "noires"], ["negro", "negra", "negros", "negras"]),
    colour([246, 246, 242], "white", "weiß", ["blanc", "blanche", "blancs", "blanches"], ["blanco", "blanca", "blancos", "blancas"]),
    colour([140, 144, 152], "gray", "grau", ["gris", "grise", "gris", "grises"], ["gris", "gris", "grises", "grises"]),
];

/// How far two colours lie from each other, about as the eye sees it; 0 to about 760.
pub(super) fn distance(a: [u8; 3], b: [u8; 3]) -> f32 {
    let d = |i: usize| f32::from(a[i]) - f32::from(b[i]);
    let red = (f32::from(a[0]) + f32::from(b[0])) / 512.0;
    ((2.0 + red) * d(0).powi(2) + 4.0 * d(1).powi(2) + (3.0 - red) * d(2).powi(2)).sqrt()
}

/// Towards black (`by` below 0) or white (above), by a part of the way.
pub(super) fn shade(rgb: [u8; 3], by: f32) -> [u8; 3] {
    let to = if by < 0.0 { 0.0 } else { 255.0 };
    rgb.map(|c| (f32::from(c) + (to - f32::from(c)) * by.abs()) as u8)
}
