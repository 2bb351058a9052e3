//! The tensor: a shape over shared, immutable, contiguous elements.

use crate::{DType, MappedFile};
use half::{bf16, f16};
use rayon::prelude::*;
use std::{fmt, sync::Arc};

/// A contiguous tensor, last dimension fastest. Clones share the elements.
#[derive(Clone)]
pub struct Tensor {
    storage: Storage,
    /// First element within the storage.
    start: usize,
    shape: Vec<usize>,
}

#[derive(Clone)]
enum Storage {
    F32(Arc<Vec<f32>>),
    Bf16(Arc<Vec<bf16>>),
    F16(Arc<Vec<f16>>),
    U8(Arc<Vec<u8>>),
    /// Elements of a file map from byte `offset` on, aligned for `dtype`.
    Mapped {
        file: Arc<MappedFile>,
        offset: usize,
        dtype: DType,
    },
}

impl Tensor {
    /// A tensor of `f32`. Panics if the number of elements is not that of `shape`.
    pub fn from_f32(elements: Vec<f32>, shape: &[usize]) -> Self {
        assert_eq!(elements.len(), shape.iter().product::<usize>(), "elements of shape {shape:?}");
        Tensor { storage: Storage::F32(Arc::new(elements)), start: 0, shape: shape.to_vec() }
    }

    /// A tensor of `bf16`. Panics if the number of elements is not that of `shape`.
    pub fn from_bf16(elements: Vec<bf16>, shape: &[usize]) -> Self {
        assert_eq!(elements.len(), shape.iter().product::<usize>(), "elements of shape {shape:?}");
        Tensor { storage: Storage::Bf16(Arc::new(elements)), start: 0, shape: shape.to_vec() }
    }

    /// A tensor of `f16`. Panics if the number of elements is not that of `shape`.
    pub fn from_f16(elements: Vec<f16>, shape: &[usize]) -> Self {
        assert_eq!(elements.len(), shape.iter().product::<usize>(), "elements of shape {shape:?}");
        Tensor { storage: Storage::F16(Arc::new(elements)), start: 0, shape: shape.to_vec() }
    }

    /// A tensor of bytes. Panics if their number is not that of `shape`.
    pub fn from_u8(elements: Vec<u8>, shape: &[usize]) -> Self {
        assert_eq!(elements.len(), shape.iter().product::<usize>(), "elements of shape {shape:?}");
        Tensor { storage: Storage::U8(Arc::new(elements)), start: 0, shape: shape.to_vec() }
    }

    /// A tensor from little-endian bytes, copied. Panics if their number is not that of `shape`.
    pub fn from_bytes(bytes: &[u8], dtype: DType, shape: &[usize]) -> Self {
        assert_eq!(bytes.len(), shape.iter().product::<usize>() * dtype.size(), "bytes of {dtype} {shape:?}");
        match dtype {
            DType::F32 => Tensor::from_f32(bytemuck::pod_collect_to_vec(bytes), shape),
            DType::BF16 => Tensor::from_bf16(bytemuck::pod_collect_to_vec(bytes), shape),
            DType::F16 => Tensor::from_f16(bytemuck::pod_collect_to_vec(bytes), shape),
            DType::U8 => Tensor::from_u8(bytes.to_vec(), shape),
        }
    }

    /// A tensor that reads `file` in place from byte `offset`; copied where the file does not align it.
    /// Panics if the file ends before the tensor does.
    pub fn from_mapped(file: &Arc<MappedFile>, offset: usize, dtype: DType, shape: &[usize]) -> Self {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        assert!(
            offset.checked_add(bytes).is_some_and(|end| end <= file.len()),
            "tensor beyond the file's end"
        );
        let slice = &file[offset..offset + bytes];
        if !(slice.as_ptr() as usize).is_multiple_of(dtype.size()) {
            return Tensor::from_bytes(slice, dtype, shape);
        }
        Tensor {
            storage: Storage::Mapped { file: Arc::clone(file), offset, dtype },
            start: 0,
            shape: shape.to_vec(),
        }
    }

    /// All zeros, `f32`.
    pub fn zeros(shape: &[usize]) -> Self {
        Tensor::from_f32(vec![0.0; shape.iter().product()], shape)
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        match &self.storage {
            Storage::F32(_) => DType::F32,
            Storage::Bf16(_) => DType::BF16,
            Storage::F16(_) => DType::F16,
            Storage::U8(_) => DType::U8,
            Storage::Mapped { dtype, .. } => *dtype,
        }
    }

    /// The elements' bytes, little-endian as the machine is.
    pub fn bytes(&self) -> &[u8] {
        let size = self.dtype().size();
        let range = self.start * size..(self.start + self.len()) * size;
        match &self.storage {
            Storage::F32(v) => &bytemuck::cast_slice(v)[range],
            Storage::Bf16(v) => &bytemuck::cast_slice(v)[range],
            Storage::F16(v) => &bytemuck::cast_slice(v)[range],
            Storage::U8(v) => &v[range],
            Storage::Mapped { file, offset, .. } => &file[offset + range.start..offset + range.end],
        }
    }

