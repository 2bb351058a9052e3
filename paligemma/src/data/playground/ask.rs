//! Examples of every task, each from a scene that has what it asks for. Prompts are the paper's, section 3.2.5.

use super::Split;
use super::colours::COLOURS;
use super::dice::Dice;
use super::paint::{shape, visible};
use super::say::{self, Asking, Case, Lang, Named};
use super::scene::{Chart, Ground, Item, Scene, Sign, Texture, colour_of};
use super::things::THINGS;
use crate::image::Mask;
use crate::text::Bins;

/// A task of the playground.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// `caption {lang}`.
    Caption,
    /// `ocr`: one to four words, in reading order, a space between two.
    Ocr,
    /// `answer en`: what one sign says.
    Read,
    /// `answer en`: which colour a thing has.
    Colour,
    /// `answer en`: which thing has a colour or a texture, or which things are there.
    Which,
    /// `answer en`: how many, 0 to 6.
    Count,
    /// `answer en`: whether something is there.
    Presence,
    /// `answer en`: in which of nine parts of the picture.
    Where,
    /// `answer en`: left or right, above or below.
    Relation,
    /// `answer en`: which is larger, of the same colour, more.
    Compare,
    /// `answer en`: bars, gauges, clocks.
    Chart,
    /// `answer en` on two pictures.
    Pair,
    /// `answer en` and `caption en` on four frames.
    Frames,
    /// `question {lang} {answer}`: a question with that answer.
    Question,
    /// `detect {thing} ; {thing}`.
    Detect,
    /// `segment {thing} ; {thing}`.
    Segment,
    /// `caption {box}`: what is in a box.
    Grounded,
    /// A sentence about one of several things; box and mask without a label, as RefCOCO. For transfers.
    Refer,
    /// `answer en` on land seen from above. For transfers.
    Aerial,
}

impl Task {
    /// All tasks, in the order of [`Tasks`].
    pub const ALL: [Task; 19] = [
        Task::Caption,
        Task::Ocr,
        Task::Read,
        Task::Colour,
        Task::Which,
        Task::Count,
        Task::Presence,
        Task::Where,
        Task::Relation,
        Task::Compare,
        Task::Chart,
        Task::Pair,
        Task::Frames,
        Task::Question,
        Task::Detect,
        Task::Segment,
        Task::Grounded,
        Task::Refer,
        Task::Aerial,
    ];

    /// The task of a name.
    pub fn of(name: &str) -> Option<Task> {
        Task::ALL.into_iter().find(|task| task.name() == name)
    }

    /// As `task` in a JSONL file.
    pub fn name(self) -> &'static str {
        match self {
            Task::Caption => "caption",
            Task::Ocr => "ocr",
            Task::Read => "read",
            Task::Colour => "colour",
            Task::Which => "which",
            Task::Count => "count",
            Task::Presence => "presence",
            Task::Where => "where",
            Task::Relation => "relation",
            Task::Compare => "compare",
            Task::Chart => "chart",
            Task::Pair => "pair",
            Task::Frames => "frames",
            Task::Question => "question",
            Task::Detect => "detect",
            Task::Segment => "segment",
            Task::Grounded => "grounded",
            Task::Refer => "refer",
            Task::Aerial => "aerial",
        }
    }

    /// Whether its answers hold masks, so that a codec is needed.
    pub fn needs_masks(self) -> bool {
        matches!(self, Task::Segment | Task::Refer)
    }
}

/// How often each task comes, in the order of [`Task::ALL`].
pub type Tasks = [f32; Task::ALL.len()];

/// The mixture of the first stage. The tasks for transfers are not in it.
pub const MIXTURE: Tasks =
    [14.0, 5.0, 6.0, 9.0, 8.0, 10.0, 6.0, 5.0, 5.0, 4.0, 4.0, 3.0, 2.0, 3.0, 12.0, 10.0, 4.0, 0.0, 0.0];

/// Masks are made, and boxes measured, on a grid of this side, whatever the picture's.
pub(super) const GRID: usize = 256;

/// What is asked about which scenes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    pub(super) scenes: Vec<Scene>,
    pub(super) prefix: String,
    /// Empty if the answer is `objects` with masks.
    pub(super) suffixes: Vec<String>,
    pub(super) lang: Lang,
    /// Objects of the answer, where it has masks: labels and what is seen on the grid.
    pub(super) objects: Vec<(String, Mask)>,
}

