//! The operations as they stand on a tape: each does what its namesake does and leaves its way back.
//!
//! A way back keeps what its gradients need and no more: where a weight is frozen, its inputs are not kept. It computes the
//! gradients of its inputs first and lets go of the weights before it hands out theirs, so that an update may take place
//! right then.
//!
//! Legend: t rows, d width, k inputs, n outputs, f width of the MLP.

use crate::{
    AttentionRule, Contribution, ConvolutionGradients, CrossEntropy, DType, Epilogue, Isa, KeyedRows,
    LossRule, Parameter, Span, Tape, Target, Tensor, Value, Weight, add, add_input_gradient,
    attention_backward, attention_whole, bias_gradient, concat_rows, conv_transpose2d,
    conv_transpose2d_backward, conv2d, conv2d_backward, cross_entropy, dropout, embedding, gelu,
    gelu_backward, gelu_times, gelu_times_backward, gradient_dtype, input_gradient, layer_norm,
    layer_norm_backward,
    linear::{geglu_for, linear_for},
    relu, relu_backward, rms_norm, rms_norm_backward, rope, rope_backward, sigmoid_contrastive, unit_rows,
    unit_rows_backward,
};
use std::ops::Range;

/// What a linear layer has besides its product.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinearParts<'a> {
    /// Added to every row, `[n]`.
    pub bias: Option<&'a Parameter>,
    /// Whether GELU follows.
    pub gelu: bool,
    /// Added last, `[t, n]`.
    pub residual: Option<&'a Value>,
}

/// x times a number.
fn times(x: &Tensor, factor: f32) -> Tensor {
    Tensor::from_f32(x.as_f32().iter().map(|x| x * factor).collect(), x.shape())
}

/// a - b, of one shape.
fn subtract(a: &Tensor, b: &Tensor) -> Tensor {
    assert_eq!(a.shape(), b.shape());
    Tensor::from_f32(a.as_f32().iter().zip(b.as_f32()).map(|(a, b)| a - b).collect(), a.shape())
}

impl Tape {
    /// [`linear`](crate::linear()): `x_tk`, `w_nk` → `[t, n]`.
    pub fn linear(&mut self, x_tk: &Value, w_nk: &Parameter, parts: LinearParts<'_>) -> Value {
        let LinearParts { bias, gelu, residual } = parts;
        let (bias_id, residual_node) = (bias.and_then(|b| b.id), residual.and_then(|r| r.node));
        let bias = bias.map(Parameter::tensor);
        let is_wanted = self.wants(&[x_tk.node, residual_node], &[w_nk.id, bias_id]);
        // GELU's slope needs what it was taken of, so on the tape the two are apart.
        let is_fused = !gelu || !is_wanted;
        let epilogue = Epilogue {
            bias,
            gelu: gelu && is_fused,
            residual: residual.filter(|_| is_fused).map(|r| &r.tensor),
        };
        let product = linear_for(self.used(), Isa::best(), &x_tk.tensor, w_nk.weight(), epilogue);
        let (mut y, mut z) = (product, None);
        if !is_fused {
            let activated = crate::gelu(&y);
            z = Some(std::mem::replace(&mut y, activated));
            if let Some(residual) = residual {
                y = add(&y, &residual.tensor);
            }
        }
        if !is_wanted {
            return y.into();
        }
        let (x_node, w_id) = (x_tk.node, w_nk.id);
        let x = w_id.map(|_| x_tk.tensor.clone());
        let w = x_node.map(|_| w_nk.weight().clone());
        let compute = gradient_dtype(w_nk.weight());
        self.record(y, move |dy, gradients| {
            gradients.add(residual_node, || dy.clone());
            let dz = match &z {
                Some(z) => gelu_backward(z, &dy),
                None => dy,
            };
            drop(z);
            if let Some(w) = w {
                gradients.add(x_node, || input_gradient(&dz, &w));
            }
            gradients.give(bias_id, || Contribution::Whole(bias_gradient(&dz)));
            if let Some(x) = x {
                gradients.give(w_id, || Contribution::Product { dy: dz, x, compute });
            }
        })
    }

