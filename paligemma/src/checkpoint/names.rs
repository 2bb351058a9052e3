//! One table of names: ours ⇄ big_vision ⇄ Hugging Face.
//!
//! Ours are Hugging Face's without the outer prefixes, in Hugging Face's layout (`[out, in]`). big_vision
//! stacks the layers of a tower into one tensor and some tensors of a layer beside each other; a row says
//! which slice of that tensor a name is, and in which order its dimensions stand.
//! Sources: big_vision/models/{vit,ppp/gemma}.py; transformers convert_paligemma*_weights_to_hf.py.

use crate::config::{Config, GemmaGeneration};

/// A row of the table. `from` is big_vision's layout, outermost first: `l` and `L` are the layer axes of the
/// two towers, `k/n` is element k of an axis of n, every other letter a dimension of the slice:
/// `Y X` patch side, `C` channels, `T` image tokens, `W` vision width, `M` vision MLP, `A` vision heads,
/// `E` vision head size, `V` embedding rows, `D` width, `F` MLP, `N` query heads, `K` key heads, `H` head size.
/// `to` is Hugging Face's layout of the same letters; dimensions in brackets are merged.
struct Row {
    ours: &'static str,
    big_vision: &'static str,
    from: &'static str,
    to: &'static str,
    when: When,
}

/// For which models a row holds.
#[derive(Clone, Copy, PartialEq)]
enum When {
    Always,
    Gemma1,
    Gemma2,
    /// big_vision keeps queries apart from keys and values.
    SplitQkv,
    /// big_vision keeps all three in one tensor, as it does when there are as many key heads as query heads.
    FusedQkv,
}
use When::{Always, FusedQkv, Gemma1, Gemma2, SplitQkv};

