//! The tape: which operations made a value, so that gradients find their way back.
//!
//! The model is written once, as forward code over a [`Tape`]'s operations (`recorded.rs`). With the tape off they are the
//! plain operations and nothing is kept. With it on each operation whose result depends on a wanted gradient leaves an
//! entry: what its backward pass needs, and no more. What is frozen leaves none, so below the first wanted gradient nothing
//! is kept and nothing computed.
//!
//! A parameter's gradient is not kept by the tape: each contribution is handed out as soon as it is there.

use crate::{
    DType, Tensor, Weight, add_embedding_gradient, add_weight_gradient, elementwise::add_to, linear::Use,
    linear_backward::weight_gradient_in_parts, weight_gradient,
};
use std::fmt;

/// A tensor on its way through a model, and the entry of the tape that made it, if a gradient is wanted there.
#[derive(Debug, Clone)]
pub struct Value {
    pub(crate) tensor: Tensor,
    pub(crate) node: Option<usize>,
}

impl Value {
    /// The numbers.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The shape of the numbers.
    pub fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    /// The numbers alone.
    pub fn into_tensor(self) -> Tensor {
        self.tensor
    }

    /// Whether a gradient is wanted here.
    pub fn is_recorded(&self) -> bool {
        self.node.is_some()
    }

    /// The same numbers under another shape.
    #[must_use]
    pub fn reshape(&self, shape: &[usize]) -> Value {
        // The gradient is given the entry's own shape on its way back.
        Value { tensor: self.tensor.reshape(shape), node: self.node }
    }
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Value {
        Value { tensor, node: None }
    }
}

/// A weight of a model, and the number under which its gradient is handed out, if that is wanted.
#[derive(Debug, Clone)]
pub struct Parameter {
    weight: Weight,
    pub(crate) id: Option<usize>,
}

impl Parameter {
    /// A plain weight whose gradient is wanted; `id` is the caller's. Quantised weights have no gradients.
    pub fn wanted(tensor: Tensor, id: usize) -> Parameter {
        Parameter { weight: tensor.into(), id: Some(id) }
    }

    /// The numbers.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// The numbers of a plain weight, of any shape. Panics on a quantised one.
    pub fn tensor(&self) -> &Tensor {
        match &self.weight {
            Weight::Plain(tensor) => tensor,
            quantised => panic!("{} where plain numbers are needed", quantised.type_name()),
        }
    }

    /// The number under which its gradient is handed out, if that is wanted.
    pub fn id(&self) -> Option<usize> {
        self.id
    }

    /// The numbers, if their gradient is wanted: what an optimiser changes.
    pub fn wanted_mut(&mut self) -> Option<&mut Tensor> {
        match &mut self.weight {
            Weight::Plain(tensor) if self.id.is_some() => Some(tensor),
            _ => None,
        }
    }

    /// Whether its gradient is wanted.
    pub fn is_wanted(&self) -> bool {
        self.id.is_some()
    }

    /// The same numbers of a plain weight under another shape; the gradient keeps the old one's order.
    #[must_use]
    pub fn reshape(&self, shape: &[usize]) -> Parameter {
        Parameter { weight: self.tensor().reshape(shape).into(), id: self.id }
    }
}

impl From<Tensor> for Parameter {
    fn from(tensor: Tensor) -> Parameter {
        Parameter { weight: tensor.into(), id: None }
    }
}

impl From<Weight> for Parameter {
    fn from(weight: Weight) -> Parameter {
        Parameter { weight, id: None }
    }
}

/// A part of a parameter's gradient, not yet computed where it is best computed into a sum.
#[derive(Debug)]
pub enum Contribution {
    /// The numbers, f32.
    Whole(Tensor),
    /// dYᵀ·X, multiplied as `compute`.
    Product {
        /// `[t, n]`
        dy: Tensor,
        /// `[t, k]`
        x: Tensor,
        /// f32 or bf16.
        compute: DType,
    },
    /// Rows of a table, each `scale` times that of `dy`.
    Rows {
        /// `[ids, d]`
        dy: Tensor,
        /// Which rows.
        ids: Vec<u32>,
        /// The factor.
        scale: f32,
    },
}

impl Contribution {
    /// Adds it to `sum`, f32 and of the parameter's shape.
    pub fn add_to(self, sum: &mut Tensor) {
        match self {
            Contribution::Whole(gradient) => {
                add_to(sum, &gradient);
            }
            Contribution::Product { dy, x, compute } => {
                add_weight_gradient(&dy, &x, compute, sum.as_f32_mut());
            }
            Contribution::Rows { dy, ids, scale } => {
                add_embedding_gradient(&dy, &ids, scale, sum.as_f32_mut());
            }
        }
    }

    /// The numbers of the parameter's `shape`, some at a time: `f(from, numbers)` gets those from number `from` on. A product
    /// is never held as a whole.
    pub fn in_parts(self, shape: &[usize], f: &mut dyn FnMut(usize, &[f32])) {
        match self {
            Contribution::Product { dy, x, compute } => weight_gradient_in_parts(&dy, &x, compute, f),
            whole => f(0, whole.into_tensor(shape).as_f32()),
        }
    }

    /// The numbers as a tensor of the parameter's `shape`.
    pub fn into_tensor(self, shape: &[usize]) -> Tensor {
        match self {
            Contribution::Whole(gradient) => gradient.reshape(shape),
            Contribution::Product { dy, x, compute } => weight_gradient(&dy, &x, compute).reshape(shape),
            rows @ Contribution::Rows { .. } => {
                let mut sum = Tensor::zeros(shape);
                rows.add_to(&mut sum);
                sum
            }
        }
    }
}

