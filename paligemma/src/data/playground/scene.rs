//! What stands in a picture of the playground, before anything is drawn. Lengths are parts of the picture's side.

use super::Split;
use super::colours::{COLOURS, distance};
use super::dice::Dice;
use super::letters;
use super::things::THINGS;

/// What is in a picture.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scene {
    pub(super) ground: Ground,
    /// From the farthest to the nearest.
    pub(super) items: Vec<Item>,
    /// In front of all items, in the order in which one reads.
    pub(super) signs: Vec<Sign>,
    pub(super) chart: Option<Chart>,
    /// Of what changes nothing that could be said: tints, shadows, grass, noise.
    pub(super) dressing: u64,
}

/// What is behind everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ground {
    /// A colour, by number.
    Plain(usize),
    Checked(usize),
    Meadow,
    Sea,
    Beach,
    Snow,
    Night,
    Room,
    /// Land seen from above.
    Land,
}

/// A thing at its place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Item {
    /// Its number in [`THINGS`].
    pub(super) thing: usize,
    /// Its number in [`COLOURS`].
    pub(super) colour: usize,
    pub(super) texture: Texture,
    /// Its middle: x, y.
    pub(super) at: [f32; 2],
    /// Half the side of its square.
    pub(super) radius: f32,
    /// Wider and lower, by this factor.
    pub(super) stretch: f32,
    /// In degrees.
    pub(super) turn: f32,
    pub(super) is_flipped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Texture {
    Plain,
    Striped,
    Dotted,
}

/// Something written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sign {
    pub(super) text: String,
    pub(super) font: usize,
    /// Its middle: x, y.
    pub(super) at: [f32; 2],
    /// Of a capital letter.
    pub(super) height: f32,
    /// In degrees.
    pub(super) turn: f32,
    /// The board's colour by number; none: the letters stand on the ground.
    pub(super) board: Option<usize>,
    /// The letters' colour by number.
    pub(super) ink: usize,
}

/// A drawing of numbers; it stands alone in its picture.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Chart {
    /// Colour and value, 1 to 9; the axis goes to 10.
    Bars(Vec<(usize, usize)>),
    /// A hand on a scale from 0 to 10.
    Gauge(usize),
    /// Hour, 1 to 12, and whether half an hour more.
    Clock(usize, bool),
}

/// What is kept free for something: its middle, half its width and height.
#[derive(Debug, Clone, Copy)]
struct Space {
    at: [f32; 2],
    half: [f32; 2],
    is_round: bool,
}

/// Whether this colour of this thing is in the compositional split alone: two of eleven colours, others for each thing.
pub(super) fn is_held_out(thing: usize, colour: usize) -> bool {
    (thing * 7 + colour * 3) % COLOURS.len() < 2
}

/// A colour that a thing may have in a split.
pub(super) fn colour_of(dice: &mut Dice, split: Split, thing: usize) -> usize {
    let is_there = |colour: &usize| is_held_out(thing, *colour) == (split == Split::Compositional);
    let colours: Vec<usize> = (0..COLOURS.len()).filter(is_there).collect();
    dice.pick(&colours)
}

/// Radii of `n` items: the least and the greatest.
fn radii(n: usize) -> (f32, f32) {
    match n {
        0 | 1 => (0.18, 0.40),
        2 => (0.14, 0.29),
        3 => (0.12, 0.23),
        4 => (0.11, 0.19),
        5 | 6 => (0.095, 0.15),
        _ => (0.075, 0.115),
    }
}

/// Which thing, in which colour and texture.
pub(super) type Look = (usize, usize, Texture);

impl Scene {
    /// Up to `most` things of several kinds, some of them twice.
    pub(super) fn still(dice: &mut Dice, split: Split, least: usize, most: usize) -> Scene {
        let n = dice.in_range(least, most);
        let mut looks: Vec<Look> = Vec::new();
        while looks.len() < n {
            let thing = if !looks.is_empty() && dice.chance(0.22) {
                looks[dice.below(looks.len())].0
            } else {
                dice.below(THINGS.len())
            };
            looks.push((thing, colour_of(dice, split, thing), texture(dice)));
        }
        Scene::of(dice, &looks)
    }