const fn row(
    ours: &'static str,
    big_vision: &'static str,
    from: &'static str,
    to: &'static str,
    when: When,
) -> Row {
    Row { ours, big_vision, from, to, when }
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    row("vision_tower.embeddings.patch_embedding.weight",    "img/embedding/kernel", "Y X C W", "W C Y X", Always),
    row("vision_tower.embeddings.patch_embedding.bias",      "img/embedding/bias",   "W",       "W",       Always),
    row("vision_tower.embeddings.position_embedding.weight", "img/pos_embedding",    "0/1 T W", "T W",     Always),

    row("vision_tower.encoder.layers.{i}.layer_norm1.weight",        "img/Transformer/encoderblock/LayerNorm_0/scale", "l W", "W", Always),
    row("vision_tower.encoder.layers.{i}.layer_norm1.bias",          "img/Transformer/encoderblock/LayerNorm_0/bias",  "l W", "W", Always),
    row("vision_tower.encoder.layers.{i}.self_attn.q_proj.weight",   "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel", "l W A E", "(A E) W", Always),
    row("vision_tower.encoder.layers.{i}.self_attn.q_proj.bias",     "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/bias",   "l A E",   "(A E)",   Always),
    row("vision_tower.encoder.layers.{i}.self_attn.k_proj.weight",   "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/key/kernel",   "l W A E", "(A E) W", Always),
    row("vision_tower.encoder.layers.{i}.self_attn.k_proj.bias",     "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/key/bias",     "l A E",   "(A E)",   Always),
    row("vision_tower.encoder.layers.{i}.self_attn.v_proj.weight",   "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/value/kernel", "l W A E", "(A E) W", Always),
    row("vision_tower.encoder.layers.{i}.self_attn.v_proj.bias",     "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/value/bias",   "l A E",   "(A E)",   Always),
    row("vision_tower.encoder.layers.{i}.self_attn.out_proj.weight", "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/out/kernel",   "l A E W", "W (A E)", Always),
    row("vision_tower.encoder.layers.{i}.self_attn.out_proj.bias",   "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/out/bias",     "l W",     "W",       Always),
    row("vision_tower.encoder.layers.{i}.layer_norm2.weight",        "img/Transformer/encoderblock/LayerNorm_1/scale", "l W", "W", Always),
    row("vision_tower.encoder.layers.{i}.layer_norm2.bias",          "img/Transformer/encoderblock/LayerNorm_1/bias",  "l W", "W", Always),
    row("vision_tower.encoder.layers.{i}.mlp.fc1.weight",            "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel", "l W M", "M W", Always),
    row("vision_tower.encoder.layers.{i}.mlp.fc1.bias",              "img/Transformer/encoderblock/MlpBlock_0/Dense_0/bias",   "l M",   "M",   Always),
    row("vision_tower.encoder.layers.{i}.mlp.fc2.weight",            "img/Transformer/encoderblock/MlpBlock_0/Dense_1/kernel", "l M W", "W M", Always),
    row("vision_tower.encoder.layers.{i}.mlp.fc2.bias",              "img/Transformer/encoderblock/MlpBlock_0/Dense_1/bias",   "l W",   "W",   Always),

    row("vision_tower.post_layernorm.weight", "img/Transformer/encoder_norm/scale", "W", "W", Always),
    row("vision_tower.post_layernorm.bias",   "img/Transformer/encoder_norm/bias",  "W", "W", Always),

    row("multi_modal_projector.linear.weight", "img/head/kernel", "W D", "D W", Always),
    row("multi_modal_projector.linear.bias",   "img/head/bias",   "D",   "D",   Always),

    row("language_model.embed_tokens.weight", "llm/embedder/input_embedding", "V D", "V D", Always),

    row("language_model.layers.{i}.input_layernorm.weight",            "llm/layers/pre_attention_norm/scale",  "L D", "D", Always),
    row("language_model.layers.{i}.self_attn.q_proj.weight",           "llm/layers/attn/q_einsum/w",   "L N D H",     "(N H) D", SplitQkv),
    row("language_model.layers.{i}.self_attn.k_proj.weight",           "llm/layers/attn/kv_einsum/w",  "L 0/2 K D H", "(K H) D", SplitQkv),
    row("language_model.layers.{i}.self_attn.v_proj.weight",           "llm/layers/attn/kv_einsum/w",  "L 1/2 K D H", "(K H) D", SplitQkv),
    row("language_model.layers.{i}.self_attn.q_proj.weight",           "llm/layers/attn/qkv_einsum/w", "L 0/3 N D H", "(N H) D", FusedQkv),
    row("language_model.layers.{i}.self_attn.k_proj.weight",           "llm/layers/attn/qkv_einsum/w", "L 1/3 K D H", "(K H) D", FusedQkv),
    row("language_model.layers.{i}.self_attn.v_proj.weight",           "llm/layers/attn/qkv_einsum/w", "L 2/3 K D H", "(K H) D", FusedQkv),
    row("language_model.layers.{i}.self_attn.o_proj.weight",           "llm/layers/attn/attn_vec_einsum/w", "L N H D", "D (N H)", Always),
    row("language_model.layers.{i}.post_attention_layernorm.weight",   "llm/layers/post_attention_norm/scale", "L D", "D", Gemma2),
    // Gemma 1 has one norm between attention and MLP, and the two projects name it from either side.
    row("language_model.layers.{i}.post_attention_layernorm.weight",   "llm/layers/pre_ffw_norm/scale",        "L D", "D", Gemma1),
    row("language_model.layers.{i}.pre_feedforward_layernorm.weight",  "llm/layers/pre_ffw_norm/scale",        "L D", "D", Gemma2),
    row("language_model.layers.{i}.mlp.gate_proj.weight",              "llm/layers/mlp/gating_einsum", "L 0/2 D F", "F D", Always),
    row("language_model.layers.{i}.mlp.up_proj.weight",                "llm/layers/mlp/gating_einsum", "L 1/2 D F", "F D", Always),
    row("language_model.layers.{i}.mlp.down_proj.weight",              "llm/layers/mlp/linear",        "L F D",     "D F", Always),
    row("language_model.layers.{i}.post_feedforward_layernorm.weight", "llm/layers/post_ffw_norm/scale",       "L D", "D", Gemma2),

    row("language_model.norm.weight", "llm/final_norm/scale", "D", "D", Always),
];

/// One tensor of a model, under both names.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// Our name.
    pub name: String,
    /// The shape under our name.
    pub shape: Vec<usize>,
    /// The name of the big_vision tensor of which this one is a slice, without `params/`.
    pub key: &'static str,
    /// The shape of that whole tensor.
    pub whole: Vec<usize>,
    /// Which slice, counted in slices over the outer axes.
    pub slice: usize,
    /// The shape of the slice.
    pub slice_shape: Vec<usize>,
    /// Axes of the slice in our order (`numpy.transpose`); merging neighbours then gives `shape`.
    pub order: Vec<usize>,
}