    /// [`geglu`](crate::geglu()): `x_td`, both weights `[f, d]` → `[t, f]`.
    pub fn geglu(&mut self, x_td: &Value, gate_fd: &Parameter, up_fd: &Parameter) -> Value {
        if !self.wants(&[x_td.node], &[gate_fd.id, up_fd.id]) {
            let (gate, up) = (gate_fd.weight(), up_fd.weight());
            return geglu_for(self.used(), Isa::best(), &x_td.tensor, gate, up).into();
        }
        let product = |w: &Weight| linear_for(self.used(), Isa::best(), &x_td.tensor, w, Epilogue::default());
        let (gate, up) = (product(gate_fd.weight()), product(up_fd.weight()));
        let y = gelu_times(&gate, &up);
        let (x_node, gate_id, up_id) = (x_td.node, gate_fd.id, up_fd.id);
        let x = gate_id.or(up_id).map(|_| x_td.tensor.clone());
        let weights = x_node.map(|_| (gate_fd.weight().clone(), up_fd.weight().clone()));
        let compute = gradient_dtype(gate_fd.weight());
        self.record(y, move |dy, gradients| {
            let (dgate, dup) = gelu_times_backward(gate, up, &dy);
            drop(dy);
            if let Some((gate_fd, up_fd)) = weights {
                gradients.add(x_node, || {
                    let mut dx = input_gradient(&dgate, &gate_fd);
                    add_input_gradient(&dup, &up_fd, &mut dx);
                    dx
                });
            }
            if let Some(x) = x {
                let product = |dy| Contribution::Product { dy, x: x.clone(), compute };
                gradients.give(gate_id, || product(dgate));
                gradients.give(up_id, || product(dup));
            }
        })
    }

    /// GELU(gate) · up of two values of one shape.
    pub fn gelu_times(&mut self, gate: &Value, up: &Value) -> Value {
        let y = gelu_times(&gate.tensor, &up.tensor);
        if !self.wants(&[gate.node, up.node], &[]) {
            return y.into();
        }
        let (gate_node, up_node) = (gate.node, up.node);
        let (gate, up) = (gate.tensor.clone(), up.tensor.clone());
        self.record(y, move |dy, gradients| {
            let (dgate, dup) = gelu_times_backward(gate, up, &dy);
            gradients.add(gate_node, || dgate);
            gradients.add(up_node, || dup);
        })
    }

    /// GELU of every element.
    pub fn gelu(&mut self, x: &Value) -> Value {
        let y = gelu(&x.tensor);
        if !self.wants(&[x.node], &[]) {
            return y.into();
        }
        let (node, x) = (x.node, x.tensor.clone());
        self.record(y, move |dy, gradients| gradients.add(node, || gelu_backward(&x, &dy)))
    }

    /// [`rms_norm`](crate::rms_norm()) of `x_td`, `weight_d`.
    pub fn rms_norm(&mut self, x_td: &Value, weight_d: &Parameter, eps: f32) -> Value {
        let y = rms_norm(&x_td.tensor, weight_d.tensor(), eps);
        if !self.wants(&[x_td.node], &[weight_d.id]) {
            return y.into();
        }
        let (node, id) = (x_td.node, weight_d.id);
        let (x, weight) = (x_td.tensor.clone(), weight_d.tensor().clone());
        self.record(y, move |dy, gradients| {
            let (dx, dweight) = rms_norm_backward(&x, &weight, eps, &dy, id.is_some());
            gradients.add(node, || dx);
            drop(weight);
            if let Some(dweight) = dweight {
                gradients.give(id, || Contribution::Whole(dweight));
            }
        })
    }