    /// `n` of one kind, and some others.
    pub(super) fn crowd(dice: &mut Dice, split: Split, n: usize) -> Scene {
        let thing = dice.below(THINGS.len());
        let (colour, same_colour) = (colour_of(dice, split, thing), dice.chance(0.6));
        let same_texture = texture(dice);
        let mut looks = Vec::new();
        for _ in 0..n {
            let colour = if same_colour { colour } else { colour_of(dice, split, thing) };
            looks.push((thing, colour, same_texture));
        }
        for _ in 0..dice.below(4) {
            let other = dice.below(THINGS.len());
            if other != thing {
                looks.push((other, colour_of(dice, split, other), texture(dice)));
            }
        }
        dice.shuffle(&mut looks);
        Scene::of(dice, &looks)
    }

    /// One to `most` words and up to two things.
    pub(super) fn written(dice: &mut Dice, split: Split, most: usize) -> Scene {
        let n = dice.in_range(1, most);
        let mut signs = Vec::new();
        let mut taken = Vec::new();
        for i in 0..n {
            // Each in a band of its own, so that it is plain in which order they are read.
            let band = [i as f32 / n as f32, 1.0 / n as f32];
            let sign = sign(dice, band, if n == 1 { 0.26 } else { 0.6 / n as f32 });
            taken.push(space_of(&sign));
            signs.push(sign);
        }
        let mut looks = Vec::new();
        for _ in 0..dice.below(if n < 3 { 3 } else { 2 }) {
            let thing = dice.below(THINGS.len());
            looks.push((thing, colour_of(dice, split, thing), texture(dice)));
        }
        let mut scene = Scene::placed(dice, &looks, taken);
        let ground = scene.ground.rgb();
        for sign in &mut signs {
            ink(dice, sign, ground);
        }
        scene.signs = signs;
        scene
    }

    /// A chart alone.
    pub(super) fn chart(dice: &mut Dice) -> Scene {
        let chart = match dice.below(3) {
            0 => {
                let mut colours: Vec<usize> =
                    (0..COLOURS.len()).filter(|&c| COLOURS[c].en != "white").collect();
                dice.shuffle(&mut colours);
                let n = dice.in_range(2, 5);
                let mut values: Vec<usize> = (1..=9).collect();
                dice.shuffle(&mut values);
                Chart::Bars(colours.into_iter().zip(values).take(n).collect())
            }
            1 => Chart::Gauge(dice.in_range(0, 10)),
            _ => Chart::Clock(dice.in_range(1, 12), dice.chance(0.5)),
        };
        let ground = Ground::Plain(dice.pick(&[2, 4, 6, 9, 10]));
        Scene { ground, items: Vec::new(), signs: Vec::new(), chart: Some(chart), dressing: dice.seed() }
    }

    /// Things on a ground on which all are seen. Those for which there is no room are left out.
    pub(super) fn of(dice: &mut Dice, looks: &[Look]) -> Scene {
        Scene::placed(dice, looks, Vec::new())
    }

