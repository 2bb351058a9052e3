//! Gemma 1 and 2: embedded tokens become predictions of the next token.
//! Reference: big_vision/models/ppp/gemma.py; paper section 3.1, PaliGemma 2 paper section 3.
//!
//! Sequences stand one after the other in the rows of x, without padding: a batch is a list of [`Turn`]s, each with
//! its own cache, so that a row never meets its neighbours except in the products with the weights.
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
    DType, Epilogue, Mask, Segment, Tensor, Weight, add, attention, embedding, geglu, linear, rms_norm, rope,
    softcap,
};

/// The decoder.
#[derive(Debug, Clone)]
pub struct Gemma {
    config: TextConfig,
    /// `[V, D]`, also the output head.
    input_embedding: Weight,
    blocks: Vec<Block>,
    /// `[D]`
    final_norm: Tensor,
}

#[derive(Debug, Clone)]
struct Block {
    /// `[D]`
    pre_attention_norm: Tensor,
    /// `[N·H, D]`
    query: Linear,
    /// `[K·H, D]`
    key: Linear,
    /// `[K·H, D]`
    value: Linear,
    /// `[D, N·H]`
    attn_vec: Linear,
    /// `[D]`, Gemma 2 only
    post_attention_norm: Option<Tensor>,
    /// `[D]`
    pre_ffw_norm: Tensor,
    /// `[F, D]`
    gate: Weight,
    /// `[F, D]`
    up: Weight,
    /// `[D, F]`
    down: Linear,
    /// `[D]`, Gemma 2 only
    post_ffw_norm: Option<Tensor>,
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
            let gate = w.take_matrix(&name("mlp.gate_proj.weight"), [f, d])?;
            let up = w.take_matrix(&name("mlp.up_proj.weight"), [f, d])?;
            if gate.type_name() != up.type_name() {
                // They are multiplied together.
                let (gate_name, up_name) = (name("mlp.gate_proj.weight"), name("mlp.up_proj.weight"));
                let (gate, up) = (gate.type_name(), up.type_name());
                return Err(Error::model(format!("\"{gate_name}\" is {gate} and \"{up_name}\" is {up}"))
                    .expected("one type for both")
                    .hint("choose a type for all with --dtype"));
            }
            let mut post = |part: &str| post_norms.then(|| w.take(&name(part), &[d])).transpose();
            Ok(Block {
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
            })
        });
        Ok(Gemma {
            blocks: blocks.collect::<Result<_>>()?,
            input_embedding: w.take_matrix("language_model.embed_tokens.weight", [config.vocab_size, d])?,
            final_norm: w.take("language_model.norm.weight", &[d])?,
            config: config.clone(),
        })
    }

    /// Every tensor. One step of decoding reads each of them once, the embedding table as the head.
    pub fn weights(&self) -> impl Iterator<Item = &Tensor> {
        let blocks = self.blocks.iter().flat_map(|block| {
            let Block { query, key, value, attn_vec, gate, up, down, .. } = block;
            let Block { pre_attention_norm, post_attention_norm, pre_ffw_norm, post_ffw_norm, .. } = block;
            let linear = [query, key, value, attn_vec, down].into_iter().flat_map(Linear::weights);
            let post_norms = [post_attention_norm, post_ffw_norm].into_iter().flatten();
            let gated = [gate, up].into_iter().flat_map(Weight::parts);
            linear.chain(gated).chain([pre_attention_norm, pre_ffw_norm]).chain(post_norms)
        });
        blocks.chain([&self.final_norm]).chain(self.input_embedding.parts())
    }

    /// Token ids → `[ids, D]`, scaled by √D. Panics on an id beyond the table.
    pub fn embed(&self, ids: &[u32]) -> Tensor {
        // x *= jnp.sqrt(self.embed_dim).astype(x.dtype): the factor has the table's precision (√2048 is 45.25 in bf16).
        let root = (self.config.hidden_size as f32).sqrt();
        let root = match &self.input_embedding {
            Weight::Plain(table) => Tensor::from_f32(vec![root], &[1]).cast(table.dtype()).to_f32_vec()[0],
            Weight::Int8 { .. } | Weight::Int4 { .. } => root,
        };
        embedding(&self.input_embedding, ids, root)
    }

    /// Reads the rows of `x_td` into the turns' caches → `[T, D]`, what the head takes (`pre_logits`).
    /// With `sliding_window` the config's window holds in its sliding layers; big_vision has none.
    ///
    /// # Errors
    /// Only [`crate::Kind::Cancelled`]; the caches are then of no use.
    pub fn forward(
        &self,
        x_td: &Tensor,
        turns: &mut [Turn<'_>],
        sliding_window: bool,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        let positions: Vec<usize> =
            turns.iter().flat_map(|turn| turn.cache.len()..turn.cache.len() + turn.len).collect();
        assert_eq!(x_td.shape()[0], positions.len(), "rows of all turns");
        let mut x = x_td.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            pass.go_on()?;
            let window = if sliding_window && self.config.sliding_layers.get(i) == Some(&true) {
                self.config.sliding_window
            } else {
                None
            };
            x = block.forward(&x, &self.config, i, &positions, turns, window);
            pass.put(format_args!("llm/layers/{i:02}"), &x);
        }
        pass.put(format_args!("llm/encoded"), &x); // out["encoded"] = x
        let x = rms_norm(&x, &self.final_norm, self.config.rms_norm_eps);
        pass.put(format_args!("llm/pre_logits"), &x); // x = RMSNorm(name="final_norm")(x)
        Ok(x)
    }

    /// `pre_logits` `[T, D]` → `[T, V]`, before the final soft cap: what big_vision trains and scores on
    /// (`compute_logits` returns before the cap).
    pub fn uncapped_logits(&self, x_td: &Tensor) -> Tensor {
        linear(x_td, &self.input_embedding, Epilogue::default()) // embedder.decode(x)
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
        self.blocks.first().map_or("f32", |block| block.gate.type_name())
    }

    /// What keys and values are kept as: bf16 beside bf16 and quantised weights, f32 otherwise.
    pub fn cache_dtype(&self) -> DType {
        self.blocks.first().map_or(DType::F32, |block| attention_dtype(&block.key.weight))
    }
}

