//! What is right without looking: the figures that a score must be seen beside.

use std::collections::BTreeMap;

use super::ask::Task;

/// How well one does at a task without looking at a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    /// The task.
    pub task: Task,
    /// How many examples it has.
    pub count: usize,
    /// What is answered most often.
    pub majority_answer: String,
    /// The part of the examples that this answer is right for.
    pub majority: f64,
    /// The part that is right when an answer is drawn from all examples' answers.
    pub chance: f64,
}

/// The baselines of every task among examples, each with what may be answered, by exact match with the first answer.
pub fn baselines(examples: &[(Task, Vec<String>)]) -> Vec<Baseline> {
    let mut answers: BTreeMap<Task, BTreeMap<&str, usize>> = BTreeMap::new();
    for (task, suffixes) in examples {
        if let Some(first) = suffixes.first() {
            *answers.entry(*task).or_default().entry(first).or_default() += 1;
        }
    }
    let baseline = |(task, answers): (Task, BTreeMap<&str, usize>)| {
        let count: usize = answers.values().sum();
        let part = |n: usize| n as f64 / count as f64;
        let (answer, most) = answers.iter().max_by_key(|answer| answer.1).map_or(("", 0), |(a, n)| (a, *n));
        let chance = answers.values().map(|&n| part(n) * part(n)).sum();
        Baseline { task, count, majority_answer: answer.to_owned(), majority: part(most), chance }
    };
    answers.into_iter().map(baseline).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_majority_and_chance_are_those_of_the_answers() {
        let one = |task: Task, answer: &str| (task, vec![answer.to_owned(), "another".to_owned()]);
        let examples = [
            one(Task::Count, "2"),
            one(Task::Count, "3"),
            one(Task::Count, "2"),
            one(Task::Count, "2"),
            one(Task::Colour, "red"),
        ];
        let found = baselines(&examples);
        assert_eq!(found.iter().map(|one| one.task).collect::<Vec<_>>(), [Task::Colour, Task::Count]);
        let count = &found[1];
        assert_eq!((count.count, count.majority_answer.as_str(), count.majority), (4, "2", 0.75));
        assert!((count.chance - (0.5625 + 0.0625)).abs() < 1e-12);
    }
}
