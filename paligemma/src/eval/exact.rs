//! Exact match.

/// 1 if the answer is one of the references, letter for letter, else 0: big_vision's `acc` where there is one reference
/// and `acc_any` where there are several (evaluators/proj/paligemma/transfers/vqa.py). Nothing is trimmed or folded.
pub(super) fn exact(answer: &str, references: &[String]) -> f64 {
    f64::from(u8::from(references.iter().any(|reference| reference == answer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_reference_will_do_and_every_letter_counts() {
        let check = |answer: &str, references: &[&str], want: f64| {
            let references: Vec<String> = references.iter().map(|r| (*r).to_owned()).collect();
            assert_eq!(exact(answer, &references), want, "{answer:?} {references:?}");
        };
        check("red", &["red"], 1.0);
        check("red", &["blue", "red"], 1.0);
        check("Red", &["red"], 0.0);
        check("red ", &["red"], 0.0);
        check("", &[""], 1.0);
        check("", &["red"], 0.0);
    }
}