    /// [`layer_norm`](crate::layer_norm()) of `x_td`, `weight_d`, `bias_d`.
    pub fn layer_norm(&mut self, x_td: &Value, weight_d: &Parameter, bias_d: &Parameter, eps: f32) -> Value {
        let y = layer_norm(&x_td.tensor, weight_d.tensor(), bias_d.tensor(), eps);
        if !self.wants(&[x_td.node], &[weight_d.id, bias_d.id]) {
            return y.into();
        }
        let (node, weight_id, bias_id) = (x_td.node, weight_d.id, bias_d.id);
        let (x, weight) = (x_td.tensor.clone(), weight_d.tensor().clone());
        self.record(y, move |dy, gradients| {
            let wants_weights = weight_id.is_some() || bias_id.is_some();
            let (dx, weights) = layer_norm_backward(&x, &weight, eps, &dy, wants_weights);
            gradients.add(node, || dx);
            drop(weight);
            if let Some((dweight, dbias)) = weights {
                gradients.give(weight_id, || Contribution::Whole(dweight));
                gradients.give(bias_id, || Contribution::Whole(dbias));
            }
        })
    }

    /// [`rope`](crate::rope()) of `x_tnh`, a position a row.
    pub fn rope(&mut self, x_tnh: &Value, positions_t: &[usize], base: f32) -> Value {
        let y = rope(&x_tnh.tensor, positions_t, base);
        if !self.wants(&[x_tnh.node], &[]) {
            return y.into();
        }
        let (node, positions) = (x_tnh.node, positions_t.to_vec());
        self.record(y, move |dy, gradients| gradients.add(node, || rope_backward(&dy, &positions, base)))
    }

    /// [`attention_whole`](crate::attention_whole()) of `q_tnh`, `k_tkh`, `v_tkh` → `[t, n·h]`.
    pub fn attention(
        &mut self,
        q_tnh: &Value,
        k_tkh: &Value,
        v_tkh: &Value,
        spans: &[Span],
        rule: AttentionRule,
    ) -> Value {
        let y = attention_whole(&q_tnh.tensor, &k_tkh.tensor, &v_tkh.tensor, spans, rule);
        let nodes = [q_tnh.node, k_tkh.node, v_tkh.node];
        if !self.wants(&nodes, &[]) {
            return y.into();
        }
        let (q, k, v) = (q_tnh.tensor.clone(), k_tkh.tensor.clone(), v_tkh.tensor.clone());
        let spans = spans.to_vec();
        self.record(y, move |dy, gradients| {
            let all = attention_backward(&q, &k, &v, &spans, rule, &dy);
            for (node, gradient) in nodes.into_iter().zip(all) {
                gradients.add(node, || gradient);
            }
        })
    }

    /// [`embedding`](crate::embedding()): rows `ids` of `table_vd`, times `scale`.
    pub fn embedding(&mut self, table_vd: &Parameter, ids: &[u32], scale: f32) -> Value {
        let y = embedding(table_vd.weight(), ids, scale);
        if !self.wants(&[], &[table_vd.id]) {
            return y.into();
        }
        let (id, ids) = (table_vd.id, ids.to_vec());
        self.record(y, move |dy, gradients| gradients.give(id, || Contribution::Rows { dy, ids, scale }))
    }

    /// a + b, of one shape.
    pub fn add(&mut self, a: &Value, b: &Value) -> Value {
        let y = add(&a.tensor, &b.tensor);
        let (a, b) = (a.node, b.node);
        if !self.wants(&[a, b], &[]) {
            return y.into();
        }
        self.record(y, move |dy, gradients| {
            gradients.add(a, || dy.clone());
            gradients.add(b, || dy);
        })
    }

    /// x times a number.
    pub fn scale(&mut self, x: &Value, factor: f32) -> Value {
        let y = times(&x.tensor, factor);
        if !self.wants(&[x.node], &[]) {
            return y.into();
        }
        let node = x.node;
        self.record(y, move |dy, gradients| gradients.add(node, || times(&dy, factor)))
    }

