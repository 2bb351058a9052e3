//! Gemma 1 and 2: embedded tokens become predictions of the next token.
//! Reference: big_vision/models/ppp/gemma.py; paper section 3.1, PaliGemma 2 paper section 3.
//!
//! Sequences stand one after the other in the rows of x, without padding: a batch is a list of [`Turn`]s, each with
//! its own cache, so that a row never meets its neighbours except in the products with the weights. In training a batch is
//! a list of whole [`Sequence`]s instead, and nothing is cached.
//!
//! Legend: T rows of x, D width, N query heads, K key and value heads, H head size, F width of the MLP, V vocabulary.

use super::{
    KvCache, Pass,
    linear::{Linear, Weights, attention_dtype},
};
use crate::{
    Error, Result,
    config::{GemmaGeneration, TextConfig},
};
use paligemma_tensor::{
    AttentionRule, DType, Epilogue, LossRule, Mask, Parameter, Segment, Span, Target, Tensor, Value, Weight,
    attention, linear, softcap,
};
use std::{ops::Range, sync::Arc};

/// The decoder.
#[derive(Debug, Clone)]
pub struct Gemma {
    config: Arc<TextConfig>,
    /// `[V, D]`, also the output head.
    input_embedding: Parameter,
    blocks: Vec<Arc<Block>>,
    /// `[D]`
    final_norm: Parameter,
}

#[derive(Debug, Clone)]
struct Block {
    /// `[D]`
    pre_attention_norm: Parameter,
    /// `[N·H, D]`
    query: Linear,
    /// `[K·H, D]`
    key: Linear,
    /// `[K·H, D]`
    value: Linear,
    /// `[D, N·H]`
    attn_vec: Linear,
    /// `[D]`, Gemma 2 only
    post_attention_norm: Option<Parameter>,
    /// `[D]`
    pre_ffw_norm: Parameter,
    /// `[F, D]`
    gate: Linear,
    /// `[F, D]`
    up: Linear,
    /// `[D, F]`
    down: Linear,
    /// `[D]`, Gemma 2 only
    post_ffw_norm: Option<Parameter>,
}

/// The next rows of one sequence.
#[derive(Debug)]
pub struct Turn<'a> {
    /// How many rows of x are this sequence's.
    pub len: usize,
    /// What it has read before; the new rows are appended.
    pub cache: &'a mut KvCache,
    /// Positions before this one (image, BOS, prefix, "\n") see each other; later ones are causal.
    pub prefix_len: usize,
}

/// A sequence that is read at once, without a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// How many rows of x are its own.
    pub len: usize,
    /// As in [`Turn`].
    pub prefix_len: usize,
}

/// How the rows of x are read.
enum Reading<'a, 'b> {
    /// On top of what the caches hold.
    Cached(&'a mut [Turn<'b>]),
    /// From the beginning, keeping nothing.
    Whole(&'a [Sequence]),
}

/// What a block must know besides its weights.
struct Place<'a> {
    config: &'a TextConfig,
    layer: usize,
    /// Of every row.
    positions: &'a [usize],
    /// The rows that are wanted behind this layer, if not all.
    wanted: Option<&'a [Range<usize>]>,
    /// The sliding window of this layer.
    window: Option<usize>,
}

