//! The grammar of answers that name objects: at every step, which tokens can still become a valid answer.
//!
//! ```text
//! answer = [ object { separator object } ] EOS
//! object = y_min x_min y_max x_max  { code }  label
//! ```
//!
//! It asks for y_max > y_min and x_max > x_min, for a label among those given, for no object twice, and for an end within
//! the tokens that there are. It never comes to a point where nothing goes on: an object begins only if the longest
//! label still fits behind it, and a beginning whose every continuation has been said is not offered.
//!
//! A label and the separator behind it may be tokenised together, and otherwise than the label alone. So each label
//! comes as two rows of ids: as the last of an answer, and with another object behind it.

use crate::{Error, Result};
use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

/// How a label is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelIds {
    /// Where the answer ends behind it.
    pub last: Vec<u32>,
    /// Where another object follows: the separator included.
    pub followed: Vec<u32>,
}

/// The rules of one prompt's answer.
#[derive(Debug, Clone)]
pub struct Grammar {
    /// The ids of the locations, in order.
    locations: Range<u32>,
    /// The ids of the mask's codes, in order, and how many an object has.
    codes: Option<(Range<u32>, usize)>,
    eos: u32,
    labels: usize,
    /// All rows of ids of all labels, merged by their beginnings; the first is the root.
    nodes: Vec<Node>,
    /// The most tokens that an object and the answer's end take.
    longest_object: usize,
}

/// A beginning of one or more labels.
#[derive(Debug, Clone, Default)]
struct Node {
    children: Vec<(u32, usize)>,
    /// What can be reached from here.
    goals: Vec<Goal>,
}

/// The end of one label.
#[derive(Debug, Clone, Copy)]
struct Goal {
    label: u16,
    /// Whether another object must follow; else EOS must.
    is_followed: bool,
    /// Tokens from the node to there.
    distance: usize,
}

impl Grammar {
    /// Rules with these ids. `codes` are of objects with masks: the ids, and how many an object has. An answer without
    /// labels has one label of no ids.
    ///
    /// # Errors
    /// `Kind::Usage`: no label, or more than 65,535; fewer than two locations; no code; two labels of equal ids; a label
    /// that says a location, a code or EOS.
    pub fn new(
        locations: Range<u32>,
        codes: Option<(Range<u32>, usize)>,
        eos: u32,
        labels: &[LabelIds],
    ) -> Result<Grammar> {
        let wrong = |what: &str| Err(Error::usage(format!("no answer can be constrained so: {what}")));
        if labels.is_empty() || labels.len() > usize::from(u16::MAX) {
            return wrong("there is no label, or there are too many");
        }
        if locations.len() < 2 || locations.len() > usize::from(u16::MAX) {
            return wrong("there are too few or too many locations");
        }
        if codes.as_ref().is_some_and(|(ids, count)| ids.is_empty() || *count == 0) {
            return wrong("there are no mask codes");
        }
        let num_codes = codes.as_ref().map_or(0, |(_, count)| *count);
        let longest = labels.iter().map(|label| label.last.len()).max().unwrap_or(0);
        let mut grammar = Grammar {
            longest_object: 4 + num_codes + longest + 1,
            locations,
            codes,
            eos,
            labels: labels.len(),
            nodes: vec![Node::default()],
        };
        for (label, ids) in labels.iter().enumerate() {
            for (ids, is_followed) in [(&ids.last, false), (&ids.followed, true)] {
                if ids.iter().any(|id| grammar.is_reserved(*id)) {
                    return wrong("a label says a location, a mask code or the end");
                }
                if is_followed && ids.is_empty() {
                    return wrong("nothing stands between two objects");
                }
                grammar.insert(ids, label as u16, is_followed);
            }
        }
        let twice = |node: &Node| {
            let ends = |followed: bool| {
                node.goals.iter().filter(|g| g.distance == 0 && g.is_followed == followed).count()
            };
            ends(false) > 1 || ends(true) > 1
        };
        if grammar.nodes.iter().any(twice) {
            return wrong("two labels are equal");
        }
        Ok(grammar)
    }