/// An example of a task, or none if the dice gave a scene about which it cannot be asked.
pub(super) fn ask(task: Task, split: Split, dice: &mut Dice) -> Option<Asked> {
    match task {
        Task::Caption => caption(split, dice),
        Task::Ocr => ocr(split, dice),
        Task::Read => read(split, dice),
        Task::Colour => colour(split, dice),
        Task::Which => which(split, dice),
        Task::Count => count(split, dice),
        Task::Presence => presence(split, dice),
        Task::Where => place(split, dice),
        Task::Relation => relation(split, dice),
        Task::Compare => compare(split, dice),
        Task::Chart => chart(dice),
        Task::Pair => pair(split, dice),
        Task::Frames => frames(split, dice),
        Task::Question => question(split, dice),
        Task::Detect => detect(split, dice),
        Task::Segment => segment(split, dice),
        Task::Grounded => grounded(split, dice),
        Task::Refer => refer(split, dice),
        Task::Aerial => aerial(dice),
    }
}

fn asked(scene: Scene, lang: Lang, prefix: String, suffixes: Vec<String>) -> Asked {
    Asked { scenes: vec![scene], prefix, suffixes, lang, objects: Vec::new() }
}

/// A question with an English answer.
fn answer(scene: Scene, question: &str, answer: impl Into<String>) -> Asked {
    asked(scene, Lang::En, format!("answer en {question}"), vec![answer.into()])
}

fn yes_no(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

fn name(item: &Item) -> &'static str {
    THINGS[item.thing].names[0].1
}

/// Mostly English.
fn language(dice: &mut Dice) -> Lang {
    Lang::ALL[dice.weighted(&[0.64, 0.12, 0.12, 0.12])]
}

/// Items whose kind is there once.
fn singles(scene: &Scene) -> Vec<Item> {
    let is_single = |item: &&Item| scene.items.iter().filter(|other| other.thing == item.thing).count() == 1;
    scene.items.iter().filter(is_single).copied().collect()
}

fn pick(dice: &mut Dice, items: &[Item]) -> Option<Item> {
    (!items.is_empty()).then(|| dice.pick(items))
}

/// Two different items.
fn pick_two(dice: &mut Dice, items: &[Item]) -> Option<[Item; 2]> {
    let mut items = items.to_vec();
    dice.shuffle(&mut items);
    (items.len() >= 2).then(|| [items[0], items[1]])
}

fn caption(split: Split, dice: &mut Dice) -> Option<Asked> {
    let lang = Lang::ALL[dice.weighted(&[0.55, 0.15, 0.15, 0.15])];
    let scene = match dice.below(6) {
        0 => Scene::written(dice, split, 1),
        1 => {
            let n = dice.in_range(2, 5);
            Scene::crowd(dice, split, n)
        }
        _ => Scene::still(dice, split, 1, 4),
    };
    let suffixes = captions(lang, &scene)?;
    Some(asked(scene, lang, format!("caption {}", lang.code()), suffixes))
}

/// Three ways to say what is there.
fn captions(lang: Lang, scene: &Scene) -> Option<Vec<String>> {
    let said = |name: fn(&Item) -> Named| -> Vec<String> {
        let groups = say::groups(&scene.items, name);
        let mut parts: Vec<String> =
            groups.iter().map(|&(named, n)| say::some(lang, named, n, Case::Nominative)).collect();
        for sign in &scene.signs {
            let word = &sign.text;
            parts.push(match lang {
                Lang::En => format!("the word {word}"),
                Lang::De => format!("das Wort {word}"),
                Lang::Fr => format!("le mot {word}"),
                Lang::Es => format!("la palabra {word}"),
            });
        }
        parts
    };
    let (whole, plain) = (said(Named::whole), said(Named::coloured));
    if whole.is_empty() || whole.len() > 5 {
        return None;
    }
    let (list, ground) = (say::list(lang, &whole), say::ground(lang, scene.ground));
    let first = say::groups(&scene.items, Named::whole).first().map_or(1, |group| group.1);
    let there = match lang {
        Lang::En if first > 1 => format!("there are {list} {ground}"),
        Lang::En => format!("there is {list} {ground}"),
        Lang::De => format!("man sieht hier {} {ground}", say::list(lang, &plain)),
        Lang::Fr => format!("on voit {list} {ground}"),
        Lang::Es => format!("se ve {list} {ground}"),
    };
    // Two single things by where they stand, where that is plain.
    let third = match &scene.items[..] {
        [a, b] if scene.signs.is_empty() && a.thing != b.thing => {
            side_of(a, b).map(|side| beside(lang, side, Named::coloured(a), Named::coloured(b)))
        }
        _ => None,
    };
    let third = third.unwrap_or_else(|| say::list(lang, &plain));
    Some(vec![format!("{list} {ground}"), there, third])
}