impl Gemma {
    /// Takes `language_model.*`.
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn load(config: &TextConfig, w: &mut Weights<'_>) -> Result<Self> {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let (q, kv) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        let post_norms = config.generation == GemmaGeneration::Gemma2;
        let blocks = (0..config.num_hidden_layers).map(|i| {
            let name = |part: &str| format!("language_model.layers.{i}.{part}");
            // Gemma 1's post_attention_layernorm is the norm before the MLP; Gemma 2 has four norms.
            let pre_ffw = if post_norms {
                "pre_feedforward_layernorm.weight"
            } else {
                "post_attention_layernorm.weight"
            };
            let gate = Linear::load(w, &name("mlp.gate_proj"), (f, d), false)?;
            let up = Linear::load(w, &name("mlp.up_proj"), (f, d), false)?;
            let type_name = |linear: &Linear| linear.weight.weight().type_name();
            if type_name(&gate) != type_name(&up) {
                // They are multiplied together.
                let (gate_name, up_name) = (name("mlp.gate_proj.weight"), name("mlp.up_proj.weight"));
                let (gate, up) = (type_name(&gate), type_name(&up));
                return Err(Error::model(format!("\"{gate_name}\" is {gate} and \"{up_name}\" is {up}"))
                    .expected("one type for both")
                    .hint("choose a type for all with --dtype"));
            }
            let mut post = |part: &str| post_norms.then(|| w.take(&name(part), &[d])).transpose();
            Ok(Arc::new(Block {
                post_attention_norm: post("post_attention_layernorm.weight")?,
                post_ffw_norm: post("post_feedforward_layernorm.weight")?,
                pre_attention_norm: w.take(&name("input_layernorm.weight"), &[d])?,
                query: Linear::load(w, &name("self_attn.q_proj"), (q, d), false)?,
                key: Linear::load(w, &name("self_attn.k_proj"), (kv, d), false)?,
                value: Linear::load(w, &name("self_attn.v_proj"), (kv, d), false)?,
                attn_vec: Linear::load(w, &name("self_attn.o_proj"), (d, q), false)?,
                pre_ffw_norm: w.take(&name(pre_ffw), &[d])?,
                gate,
                up,
                down: Linear::load(w, &name("mlp.down_proj"), (d, f), false)?,
            }))
        });
        Ok(Gemma {
            blocks: blocks.collect::<Result<_>>()?,
            input_embedding: w.take_matrix("language_model.embed_tokens.weight", [config.vocab_size, d])?,
            final_norm: w.take("language_model.norm.weight", &[d])?,
            config: Arc::new(config.clone()),
        })
    }

    /// Every tensor. One step of decoding reads each of them once, the embedding table as the head.
    pub fn weights(&self) -> impl Iterator<Item = &Tensor> {
        self.parameters().flat_map(|parameter| parameter.weight().parts())
    }