    /// # Errors
    /// An id that a model of `vocab` tokens does not have.
    pub(super) fn check_within(&self, vocab: usize) -> Result<()> {
        let labels = self.nodes.iter().flat_map(|node| &node.children).map(|child| child.0);
        let codes = self.codes.iter().map(|(ids, _)| ids.end - 1);
        match labels.chain(codes).chain([self.locations.end - 1, self.eos]).max() {
            Some(id) if id as usize >= vocab => {
                Err(Error::model(format!("the tokenizer has an id {id}, and the model {vocab} tokens"))
                    .hint("is this the tokenizer of another model?"))
            }
            _ => Ok(()),
        }
    }

    fn is_reserved(&self, id: u32) -> bool {
        let is_code = self.codes.as_ref().is_some_and(|(ids, _)| ids.contains(&id));
        id == self.eos || self.locations.contains(&id) || is_code
    }

    fn insert(&mut self, ids: &[u32], label: u16, is_followed: bool) {
        let mut at = 0;
        for (i, &id) in ids.iter().enumerate() {
            self.nodes[at].goals.push(Goal { label, is_followed, distance: ids.len() - i });
            at = match self.nodes[at].children.iter().find(|child| child.0 == id) {
                Some(child) => child.1,
                None => {
                    self.nodes.push(Node::default());
                    let new = self.nodes.len() - 1;
                    self.nodes[at].children.push((id, new));
                    new
                }
            };
        }
        self.nodes[at].goals.push(Goal { label, is_followed, distance: 0 });
    }

    /// An answer's beginning: nothing.
    pub(super) fn begin(&self) -> State<'_> {
        State {
            grammar: self,
            said: vec![Said::default()],
            part: Part::Object { is_first: true },
            object: Vec::new(),
            shared: Some(0),
        }
    }

    /// How many ways there are to go on behind these parts of an object.
    fn choices(&self, object: &[u16]) -> usize {
        // The last location is no minimum.
        let minima = self.locations.len() - 1;
        match object.len() {
            0 | 1 => minima,
            n @ (2 | 3) => minima - usize::from(object[n - 2]),
            n => match &self.codes {
                Some((ids, count)) if n < 4 + count => ids.len(),
                _ => self.labels,
            },
        }
    }
}

/// How far an answer has come.
#[derive(Debug, Clone)]
pub(super) struct State<'g> {
    grammar: &'g Grammar,
    /// What has been said, merged by beginnings; the first is the root.
    said: Vec<Said>,
    part: Part,
    /// The parts of the object at hand: locations and codes as numbers.
    object: Vec<u16>,
    /// Where in `said` the object at hand stands; none if no object began so.
    shared: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    /// Before an object; the first may be the end as well.
    Object { is_first: bool },
    /// Within locations and codes.
    Inside,
    /// In a label, at a node.
    Label(usize),
    /// EOS has come.
    End,
}

/// A beginning that objects have had.
#[derive(Debug, Clone, Default)]
struct Said {
    next: HashMap<u16, usize>,
    /// Continuations of which everything has been said.
    exhausted: HashSet<u16>,
}

