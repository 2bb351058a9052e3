//! The playground's stream: example `i` of a split and a seed is always the same.

use super::Split;
use super::ask::{Asked, MIXTURE, Task, Tasks, ask, bins};
use super::dice::Dice;
use super::paint::paint;
use super::say::Lang;
use super::scene::Scene;
use crate::image::{Mask, Picture};
use crate::masks::MaskCodec;
use crate::text::{Object, write_answer};
use crate::{Error, Result};

/// Pictures that are drawn, with what may be asked about them: as many as anyone wants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Playground {
    split: Split,
    seed: u64,
    tasks: Tasks,
    most_things: usize,
}

/// Scenes that are tried before a task is said to have none with so few things.
const TRIES: u64 = 1000;

/// An example of the playground, before its pictures are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Played {
    /// What is asked for.
    pub task: Task,
    /// The language of the question or the answer.
    pub lang: Lang,
    /// The prompt, without the line break behind it.
    pub prefix: String,
    /// What may be answered; at least one.
    pub suffixes: Vec<String>,
    asked: Asked,
}

/// A picture that is not drawn yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawing {
    scene: Scene,
    side: usize,
}

impl Drawing {
    /// The picture.
    pub fn picture(&self) -> Picture {
        paint(&self.scene, self.side)
    }
}

impl Played {
    /// Its pictures, each of `side` × `side` pixels. They show the same at every side.
    pub fn pictures(&self, side: usize) -> Vec<Picture> {
        self.asked.scenes.iter().map(|scene| paint(scene, side)).collect()
    }

    /// The same, to be drawn later.
    pub fn drawings(&self, side: usize) -> Vec<Drawing> {
        self.asked.scenes.iter().map(|scene| Drawing { scene: scene.clone(), side }).collect()
    }

    /// The true masks of the answer's objects with their labels, where it has masks: what is seen of each, on a grid of
    /// 256 × 256.
    pub fn masks(&self) -> &[(String, Mask)] {
        &self.asked.objects
    }
}

impl Playground {
    /// The stream of a split and a seed, with the first stage's mixture of tasks.
    pub fn new(split: Split, seed: u64) -> Playground {
        Playground { split, seed, tasks: MIXTURE, most_things: usize::MAX }
    }

    /// The same with other tasks: how often each comes.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`]: no task, a number that is no weight, or a task that has no pictures of so few things.
    pub fn with_tasks(self, tasks: Tasks) -> Result<Playground> {
        let is_weight = |weight: &f32| weight.is_finite() && *weight >= 0.0;
        if !tasks.iter().all(is_weight) || tasks.iter().sum::<f32>() <= 0.0 {
            return Err(
                Error::usage("the playground has no tasks").expected("weights from 0 on, one above 0")
            );
        }
        Playground { tasks, ..self }.checked()
    }

    /// The same with at most so many things in each picture: a beginning for a model that cannot tell things apart yet.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`]: a task that has no such pictures.
    pub fn with_most_things(self, most_things: usize) -> Result<Playground> {
        Playground { most_things, ..self }.checked()
    }

    /// Refuses a task for whose next scene one would look for ever.
    fn checked(self) -> Result<Playground> {
        for (task, _) in Task::ALL.into_iter().zip(self.tasks).filter(|(_, weight)| *weight > 0.0) {
            if (1..TRIES).all(|try_number| self.ask(task, 0, try_number).is_none()) {
                let (name, most) = (task.name(), self.most_things);
                return Err(Error::usage(format!("no picture of `{name}` has at most {most} things"))
                    .hint("leave the task out, or allow more"));
            }
        }
        Ok(self)
    }

    /// What one try asks, if its scene fits.
    fn ask(&self, task: Task, index: u64, try_number: u64) -> Option<Asked> {
        let asked = ask(task, self.split, &mut Dice::new(self.split, self.seed, index, try_number))?;
        asked.scenes.iter().all(|scene| scene.items.len() <= self.most_things).then_some(asked)
    }