    /// x with the rows of `p_td` added to every t rows of it: position embeddings of several images.
    pub fn add_to_each(&mut self, x: &Value, p_td: &Parameter) -> Value {
        let wide = p_td.tensor().cast(DType::F32);
        let copies = x.tensor.shape()[0] / wide.shape()[0].max(1);
        let y = add(&x.tensor, &concat_rows(&vec![&wide; copies]));
        if !self.wants(&[x.node], &[p_td.id]) {
            return y.into();
        }
        let (node, id, shape) = (x.node, p_td.id, wide.shape().to_vec());
        self.record(y, move |dy, gradients| {
            gradients.give(id, || {
                let mut sum = Tensor::zeros(&shape);
                for part in dy.as_f32().chunks(sum.len().max(1)) {
                    sum.as_f32_mut().iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
                }
                Contribution::Whole(sum)
            });
            gradients.add(node, || dy);
        })
    }

    /// Ranges of rows of several values of one width, one after the other.
    pub fn concat_rows(&mut self, parts: &[(&Value, Range<usize>)]) -> Value {
        let rows: Vec<Tensor> =
            parts.iter().map(|(value, range)| value.tensor.rows(range.start, range.end)).collect();
        let y = concat_rows(&rows.iter().collect::<Vec<_>>());
        let nodes: Vec<Option<usize>> = parts.iter().map(|(value, _)| value.node).collect();
        if !self.wants(&nodes, &[]) {
            return y.into();
        }
        let parts: Vec<(Option<usize>, Vec<usize>, Range<usize>)> = parts
            .iter()
            .map(|(value, range)| (value.node, value.tensor.shape().to_vec(), range.clone()))
            .collect();
        self.record(y, move |dy, gradients| {
            let d: usize = dy.shape()[1..].iter().product();
            let mut from = 0;
            // A value of which several ranges were taken gets one gradient of them all.
            let mut sums: Vec<(usize, Tensor)> = Vec::new();
            for (node, shape, range) in parts {
                let rows = &dy.as_f32()[from * d..(from + range.len()) * d];
                from += range.len();
                let Some(node) = node else { continue };
                let at = sums.iter().position(|(n, _)| *n == node).unwrap_or_else(|| {
                    sums.push((node, Tensor::zeros(&shape)));
                    sums.len() - 1
                });
                let to = &mut sums[at].1.as_f32_mut()[range.start * d..range.end * d];
                to.iter_mut().zip(rows).for_each(|(to, x)| *to += x);
            }
            for (node, sum) in sums {
                gradients.add(Some(node), || sum);
            }
        })
    }

    /// [`conv2d`](crate::conv2d()) of `x_nhwc`, `w_ocij` and its bias.
    pub fn conv2d(
        &mut self,
        x_nhwc: &Value,
        w_ocij: &Parameter,
        bias_o: &Parameter,
        stride: usize,
        padding: usize,
    ) -> Value {
        let y = conv2d(&x_nhwc.tensor, w_ocij.tensor(), bias_o.tensor(), stride, padding);
        self.convolution(y, x_nhwc, w_ocij, bias_o, move |x, w, dy, wants_dx| {
            conv2d_backward(x, w, stride, padding, dy, wants_dx)
        })
    }

    /// [`conv_transpose2d`](crate::conv_transpose2d()) of `x_nhwc`, `w_coij` and its bias.
    pub fn conv_transpose2d(
        &mut self,
        x_nhwc: &Value,
        w_coij: &Parameter,
        bias_o: &Parameter,
        stride: usize,
        padding: usize,
    ) -> Value {
        let y = conv_transpose2d(&x_nhwc.tensor, w_coij.tensor(), bias_o.tensor(), stride, padding);
        self.convolution(y, x_nhwc, w_coij, bias_o, move |x, w, dy, wants_dx| {
            conv_transpose2d_backward(x, w, stride, padding, dy, wants_dx)
        })
    }