    /// The same, beside what has taken its space already.
    fn placed(dice: &mut Dice, looks: &[Look], taken: Vec<Space>) -> Scene {
        let ground = ground(dice, looks);
        let mut scene =
            Scene { ground, items: Vec::new(), signs: Vec::new(), chart: None, dressing: dice.seed() };
        // Some pictures are heaps: things hide a part of others.
        let closeness = if taken.is_empty() && dice.chance(0.3) { 0.78 } else { 1.04 };
        let (least, greatest) = radii(looks.len() + 2 * taken.len());
        let mut spaces = taken;
        for &(thing, colour, texture) in looks {
            let mut radius = dice.between(least, greatest);
            for _ in 0..40 {
                let margin = radius * 0.98;
                let at = [dice.between(margin, 1.0 - margin), dice.between(margin, 1.0 - margin)];
                let space = Space { at, half: [radius; 2], is_round: true };
                if spaces.iter().all(|other| are_apart(&space, other, closeness)) {
                    spaces.push(space);
                    let turn = if dice.chance(0.5) { 0.0 } else { dice.between(-20.0, 20.0) };
                    scene.items.push(Item {
                        thing,
                        colour,
                        texture,
                        at,
                        radius,
                        stretch: dice.between(0.88, 1.13),
                        turn,
                        is_flipped: dice.chance(0.5),
                    });
                    break;
                }
                radius = (radius * 0.97).max(least * 0.85);
            }
        }
        scene
    }
}

fn texture(dice: &mut Dice) -> Texture {
    [Texture::Plain, Texture::Striped, Texture::Dotted][dice.weighted(&[0.7, 0.15, 0.15])]
}

/// A ground on which everything is seen.
fn ground(dice: &mut Dice, looks: &[Look]) -> Ground {
    let mut best = (-1.0, Ground::Plain(9));
    for _ in 0..4 {
        let ground = match dice.below(12) {
            0..=4 => Ground::Plain(dice.below(COLOURS.len())),
            5 => Ground::Checked(dice.below(COLOURS.len())),
            6 => Ground::Meadow,
            7 => Ground::Sea,
            8 => Ground::Beach,
            9 => Ground::Snow,
            10 => Ground::Night,
            _ => Ground::Room,
        };
        let contrast = |&(_, colour, _): &Look| distance(COLOURS[colour].rgb, ground.rgb());
        let least = looks.iter().map(contrast).fold(260.0, f32::min);
        if least > best.0 {
            best = (least, ground);
        }
    }
    best.1
}

impl Ground {
    /// About its colour: grounds are paler or darker than things.
    pub(super) fn rgb(self) -> [u8; 3] {
        match self {
            Ground::Plain(colour) | Ground::Checked(colour) => PALE[colour],
            Ground::Meadow => [142, 190, 104],
            Ground::Sea => [70, 140, 186],
            Ground::Beach => [236, 214, 164],
            Ground::Snow => [232, 238, 246],
            Ground::Night => [26, 32, 62],
            Ground::Room => [196, 170, 140],
            Ground::Land => [150, 176, 112],
        }
    }
}

/// The colours as grounds have them: their names still fit, and things stand out.
const PALE: [[u8; 3]; 11] = [
    [168, 54, 54],
    [240, 176, 110],
    [250, 234, 150],
    [134, 196, 140],
    [140, 180, 232],
    [170, 132, 200],
    [248, 196, 218],
    [146, 108, 78],
    [24, 24, 28],
    [250, 250, 248],
    [178, 182, 188],
];

fn are_apart(a: &Space, b: &Space, closeness: f32) -> bool {
    let d = [(a.at[0] - b.at[0]).abs(), (a.at[1] - b.at[1]).abs()];
    let reach = [a.half[0] + b.half[0], a.half[1] + b.half[1]];
    if a.is_round && b.is_round {
        d[0].hypot(d[1]) >= reach[0] * closeness
    } else {
        d[0] >= reach[0] * closeness || d[1] >= reach[1] * closeness
    }
}

fn space_of(sign: &Sign) -> Space {
    let half = [sign.height * (letters::width(sign.font, &sign.text) / 2.0 + 0.6), sign.height * 1.2];
    Space { at: sign.at, half, is_round: false }
}

