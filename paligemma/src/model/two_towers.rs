//! SigLIP as it is trained: the image encoder with its pooling, a text encoder, and the sigmoid loss of pairs.
//! Reference: big_vision/models/proj/image_text/two_towers.py, text_transformer.py, models/vit.py (`MAPHead`),
//! trainers/proj/image_text/siglip.py; arXiv 2303.15343. Names of weights are transformers'.
//!
//! Legend: B pairs, T tokens of an image or a text, D width, N heads, H = D/N, O width of both embeddings.

use super::{
    Pass, Siglip,
    encoder::{Encoder, EncoderShape, Norm},
    linear::{Linear, Weights, attention_dtype},
    siglip,
};
use crate::{Error, Result, config::VisionConfig};
use paligemma_tensor::{AttentionRule, Contribution, Epilogue, Mask, Parameter, Span, Tensor, Value, linear};
use std::sync::atomic::AtomicBool;

/// The sizes of both towers.
#[derive(Debug, Clone, PartialEq)]
pub struct TwoTowersConfig {
    /// The image encoder; its width is that of the embeddings.
    pub vision: VisionConfig,
    /// The text encoder.
    pub text: TextTowerConfig,
}

/// The sizes of a text encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct TextTowerConfig {
    /// Rows of the table of tokens.
    pub vocab_size: usize,
    /// T: every text has so many tokens, padding among them; the last one stands for the text.
    pub length: usize,
    /// D
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// N
    pub num_attention_heads: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f32,
}

/// Both towers, the temperature and the bias.
#[derive(Debug, Clone)]
pub struct TwoTowers {
    config: TwoTowersConfig,
    image: Siglip,
    pooling: Pooling,
    text: TextTower,
    /// ln of the temperature, `[1]`
    log_temperature: Parameter,
    /// `[1]`
    bias: Parameter,
}

/// How well the pairs of a batch are told apart. Pairs of the same text are not counted against each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retrieval {
    /// The loss.
    pub loss: f64,
    /// Images for which no other text is likelier than their own.
    pub image_to_text: usize,
    /// Texts for which no other image is likelier than their own.
    pub text_to_image: usize,
}

/// Attention of one learned query to all tokens of an image, and an MLP (`MAPHead`).
#[derive(Debug, Clone)]
struct Pooling {
    /// `[1, D]`
    probe: Parameter,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm: Norm,
    dense0: Linear,
    dense1: Linear,
}

#[derive(Debug, Clone)]
struct TextTower {
    /// `[V, D]`
    table: Parameter,
    /// `[T, D]`
    pos_embedding: Parameter,
    encoder: Encoder,
    /// `[O, D]`
    head: Linear,
}

impl TwoTowersConfig {
    /// The names and shapes of all weights, in an order that may serve as ids.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut all = Vec::new();
        let mut linear = |name: &str, out: usize, inputs: usize| {
            all.push((format!("{name}.weight"), vec![out, inputs]));
            all.push((format!("{name}.bias"), vec![out]));
        };
        let mut norms = Vec::new();
        let text = &self.text;
        let towers = [
            ("vision_tower", siglip::shape(&self.vision), "post_layernorm"),
            ("text_model", text.shape(), "final_layer_norm"),
        ];
        for (tower, shape, norm) in towers {
            for i in 0..shape.depth {
                let name = |part: &str| format!("{tower}.encoder.layers.{i}.{part}");
                for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                    linear(&name(&format!("self_attn.{part}")), shape.width, shape.width);
                }
                linear(&name("mlp.fc1"), shape.mlp, shape.width);
                linear(&name("mlp.fc2"), shape.width, shape.mlp);
                norms.extend([(name("layer_norm1"), shape.width), (name("layer_norm2"), shape.width)]);
            }
            norms.push((format!("{tower}.{norm}"), shape.width));
        }
        let (d, mlp) = (self.vision.hidden_size, self.vision.intermediate_size);
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            linear(&format!("vision_tower.head.attention.{part}"), d, d);
        }
        linear("vision_tower.head.mlp.fc1", mlp, d);
        linear("vision_tower.head.mlp.fc2", d, mlp);
        linear("text_model.head", d, text.hidden_size);
        norms.push(("vision_tower.head.layernorm".into(), d));
        for (name, width) in norms {
            all.push((format!("{name}.weight"), vec![width]));
            all.push((format!("{name}.bias"), vec![width]));
        }
        let (p, tokens) = (self.vision.patch_size, self.vision.num_tokens());
        let others: [(&str, &[usize]); 8] = [
            ("vision_tower.embeddings.patch_embedding.weight", &[d, 3, p, p]),
            ("vision_tower.embeddings.patch_embedding.bias", &[d]),
            ("vision_tower.embeddings.position_embedding.weight", &[tokens, d]),
            ("vision_tower.head.probe", &[1, d]),
            ("text_model.embeddings.token_embedding.weight", &[text.vocab_size, text.hidden_size]),
            ("text_model.embeddings.position_embedding.weight", &[text.length, text.hidden_size]),
            ("logit_scale", &[1]),
            ("logit_bias", &[1]),
        ];
        all.extend(others.map(|(name, shape)| (name.to_owned(), shape.to_vec())));
        all
    }
}