    /// Example number `index`. Without a codec, the tasks whose answers have masks are left out.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`]: without a codec, where no task is without masks.
    pub fn example(&self, index: u64, codec: Option<&MaskCodec>) -> Result<Played> {
        let mut tasks = self.tasks;
        if codec.is_none() {
            let masked = Task::ALL.iter().zip(&mut tasks).filter(|(task, _)| task.needs_masks());
            masked.for_each(|(_, weight)| *weight = 0.0);
            if tasks.iter().sum::<f32>() <= 0.0 {
                return Err(Error::usage("these tasks have masks in their answers")
                    .hint("give a masks' model, or other tasks"));
            }
        }
        let task = Task::ALL[Dice::new(self.split, self.seed, index, 0).weighted(&tasks)];
        // Every task finds a scene within a few tries; which are tried does not depend on anything else.
        for try_number in 1.. {
            if let Some(asked) = self.ask(task, index, try_number) {
                let mut suffixes = asked.suffixes.clone();
                if let (true, Some(codec)) = (suffixes.is_empty(), codec) {
                    suffixes.push(masked(&asked, codec)?);
                }
                let (lang, prefix) = (asked.lang, asked.prefix.clone());
                return Ok(Played { task, lang, prefix, suffixes, asked });
            }
        }
        Err(Error::input("no scene fits the task"))
    }

    /// Text number `index`, without a picture: what a language model learns the playground's words from, and a
    /// tokenizer its pieces. Every task comes, an answer's masks left out.
    pub fn text(&self, index: u64) -> Result<String> {
        let played = self.example(index, None)?;
        let n = played.suffixes.len() as u64;
        let suffix = &played.suffixes[(index % n) as usize];
        Ok(match played.task {
            Task::Caption if index.is_multiple_of(2) => suffix.clone(),
            _ => format!("{}\n{suffix}", played.prefix),
        })
    }
}