impl State<'_> {
    /// The ids that may come next, EOS included, when `left` tokens are left. There is always one.
    pub(super) fn allowed(&self, left: usize) -> Vec<u32> {
        let g = self.grammar;
        let mut ids = Vec::new();
        match self.part {
            Part::End => ids.push(g.eos),
            Part::Object { is_first } => {
                if is_first {
                    ids.push(g.eos);
                }
                if !is_first || (left >= g.longest_object && !self.is_all_said()) {
                    self.push_numbers(&mut ids);
                }
            }
            Part::Inside => self.push_numbers(&mut ids),
            Part::Label(at) => {
                let node = &g.nodes[at];
                for goal in node.goals.iter().filter(|goal| goal.distance == 0 && self.is_open(goal, left)) {
                    if goal.is_followed {
                        let mut next = self.clone();
                        next.end_object(goal.label);
                        next.push_numbers(&mut ids);
                    } else {
                        ids.push(g.eos);
                    }
                }
                for &(id, child) in &node.children {
                    if g.nodes[child].goals.iter().any(|goal| self.is_open(goal, left.saturating_sub(1))) {
                        ids.push(id);
                    }
                }
            }
        }
        ids
    }

    /// Whether a label's end can be reached with `left` tokens, and the object would be a new one.
    fn is_open(&self, goal: &Goal, left: usize) -> bool {
        let said = self.shared.map(|at| &self.said[at]);
        if said.is_some_and(|said| said.exhausted.contains(&goal.label)) {
            return false;
        }
        if !goal.is_followed {
            return left > goal.distance;
        }
        if left < goal.distance + self.grammar.longest_object {
            return false;
        }
        // With this object all may have been said, but only where one beginning is left to be said.
        if self.said[0].exhausted.len() + 1 < self.grammar.choices(&[]) {
            return true;
        }
        let mut next = self.clone();
        next.say(goal.label);
        !next.is_all_said()
    }

    fn is_all_said(&self) -> bool {
        self.said[0].exhausted.len() >= self.grammar.choices(&[])
    }

    /// The ids of the location or the code that comes next.
    fn push_numbers(&self, ids: &mut Vec<u32>) {
        let g = self.grammar;
        let (first, range) = match (self.object.len(), &g.codes) {
            (0 | 1, _) => (g.locations.start, 0..g.locations.len() - 1),
            (n @ (2 | 3), _) => (g.locations.start, usize::from(self.object[n - 2]) + 1..g.locations.len()),
            (_, Some((codes, _))) => (codes.start, 0..codes.len()),
            (_, None) => return,
        };
        let exhausted = self.shared.map(|at| &self.said[at].exhausted).filter(|e| !e.is_empty());
        let is_open = |n: &usize| exhausted.is_none_or(|e| !e.contains(&(*n as u16)));
        ids.extend(range.filter(is_open).map(|n| first + n as u32));
    }

    /// Goes on with an id, which must be one of the allowed.
    pub(super) fn accept(&mut self, id: u32) {
        let g = self.grammar;
        if id == g.eos {
            self.part = Part::End;
            return;
        }
        if let Part::Label(at) = self.part {
            if let Some(child) = g.nodes[at].children.iter().find(|child| child.0 == id) {
                self.part = Part::Label(child.1);
                // Where there is no other way, the object has ended already.
                if let Node { children, goals } = &g.nodes[child.1]
                    && let ([], [Goal { label, is_followed: true, .. }]) = (&children[..], &goals[..])
                {
                    self.end_object(*label);
                }
                return;
            }
            let ends = |goal: &&Goal| goal.distance == 0 && goal.is_followed;
            if let Some(goal) = g.nodes[at].goals.iter().find(ends) {
                self.end_object(goal.label);
            }
        }
        let first = match &g.codes {
            Some((codes, _)) if codes.contains(&id) => codes.start,
            _ => g.locations.start,
        };
        let number = id.saturating_sub(first) as u16;
        self.shared = self.shared.and_then(|at| self.said[at].next.get(&number).copied());
        self.object.push(number);
        let parts = 4 + g.codes.as_ref().map_or(0, |(_, count)| *count);
        self.part = if self.object.len() < parts { Part::Inside } else { Part::Label(0) };
    }

    /// The label is at its end, and another object follows.
    fn end_object(&mut self, label: u16) {
        self.say(label);
        self.part = Part::Object { is_first: false };
        self.object.clear();
        self.shared = Some(0);
    }

    /// Remembers the object at hand with this label.
    fn say(&mut self, label: u16) {
        let object: Vec<u16> = self.object.iter().copied().chain([label]).collect();
        let mut way = vec![0];
        for &part in &object[..object.len() - 1] {
            let at = way[way.len() - 1];
            let next = match self.said[at].next.get(&part) {
                Some(&next) => next,
                None => {
                    self.said.push(Said::default());
                    let new = self.said.len() - 1;
                    self.said[at].next.insert(part, new);
                    new
                }
            };
            way.push(next);
        }
        // What has no way left is a way less to what leads there.
        for (depth, &at) in way.iter().enumerate().rev() {
            self.said[at].exhausted.insert(object[depth]);
            if self.said[at].exhausted.len() < self.grammar.choices(&object[..depth]) {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EOS: u32 = 1;
    const SEPARATOR: u32 = 5;

    /// A small language: locations from 10 on, codes from 30 on, labels of given ids.
    #[derive(Debug, Clone)]
    struct Language {
        locations: u32,
        codes: Option<(u32, usize)>,
        labels: Vec<LabelIds>,
    }

    impl Language {
        fn grammar(&self) -> Grammar {
            let codes = self.codes.map(|(ids, count)| (30..30 + ids, count));
            Grammar::new(10..10 + self.locations, codes, EOS, &self.labels).unwrap()
        }

        /// Every object as its ids, by label, without the label.
        fn objects(&self) -> Vec<(Vec<u32>, usize)> {
            let mut all = Vec::new();
            let n = self.locations;
            for i in 0..n.pow(4) {
                let [y0, x0, y1, x1] = [i % n, i / n % n, i / n / n % n, i / n / n / n];
                if y1 <= y0 || x1 <= x0 {
                    continue;
                }
                let (ids, count) = self.codes.unwrap_or((1, 0));
                for c in 0..ids.pow(count as u32) {
                    let codes = (0..count as u32).map(|k| 30 + c / ids.pow(k) % ids);
                    let object: Vec<u32> =
                        [y0, x0, y1, x1].map(|v| 10 + v).into_iter().chain(codes).collect();
                    all.extend((0..self.labels.len()).map(|label| (object.clone(), label)));
                }
            }
            all
        }

        /// All ids that may follow `said` whole objects and the tokens of another one, by enumeration.
        fn allowed(
            &self,
            objects: &[(Vec<u32>, usize)],
            said: &[(Vec<u32>, usize)],
            now: &[u32],
        ) -> Vec<u32> {
            let mut ids = HashSet::new();
            if said.is_empty() && now.is_empty() {
                ids.insert(EOS);
            }
            for object in objects.iter().filter(|o| !said.contains(o)) {
                let label = &self.labels[object.1];
                let last = [&object.0[..], &label.last, &[EOS]].concat();
                ids.extend(last.strip_prefix(now).and_then(|rest| rest.first()));
                // Behind the separator another object must be left.
                if said.len() + 1 < objects.len() {
                    let followed = [&object.0[..], &label.followed].concat();
                    ids.extend(followed.strip_prefix(now).and_then(|rest| rest.first()));
                }
            }
            let mut ids: Vec<u32> = ids.into_iter().collect();
            ids.sort_unstable();
            ids
        }
    }

    fn label(last: &[u32], followed: &[u32]) -> LabelIds {
        LabelIds { last: last.to_vec(), followed: followed.to_vec() }
    }

    fn languages() -> Vec<Language> {
        let plain = |ids: &[u32]| label(ids, &[ids, &[SEPARATOR]].concat());
        let locations = 3;
        vec![
            Language { locations: 2, codes: None, labels: vec![plain(&[])] },
            Language { locations: 2, codes: None, labels: vec![plain(&[2]), plain(&[3, 4])] },
            Language { locations: 2, codes: Some((2, 3)), labels: vec![plain(&[2])] },
            Language { locations, codes: None, labels: vec![plain(&[2, 3]), plain(&[2])] },
            // The separator is part of the last token of a label, or changes how all of it is said.
            Language {
                locations,
                codes: None,
                labels: vec![label(&[2, 3], &[2, 4]), label(&[2], &[6, 7, 8])],
            },
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// With tokens enough, what is allowed is exactly what can still become an answer.
        #[test]
        fn what_is_allowed_is_what_can_go_on(which in 0usize..5, choices in prop::collection::vec(any::<u16>(), 400)) {
            let language = &languages()[which];
            let (grammar, objects) = (language.grammar(), language.objects());
            let mut state = grammar.begin();
            let (mut said, mut now): (Vec<(Vec<u32>, usize)>, Vec<u32>) = (Vec::new(), Vec::new());
            for choice in choices {
                let mut got = state.allowed(100_000);
                got.sort_unstable();
                prop_assert_eq!(&got, &language.allowed(&objects, &said, &now), "{:?} {:?}", said, now);
                // EOS only where there is nothing else: the walk shall come far.
                let others: Vec<u32> = got.iter().copied().filter(|&id| id != EOS).collect();
                let id = if others.is_empty() { EOS } else { others[usize::from(choice) % others.len()] };
                state.accept(id);
                if id == EOS {
                    break;
                }
                now.push(id);
                let whole = |o: &&(Vec<u32>, usize)| {
                    let followed = &language.labels[o.1].followed;
                    now == [&o.0[..], followed].concat()
                };
                if let Some(object) = objects.iter().find(whole) {
                    said.push(object.clone());
                    now.clear();
                }
            }
        }

        /// However few tokens there are, the answer ends within them and is whole.
        #[test]
        fn it_ends_within_any_number_of_tokens(
            which in 0usize..5, most in 1usize..60, choices in prop::collection::vec(any::<u16>(), 60),
        ) {
            let language = &languages()[which];
            let (grammar, objects) = (language.grammar(), language.objects());
            let mut state = grammar.begin();
            let mut answer = Vec::new();
            for choice in &choices[..most] {
                let allowed = state.allowed(most - answer.len());
                prop_assert!(!allowed.is_empty(), "{answer:?} of {most}");
                let id = allowed[usize::from(*choice) % allowed.len()];
                state.accept(id);
                answer.push(id);
                if id == EOS {
                    break;
                }
            }
            prop_assert_eq!(answer.last(), Some(&EOS), "{:?} of {}", answer, most);
            let mut rest = &answer[..answer.len() - 1];
            let mut said = HashSet::new();
            while !rest.is_empty() {
                let taken = objects.iter().find_map(|object| {
                    let label = &language.labels[object.1];
                    let last = [&object.0[..], &label.last].concat();
                    let followed = [&object.0[..], &label.followed].concat();
                    let after = rest.strip_prefix(&followed[..]).filter(|after| !after.is_empty());
                    after.or((rest == last).then_some(&[][..])).map(|after| (object, after))
                });
                let (object, after) = taken.unwrap_or_else(|| panic!("{answer:?}"));
                prop_assert!(said.insert(object), "twice in {:?}", answer);
                rest = after;
            }
        }
    }

    #[test]
    fn rules_that_make_no_sense_are_refused() {
        let cat = label(&[2], &[2, SEPARATOR]);
        let check = |locations: Range<u32>, codes: Option<(Range<u32>, usize)>, labels: &[LabelIds]| {
            assert!(Grammar::new(locations, codes, EOS, labels).is_err(), "{labels:?}");
        };
        check(10..20, None, &[]);
        check(10..11, None, std::slice::from_ref(&cat));
        check(10..20, Some((30..30, 4)), std::slice::from_ref(&cat));
        check(10..20, None, &[cat.clone(), cat.clone()]);
        check(10..20, None, &[label(&[2], &[])]);
        check(10..20, None, &[label(&[12], &[12, SEPARATOR])]);
        check(10..20, None, &[label(&[EOS], &[2, SEPARATOR])]);
    }
}