    /// The way back of a convolution whose result is `y`.
    fn convolution(
        &mut self,
        y: Tensor,
        x: &Value,
        weight: &Parameter,
        bias: &Parameter,
        backward: impl Fn(&Tensor, &Tensor, &Tensor, bool) -> ConvolutionGradients + Send + 'static,
    ) -> Value {
        if !self.wants(&[x.node], &[weight.id, bias.id]) {
            return y.into();
        }
        let (node, weight_id, bias_id) = (x.node, weight.id, bias.id);
        let (x, weight) = (x.tensor.clone(), weight.tensor().clone());
        self.record(y, move |dy, gradients| {
            let ConvolutionGradients { dx, dweight, dbias } = backward(&x, &weight, &dy, node.is_some());
            drop(weight);
            if let Some(dx) = dx {
                gradients.add(node, || dx);
            }
            gradients.give(bias_id, || Contribution::Whole(dbias));
            gradients.give(weight_id, || Contribution::Whole(dweight));
        })
    }

    /// [`relu`](crate::relu()) of every element.
    pub fn relu(&mut self, x: &Value) -> Value {
        let y = relu(&x.tensor);
        if !self.wants(&[x.node], &[]) {
            return y.into();
        }
        let (node, result) = (x.node, y.clone());
        self.record(y, move |dy, gradients| gradients.add(node, || relu_backward(&result, &dy)))
    }

    /// `y` in place of x, whose gradient x gets as it is (straight-through): of what has no gradient, as a look-up of the
    /// nearest entry.
    pub fn straight_through(&mut self, x: &Value, y: Tensor) -> Value {
        assert_eq!(x.shape(), y.shape());
        if !self.wants(&[x.node], &[]) {
            return y.into();
        }
        let node = x.node;
        self.record(y, move |dy, gradients| gradients.add(node, || dy))
    }

    /// `weight` times the mean of (x - target)² → `[1]`, and the same as f64.
    pub fn mean_square(&mut self, x: &Value, target: &Tensor, weight: f64) -> (Value, f64) {
        let difference = subtract(&x.tensor, target);
        let numbers = difference.len().max(1) as f64;
        let square: f64 = difference.as_f32().iter().map(|d| f64::from(*d).powi(2)).sum();
        let loss = weight * square / numbers;
        let y = Tensor::from_f32(vec![loss as f32], &[1]);
        if !self.wants(&[x.node], &[]) {
            return (y.into(), loss);
        }
        let node = x.node;
        let value = self.record(y, move |dy, gradients| {
            let factor = (2.0 * weight / numbers) as f32 * dy.as_f32()[0];
            gradients.add(node, || times(&difference, factor));
        });
        (value, loss)
    }

    /// [`dropout`](crate::dropout()) of `x_td`.
    pub fn dropout(&mut self, x_td: &Value, rate: f32, runs: &[KeyedRows], site: u64) -> Value {
        if rate == 0.0 {
            return x_td.clone();
        }
        let y = dropout(&x_td.tensor, rate, runs, site);
        if !self.wants(&[x_td.node], &[]) {
            return y.into();
        }
        let (node, runs) = (x_td.node, runs.to_vec());
        self.record(y, move |dy, gradients| gradients.add(node, || dropout(&dy, rate, &runs, site)))
    }

    /// [`unit_rows`](crate::unit_rows()) of `x_bd`.
    pub fn unit_rows(&mut self, x_bd: &Value) -> Value {
        let y = unit_rows(&x_bd.tensor);
        if !self.wants(&[x_bd.node], &[]) {
            return y.into();
        }
        let (node, x) = (x_bd.node, x_bd.tensor.clone());
        self.record(y, move |dy, gradients| gradients.add(node, || unit_rows_backward(&x, &dy)))
    }