/// An entry's way back: from the gradient of its result to those of what it was made of.
type Backward = Box<dyn FnOnce(Tensor, &mut Gradients<'_>) + Send>;

/// Gradients on their way back.
pub(crate) struct Gradients<'a> {
    /// Of each entry's result, as far as they have come.
    nodes: Vec<Option<Tensor>>,
    parameters: &'a mut dyn FnMut(usize, Contribution),
}

impl Gradients<'_> {
    /// Adds to the gradient of `to`, if it is wanted.
    pub(crate) fn add(&mut self, to: Option<usize>, gradient: impl FnOnce() -> Tensor) {
        let Some(node) = to else { return };
        let gradient = gradient();
        match &mut self.nodes[node] {
            Some(sum) => add_to(sum, &gradient),
            none => *none = Some(gradient),
        }
    }

    /// Hands out a part of a parameter's gradient, if it is wanted.
    pub(crate) fn give(&mut self, id: Option<usize>, part: impl FnOnce() -> Contribution) {
        if let Some(id) = id {
            (self.parameters)(id, part());
        }
    }
}

/// What a tape does with operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    /// Keeps nothing.
    #[default]
    Off,
    /// Keeps nothing but whether a wanted parameter was met.
    Watching { met: bool },
    /// Keeps what the way back needs.
    On,
}

/// The operations between values; see the head of this file.
#[derive(Default)]
pub struct Tape {
    mode: Mode,
    entries: Vec<Entry>,
}

/// A result.
struct Entry {
    shape: Vec<usize>,
    /// `None` is an input.
    backward: Option<Backward>,
}

impl fmt::Debug for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tape({:?}, {} entries)", self.mode, self.entries.len())
    }
}

impl Tape {
    /// A tape that keeps nothing.
    pub fn off() -> Tape {
        Tape::default()
    }

    /// A tape that records.
    pub fn on() -> Tape {
        Tape { mode: Mode::On, entries: Vec::new() }
    }

    /// Whether it records.
    pub fn is_on(&self) -> bool {
        self.mode == Mode::On
    }

    /// What its products are for. Where it watches, the same is computed again as where it records.
    pub(crate) fn used(&self) -> Use {
        if self.mode == Mode::Off { Use::Answer } else { Use::Gradient }
    }

    /// The number of results that it keeps a way back of.
    pub fn num_entries(&self) -> usize {
        self.entries.len()
    }

    /// A value whose gradient [`Tape::backward`] returns.
    pub fn input(&mut self, tensor: Tensor) -> Value {
        self.entries.push(Entry { shape: tensor.shape().to_vec(), backward: None });
        Value { tensor, node: Some(self.entries.len() - 1) }
    }

    /// Whether an operation on these leaves an entry.
    pub(crate) fn wants(&mut self, values: &[Option<usize>], parameters: &[Option<usize>]) -> bool {
        match &mut self.mode {
            Mode::Off => false,
            Mode::Watching { met } => {
                *met |= parameters.iter().any(Option::is_some);
                false
            }
            Mode::On => values.iter().chain(parameters).any(Option::is_some),
        }
    }

    /// A result with its way back.
    pub(crate) fn record(
        &mut self,
        tensor: Tensor,
        backward: impl FnOnce(Tensor, &mut Gradients<'_>) + Send + 'static,
    ) -> Value {
        self.entries.push(Entry { shape: tensor.shape().to_vec(), backward: Some(Box::new(backward)) });
        Value { tensor, node: Some(self.entries.len() - 1) }
    }

    /// Goes all the way back from `y`, whose gradient is `dy`. Parts of the parameters' gradients are told as they come,
    /// with the parameters' ids. → the gradients of the inputs, in their order; `None` where none came.
    pub fn backward(
        self,
        y: &Value,
        dy: Tensor,
        parameters: &mut dyn FnMut(usize, Contribution),
    ) -> Vec<Option<Tensor>> {
        let mut gradients = Gradients { nodes: self.entries.iter().map(|_| None).collect(), parameters };
        gradients.add(y.node, || dy);
        let mut inputs = Vec::new();
        for (node, entry) in self.entries.into_iter().enumerate().rev() {
            let gradient = gradients.nodes[node].take().map(|gradient| gradient.reshape(&entry.shape));
            match (entry.backward, gradient) {
                (Some(backward), Some(gradient)) => backward(gradient, &mut gradients),
                // Nothing that was made of it reached y.
                (Some(_), None) => {}
                (None, gradient) => inputs.push(gradient),
            }
        }
        inputs.reverse();
        inputs
    }

    /// f(x), of which nothing is kept but x: on the way back f is computed again. `f` must do the same both times.
    pub fn recompute(&mut self, x: &Value, f: impl Fn(&mut Tape, &Value) -> Value + Send + 'static) -> Value {
        if !self.is_on() {
            return f(self, x);
        }
        let mut watching = Tape { mode: Mode::Watching { met: false }, entries: Vec::new() };
        let y = f(&mut watching, &x.tensor.clone().into()).tensor;
        if x.node.is_none() && watching.mode == (Mode::Watching { met: false }) {
            return y.into();
        }
        let (x, node) = (x.tensor.clone(), x.node);
        self.record(y, move |dy, gradients| {
            let mut tape = Tape::on();
            let x = if node.is_some() { tape.input(x) } else { x.into() };
            let y = f(&mut tape, &x);
            // What f holds is freed before parameters hear of their gradients and may be changed in place.
            drop((f, x));
            let dx = tape.backward(&y, dy, gradients.parameters).pop().flatten();
            if let Some(dx) = dx {
                gradients.add(node, || dx);
            }
        })
    }
}