impl Named {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether both layouts hold the elements in the same order.
    pub fn is_in_place(&self) -> bool {
        self.order.iter().enumerate().all(|(to, &from)| to == from)
    }
}

/// Whether big_vision keeps queries, keys and values of this model in one tensor.
pub fn is_fused(config: &Config) -> bool {
    config.text.num_attention_heads == config.text.num_key_value_heads
}

/// All tensors of a model in the order in which it uses them. `fused` as in [`is_fused`]; an npz that keeps
/// them apart all the same is read with `false`.
pub fn tensors(config: &Config, fused: bool) -> Vec<Named> {
    let holds = |row: &&Row| match row.when {
        Always => true,
        Gemma1 => config.text.generation == GemmaGeneration::Gemma1,
        Gemma2 => config.text.generation == GemmaGeneration::Gemma2,
        SplitQkv => !fused,
        FusedQkv => fused,
    };
    let rows: Vec<&Row> = ROWS.iter().filter(holds).collect();
    let mut all = Vec::new();
    // Rows of a tower's layers stand together; they are repeated layer by layer.
    for group in rows.chunk_by(|a, b| tower(a).is_some() && tower(a) == tower(b)) {
        let layers = match tower(group[0]) {
            None => 1,
            Some("l") => config.vision.num_hidden_layers,
            Some(_) => config.text.num_hidden_layers,
        };
        for layer in 0..layers {
            all.extend(group.iter().map(|row| named(row, layer, config)));
        }
    }
    all
}

/// The layer axis of a row, if it has one.
fn tower(row: &Row) -> Option<&'static str> {
    row.from.split(' ').next().filter(|axis| matches!(*axis, "l" | "L"))
}

fn named(row: &Row, layer: usize, config: &Config) -> Named {
    let (mut whole, mut slice, mut slice_shape, mut letters) = (Vec::new(), 0, Vec::new(), Vec::new());
    for axis in row.from.split(' ') {
        let (at, size) = match (axis, axis.split_once('/')) {
            ("l", _) => (layer, config.vision.num_hidden_layers),
            ("L", _) => (layer, config.text.num_hidden_layers),
            (_, Some((at, of))) => (digit(at), digit(of)),
            (letter, None) => {
                letters.push(letter);
                slice_shape.push(size_of(letter, config));
                whole.push(size_of(letter, config));
                continue;
            }
        };
        slice = slice * size + at;
        whole.push(size);
    }
    let (mut shape, mut order) = (Vec::new(), Vec::new());
    let mut merging = false;
    for word in row.to.split(' ') {
        let letter = word.trim_matches(['(', ')']);
        // The table is constant and a test walks all of it: every letter of `to` stands in `from`.
        let axis = letters.iter().position(|l| *l == letter).unwrap_or(0);
        order.push(axis);
        match shape.last_mut() {
            Some(last) if merging => *last *= slice_shape[axis],
            _ => shape.push(slice_shape[axis]),
        }
        merging = word.starts_with('(') || (merging && !word.ends_with(')'));
    }
    Named {
        name: row.ours.replace("{i}", &layer.to_string()),
        shape,
        key: row.big_vision,
        whole,
        slice,
        slice_shape,
        order,
    }
}

fn digit(s: &str) -> usize {
    s.bytes().fold(0, |n, b| n * 10 + usize::from(b - b'0'))
}

fn size_of(letter: &str, config: &Config) -> usize {
    let (vision, text) = (&config.vision, &config.text);
    match letter {
        "Y" | "X" => vision.patch_size,
        "C" => 3,
        "T" => vision.num_tokens(),
        "W" => vision.hidden_size,
        "M" => vision.intermediate_size,
        "A" => vision.num_attention_heads,
        "E" => vision.hidden_size / vision.num_attention_heads,
        "V" => text.vocab_size,
        "D" => text.hidden_size,
        "F" => text.intermediate_size,
        "N" => text.num_attention_heads,
        "K" => text.num_key_value_heads,
        "H" => text.head_dim,
        _ => unreachable!("a letter that the table's legend does not name"),
    }
}