    /// Gives the memory of a mapped file's elements back: for who has copied them and does not look at them again soon. They
    /// stay what they are. Other tensors have nothing to give.
    pub fn let_go(&self) {
        if let Storage::Mapped { file, offset, .. } = &self.storage {
            let size = self.dtype().size();
            file.let_go(offset + self.start * size..offset + (self.start + self.len()) * size);
        }
    }

    /// The elements of an `f32` tensor; panics on another type.
    pub fn as_f32(&self) -> &[f32] {
        assert_eq!(self.dtype(), DType::F32);
        bytemuck::cast_slice(self.bytes())
    }

    /// The elements of an `f32` tensor to be changed; copied first where another tensor shares them. Panics on
    /// another type.
    pub fn as_f32_mut(&mut self) -> &mut [f32] {
        let is_own = matches!(&self.storage, Storage::F32(elements) if Arc::strong_count(elements) == 1);
        if !is_own {
            *self = Tensor::from_f32(self.as_f32().to_vec(), &self.shape);
        }
        let range = self.start..self.start + self.len();
        match &mut self.storage {
            Storage::F32(elements) => &mut Arc::make_mut(elements)[range],
            _ => unreachable!("the storage is owned f32, as made above"),
        }
    }

    /// The same for a `bf16` tensor.
    pub fn as_bf16_mut(&mut self) -> &mut [bf16] {
        let is_own = matches!(&self.storage, Storage::Bf16(elements) if Arc::strong_count(elements) == 1);
        if !is_own {
            *self = Tensor::from_bf16(self.as_bf16().to_vec(), &self.shape);
        }
        let range = self.start..self.start + self.len();
        match &mut self.storage {
            Storage::Bf16(elements) => &mut Arc::make_mut(elements)[range],
            _ => unreachable!("the storage is owned bf16, as made above"),
        }
    }

    /// The elements of a `bf16` tensor; panics on another type.
    pub fn as_bf16(&self) -> &[bf16] {
        assert_eq!(self.dtype(), DType::BF16);
        bytemuck::cast_slice(self.bytes())
    }

    /// The elements of an `f16` tensor; panics on another type.
    pub fn as_f16(&self) -> &[f16] {
        assert_eq!(self.dtype(), DType::F16);
        bytemuck::cast_slice(self.bytes())
    }

    /// The elements of a tensor of bytes; panics on another type.
    pub fn as_u8(&self) -> &[u8] {
        assert_eq!(self.dtype(), DType::U8);
        self.bytes()
    }

    /// The same elements under another shape of as many elements.
    #[must_use]
    pub fn reshape(&self, shape: &[usize]) -> Self {
        assert_eq!(self.len(), shape.iter().product::<usize>(), "{:?} as {shape:?}", self.shape);
        Tensor { storage: self.storage.clone(), start: self.start, shape: shape.to_vec() }
    }

    /// Rows `from..to` of the first dimension, sharing the elements.
    #[must_use]
    pub fn rows(&self, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= self.shape[0], "rows {from}..{to} of {:?}", self.shape);
        let row: usize = self.shape[1..].iter().product();
        let mut shape = self.shape.clone();
        shape[0] = to - from;
        Tensor { storage: self.storage.clone(), start: self.start + from * row, shape }
    }

    /// The elements as `f32`, widened exactly. Panics on bytes, which mean nothing without their scale.
    pub fn to_f32_vec(&self) -> Vec<f32> {
        match self.dtype() {
            DType::F32 => self.as_f32().to_vec(),
            DType::BF16 => each(self.as_bf16(), bf16::to_f32),
            DType::F16 => each(self.as_f16(), f16::to_f32),
            DType::U8 => panic!("{self:?} has no numbers of its own"),
        }
    }

    /// The same numbers as `dtype`, rounded to nearest even; shares the elements if nothing changes. Panics on bytes.
    #[must_use]
    pub fn cast(&self, dtype: DType) -> Self {
        if self.dtype() == dtype {
            return self.clone();
        }
        match (self.dtype(), dtype) {
            (_, DType::F32) => Tensor::from_f32(self.to_f32_vec(), &self.shape),
            (DType::F32, DType::BF16) => Tensor::from_bf16(each(self.as_f32(), bf16::from_f32), &self.shape),
            (DType::F32, DType::F16) => Tensor::from_f16(each(self.as_f32(), f16::from_f32), &self.shape),
            (_, DType::BF16 | DType::F16) => self.cast(DType::F32).cast(dtype),
            (_, DType::U8) => panic!("{self:?} as bytes: see Weight"),
        }
    }

    /// Dimensions reordered as `axes` says (`numpy.transpose`), copied.
    #[must_use]
    pub fn permute(&self, axes: &[usize]) -> Self {
        assert_eq!(axes.len(), self.shape.len(), "axes {axes:?} of {:?}", self.shape);
        let shape: Vec<usize> = axes.iter().map(|&a| self.shape[a]).collect();
        match self.dtype() {
            DType::F32 => Tensor::from_f32(permuted(self.as_f32(), &self.shape, axes), &shape),
            DType::BF16 => Tensor::from_bf16(permuted(self.as_bf16(), &self.shape, axes), &shape),
            DType::F16 => Tensor::from_f16(permuted(self.as_f16(), &self.shape, axes), &shape),
            DType::U8 => Tensor::from_u8(permuted(self.as_u8(), &self.shape, axes), &shape),
        }
    }
}