/// Where one thing is from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
    Above,
    Below,
}

/// Where `a` is from `b`, if that is plain.
fn side_of(a: &Item, b: &Item) -> Option<Side> {
    let (dx, dy) = (a.at[0] - b.at[0], a.at[1] - b.at[1]);
    let is_plain = |far: f32, near: f32| far.abs() > 0.14 && far.abs() > 1.4 * near.abs();
    if is_plain(dx, dy) {
        Some(if dx < 0.0 { Side::Left } else { Side::Right })
    } else if is_plain(dy, dx) {
        Some(if dy < 0.0 { Side::Above } else { Side::Below })
    } else {
        None
    }
}

/// `a red star to the left of a blue mug`
fn beside(lang: Lang, side: Side, a: Named, b: Named) -> String {
    let words: [&str; 4] = match lang {
        Lang::En => ["to the left of", "to the right of", "above", "below"],
        Lang::De => ["links von", "rechts von", "über", "unter"],
        Lang::Fr => ["à gauche d'", "à droite d'", "au-dessus d'", "au-dessous d'"],
        Lang::Es => ["a la izquierda de", "a la derecha de", "encima de", "debajo de"],
    };
    let first = say::some(lang, a, 1, Case::Nominative);
    let second = say::some(lang, b, 1, if lang == Lang::De { Case::Dative } else { Case::Nominative });
    let gap = if lang == Lang::Fr { "" } else { " " };
    format!("{first} {}{gap}{second}", words[side as usize])
}

fn ocr(split: Split, dice: &mut Dice) -> Option<Asked> {
    let scene = Scene::written(dice, split, 4);
    let text = scene.signs.iter().map(|sign: &Sign| sign.text.as_str()).collect::<Vec<_>>().join(" ");
    Some(asked(scene, Lang::En, "ocr".into(), vec![text]))
}

fn read(split: Split, dice: &mut Dice) -> Option<Asked> {
    let scene = Scene::written(dice, split, 1);
    let text = scene.signs.first()?.text.clone();
    let question = dice.pick(&["What does it say?", "What is written?", "What does the text say?"]);
    Some(answer(scene, question, text))
}

fn colour(split: Split, dice: &mut Dice) -> Option<Asked> {
    let scene = Scene::still(dice, split, 1, 5);
    let item = pick(dice, &singles(&scene))?;
    let lang = language(dice);
    let question = say::question(lang, Asking::Colour, Named::thing(&item));
    Some(Asked { lang, ..answer(scene, &question, COLOURS[item.colour].en) })
}

fn which(split: Split, dice: &mut Dice) -> Option<Asked> {
    let scene = Scene::still(dice, split, 1, 5);
    let item = pick(dice, &scene.items)?;
    let alone = |is_so: &dyn Fn(&Item) -> bool| scene.items.iter().filter(|other| is_so(other)).count() == 1;
    let colour = COLOURS[item.colour].en;
    let question = match dice.below(8) {
        0 | 1 => {
            let mut names: Vec<&str> = scene.items.iter().map(name).collect();
            names.sort_unstable();
            names.dedup();
            let text = names.join(", ");
            return Some(answer(scene, "What objects are in the image?", text));
        }
        2 if scene.items.len() == 1 => "What is this?".to_owned(),
        3 | 4 if item.texture != Texture::Plain && alone(&|other| other.texture == item.texture) => {
            let texture = if item.texture == Texture::Striped { "striped" } else { "dotted" };
            format!("Which object is {texture}?")
        }
        5 => {
            let least = scene
                .items
                .iter()
                .filter(|other| **other != item)
                .map(|other| other.radius)
                .fold(0.0, f32::max);
            if scene.items.len() < 2 || item.radius < 1.3 * least {
                return None;
            }
            "What is the largest object?".to_owned()
        }
        _ if alone(&|other| other.colour == item.colour) => match dice.below(2) {
            0 => format!("What is {colour}?"),
            _ => format!("Which object is {colour}?"),
        },
        _ => return None,
    };
    Some(answer(scene, &question, name(&item)))
}