    /// [`sigmoid_contrastive`](crate::sigmoid_contrastive()) of `x_bd` and `y_bd` at the temperature e^`log_temperature`, both
    /// parameters `[1]` → the loss, `[1]`, and the same as f64.
    pub fn sigmoid_contrastive(
        &mut self,
        x_bd: &Value,
        y_bd: &Value,
        log_temperature: &Parameter,
        bias: &Parameter,
    ) -> (Value, f64) {
        let number = |parameter: &Parameter| parameter.tensor().to_f32_vec()[0];
        let temperature = number(log_temperature).exp();
        let all = sigmoid_contrastive(&x_bd.tensor, &y_bd.tensor, temperature, number(bias));
        let y = Tensor::from_f32(vec![all.loss as f32], &[1]);
        let (nodes, ids) = ([x_bd.node, y_bd.node], [log_temperature.id, bias.id]);
        if !self.wants(&nodes, &ids) {
            return (y.into(), all.loss);
        }
        let value = self.record(y, move |dy, gradients| {
            let factor = dy.as_f32()[0];
            for (node, gradient) in nodes.into_iter().zip([all.dx, all.dy]) {
                gradients.add(node, || times(&gradient, factor));
            }
            let by_log = all.dtemperature * f64::from(temperature);
            for (id, gradient) in ids.into_iter().zip([by_log, all.dbias]) {
                let gradient = gradient as f32 * factor;
                gradients.give(id, || Contribution::Whole(Tensor::from_f32(vec![gradient], &[1])));
            }
        });
        (value, all.loss)
    }