impl TextTowerConfig {
    fn shape(&self) -> EncoderShape {
        EncoderShape {
            width: self.hidden_size,
            mlp: self.intermediate_size,
            depth: self.num_hidden_layers,
            heads: self.num_attention_heads,
            eps: self.layer_norm_eps,
        }
    }
}

impl TwoTowers {
    /// Takes the tensors of [`TwoTowersConfig::tensors`].
    ///
    /// # Errors
    /// A missing tensor or one of another shape.
    pub fn load(config: &TwoTowersConfig, w: &mut Weights<'_>) -> Result<Self> {
        let (text, out) = (&config.text, config.vision.hidden_size);
        let name = |part: &str| format!("text_model.{part}");
        Ok(TwoTowers {
            image: Siglip::load(&config.vision, w)?,
            pooling: Pooling::load(&config.vision, w)?,
            text: TextTower {
                table: w.take_matrix(
                    &name("embeddings.token_embedding.weight"),
                    [text.vocab_size, text.hidden_size],
                )?,
                pos_embedding: w
                    .take(&name("embeddings.position_embedding.weight"), &[text.length, text.hidden_size])?,
                encoder: Encoder::load(w, text.shape(), "text_model", "text_model.final_layer_norm")?,
                head: Linear::load(w, &name("head"), (out, text.hidden_size), true)?,
            },
            log_temperature: w.take("logit_scale", &[1])?,
            bias: w.take("logit_bias", &[1])?,
            config: config.clone(),
        })
    }

