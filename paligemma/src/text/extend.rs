//! A `tokenizer.json` of Gemma with PaliGemma's tokens written down.

use super::tokenizer::loc_and_seg_names;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::HashSet;

/// The bytes of `tokenizer_json` with `<loc0000>` … `<seg127>` and `<image>`, in this order, as added tokens where they are
/// missing: behind the last id, as [`Tokenizer`](super::Tokenizer) counts them, and as other programs need them written.
///
/// # Errors
/// `Kind::Model` if it is no tokenizer.json.
pub fn with_loc_and_seg(tokenizer_json: &[u8]) -> Result<Vec<u8>> {
    let wrong = |what: &str| Error::model(format!("the tokenizer.json {what}"));
    let mut file: Value =
        serde_json::from_slice(tokenizer_json).map_err(|e| wrong(&format!("is not JSON: {e}")).because(e))?;
    let vocab = file["model"]["vocab"].as_object().ok_or_else(|| wrong("has no model.vocab"))?;
    let added = file["added_tokens"].as_array().ok_or_else(|| wrong("has no added_tokens"))?;
    let content = |token: &Value| token["content"].as_str().map(str::to_owned);
    let have: HashSet<String> = added.iter().filter_map(content).collect();
    let ids = vocab.values().filter_map(Value::as_u64);
    let next = ids.chain(added.iter().filter_map(|token| token["id"].as_u64())).max().map_or(0, |id| id + 1);

    let names = loc_and_seg_names().map(|name| (name, false)).chain([("<image>".to_owned(), true)]);
    let missing = names.filter(|(name, _)| !have.contains(name));
    // A piece of the vocabulary keeps its id.
    let ids: Vec<(String, bool, Option<u64>)> = missing
        .map(|(name, special)| (name.clone(), special, vocab.get(&name).and_then(Value::as_u64)))
        .collect();
    let mut free = next..;
    let tokens: Vec<Value> = ids
        .into_iter()
        .map(|(content, special, id)| {
            json!({
                "id": id.or_else(|| free.next()), "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": special,
            })
        })
        .collect();
    if let Some(added) = file["added_tokens"].as_array_mut() {
        added.extend(tokens);
        // Readers want them in the order of their ids.
        added.sort_by_key(|token| token["id"].as_u64());
    }
    Ok(file.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Tokenizer, stand_in_tokenizer};

    #[test]
    fn a_bare_tokenizer_gets_the_tokens_where_they_are_counted() {
        let whole = stand_in_tokenizer(500, 1652).unwrap();
        assert_eq!(
            Tokenizer::from_json_bytes(&with_loc_and_seg(&whole).unwrap()).unwrap().image(),
            Some(1652)
        );
        // The same without them.
        let mut bare: Value = serde_json::from_slice(&whole).unwrap();
        let keep = |name: &str| !(name.starts_with("<loc") || name.starts_with("<seg") || name == "<image>");
        bare["added_tokens"].as_array_mut().unwrap().retain(|token| keep(token["content"].as_str().unwrap()));
        bare["model"]["vocab"].as_object_mut().unwrap().retain(|name, _| keep(name));
        let bare = bare.to_string().into_bytes();
        let (counted, written) = (
            Tokenizer::from_json_bytes(&bare).unwrap(),
            Tokenizer::from_json_bytes(&with_loc_and_seg(&bare).unwrap()).unwrap(),
        );
        assert_eq!(counted.loc(0), Some(500));
        for i in 0..1024 {
            assert_eq!(counted.loc(i), written.loc(i));
        }
        assert_eq!(
            (counted.seg(127), written.seg(127), written.image()),
            (Some(1651), Some(1651), Some(1652))
        );
        for broken in ["", "{}", "[]", r#"{"model":{"vocab":{}}}"#] {
            assert!(with_loc_and_seg(broken.as_bytes()).is_err(), "{broken}");
        }
    }
}