/// Our name of a tensor that Hugging Face's files or big_vision-free tools call `name`, in any of the prefix
/// styles of the versions of transformers: `language_model.model.…`, `model.language_model.…`,
/// `vision_tower.vision_model.…`, `vision_tower.…`. `None` if no PaliGemma has such a tensor.
pub fn canonical(name: &str) -> Option<String> {
    let ours = without_prefix(name);
    let pattern = match ours.split_once(".layers.") {
        Some((head, tail)) => {
            let (layer, tail) = tail.split_once('.')?;
            let is_number =
                !layer.is_empty() && layer.len() <= 3 && layer.bytes().all(|b| b.is_ascii_digit());
            if !is_number || (layer.len() > 1 && layer.starts_with('0')) {
                return None;
            }
            format!("{head}.layers.{{i}}.{tail}")
        }
        None => ours.clone(),
    };
    ROWS.iter().any(|row| row.ours == pattern).then_some(ours)
}

/// `name` without the outer prefixes that differ between versions of transformers.
fn without_prefix(name: &str) -> String {
    let name = name.strip_prefix("model.").unwrap_or(name);
    for (tower, inner) in [("language_model.", "model."), ("vision_tower.", "vision_model.")] {
        if let Some(rest) = name.strip_prefix(tower) {
            return format!("{tower}{}", rest.strip_prefix(inner).unwrap_or(rest));
        }
    }
    name.to_string()
}

/// The name that published Hugging Face repositories use, which every version of transformers loads.
pub fn hugging_face(ours: &str) -> String {
    match (ours.strip_prefix("language_model."), ours.strip_prefix("vision_tower.")) {
        (Some(rest), _) => format!("language_model.model.{rest}"),
        (_, Some(rest)) => format!("vision_tower.vision_model.{rest}"),
        _ => ours.to_string(),
    }
}

/// A tensor that files may hold and PaliGemma does not need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// Computed values that old versions stored: `position_ids`, `inv_freq`.
    Buffer,
    /// The output head; it must equal the embedding table, to which it is tied.
    LmHead,
    /// SigLIP's pooling head, which PaliGemma never runs.
    PoolingHead,
}

/// Which ignorable tensor `name` is, if it is one.
pub fn extra(name: &str) -> Option<Extra> {
    let ours = without_prefix(name);
    if ours == "lm_head.weight" || ours == "language_model.lm_head.weight" {
        Some(Extra::LmHead)
    } else if ours == "vision_tower.embeddings.position_ids" || ours.ends_with("rotary_emb.inv_freq") {
        Some(Extra::Buffer)
    } else if ours.starts_with("vision_tower.head.") {
        Some(Extra::PoolingHead)
    } else {
        None
    }
}