    /// Every weight.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let TextTower { table, pos_embedding, encoder, head } = &self.text;
        let text = [table, pos_embedding].into_iter().chain(encoder.parameters()).chain(head.parameters());
        let image = self.image.parameters().chain(self.pooling.parameters());
        image.chain(text).chain([&self.log_temperature, &self.bias])
    }

    /// The weight whose gradient is wanted as `id`, to be changed.
    pub fn wanted_mut(&mut self, id: usize) -> Option<&mut Tensor> {
        let TwoTowers { image, pooling, text, log_temperature, bias, .. } = self;
        let TextTower { table, pos_embedding, encoder, head } = text;
        let of_text = [table, pos_embedding]
            .into_iter()
            .chain(encoder.parameters_around(id))
            .chain(head.parameters_mut());
        let mut others = pooling.parameters_mut().chain(of_text).chain([log_temperature, bias]);
        image
            .wanted_mut(id)
            .or_else(|| others.find(|parameter| parameter.id() == Some(id)))
            .and_then(Parameter::wanted_mut)
    }

    /// Pixel values in [-1, 1], `[B, 3, S, S]` f32 → `[B, O]`, rows of length 1.
    ///
    /// # Errors
    /// Images of another size; cancellation.
    pub fn embed_images(&self, images_bchw: &Tensor, pass: &mut Pass<'_>) -> Result<Value> {
        let side = self.config.vision.image_size;
        if !matches!(images_bchw.shape(), [_, 3, height, width] if *height == side && *width == side) {
            return Err(Error::input(format!("pixel values have shape {:?}", images_bchw.shape()))
                .expected(format!("[images, 3, {side}, {side}]")));
        }
        let x = self.image.forward(images_bchw, pass)?;
        let x = self.pooling.forward(&x, &self.config.vision, pass);
        pass.put(format_args!("img/pre_logits"), &x);
        Ok(pass.tape.unit_rows(&x)) // out["img/normalized"] = zimg / (norm + 1e-8)
    }

    /// Token ids of texts, `[B·T]`, each padded to T → `[B, O]`, rows of length 1.
    ///
    /// # Errors
    /// Ids beyond the table; texts of another length; cancellation.
    pub fn embed_texts(&self, ids: &[u32], pass: &mut Pass<'_>) -> Result<Value> {
        let TextTowerConfig { vocab_size, length, .. } = self.config.text;
        if !ids.len().is_multiple_of(length) {
            return Err(Error::input(format!("texts have {} tokens in all", ids.len()))
                .expected(format!("{length} each, padded")));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::input(format!("token id {id} is beyond the text encoder's table"))
                .expected(format!("ids below {vocab_size}")));
        }
        let texts = ids.len() / length;
        let x = pass.tape.embedding(&self.text.table, ids, 1.0); // x = out["embedded"] = embedding(text)
        let x = pass.tape.add_to_each(&x, &self.text.pos_embedding);
        let x = self.text.encoder.forward(&x, texts, "txt", pass)?;
        let last: Vec<_> = (1..=texts).map(|text| (&x, text * length - 1..text * length)).collect();
        let x = pass.tape.concat_rows(&last); // out["pre_logits"] = x[:, -1, :]
        pass.put(format_args!("txt/pre_logits"), &x);
        let x = self.text.head.forward(&x, pass); // x = out["logits"] = nn.Dense(self.num_classes, name="head")(x)
        Ok(pass.tape.unit_rows(&x))
    }

    /// The loss of pairs, and its gradients as [`super::PaliGemma::learn`] tells them. Every weight may be changed on the spot.
    ///
    /// # Errors
    /// Images or texts that do not fit the model or each other; cancellation.
    pub fn learn(
        &mut self,
        images_bchw: &Tensor,
        ids: &[u32],
        recompute: bool,
        cancel: Option<&AtomicBool>,
        update: &mut dyn FnMut(usize, &mut Tensor, Contribution),
    ) -> Result<f64> {
        let mut pass = Pass::recorded(recompute, None, cancel);
        let (value, loss) = self.read_pairs(images_bchw, ids, &mut pass)?;
        let one = Tensor::from_f32(vec![1.0], &[1]);
        pass.into_tape().backward(&value, one, &mut |id, part| {
            if let Some(weight) = self.wanted_mut(id) {
                update(id, weight, part);
            }
        });
        Ok(loss)
    }

    /// The loss alone.
    ///
    /// # Errors
    /// As [`TwoTowers::learn`].
    pub fn pairs_loss(&self, images_bchw: &Tensor, ids: &[u32], cancel: Option<&AtomicBool>) -> Result<f64> {
        let mut pass = cancel.map_or_else(Pass::plain, Pass::cancelled_by);
        Ok(self.read_pairs(images_bchw, ids, &mut pass)?.1)
    }

    /// How well pairs are told apart.
    ///
    /// # Errors
    /// As [`TwoTowers::learn`].
    pub fn retrieve(
        &self,
        images_bchw: &Tensor,
        ids: &[u32],
        cancel: Option<&AtomicBool>,
    ) -> Result<Retrieval> {
        let mut pass = cancel.map_or_else(Pass::plain, Pass::cancelled_by);
        let (images, texts) = self.embed_pairs(images_bchw, ids, &mut pass)?;
        let (_, loss) = pass.tape.sigmoid_contrastive(&images, &texts, &self.log_temperature, &self.bias);
        let products = linear(images.tensor(), &texts.tensor().clone().into(), Epilogue::default());
        let (products, pairs) = (products.as_f32(), products.shape()[0]);
        let text = |i: usize| &ids[i * self.config.text.length..][..self.config.text.length];
        let count = |product: &dyn Fn(usize, usize) -> f32| {
            let is_own = |i: &usize| {
                let others = (0..pairs).filter(|&j| text(j) != text(*i));
                others.into_iter().all(|j| product(*i, j) < product(*i, *i))
            };
            (0..pairs).filter(is_own).count()
        };
        Ok(Retrieval {
            loss,
            image_to_text: count(&|i, j| products[i * pairs + j]),
            text_to_image: count(&|i, j| products[j * pairs + i]),
        })
    }

    fn read_pairs(&self, images_bchw: &Tensor, ids: &[u32], pass: &mut Pass<'_>) -> Result<(Value, f64)> {
        let (images, texts) = self.embed_pairs(images_bchw, ids, pass)?;
        Ok(pass.tape.sigmoid_contrastive(&images, &texts, &self.log_temperature, &self.bias))
    }

    fn embed_pairs(&self, images_bchw: &Tensor, ids: &[u32], pass: &mut Pass<'_>) -> Result<(Value, Value)> {
        let (images, texts) = (images_bchw.shape()[0], ids.len() / self.config.text.length.max(1));
        if images != texts || images == 0 {
            return Err(Error::input(format!("{images} images and {texts} texts")).expected("pairs"));
        }
        Ok((self.embed_images(images_bchw, pass)?, self.embed_texts(ids, pass)?))
    }
}