    /// What it is made of.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let blocks = self.blocks.iter().flat_map(|block| block.parameters());
        blocks.chain([&self.final_norm, &self.input_embedding])
    }

    /// The weight whose gradient is wanted as `id`.
    pub(crate) fn wanted_mut(&mut self, id: usize) -> Option<&mut Parameter> {
        let block = self.blocks.iter_mut().find(|block| block.parameters().any(|p| p.id() == Some(id)));
        // A tape may still hold the other blocks: those are left alone.
        let of_block = block.into_iter().flat_map(|block| Arc::make_mut(block).parameters_mut());
        let mut all = of_block.chain([&mut self.final_norm, &mut self.input_embedding]);
        all.find(|parameter| parameter.id() == Some(id))
    }

    /// Token ids → `[ids, D]`, scaled by √D. Panics on an id beyond the table.
    pub fn embed(&self, ids: &[u32], pass: &mut Pass<'_>) -> Value {
        // x *= jnp.sqrt(self.embed_dim).astype(x.dtype): the factor has the table's precision (√2048 is 45.25 in bf16).
        let root = (self.config.hidden_size as f32).sqrt();
        let root = match self.input_embedding.weight() {
            Weight::Plain(table) => Tensor::from_f32(vec![root], &[1]).cast(table.dtype()).to_f32_vec()[0],
            Weight::Int8 { .. } | Weight::Int4 { .. } => root,
        };
        pass.tape.embedding(&self.input_embedding, ids, root)
    }

    /// Reads the rows of `x_td` into the turns' caches → `[T, D]`, what the head takes (`pre_logits`).
    /// With `sliding_window` the config's window holds in its sliding layers; big_vision has none.
    ///
    /// # Errors
    /// Only [`crate::Kind::Cancelled`]; the caches are then of no use.
    pub fn forward(
        &self,
        x_td: &Value,
        turns: &mut [Turn<'_>],
        sliding_window: bool,
        pass: &mut Pass<'_>,
    ) -> Result<Value> {
        let positions: Arc<[usize]> =
            turns.iter().flat_map(|turn| turn.cache.len()..turn.cache.len() + turn.len).collect();
        self.through_blocks(x_td, &positions, sliding_window, pass, |block, place, x, pass| {
            block.forward(x, place, &mut Reading::Cached(turns), pass)
        })
    }

    /// Reads whole sequences, keeping no cache: the same numbers, and gradients on the way back if the pass is recorded.
    /// With `wanted`, a range of rows of each sequence, only these come out, one after the other: behind the last attention the others
    /// are of no more use.
    ///
    /// # Errors
    /// Only [`crate::Kind::Cancelled`].
    pub fn forward_whole(
        &self,
        x_td: &Value,
        sequences: &[Sequence],
        wanted: Option<&[Range<usize>]>,
        sliding_window: bool,
        pass: &mut Pass<'_>,
    ) -> Result<Value> {
        pass.at_examples(sequences.iter().map(|sequence| sequence.len));
        let positions: Arc<[usize]> = sequences.iter().flat_map(|sequence| 0..sequence.len).collect();
        let sequences: Arc<[Sequence]> = sequences.into();
        let all = (Arc::clone(&self.config), Arc::clone(&positions), sequences);
        let wanted: Option<Arc<[Range<usize>]>> = wanted.map(Into::into);
        let last = self.blocks.len().saturating_sub(1);
        self.through_blocks(x_td, &positions, sliding_window, pass, |block, place, x, pass| {
            let (block, layer, window) = (Arc::clone(block), place.layer, place.window);
            let (config, positions, sequences) = all.clone();
            let wanted = wanted.clone().filter(|_| layer == last);
            pass.block(x, move |pass, x| {
                pass.at_block(layer);
                let place = Place {
                    config: &config,
                    layer,
                    positions: &positions,
                    wanted: wanted.as_deref(),
                    window,
                };
                block.forward(x, &place, &mut Reading::Whole(&sequences), pass)
            })
        })
    }

    /// One block after the other, then the final norm.
    fn through_blocks(
        &self,
        x_td: &Value,
        positions: &[usize],
        sliding_window: bool,
        pass: &mut Pass<'_>,
        mut forward: impl FnMut(&Arc<Block>, &Place<'_>, &Value, &mut Pass<'_>) -> Value,
    ) -> Result<Value> {
        assert_eq!(x_td.tensor().shape()[0], positions.len(), "rows of all sequences");
        let mut x = x_td.clone();
        for (layer, block) in self.blocks.iter().enumerate() {
            pass.go_on()?;
            let window = if sliding_window && self.config.sliding_layers.get(layer) == Some(&true) {
                self.config.sliding_window
            } else {
                None
            };
            x = forward(
                block,
                &Place { config: &self.config, layer, positions, wanted: None, window },
                &x,
                pass,
            );
            pass.put(format_args!("llm/layers/{layer:02}"), &x);
        }
        pass.put(format_args!("llm/encoded"), &x); // out["encoded"] = x
        let x = pass.tape.rms_norm(&x, &self.final_norm, self.config.rms_norm_eps);
        pass.put(format_args!("llm/pre_logits"), &x); // x = RMSNorm(name="final_norm")(x)
        Ok(x)
    }

    /// The loss of predicting `targets` from rows of `pre_logits` `[T, D]`, through the head, as a value and as f64.
    pub fn loss(
        &self,
        pre_logits_td: &Value,
        targets: &[Target],
        rule: &LossRule,
        pass: &mut Pass<'_>,
    ) -> (Value, f64) {
        pass.tape.cross_entropy(pre_logits_td, &self.input_embedding, targets, rule)
    }

    /// `pre_logits` `[T, D]` → `[T, V]`, before the final soft cap: what big_vision trains and scores on
    /// (`compute_logits` returns before the cap).
    pub fn uncapped_logits(&self, x_td: &Tensor) -> Tensor {
        linear(x_td, self.input_embedding.weight(), Epilogue::default()) // embedder.decode(x)
    }

    /// `pre_logits` `[T, D]` → `[T, V]`, soft-capped where the config says so: what transformers returns.
    pub fn logits(&self, x_td: &Tensor) -> Tensor {
        let logits = self.uncapped_logits(x_td);
        match self.config.final_logit_softcapping {
            Some(cap) => softcap(&logits, cap),
            None => logits,
        }
    }

    /// How the matrices of the blocks are kept: `f32`, `bf16`, `f16`, `int8` or `int4`.
    pub fn matrix_type(&self) -> &'static str {
        self.blocks.first().map_or("f32", |block| block.gate.weight.weight().type_name())
    }

    /// What keys and values are kept as: bf16 beside bf16 and quantised weights, f32 otherwise.
    pub fn cache_dtype(&self) -> DType {
        self.blocks.first().map_or(DType::F32, |block| attention_dtype(block.key.weight.weight()))
    }
}