impl Block {
    /// `Block.__call__`, `x_td` → the same shape; the turns' caches grow by their rows in this layer.
    fn forward(
        &self,
        x_td: &Tensor,
        config: &TextConfig,
        layer: usize,
        positions: &[usize],
        turns: &mut [Turn<'_>],
        window: Option<usize>,
    ) -> Tensor {
        let eps = config.rms_norm_eps;
        let y = rms_norm(x_td, &self.pre_attention_norm, eps); // inputs_normalized = self.pre_attention_norm(x)
        let y = self.attend(&y, config, layer, positions, turns, window);
        let x = residual(&self.attn_vec, x_td, &y, self.post_attention_norm.as_ref(), eps); // attn_output += x
        let y = rms_norm(&x, &self.pre_ffw_norm, eps); // attn_output = self.pre_ffw_norm(attn_output)
        let y = geglu(&y, &self.gate, &self.up); // activations = nn.gelu(ff_gate) * ff1
        residual(&self.down, &x, &y, self.post_ffw_norm.as_ref(), eps) // outputs = residual + outputs
    }

    /// `Attention.__call__` up to its output projection.
    fn attend(
        &self,
        y_td: &Tensor,
        config: &TextConfig,
        layer: usize,
        positions: &[usize],
        turns: &mut [Turn<'_>],
        window: Option<usize>,
    ) -> Tensor {
        let (t, n, k, h) =
            (positions.len(), config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let q_tnh = self.query.forward(y_td).reshape(&[t, n, h]);
        let q_tnh = rope(&q_tnh, positions, config.rope_theta); // q = _apply_rope(q, positions=positions)
        let k_tkh = self.key.forward(y_td).reshape(&[t, k, h]);
        let k_tkh = rope(&k_tkh, positions, config.rope_theta); // k = _apply_rope(k, positions=positions)
        let v_td = self.value.forward(y_td);
        let mut from = 0;
        for turn in turns.iter_mut() {
            let to = from + turn.len;
            turn.cache.layers[layer].append(&k_tkh.rows(from, to), &v_td.rows(from, to));
            from = to;
        }
        let mut from = 0;
        let segments: Vec<_> = turns
            .iter()
            .map(|turn| {
                let key_values = &turn.cache.layers[layer];
                from += turn.len;
                Segment {
                    queries: from - turn.len..from,
                    first_position: key_values.len() - turn.len,
                    key_values,
                    mask: Mask { prefix_len: turn.prefix_len, window },
                }
            })
            .collect();
        // q *= head_dim**-0.5, or (features // num_heads)**-0.5 in the 27B: the config's scalar says which.
        attention(&q_tnh, &segments, config.query_pre_attn_scalar.powf(-0.5), config.attn_logit_softcapping)
    }
}

/// x + norm(y·Wᵀ), or x + y·Wᵀ where there is no post-norm.
fn residual(w: &Linear, x_td: &Tensor, y_td: &Tensor, post_norm: Option<&Tensor>, eps: f32) -> Tensor {
    match post_norm {
        None => linear(y_td, &w.weight, Epilogue { bias: None, gelu: false, residual: Some(x_td) }),
        Some(norm) => add(x_td, &rms_norm(&w.forward(y_td), norm, eps)), // if self.post_norms: ...
    }
}