impl Pooling {
    fn load(config: &VisionConfig, w: &mut Weights<'_>) -> Result<Self> {
        let (d, mlp) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("vision_tower.head.{part}");
        Ok(Pooling {
            probe: w.take(&name("probe"), &[1, d])?,
            query: Linear::load(w, &name("attention.q_proj"), (d, d), true)?,
            key: Linear::load(w, &name("attention.k_proj"), (d, d), true)?,
            value: Linear::load(w, &name("attention.v_proj"), (d, d), true)?,
            out: Linear::load(w, &name("attention.out_proj"), (d, d), true)?,
            norm: Norm::load(w, &name("layernorm"), d)?,
            dense0: Linear::load(w, &name("mlp.fc1"), (mlp, d), true)?,
            dense1: Linear::load(w, &name("mlp.fc2"), (d, mlp), true)?,
        })
    }

    fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let Pooling { probe, query, key, value, out, norm, dense0, dense1 } = self;
        let linear = [query, key, value, out, dense0, dense1].into_iter().flat_map(Linear::parameters);
        linear.chain([probe, &norm.weight, &norm.bias])
    }

    fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let Pooling { probe, query, key, value, out, norm, dense0, dense1 } = self;
        let linear = [query, key, value, out, dense0, dense1].into_iter().flat_map(Linear::parameters_mut);
        linear.chain([probe, &mut norm.weight, &mut norm.bias])
    }

    /// `x_td` `[B·T, D]` → `[B, D]`
    fn forward(&self, x_td: &Value, config: &VisionConfig, pass: &mut Pass<'_>) -> Value {
        let (d, n, t) = (config.hidden_size, config.num_attention_heads, config.num_tokens());
        let (rows, h) = (x_td.shape()[0], d / n);
        let images = rows / t;
        let probe = pass.tape.add_to_each(&Tensor::zeros(&[1, d]).into(), &self.probe);
        let query = self.query.forward(&probe, pass);
        // Attention of whole sequences has a query a token: the first is the probe's, the others' results are not used.
        let others: Value = Tensor::zeros(&[t - 1, d]).into();
        let queries: Vec<_> = (0..images).flat_map(|_| [(&query, 0..1), (&others, 0..t - 1)]).collect();
        let q_tnh = pass.tape.concat_rows(&queries).reshape(&[rows, n, h]);
        let k_tnh = self.key.forward(x_td, pass).reshape(&[rows, n, h]);
        let v_tnh = self.value.forward(x_td, pass).reshape(&[rows, n, h]);
        let spans: Vec<Span> =
            (0..images).map(|b| Span { rows: b * t..(b + 1) * t, mask: Mask::FULL }).collect();
        let dtype = attention_dtype(self.key.weight.weight());
        let rule = AttentionRule { scale: (h as f32).powf(-0.5), softcap: None, dtype };
        let y = pass.tape.attention(&q_tnh, &k_tnh, &v_tnh, &spans, rule);
        let first: Vec<_> = (0..images).map(|b| (&y, b * t..b * t + 1)).collect();
        let y = pass.tape.concat_rows(&first);
        let x = self.out.forward(&y, pass); // x = nn.MultiHeadDotProductAttention(...)(probe, x)
        let y = self.norm.forward(&x, config.layer_norm_eps, pass); // y = nn.LayerNorm()(x)
        let y = self.dense0.forward_gelu(&y, pass);
        self.dense1.sum(&y, Some(&x), pass) // x = x + MlpBlock(mlp_dim=self.mlp_dim)(y)
    }
}