impl Block {
    fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let Block { query, key, value, attn_vec, gate, up, down, .. } = self;
        let Block { pre_attention_norm, post_attention_norm, pre_ffw_norm, post_ffw_norm, .. } = self;
        let post_norms = [post_attention_norm, post_ffw_norm].into_iter().flatten();
        let linear = [query, key, value, attn_vec, gate, up, down].into_iter().flat_map(Linear::parameters);
        linear.chain([pre_attention_norm, pre_ffw_norm]).chain(post_norms)
    }

    fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let Block {
            pre_attention_norm,
            query,
            key,
            value,
            attn_vec,
            post_attention_norm,
            pre_ffw_norm,
            gate,
            up,
            down,
            post_ffw_norm,
        } = self;
        let post_norms = [post_attention_norm, post_ffw_norm].into_iter().flatten();
        let linear =
            [query, key, value, attn_vec, gate, up, down].into_iter().flat_map(Linear::parameters_mut);
        linear.chain([pre_attention_norm, pre_ffw_norm]).chain(post_norms)
    }

    /// `Block.__call__`, `x_td` → the same shape, or the wanted rows of it; the turns' caches grow by their rows in this layer.
    fn forward(
        &self,
        x_td: &Value,
        place: &Place<'_>,
        reading: &mut Reading<'_, '_>,
        pass: &mut Pass<'_>,
    ) -> Value {
        let eps = place.config.rms_norm_eps;
        let y = pass.tape.rms_norm(x_td, &self.pre_attention_norm, eps); // inputs_normalized = self.pre_attention_norm(x)
        let y = self.attend(&y, place, reading, pass);
        let (x_td, y) = match place.wanted {
            Some(wanted) => {
                pass.at_examples(wanted.iter().map(Range::len));
                let mut rows_of =
                    |x| pass.tape.concat_rows(&wanted.iter().map(|r| (x, r.clone())).collect::<Vec<_>>());
                (rows_of(x_td), rows_of(&y))
            }
            None => (x_td.clone(), y),
        };
        let x = if self.post_attention_norm.is_none() && !pass.drops_residuals() {
            self.attn_vec.sum(&y, Some(&x_td), pass) // attn_output += x
        } else {
            let y = self.attn_vec.forward(&y, pass);
            let y = post_norm(&y, self.post_attention_norm.as_ref(), eps, pass); // if self.post_norms: ...
            let y = pass.drop_residual(&y); // attn_output = self.drop(attn_output, deterministic)
            pass.tape.add(&x_td, &y)
        };
        let y = pass.tape.rms_norm(&x, &self.pre_ffw_norm, eps); // attn_output = self.pre_ffw_norm(attn_output)
        let y = self.gated(&y, pass); // activations = nn.gelu(ff_gate) * ff1
        if self.post_ffw_norm.is_none() && !pass.drops_residuals() {
            return self.down.sum(&y, Some(&x), pass); // outputs = residual + outputs
        }
        let y = self.down.forward(&y, pass);
        let y = pass.drop_residual(&y); // outputs = self.drop(outputs, deterministic)
        let y = post_norm(&y, self.post_ffw_norm.as_ref(), eps, pass); // if self.post_norms: ...
        pass.tape.add(&x, &y)
    }

    /// The MLP up to its output projection.
    fn gated(&self, y_td: &Value, pass: &mut Pass<'_>) -> Value {
        if self.gate.lora.is_none() && self.up.lora.is_none() {
            return pass.tape.geglu(y_td, &self.gate.weight, &self.up.weight);
        }
        let gate = self.gate.forward(y_td, pass);
        let up = self.up.forward(y_td, pass);
        pass.tape.gelu_times(&gate, &up)
    }

    /// `Attention.__call__` up to its output projection.
    fn attend(
        &self,
        y_td: &Value,
        place: &Place<'_>,
        reading: &mut Reading<'_, '_>,
        pass: &mut Pass<'_>,
    ) -> Value {
        let config = place.config;
        let (t, n, k, h) =
            (place.positions.len(), config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let q_tnh = self.query.forward(y_td, pass).reshape(&[t, n, h]);
        let q_tnh = pass.tape.rope(&q_tnh, place.positions, config.rope_theta); // q = _apply_rope(q, positions=positions)
        let k_tkh = self.key.forward(y_td, pass).reshape(&[t, k, h]);
        let k_tkh = pass.tape.rope(&k_tkh, place.positions, config.rope_theta); // k = _apply_rope(k, positions=positions)
        let v_tkh = self.value.forward(y_td, pass).reshape(&[t, k, h]);
        // q *= head_dim**-0.5, or (features // num_heads)**-0.5 in the 27B: the config's scalar says which.
        let (scale, softcap) = (config.query_pre_attn_scalar.powf(-0.5), config.attn_logit_softcapping);
        match reading {
            Reading::Cached(turns) => {
                let (q, k, v) = (q_tnh.tensor(), k_tkh.tensor(), v_tkh.tensor());
                attend_cached(q, k, v, turns, place, scale).into()
            }
            Reading::Whole(sequences) => {
                let mut from = 0;
                let spans: Vec<Span> = sequences
                    .iter()
                    .map(|sequence| {
                        from += sequence.len;
                        let mask = Mask { prefix_len: sequence.prefix_len, window: place.window };
                        Span { rows: from - sequence.len..from, mask }
                    })
                    .collect();
                let rule = AttentionRule { scale, softcap, dtype: attention_dtype(self.key.weight.weight()) };
                pass.tape.attention(&q_tnh, &k_tkh, &v_tkh, &spans, rule)
            }
        }
    }
}