    /// [`cross_entropy`](crate::cross_entropy()) of `x_td` through the head `table_vd` → the loss, `[1]`, and the same as f64.
    pub fn cross_entropy(
        &mut self,
        x_td: &Value,
        table_vd: &Parameter,
        targets: &[Target],
        rule: &LossRule,
    ) -> (Value, f64) {
        let is_wanted = self.wants(&[x_td.node], &[table_vd.id]);
        let (node, id) = (x_td.node.filter(|_| is_wanted), table_vd.id.filter(|_| is_wanted));
        // The gradients are made in the same go, so that logits are computed once.
        let CrossEntropy { loss, dx, dtable } =
            cross_entropy(&x_td.tensor, table_vd.weight(), targets, rule, node.is_some(), id.is_some());
        let y = Tensor::from_f32(vec![loss as f32], &[1]);
        if !is_wanted {
            return (y.into(), loss);
        }
        let value = self.record(y, move |dy, gradients| {
            let factor = dy.as_f32()[0];
            let times = |mut gradient: Tensor| {
                if factor != 1.0 {
                    gradient.as_f32_mut().iter_mut().for_each(|x| *x *= factor);
                }
                gradient
            };
            if let Some(dx) = dx {
                gradients.add(node, || times(dx));
            }
            if let Some(dtable) = dtable {
                gradients.give(id, || Contribution::Whole(times(dtable)));
            }
        });
        (value, loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Mask,
        testing::{check_gradient, random},
    };

    /// Weights of a block with every operation in it, and its input.
    fn weights() -> Vec<Tensor> {
        let (d, f, v) = (12, 10, 9);
        let shapes: [&[usize]; 14] = [
            &[6, d],
            &[d],
            &[d],
            &[d, d],
            &[d, d],
            &[d, d],
            &[d],
            &[f, d],
            &[f, d],
            &[d, f],
            &[d],
            &[v, d],
            &[3, d],
            &[d],
        ];
        shapes.iter().enumerate().map(|(i, shape)| random(10 + i as u64, shape)).collect()
    }

    /// A loss that every weight and the input take part in.
    fn run(tape: &mut Tape, x: &Value, w: &[Parameter], recompute: bool) -> (Value, f64) {
        let block = {
            let w = w.to_vec();
            move |tape: &mut Tape, x: &Value| {
                let y = tape.layer_norm(x, &w[1], &w[2], 1e-6);
                let heads = |x: Value, n: usize| x.reshape(&[6, n, 12 / n]);
                let q = heads(tape.linear(&y, &w[3], LinearParts::default()), 2);
                let q = tape.rope(&q, &[0, 1, 2, 0, 1, 2], 10.0);
                let k = heads(tape.linear(&y, &w[4], LinearParts::default()), 2);
                let spans =
                    [0..3, 3..6].map(|rows| Span { rows, mask: Mask { prefix_len: 2, window: None } });
                let y = tape.attention(
                    &q,
                    &k,
                    &k,
                    &spans,
                    AttentionRule { scale: 0.5, softcap: Some(2.0), dtype: DType::F32 },
                );
                let y =
                    tape.linear(&y, &w[5], LinearParts { bias: Some(&w[6]), gelu: true, residual: Some(x) });
                let z = tape.rms_norm(&y, &w[10], 1e-6);
                let z = tape.geglu(&z, &w[7], &w[8]);
                let z = tape.dropout(&z, 0.2, &[KeyedRows { len: 6, key: 3 }], 1);
                let z = tape.linear(&z, &w[9], LinearParts::default());
                tape.add(&y, &z)
            }
        };
        let text = tape.embedding(&w[11], &[3, 3, 8], 1.5);
        let x = tape.concat_rows(&[(x, 0..2), (&text, 0..3), (x, 1..2)]);
        let x = tape.add_to_each(&x, &w[12]);
        let y = if recompute { tape.recompute(&x, block) } else { block(tape, &x) };
        let g = tape.gelu(&y);
        let y = tape.gelu_times(&g, &y);
        let y = tape.scale(&y, 0.7);
        let targets = [(0, 4), (3, 8), (5, 0)].map(|(row, id)| Target { row, id, weight: 0.4 });
        tape.cross_entropy(&y, &w[11], &targets, &LossRule::default())
    }

    fn gradients(w: &[Tensor], wanted: impl Fn(usize) -> bool, recompute: bool) -> Vec<Option<Tensor>> {
        let mut tape = Tape::on();
        let x = if wanted(0) { tape.input(w[0].clone()) } else { w[0].clone().into() };
        let parameters: Vec<Parameter> = w
            .iter()
            .enumerate()
            .map(|(i, w)| if wanted(i) { Parameter::wanted(w.clone(), i) } else { w.clone().into() })
            .collect();
        let (loss, _) = run(&mut tape, &x, &parameters, recompute);
        let mut all: Vec<Option<Tensor>> = vec![None; w.len()];
        let one = Tensor::from_f32(vec![1.0], &[1]);
        let inputs = tape.backward(&loss, one, &mut |id, part| match &mut all[id] {
            Some(sum) => part.add_to(sum),
            none => *none = Some(part.into_tensor(w[id].shape())),
        });
        if wanted(0) {
            all[0] = inputs.into_iter().next().flatten();
        }
        all
    }

    /// Weights 0 (the input) to 12; 13 takes no part.
    const USED: Range<usize> = 0..13;

    #[test]
    fn gradients_are_finite_differences() {
        let w = weights();
        let all = gradients(&w, |_| true, false);
        let ones = Tensor::from_f32(vec![1.0; 2], &[2]);
        for i in USED {
            let gradient = all[i].as_ref().unwrap_or_else(|| panic!("no gradient of {i}"));
            check_gradient(&format!("weight {i}"), &w[i], gradient, &ones, |moved| {
                let mut w = w.clone();
                w[i] = moved.clone();
                let parameters: Vec<Parameter> = w.iter().cloned().map(Parameter::from).collect();
                let loss = run(&mut Tape::off(), &w[0].clone().into(), &parameters, false).1;
                Tensor::from_f32(vec![loss as f32, (loss - f64::from(loss as f32)) as f32], &[2])
            });
        }
        assert!(all[13].is_none());
    }

    #[test]
    fn recomputing_and_freezing_change_no_gradient() {
        let w = weights();
        let all = gradients(&w, |_| true, false);
        for recompute in [false, true] {
            for only in USED {
                let some = gradients(&w, |i| i == only, recompute);
                for (i, got) in some.iter().enumerate() {
                    let want = if i == only { &all[i] } else { &None };
                    assert_eq!(
                        got.as_ref().map(Tensor::as_f32),
                        want.as_ref().map(Tensor::as_f32),
                        "{only}: {i}"
                    );
                }
            }
        }
    }

    /// Convolutions, straight through a rounding, and the mean square.
    #[test]
    fn gradients_of_pictures_are_finite_differences() {
        let shapes: [&[usize]; 5] = [&[2, 5, 5, 3], &[4, 3, 3, 3], &[4], &[4, 2, 4, 4], &[2]];
        let mut w: Vec<Tensor> = (30..).zip(shapes).map(|(seed, shape)| random(seed, shape)).collect();
        // Far from ReLU's kink on both sides.
        w[2] = Tensor::from_f32(vec![9.0, -9.0, 8.0, -8.0], &[4]);
        let target = random(40, &[2, 10, 10, 2]);
        let run = |tape: &mut Tape, w: &[Parameter], x: &Value| {
            let y = tape.conv2d(x, &w[1], &w[2], 1, 1);
            // A straight-through value that is linear has the same differences.
            let moved = Tensor::from_f32(y.tensor().as_f32().iter().map(|y| y + 0.25).collect(), y.shape());
            let y = tape.straight_through(&y, moved);
            let g = tape.relu(&y);
            let y = tape.add(&y, &g);
            let y = tape.conv_transpose2d(&y, &w[3], &w[4], 2, 1);
            tape.mean_square(&y, &target, 0.7)
        };
        let mut tape = Tape::on();
        let x = tape.input(w[0].clone());
        let wanted: Vec<Parameter> =
            w.iter().enumerate().map(|(i, w)| Parameter::wanted(w.clone(), i)).collect();
        let (loss, _) = run(&mut tape, &wanted, &x);
        let mut all: Vec<Option<Tensor>> = vec![None; w.len()];
        let one = Tensor::from_f32(vec![1.0], &[1]);
        let inputs =
            tape.backward(&loss, one, &mut |id, part| all[id] = Some(part.into_tensor(w[id].shape())));
        all[0] = inputs.into_iter().next().flatten();
        let ones = Tensor::from_f32(vec![1.0; 2], &[2]);
        for i in 0..w.len() {
            check_gradient(&format!("weight {i}"), &w[i], all[i].as_ref().unwrap(), &ones, |moved| {
                let mut w = w.clone();
                w[i] = moved.clone();
                let x = w[0].clone().into();
                let w: Vec<Parameter> = w.into_iter().map(Parameter::from).collect();
                let loss = run(&mut Tape::off(), &w, &x).1;
                Tensor::from_f32(vec![loss as f32, (loss - f64::from(loss as f32)) as f32], &[2])
            });
        }
    }

    /// What is frozen leaves no entry, and nothing below the first wanted weight is kept.
    #[test]
    fn frozen_parts_leave_no_entries() {
        let w = weights();
        for (wanted, entries) in [(None, 0), (Some(11), 18), (Some(9), 6)] {
            let mut tape = Tape::on();
            let parameters: Vec<Parameter> = w
                .iter()
                .enumerate()
                .map(
                    |(i, w)| {
                        if Some(i) == wanted { Parameter::wanted(w.clone(), i) } else { w.clone().into() }
                    },
                )
                .collect();
            let (loss, _) = run(&mut tape, &w[0].clone().into(), &parameters, false);
            assert_eq!(tape.num_entries(), entries, "{wanted:?}");
            assert_eq!(loss.is_recorded(), wanted.is_some());
        }
    }
}
