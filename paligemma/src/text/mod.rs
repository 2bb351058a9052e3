//! Text: the tokenizers and the prompt.