/// Attention over the turns' caches, after these rows of keys and values were appended.
fn attend_cached(
    q_tnh: &Tensor,
    k_tkh: &Tensor,
    v_tkh: &Tensor,
    turns: &mut [Turn<'_>],
    place: &Place<'_>,
    scale: f32,
) -> Tensor {
    let mut from = 0;
    for turn in turns.iter_mut() {
        let to = from + turn.len;
        turn.cache.layers[place.layer].append(&k_tkh.rows(from, to), &v_tkh.rows(from, to));
        from = to;
    }
    let mut from = 0;
    let segments: Vec<_> = turns
        .iter()
        .map(|turn| {
            let key_values = &turn.cache.layers[place.layer];
            from += turn.len;
            Segment {
                queries: from - turn.len..from,
                first_position: key_values.len() - turn.len,
                key_values,
                mask: Mask { prefix_len: turn.prefix_len, window: place.window },
            }
        })
        .collect();
    attention(q_tnh, &segments, scale, place.config.attn_logit_softcapping)
}

/// Gemma 2's norm of what a block adds.
fn post_norm(y_td: &Value, norm: Option<&Parameter>, eps: f32, pass: &mut Pass<'_>) -> Value {
    match norm {
        Some(norm) => pass.tape.rms_norm(y_td, norm, eps),
        None => y_td.clone(),
    }
}