/// A word within a band of the picture (its top and height), with letters of at most `highest`.
fn sign(dice: &mut Dice, [top, depth]: [f32; 2], highest: f32) -> Sign {
    let text = word(dice);
    let font = dice.below(letters::NUM_FONTS);
    let wide = letters::width(font, &text) + 1.2;
    let highest = highest.min(0.96 / wide).min(depth / 2.3);
    let height = dice.between((highest * 0.6).max(0.075).min(highest), highest);
    let half = [height * wide / 2.0, height * 1.1];
    let inside = |dice: &mut Dice, low: f32, high: f32| {
        if high > low { dice.between(low, high) } else { (low + high) / 2.0 }
    };
    let at = [inside(dice, half[0], 1.0 - half[0]), inside(dice, top + half[1], top + depth - half[1])];
    let turn = if dice.chance(0.7) { 0.0 } else { dice.between(-6.0, 6.0) };
    let board = dice.chance(0.6).then(|| dice.below(COLOURS.len()));
    Sign { text, font, at, height, turn, board, ink: 8 }
}

/// Gives a sign letters that can be read on what is behind them.
fn ink(dice: &mut Dice, sign: &mut Sign, ground: [u8; 3]) {
    let behind = sign.board.map_or(ground, |colour| COLOURS[colour].rgb);
    let clear: Vec<usize> =
        (0..COLOURS.len()).filter(|&c| distance(COLOURS[c].rgb, behind) > 330.0).collect();
    // One of black and white is clear on anything.
    let plain = if distance(COLOURS[8].rgb, behind) > distance(COLOURS[9].rgb, behind) { 8 } else { 9 };
    sign.ink = if clear.is_empty() || dice.chance(0.5) { plain } else { dice.pick(&clear) };
}

/// A word, a number, or something that is no word.
fn word(dice: &mut Dice) -> String {
    let text = match dice.weighted(&[0.72, 0.16, 0.12]) {
        0 => dice.pick(&WORDS).to_owned(),
        1 => {
            let digits = dice.in_range(1, 4);
            let number = dice.below(10usize.pow(digits as u32));
            return number.to_string();
        }
        _ => {
            let mut text = String::new();
            for i in 0..dice.in_range(3, 6) {
                let letters: &[u8] = if i % 2 == 0 { b"bcdfghklmnprstvwz" } else { b"aeiou" };
                text.push(char::from(dice.pick(letters)));
            }
            text
        }
    };
    match dice.below(3) {
        0 => text,
        1 => text.to_uppercase(),
        _ => text[..1].to_uppercase() + &text[1..],
    }
}

/// Words that stand on signs.
const WORDS: [&str; 162] = [
    "open", "stop", "cafe", "exit", "park", "taxi", "bank", "shop", "hotel", "book", "music", "water",
    "fresh", "bread", "milk", "tea", "apple", "lemon", "sugar", "salt", "fish", "north", "south", "east",
    "west", "left", "right", "push", "pull", "sale", "free", "new", "best", "hot", "cold", "ice", "fire",
    "rain", "snow", "wind", "storm", "sun", "moon", "star", "sky", "sea", "river", "lake", "forest",
    "garden", "farm", "barn", "bridge", "road", "street", "lane", "train", "bus", "boat", "plane", "ship",
    "ticket", "gate", "door", "room", "lift", "stairs", "school", "class", "art", "dance", "film", "game",
    "play", "win", "team", "ball", "run", "jump", "swim", "walk", "bike", "ride", "drive", "slow", "fast",
    "quiet", "loud", "happy", "smile", "love", "peace", "home", "house", "family", "friend", "baby", "king",
    "queen", "magic", "dream", "light", "dark", "night", "day", "week", "year", "time", "clock", "gold",
    "silver", "iron", "wood", "stone", "glass", "paper", "pencil", "paint", "color", "blue", "green", "red",
    "black", "white", "pink", "brown", "cat", "dog", "horse", "cow", "sheep", "pig", "duck", "bird", "mouse",
    "bear", "lion", "tiger", "wolf", "fox", "frog", "bee", "ant", "rose", "leaf", "tree", "seed", "corn",
    "rice", "bean", "soup", "cake", "pie", "jam", "honey", "egg", "menu", "lunch", "pizza", "salad", "juice",
    "mint",
];