fn count(split: Split, dice: &mut Dice) -> Option<Asked> {
    let n = dice.weighted(&[0.3, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    if n == 0 {
        let scene = Scene::still(dice, split, 1, 5);
        let thing = dice.below(THINGS.len());
        let is_there = scene.items.iter().any(|item| item.thing == thing);
        let named = Named { thing, colour: None, texture: Texture::Plain };
        return (!is_there).then(|| answer(scene, &say::question(Lang::En, Asking::Count, named), "0"));
    }
    let scene = Scene::crowd(dice, split, n);
    if dice.chance(0.12) {
        let number = scene.items.len();
        return (1..=6)
            .contains(&number)
            .then(|| answer(scene, "How many objects are there?", number.to_string()));
    }
    // Of the kind that is there most often: the crowd.
    let (named, _) = say::groups(&scene.items, Named::thing).into_iter().max_by_key(|group| group.1)?;
    let member = *scene.items.iter().find(|item| named.fits(item))?;
    let named = if dice.chance(0.25) { Named::coloured(&member) } else { named };
    let number = scene.items.iter().filter(|item| named.fits(item)).count();
    let lang = language(dice);
    let question = say::question(lang, Asking::Count, named);
    (number <= 6).then(|| Asked { lang, ..answer(scene, &question, number.to_string()) })
}

fn presence(split: Split, dice: &mut Dice) -> Option<Asked> {
    let scene = Scene::still(dice, split, 1, 5);
    let item = pick(dice, &scene.items)?;
    let lang = language(dice);
    let is_there = dice.chance(0.5);
    let with_colour = dice.chance(0.5);
    let mut named = if with_colour { Named::coloured(&item) } else { Named::thing(&item) };
    if !is_there {
        // With the right thing or the right colour half of the time: a near miss.
        if !with_colour || dice.chance(0.5) {
            named.thing = dice.below(THINGS.len());
        }
        if with_colour {
            named.colour = Some(colour_of(dice, split, named.thing));
        }
        if scene.items.iter().any(|item| named.fits(item)) {
            return None;
        }
    }
    let question = say::question(lang, Asking::Presence, named);
    Some(Asked { lang, ..answer(scene, &question, yes_no(is_there)) })
}

/// The name of the part of the picture that a point lies in, if it lies well inside.
fn part([x, y]: [f32; 2]) -> Option<&'static str> {
    let third = |v: f32| match v {
        v if v < 0.30 => Some(0),
        v if (0.37..0.63).contains(&v) => Some(1),
        v if v > 0.70 => Some(2),
        _ => None,
    };
    const PARTS: [[&str; 3]; 3] = [
        ["top left", "top", "top right"],
        ["left", "center", "right"],
        ["bottom left", "bottom", "bottom right"],
    ];
    Some(PARTS[third(y)?][third(x)?])
}

fn place(split: Split, dice: &mut Dice) -> Option<Asked> {
    let scene = Scene::still(dice, split, 1, 5);
    let item = pick(dice, &singles(&scene))?;
    let part = part(item.at)?;
    let lang = language(dice);
    let question = say::question(lang, Asking::Where, Named::thing(&item));
    Some(Asked { lang, ..answer(scene, &question, part) })
}

fn relation(split: Split, dice: &mut Dice) -> Option<Asked> {
    let scene = Scene::still(dice, split, 2, 5);
    let [a, b] = pick_two(dice, &singles(&scene))?;
    let side = side_of(&a, &b)?;
    let (one, other) = (name(&a), name(&b));
    let is_level = matches!(side, Side::Left | Side::Right);
    let asked = match dice.below(2) {
        0 => {
            let (words, answers) = match is_level {
                true => ("to the left or to the right of", ["left", "right"]),
                false => ("above or below", ["above", "below"]),
            };
            let first = matches!(side, Side::Left | Side::Above);
            answer(scene, &format!("Is the {one} {words} the {other}?"), answers[usize::from(!first)])
        }
        _ => {
            // The side itself or the opposite one.
            let is_so = dice.chance(0.5);
            let asked = match (side, is_so) {
                (Side::Left, true) | (Side::Right, false) => "to the left of",
                (Side::Right, true) | (Side::Left, false) => "to the right of",
                (Side::Above, true) | (Side::Below, false) => "above",
                (Side::Below, true) | (Side::Above, false) => "below",
            };
            answer(scene, &format!("Is the {one} {asked} the {other}?"), yes_no(is_so))
        }
    };
    Some(asked)
}

fn compare(split: Split, dice: &mut Dice) -> Option<Asked> {
    match dice.below(3) {
        0 => {
            let scene = Scene::still(dice, split, 2, 4);
            let [a, b] = pick_two(dice, &singles(&scene))?;
            let ratio = a.radius / b.radius;
            if (0.77..1.3).contains(&ratio) {
                return None;
            }
            let is_larger = dice.chance(0.5);
            let word = if is_larger { "larger" } else { "smaller" };
            let which = if (ratio > 1.0) == is_larger { a } else { b };
            let question = format!("Which is {word}, the {} or the {}?", name(&a), name(&b));
            Some(answer(scene, &question, name(&which)))
        }
        1 => {
            let scene = Scene::still(dice, split, 2, 4);
            let [a, b] = pick_two(dice, &singles(&scene))?;
            let is_same = a.colour == b.colour;
            // Two things seldom have the same colour.
            if !is_same && dice.chance(0.85) {
                return None;
            }
            let question = format!("Are the {} and the {} the same color?", name(&a), name(&b));
            Some(answer(scene, &question, yes_no(is_same)))
        }
        _ => {
            let (a, b) = (dice.below(THINGS.len()), dice.below(THINGS.len()));
            let (n, m) = (dice.in_range(1, 4), dice.in_range(1, 4));
            if a == b || n == m {
                return None;
            }
            let (ca, cb) = (colour_of(dice, split, a), colour_of(dice, split, b));
            let mut looks = vec![(a, ca, Texture::Plain); n];
            looks.extend(vec![(b, cb, Texture::Plain); m]);
            dice.shuffle(&mut looks);
            let scene = Scene::of(dice, &looks);
            let number = |thing: usize| scene.items.iter().filter(|item| item.thing == thing).count();
            let (n, m) = (number(a), number(b));
            let many = |thing: usize| THINGS[thing].names[0].2;
            (n != m).then(|| {
                let question = format!("Are there more {} than {}?", many(a), many(b));
                answer(scene, &question, yes_no(n > m))
            })
        }
    }
}

fn chart(dice: &mut Dice) -> Option<Asked> {
    let scene = Scene::chart(dice);
    let (question, text) = match scene.chart.clone()? {
        Chart::Bars(bars) => {
            let colour = |bar: Option<&(usize, usize)>| bar.map(|bar| COLOURS[bar.0].en.to_owned());
            let one = dice.pick(&bars);
            let name = COLOURS[one.0].en;
            match dice.below(5) {
                0 => ("Which bar is the highest?".to_owned(), colour(bars.iter().max_by_key(|bar| bar.1))?),
                1 => ("Which bar is the lowest?".to_owned(), colour(bars.iter().min_by_key(|bar| bar.1))?),
                2 => ("How many bars are there?".to_owned(), bars.len().to_string()),
                _ => (format!("What is the value of the {name} bar?"), one.1.to_string()),
            }
        }
        Chart::Gauge(value) => ("What does the gauge show?".to_owned(), value.to_string()),
        Chart::Clock(hour, is_half) => {
            ("What time is it?".to_owned(), format!("{hour}:{}", if is_half { "30" } else { "00" }))
        }
    };
    Some(answer(scene, &question, text))
}

fn pair(split: Split, dice: &mut Dice) -> Option<Asked> {
    if dice.chance(0.3) {
        let thing = dice.below(THINGS.len());
        let mut crowds = Vec::new();
        for _ in 0..2 {
            let n = dice.in_range(1, 6);
            let colour = colour_of(dice, split, thing);
            crowds.push(Scene::of(dice, &vec![(thing, colour, Texture::Plain); n]));
        }
        let (n, m) = (crowds[0].items.len(), crowds[1].items.len());
        let many = THINGS[thing].names[0].2;
        let prefix = format!("answer en Which picture has more {many}?");
        let suffixes = vec![if n > m { "first" } else { "second" }.to_owned()];
        return (n != m).then(|| Asked {
            scenes: crowds,
            prefix,
            suffixes,
            lang: Lang::En,
            objects: Vec::new(),
        });
    }
    let scene = Scene::still(dice, split, 2, 4);
    let item = pick(dice, &singles(&scene))?;
    let mut second = scene.clone();
    second.dressing = dice.seed();
    let at = second.items.iter().position(|other| *other == item)?;
    let (question, text) = match dice.below(4) {
        0 => ("Are the two pictures the same?", "yes"),
        1 => {
            second.items.remove(at);
            match dice.below(2) {
                0 => ("Are the two pictures the same?", "no"),
                _ => ("What is missing in the second picture?", name(&item)),
            }
        }
        2 => {
            second.items[at].colour = colour_of(dice, split, item.thing);
            if second.items[at].colour == item.colour {
                return None;
            }
            match dice.below(3) {
                0 => ("Are the two pictures the same?", "no"),
                _ => ("What changed its color?", name(&item)),
            }
        }
        _ => {
            let colour = COLOURS[item.colour].en;
            let question = format!("What color is the {} in the first picture?", name(&item));
            second.items[at].colour = colour_of(dice, split, item.thing);
            let one = answer(scene.clone(), &question, colour);
            return Some(Asked { scenes: vec![scene, second], ..one });
        }
    };
    Some(Asked { scenes: vec![scene.clone(), second], ..answer(scene, question, text) })
}

fn frames(split: Split, dice: &mut Dice) -> Option<Asked> {
    let mut scene = Scene::still(dice, split, 1, 2);
    let mut item = *scene.items.first()?;
    item.radius = item.radius.min(0.18);
    let one = say::some(Lang::En, Named::coloured(&item), 1, Case::Nominative);
    let what = name(&item);
    let (word, said, step, growth) = dice.pick(&[
        ("left", "moves to the left", [-1.0, 0.0], 0.0),
        ("right", "moves to the right", [1.0, 0.0], 0.0),
        ("up", "moves up", [0.0, -1.0], 0.0),
        ("down", "moves down", [0.0, 1.0], 0.0),
        ("it grows", "grows", [0.0, 0.0], 1.0),
        ("it shrinks", "shrinks", [0.0, 0.0], -1.0),
    ]);
    scene.items = vec![item];
    let mut scenes = Vec::new();
    for frame in 0..4 {
        let t = frame as f32 / 3.0;
        let mut scene = scene.clone();
        let moved = &mut scene.items[0];
        for (at, step) in moved.at.iter_mut().zip(step).filter(|(_, step)| *step != 0.0) {
            *at = 0.5 + step * (t - 0.5) * 0.6;
        }
        moved.radius *= if growth == 0.0 { 1.0 } else { 1.0 + growth * (t - 0.5) * 0.9 };
        scenes.push(scene);
    }
    let (prefix, suffixes) = match (dice.below(2), growth == 0.0) {
        (0, _) => ("caption en".to_owned(), vec![format!("{one} {said}"), format!("{one} that {said}")]),
        (_, true) => (format!("answer en Where does the {what} move?"), vec![word.to_owned()]),
        (_, false) => (format!("answer en What happens to the {what}?"), vec![word.to_owned()]),
    };
    Some(Asked { scenes, prefix, suffixes, lang: Lang::En, objects: Vec::new() })
}

fn question(split: Split, dice: &mut Dice) -> Option<Asked> {
    let lang = Lang::ALL[dice.below(4)];
    let (scene, text, named, asking) = match dice.below(3) {
        0 => {
            let n = dice.in_range(2, 6);
            let scene = Scene::crowd(dice, split, n);
            let (named, n) =
                say::groups(&scene.items, Named::thing).into_iter().max_by_key(|group| group.1)?;
            (scene, n.to_string(), vec![named], Asking::Count)
        }
        asking => {
            let scene = Scene::still(dice, split, 1, 4);
            let item = pick(dice, &singles(&scene))?;
            let text = |item: &Item| match asking {
                1 => Some(COLOURS[item.colour].en),
                _ => part(item.at),
            };
            let wanted = text(&item)?;
            let fitting = singles(&scene)
                .iter()
                .filter(|other| text(other) == Some(wanted))
                .map(Named::thing)
                .collect();
            (scene, wanted.to_owned(), fitting, if asking == 1 { Asking::Colour } else { Asking::Where })
        }
    };
    let suffixes = named.into_iter().map(|named| say::question(lang, asking, named)).collect();
    Some(asked(scene, lang, format!("question {} {text}", lang.code()), suffixes))
}

/// One or two names, now and then one of something that is not there, and the items that fit each: in the order of the
/// names, then from left to right.
fn named_items(
    scene: &Scene,
    split: Split,
    dice: &mut Dice,
    most: usize,
) -> Option<Vec<(String, Vec<usize>)>> {
    let first = pick(dice, &scene.items)?;
    let mut names = vec![if dice.chance(0.25) { Named::coloured(&first) } else { Named::thing(&first) }];
    if dice.chance(0.35) {
        let second = pick(dice, &scene.items)?;
        if second.thing != first.thing {
            names.push(Named::thing(&second));
        }
    }
    if dice.chance(0.12) {
        let thing = dice.below(THINGS.len());
        let colour = colour_of(dice, split, thing);
        if scene.items.iter().all(|item| item.thing != thing) {
            let colour = dice.chance(0.25).then_some(colour);
            names.push(Named { thing, colour, texture: Texture::Plain });
        }
    }
    dice.shuffle(&mut names);
    let mut all = 0;
    let mut found = Vec::new();
    for named in names {
        let mut items: Vec<usize> = (0..scene.items.len()).filter(|&i| named.fits(&scene.items[i])).collect();
        items.sort_by(|&a, &b| scene.items[a].at[0].total_cmp(&scene.items[b].at[0]));
        all += items.len();
        found.push((say::phrase(Lang::En, named, 1, ""), items));
    }
    (1..=most).contains(&all).then_some(found)
}

/// What is seen of each item, if enough is seen of all.
fn clear(scene: &Scene) -> Option<Vec<Mask>> {
    let masks = visible(scene, GRID);
    let is_clear = |(mask, item): (&Mask, &Item)| {
        let whole = shape(item, GRID).iter().filter(|&&bit| bit).count();
        mask.area() * 100 >= whole * 45
    };
    masks.iter().zip(&scene.items).all(is_clear).then_some(masks)
}

/// The box around a mask of the grid.
pub(super) fn bins(mask: &Mask) -> Option<Bins> {
    let b = mask.bounds()?;
    Some(Bins::from_pixels([b.x0 as f64, b.y0 as f64, b.x1 as f64, b.y1 as f64], GRID, GRID))
}

fn locations(bins: Bins) -> String {
    [bins.y_min, bins.x_min, bins.y_max, bins.x_max].map(|n| format!("<loc{n:04}>")).concat()
}

/// A scene, the names that are asked for, and what is to be found.
type Hunt = (Scene, String, Vec<(String, Mask)>);

fn found_in(split: Split, dice: &mut Dice, most: usize) -> Option<Hunt> {
    let scene = match dice.chance(0.3) {
        true => {
            let n = dice.in_range(2, most);
            Scene::crowd(dice, split, n)
        }
        false => Scene::still(dice, split, 1, 5),
    };
    let names = named_items(&scene, split, dice, most)?;
    let masks = clear(&scene)?;
    let prompt = names.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ; ");
    let objects = names
        .iter()
        .flat_map(|(name, items)| items.iter().map(|&i| (name.clone(), masks[i].clone())).collect::<Vec<_>>())
        .collect();
    Some((scene, prompt, objects))
}

fn detect(split: Split, dice: &mut Dice) -> Option<Asked> {
    let (scene, prompt, objects) = found_in(split, dice, 6)?;
    let mut parts = Vec::new();
    for (name, mask) in &objects {
        parts.push(format!("{} {name}", locations(bins(mask)?)));
    }
    Some(asked(scene, Lang::En, format!("detect {prompt}"), vec![parts.join(" ; ")]))
}

fn segment(split: Split, dice: &mut Dice) -> Option<Asked> {
    let (scene, prompt, objects) = found_in(split, dice, 3)?;
    let one = asked(scene, Lang::En, format!("segment {prompt}"), Vec::new());
    Some(Asked { objects, ..one })
}

fn grounded(split: Split, dice: &mut Dice) -> Option<Asked> {
    let scene = Scene::still(dice, split, 1, 5);
    let masks = clear(&scene)?;
    let i = dice.below(scene.items.len().max(1));
    let item = *scene.items.get(i)?;
    let prefix = format!("caption {}", locations(bins(&masks[i])?));
    let text = say::some(Lang::En, Named::whole(&item), 1, Case::Nominative);
    Some(asked(scene, Lang::En, prefix, vec![text]))
}

fn refer(split: Split, dice: &mut Dice) -> Option<Asked> {
    let n = dice.in_range(2, 4);
    let scene = Scene::crowd(dice, split, n);
    let masks = clear(&scene)?;
    let i = dice.below(scene.items.len().max(1));
    let item = *scene.items.get(i)?;
    let same: Vec<&Item> =
        scene.items.iter().filter(|other| other.thing == item.thing && **other != item).collect();
    let (what, colour) = (name(&item), COLOURS[item.colour].en);
    let is_most = |far: &dyn Fn(&Item) -> f32, by: f32| same.iter().all(|other| far(&item) > far(other) + by);
    let mut ways = Vec::new();
    if same.is_empty() {
        ways.push(what.to_owned());
    } else {
        if same.iter().all(|other| other.colour != item.colour) {
            ways.push(format!("{colour} {what}"));
        }
        for (is_so, words) in [
            (is_most(&|x| -x.at[0], 0.12), "on the left"),
            (is_most(&|x| x.at[0], 0.12), "on the right"),
            (is_most(&|x| -x.at[1], 0.12), "at the top"),
            (is_most(&|x| x.at[1], 0.12), "at the bottom"),
        ] {
            if is_so {
                ways.push(format!("{what} {words}"));
            }
        }
        if is_most(&|x| x.radius, 0.02) {
            ways.push(format!("largest {what}"));
        }
    }
    if ways.is_empty() {
        return None;
    }
    let prefix = ways.swap_remove(dice.below(ways.len()));
    let one = asked(scene, Lang::En, prefix, Vec::new());
    Some(Asked { objects: vec![(String::new(), masks[i].clone())], ..one })
}

fn aerial(dice: &mut Dice) -> Option<Asked> {
    // Houses, trees, cars and boats; as in the mixture, in colours that are not held out.
    const KINDS: [&str; 4] = ["house", "tree", "car", "boat"];
    let things = KINDS.map(|kind| THINGS.iter().position(|thing| thing.names[0].1 == kind).unwrap_or(0));
    let mut looks = Vec::new();
    for thing in things {
        for _ in 0..dice.below(5) {
            looks.push((thing, colour_of(dice, Split::Train, thing), Texture::Plain));
        }
    }
    dice.shuffle(&mut looks);
    let mut scene = Scene::of(dice, &looks);
    scene.ground = Ground::Land;
    for item in &mut scene.items {
        item.radius *= 0.8;
    }
    let number = |i: usize| scene.items.iter().filter(|item| item.thing == things[i]).count();
    let (i, j) = (dice.below(4), dice.below(4));
    let (one, many) = (THINGS[things[i]].names[0].1, THINGS[things[i]].names[0].2);
    let (question, text) = match dice.below(4) {
        0 => (format!("Is there a {one}?"), yes_no(number(i) > 0).to_owned()),
        1 => (format!("How many {many} are there?"), number(i).to_string()),
        2 if i != j && number(i) != number(j) => {
            let others = THINGS[things[j]].names[0].2;
            (format!("Are there more {many} than {others}?"), yes_no(number(i) > number(j)).to_owned())
        }
        3 => (
            "Is it a rural or an urban area?".to_owned(),
            if number(0) >= 3 { "urban" } else { "rural" }.to_owned(),
        ),
        _ => return None,
    };
    Some(answer(scene, &question, text))
}