/// Objects with boxes and masks as an answer.
fn masked(asked: &Asked, codec: &MaskCodec) -> Result<String> {
    let mut objects = Vec::new();
    for (label, mask) in &asked.objects {
        let Some(bins) = bins(mask) else { continue };
        let Some(b) = mask.bounds() else { continue };
        let pixels = [b.x0, b.y0, b.x1, b.y1].map(|v| v as f64);
        let codes = codec.encode(&mask.to_plane(), pixels)?;
        objects.push(Object { bins, codes: Some(codes), label: label.clone() });
    }
    write_answer(&objects)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::colours::COLOURS;
    use super::super::scene::is_held_out;
    use super::super::things::THINGS;
    use super::*;
    use crate::text::{Asked as Prompt, parse_answer};

    #[test]
    fn examples_follow_from_their_number_and_no_two_splits_share_one() {
        let texts = |split: Split, seed: u64| -> HashSet<String> {
            let playground = Playground::new(split, seed);
            (0..60).map(|i| format!("{:?}", playground.example(i, None).unwrap())).collect()
        };
        let train = texts(Split::Train, 1);
        assert_eq!(train.len(), 60);
        assert_eq!(train, texts(Split::Train, 1));
        for other in [texts(Split::Train, 2), texts(Split::Val, 1), texts(Split::Test, 1)] {
            assert!(train.is_disjoint(&other));
        }
        let played = Playground::new(Split::Val, 0).example(5, None).unwrap();
        assert_eq!(played.pictures(56), played.pictures(56));
        assert_eq!(played.pictures(30)[0].rgb.len(), 30 * 30 * 3);
    }

    #[test]
    fn held_out_colours_are_in_the_compositional_split_alone() {
        for split in Split::ALL {
            let playground = Playground::new(split, 4);
            let mut seen = HashSet::new();
            for index in 0..1500 {
                let played = playground.example(index, None).unwrap();
                for item in played.asked.scenes.iter().flat_map(|scene| &scene.items) {
                    let is_out = is_held_out(item.thing, item.colour);
                    assert_eq!(is_out, split == Split::Compositional, "{split:?} {index}");
                    seen.insert((item.thing, item.colour));
                }
                // Nor does any text speak of them.
                for text in played.suffixes.iter().chain([&played.prefix]) {
                    let words: Vec<&str> = text.split_whitespace().collect();
                    for pair in words.windows(2) {
                        let colour = COLOURS.iter().position(|colour| colour.en == pair[0]);
                        let thing = THINGS.iter().position(|thing| thing.names[0].1 == pair[1]);
                        if let (Some(colour), Some(thing)) = (colour, thing) {
                            assert_eq!(is_held_out(thing, colour), split == Split::Compositional, "{text}");
                        }
                    }
                }
            }
            assert!(seen.len() > if split == Split::Compositional { 85 } else { 390 }, "{}", seen.len());
        }
    }

    #[test]
    fn pictures_may_have_few_things() {
        let check = |names: &[&str], most: usize| {
            let tasks = Task::ALL.map(|task| f32::from(u8::from(names.contains(&task.name()))));
            Playground::new(Split::Train, 2).with_tasks(tasks).unwrap().with_most_things(most)
        };
        for (names, most) in [(&["caption", "which", "detect", "colour"][..], 1), (&["relation", "count"], 2)]
        {
            let few = check(names, most).unwrap();
            for index in 0..200 {
                let played = few.example(index, None).unwrap();
                assert!(names.contains(&played.task.name()));
                assert!(played.asked.scenes.iter().all(|scene| scene.items.len() <= most), "{played:?}");
            }
        }
        let tasks = Task::ALL.map(|task| f32::from(u8::from(task == Task::Relation)));
        let other_way = check(&["colour"], 1).unwrap().with_tasks(tasks);
        for refused in [check(&["colour", "relation"], 1), other_way] {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("`relation`") && error.contains("at most 1"), "{error}");
        }
    }

    #[test]
    fn every_task_has_prompts_and_answers_of_its_form() {
        for task in Task::ALL {
            assert_eq!(Task::of(task.name()), Some(task));
            if task.needs_masks() {
                continue;
            }
            let mut only = [0.0; Task::ALL.len()];
            only[Task::ALL.iter().position(|&other| other == task).unwrap()] = 1.0;
            let playground = Playground::new(Split::Val, 9).with_tasks(only).unwrap();
            let mut answers = HashSet::new();
            for index in 0..80 {
                let played = playground.example(index, None).unwrap();
                let (prefix, suffixes) = (&played.prefix, &played.suffixes);
                assert!(played.task == task && !suffixes.is_empty());
                for text in suffixes.iter().chain([prefix]) {
                    assert!(!text.is_empty() && text.trim() == text && !text.contains("  "), "{text:?}");
                }
                let is_prompt = match task {
                    Task::Caption => *prefix == format!("caption {}", played.lang.code()),
                    Task::Ocr => prefix == "ocr",
                    Task::Question => prefix.starts_with(&format!("question {} ", played.lang.code())),
                    Task::Grounded => parse_answer(&prefix["caption ".len()..]).objects.len() == 1,
                    Task::Frames => prefix.starts_with("answer en ") || prefix == "caption en",
                    Task::Detect => {
                        let parsed = parse_answer(&suffixes[0]);
                        let asked = Prompt::of(prefix).unwrap();
                        parsed.malformed.is_empty()
                            && parsed.objects.iter().all(|o| asked.things.contains(&o.object.label.as_str()))
                    }
                    _ => prefix.starts_with("answer en "),
                };
                assert!(is_prompt, "{task:?}: {prefix}");
                let number = match task {
                    Task::Pair => 2,
                    Task::Frames => 4,
                    _ => 1,
                };
                assert_eq!(played.pictures(28).len(), number);
                answers.insert(suffixes[0].clone());
            }
            assert!(answers.len() > 1, "{task:?}");
        }
    }
}