/// f of every element, on all threads where there are many.
fn each<T: Copy + Sync, U: Send>(elements: &[T], f: impl Fn(T) -> U + Sync + Send) -> Vec<U> {
    if elements.len() < 1 << 16 {
        return elements.iter().map(|&x| f(x)).collect();
    }
    elements.par_iter().with_min_len(1 << 14).map(|&x| f(x)).collect()
}

/// `elements` of `shape` in the order of `axes`. Moves in blocks so that a large transpose stays in the cache.
fn permuted<T: Copy + Default>(elements: &[T], shape: &[usize], axes: &[usize]) -> Vec<T> {
    // Leading dimensions of size one are folded away by their stride; strides of the source, in the new order.
    let mut strides = vec![1; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1] * shape[i + 1];
    }
    let mut out = vec![T::default(); elements.len()];
    let dims: Vec<(usize, usize)> = axes.iter().map(|&a| (shape[a], strides[a])).collect();
    match dims.len() {
        0 => out.copy_from_slice(elements),
        1 => (0..dims[0].0).for_each(|i| out[i] = elements[i * dims[0].1]),
        n => {
            // The outer dimensions are walked one by one, the last two in square blocks.
            let ((rows, row_stride), (cols, col_stride)) = (dims[n - 2], dims[n - 1]);
            let mut index = vec![0; n - 2];
            for plane in out.chunks_mut((rows * cols).max(1)) {
                let base: usize = index.iter().zip(&dims).map(|(i, (_, s))| i * s).sum();
                const BLOCK: usize = 32;
                for r0 in (0..rows).step_by(BLOCK) {
                    for c0 in (0..cols).step_by(BLOCK) {
                        for r in r0..rows.min(r0 + BLOCK) {
                            for c in c0..cols.min(c0 + BLOCK) {
                                plane[r * cols + c] = elements[base + r * row_stride + c * col_stride];
                            }
                        }
                    }
                }
                for d in (0..n - 2).rev() {
                    index[d] += 1;
                    if index[d] < dims[d].0 {
                        break;
                    }
                    index[d] = 0;
                }
            }
        }
    }
    out
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({}{:?})", self.dtype(), self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    proptest! {
        /// Every element stands where its permuted index says, and the inverse brings all back.
        #[test]
        fn permute_moves_every_element(
            shape in prop::collection::vec(1usize..40, 1..4),
            order in any::<[u8; 4]>(),
        ) {
            let n: usize = shape.iter().product();
            let x = Tensor::from_f32((0..n).map(|i| i as f32).collect(), &shape);
            let mut axes: Vec<usize> = (0..shape.len()).collect();
            axes.sort_by_key(|&a| order[a]);
            let y = x.permute(&axes);
            let mut inverse = vec![0; axes.len()];
            for (to, &from) in axes.iter().enumerate() {
                inverse[from] = to;
                prop_assert_eq!(y.shape()[to], shape[from]);
            }
            let back = y.permute(&inverse);
            prop_assert_eq!(back.as_f32(), x.as_f32());
            // Plain twin: compute each target index by hand.
            let mut strides = vec![1; shape.len()];
            for i in (0..shape.len() - 1).rev() { strides[i] = strides[i + 1] * y.shape()[i + 1]; }
            for (flat, value) in x.as_f32().iter().enumerate() {
                let mut rest = flat;
                let mut at = 0;
                for d in (0..shape.len()).rev() {
                    at += (rest % shape[d]) * strides[inverse[d]];
                    rest /= shape[d];
                }
                prop_assert_eq!(y.as_f32()[at], *value);
            }
        }
    }

    #[test]
    fn mapped_tensors_read_in_place_or_copy_when_misaligned() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[0u8; 2]).unwrap();
        file.write_all(bytemuck::cast_slice(&[1.0f32, 2.0, 3.0])).unwrap();
        let map = Arc::new(MappedFile::open(file.path()).unwrap());
        let x = Tensor::from_mapped(&map, 2, DType::F32, &[3]);
        assert_eq!(x.as_f32(), [1.0, 2.0, 3.0]);
        let y = Tensor::from_mapped(&map, 0, DType::BF16, &[7]);
        assert_eq!(y.rows(1, 3).as_bf16()[1], bf16::from_f32(1.0));
    }

    #[test]
    fn cast_rounds_to_nearest_even() {
        let x = Tensor::from_f32(vec![1.0 + 1.0 / 256.0, -3.0, f32::INFINITY], &[3]);
        assert_eq!(x.cast(DType::BF16).to_f32_vec(), [1.0, -3.0, f32::INFINITY]);
        assert_eq!(x.cast(DType::F16).cast(DType::F32).as_f32(), [1.0 + 1.0 / 256.0, -3.0, f32::INFINITY]);
    }
}