/// The candidate that is most like `name`, if any is like it at all.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A stranger's name may be as long as its file's header; a name beyond this length is like none of ours.
    if name.len() > 200 {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (distance(name.as_bytes(), candidate.as_bytes()), candidate))
        .filter(|(d, candidate)| d * 3 <= candidate.len())
        .min_by_key(|(d, _)| *d)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let swap = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = swap.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn shapes_are_those_of_the_published_files() {
        let config = Config::published("3b-224").unwrap();
        let all = tensors(&config, is_fused(&config));
        let find = |name: &str| all.iter().find(|t| t.name == name).unwrap();
        let q = find("language_model.layers.17.self_attn.q_proj.weight");
        assert_eq!((&q.shape[..], &q.whole[..]), (&[2048, 2048][..], &[18, 8, 2048, 256][..]));
        let v = find("language_model.layers.3.self_attn.v_proj.weight");
        assert_eq!((&v.shape[..], &v.whole[..], v.slice), (&[256, 2048][..], &[18, 2, 1, 2048, 256][..], 7));
        let patch = find("vision_tower.embeddings.patch_embedding.weight");
        assert_eq!((&patch.shape[..], &patch.whole[..]), (&[1152, 3, 14, 14][..], &[14, 14, 3, 1152][..]));
        assert_eq!(patch.order, [3, 2, 0, 1]);
        assert_eq!(find("vision_tower.embeddings.position_embedding.weight").whole, [1, 256, 1152]);
        assert_eq!(all.len(), 603);
    }

    #[test]
    fn parameters_are_as_many_as_published() {
        // With 257,152 embedding rows.
        let cases = [
            ("3b-224", 2_923_335_408u64),
            ("3b-448", 2_924_220_144),
            ("3b-896", 2_927_759_088),
            ("2-3b-224", 3_032_094_960),
            ("2-3b-448", 3_032_979_696),
            ("2-3b-896", 3_036_518_640),
            ("2-10b-224", 9_662_409_456),
            ("2-10b-448", 9_663_294_192),
            ("2-10b-896", 9_666_833_136),
            ("2-28b-224", 27_650_192_112),
            ("2-28b-448", 27_651_076_848),
            ("2-28b-896", 27_654_615_792),
        ];
        let published = Config::published_names().into_iter().filter(|name| name.contains("b-"));
        assert!(published.eq(cases.iter().map(|(name, _)| *name)));
        for (name, expected) in cases {
            let mut config = Config::published(name).unwrap();
            config.text.vocab_size = 257_152;
            let total: u64 = tensors(&config, false).iter().map(|t| t.len() as u64).sum();
            assert_eq!(total, expected, "{name}");
        }
    }

    #[test]
    fn every_slice_of_every_big_vision_tensor_has_exactly_one_name() {
        for (name, fused) in [("3b-224", false), ("2-3b-224", false), ("tiny", true), ("2-tiny", true)] {
            let mut config = Config::published(name).unwrap();
            if fused {
                config.text.num_key_value_heads = config.text.num_attention_heads;
            }
            let mut seen: BTreeMap<&str, (usize, Vec<usize>)> = BTreeMap::new();
            for t in tensors(&config, fused) {
                let slices: usize = t.whole.iter().product::<usize>() / t.len();
                assert_eq!(t.slice_shape.iter().product::<usize>(), t.len(), "{}", t.name);
                let mut order = t.order.clone();
                order.sort_unstable();
                assert!(order.iter().enumerate().all(|(i, &a)| i == a), "{}: {:?}", t.name, t.order);
                let entry = seen.entry(t.key).or_insert((slices, Vec::new()));
                entry.1.push(t.slice);
            }
            for (key, (slices, mut found)) in seen {
                found.sort_unstable();
                assert!(found.into_iter().eq(0..slices), "{key}");
            }
        }
    }

    #[test]
    fn every_prefix_style_has_one_name() {
        let cases = [
            (
                "language_model.model.layers.3.mlp.up_proj.weight",
                Some("language_model.layers.3.mlp.up_proj.weight"),
            ),
            (
                "model.language_model.layers.3.mlp.up_proj.weight",
                Some("language_model.layers.3.mlp.up_proj.weight"),
            ),
            (
                "language_model.layers.3.mlp.up_proj.weight",
                Some("language_model.layers.3.mlp.up_proj.weight"),
            ),
            ("language_model.model.embed_tokens.weight", Some("language_model.embed_tokens.weight")),
            ("vision_tower.vision_model.post_layernorm.bias", Some("vision_tower.post_layernorm.bias")),
            ("model.vision_tower.vision_model.post_layernorm.bias", Some("vision_tower.post_layernorm.bias")),
            ("model.vision_tower.post_layernorm.bias", Some("vision_tower.post_layernorm.bias")),
            ("vision_tower.post_layernorm.bias", Some("vision_tower.post_layernorm.bias")),
            ("model.multi_modal_projector.linear.weight", Some("multi_modal_projector.linear.weight")),
            ("multi_modal_projector.linear.weight", Some("multi_modal_projector.linear.weight")),
            ("language_model.layers.03.mlp.up_proj.weight", None),
            ("language_model.layers.+3.mlp.up_proj.weight", None),
            ("language_model.layers.3333.mlp.up_proj.weight", None),
            ("language_model.layers.{i}.mlp.up_proj.weight", None),
            ("language_model.layers.3.mlp.fc1.weight", None),
            ("lm_head.weight", None),
            ("", None),
        ];
        for (name, expected) in cases {
            assert_eq!(canonical(name).as_deref(), expected, "{name}");
        }
        for name in tensors(&Config::published("2-tiny").unwrap(), false).iter().map(|t| &t.name) {
            assert_eq!(canonical(name).as_ref(), Some(name));
            assert_eq!(canonical(&hugging_face(name)).as_ref(), Some(name));
        }
    }

    #[test]
    fn a_misspelt_name_finds_its_neighbour() {
        let names = ["language_model.norm.weight", "language_model.embed_tokens.weight"];
        assert_eq!(nearest("language_model.nrom.weight", names), Some(names[0]));
        assert_eq!(nearest("optimizer", names), None);
    }
}
