//! The caller's memory: tensors borrowed for a call, dense copies of strided ones, allocations of our own.
//! The only module of this crate with `unsafe`: it reads and writes memory that the caller described.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc};
use torchtpu_ir::{CompileError, DType, Stage};

/// What XLA's CPU runtime needs to use memory in place, in bytes; PyTorch allocates at this alignment too.
pub const ALIGNMENT: usize = 64;

/// A tensor of the caller's, borrowed for one call. Shape and strides are in elements.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a> {
    pub ptr: *mut u8,
    pub dtype: DType,
    pub shape: &'a [i64],
    pub strides: &'a [i64],
    /// PyTorch's version counter, where the caller read it.
    pub version: u64,
}

// SAFETY: the pointer is only used by this module's functions, whose callers promise that the memory is alive and
// not written by others for the duration of the call, from whichever thread.
unsafe impl Send for TensorRef<'_> {}
// SAFETY: as above.
unsafe impl Sync for TensorRef<'_> {}

impl TensorRef<'_> {
    pub fn elements(&self) -> usize {
        self.shape.iter().product::<i64>().max(0) as usize
    }
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }
    pub fn is_aligned(&self) -> bool {
        (self.ptr as usize).is_multiple_of(ALIGNMENT)
    }
    /// The strides are those of `dense` wherever a dimension has more than one element.
    pub fn has_strides(&self, dense: &[i64]) -> bool {
        self.shape.iter().zip(self.strides).zip(dense).all(|((size, a), b)| *size == 1 || a == b)
            || self.elements() == 0
    }

    pub fn is_row_major(&self) -> bool {
        self.has_strides(&row_major(self.shape))
    }

    /// The elements of a tensor that is dense, row by row.
    ///
    /// # Safety
    /// The memory is alive, holds the elements in that order, and nobody writes it for `'a`.
    pub unsafe fn dense<'a>(&self) -> &'a [u8] {
        if self.elements() == 0 {
            return &[];
        }
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.ptr, self.bytes()) }
    }

    /// Offsets in bytes of every innermost run, in the order of dimensions `order`, with the run's length and step.
    fn runs(&self, order: &[i64], mut run: impl FnMut(isize, usize, isize)) {
        let size = self.dtype.size() as isize;
        let dims: Vec<(i64, isize)> = order
            .iter()
            .map(|&d| (self.shape[d as usize], self.strides[d as usize] as isize * size))
            .collect();
        let Some((&(inner, step), outer)) = dims.split_last() else {
            run(0, 1, size);
            return;
        };
        if self.elements() == 0 {
            return;
        }
        let mut index = vec![0i64; outer.len()];
        let mut offset = 0isize;
        loop {
            run(offset, inner as usize, step);
            let mut d = outer.len();
            loop {
                if d == 0 {
                    return;
                }
                d -= 1;
                index[d] += 1;
                offset += outer[d].1;
                if index[d] < outer[d].0 {
                    break;
                }
                offset -= outer[d].1 * outer[d].0 as isize;
                index[d] = 0;
            }
        }
    }

    /// Copies the elements, in the order of dimensions `order`, to dense memory.
    ///
    /// # Safety
    /// The tensor's memory is alive and holds what shape and strides say.
    pub unsafe fn gather(&self, order: &[i64]) -> Memory {
        let memory = Memory::new(self.bytes());
        let size = self.dtype.size();
        let mut to = memory.ptr();
        self.runs(order, |offset, count, step| {
            // SAFETY: `offset` and `step` stay within the tensor by its shape and strides; `to` advances over
            // exactly `bytes()` bytes in all.
            unsafe {
                let from = self.ptr.offset(offset);
                if step == size as isize {
                    std::ptr::copy_nonoverlapping(from, to, count * size);
                } else {
                    for i in 0..count {
                        std::ptr::copy_nonoverlapping(from.offset(i as isize * step), to.add(i * size), size);
                    }
                }
                to = to.add(count * size);
            }
        });
        memory
    }

    /// Writes dense elements, in the order of dimensions `order`, back into the tensor.
    ///
    /// # Safety
    /// As `gather`; `from` holds `bytes()` bytes and the tensor may be written.
    pub unsafe fn scatter(&self, order: &[i64], from: *const u8) {
        let size = self.dtype.size();
        let mut from = from;
        self.runs(order, |offset, count, step| {
            // SAFETY: as in `gather`, with the roles exchanged.
            unsafe {
                let to = self.ptr.offset(offset);
                if step == size as isize {
                    std::ptr::copy(from, to, count * size);
                } else {
                    for i in 0..count {
                        std::ptr::copy(from.add(i * size), to.offset(i as isize * step), size);
                    }
                }
                from = from.add(count * size);
            }
        });
    }
}

fn row_major(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for d in (1..shape.len()).rev() {
        strides[d - 1] = strides[d] * shape[d].max(1);
    }
    strides
}

/// Gives memory that was freed back to the system. A compiler's many small blocks leave holes that the allocator
/// keeps, hundreds of MiB after a large model.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator's own function, callable at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Aligned memory of our own.
#[derive(Debug)]
pub struct Memory {
    ptr: *mut u8,
    layout: Layout,
}

// SAFETY: the memory is owned, like a `Vec`'s.
unsafe impl Send for Memory {}
// SAFETY: shared access only reads the pointer.
unsafe impl Sync for Memory {}

impl Memory {
    /// Uninitialised memory; of at least one byte, so that every tensor has an address.
    pub fn new(bytes: usize) -> Memory {
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT).unwrap_or(Layout::new::<u64>());
        // SAFETY: the layout's size is not zero.
        let ptr = unsafe { alloc(layout) };
        if ptr.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        Memory { ptr, layout }
    }
    pub fn ptr(&self) -> *mut u8 {
        self.ptr
    }
    /// The memory as bytes to be filled by a copy of exactly that size.
    pub fn bytes_mut(&mut self, bytes: usize) -> &mut [u8] {
        // SAFETY: owned, at least `layout.size()` bytes, and only ever written through this slice.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, bytes.min(self.layout.size())) }
    }
}

/// A tensor of our own, dense and row by row.
#[derive(Debug)]
pub struct Array {
    pub dtype: DType,
    shape: Vec<i64>,
    strides: Vec<i64>,
    memory: Memory,
}

impl Array {
    /// A copy of `bytes`, which must be as many as dtype and shape say.
    pub fn new(dtype: DType, shape: Vec<i64>, bytes: &[u8]) -> Result<Array, CompileError> {
        let fail = |message| Err(CompileError::new(Stage::Run, message));
        let count = shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(usize::try_from(d).ok()?));
        if count != Some(bytes.len()) {
            return fail(format!("{} bytes are no {dtype}{shape:?}", bytes.len()));
        }
        let mut memory = Memory::new(bytes.len());
        memory.bytes_mut(bytes.len()).copy_from_slice(bytes);
        Ok(Array::of(dtype, shape, memory))
    }

    /// `memory` is written as far as dtype and shape reach.
    fn of(dtype: DType, shape: Vec<i64>, memory: Memory) -> Array {
        let strides = row_major(&shape);
        Array { dtype, shape, strides, memory }
    }

    /// A copy of a tensor's elements.
    ///
    /// # Safety
    /// As `TensorRef::gather`.
    pub unsafe fn copy(tensor: &TensorRef<'_>) -> Array {
        let order: Vec<i64> = (0..tensor.shape.len() as i64).collect();
        // SAFETY: the caller's promise.
        let memory = unsafe { tensor.gather(&order) };
        Array::of(tensor.dtype, tensor.shape.to_vec(), memory)
    }

    /// A copy of a view, `offset` elements from the first; None where it would reach outside.
    pub fn view(&self, size: &[i64], stride: &[i64], offset: i64) -> Option<Array> {
        if size.len() != stride.len() || offset < 0 || size.iter().chain(stride).any(|&n| n < 0) {
            return None;
        }
        if size.contains(&0) {
            return Some(Array::of(self.dtype, size.to_vec(), Memory::new(0)));
        }
        let mut steps = size.iter().zip(stride);
        let last = steps.try_fold(offset, |at, (n, step)| at.checked_add(step.checked_mul(n - 1)?));
        if last? >= self.tensor().elements() as i64 {
            return None;
        }
        // SAFETY: neither end is outside, nor anything between them.
        let ptr = unsafe { self.memory.ptr.add(offset as usize * self.dtype.size()) };
        // SAFETY: as above.
        Some(unsafe {
            Array::copy(&TensorRef { ptr, dtype: self.dtype, shape: size, strides: stride, version: 0 })
        })
    }

    /// As `view`, of memory in which the dimensions lie in `order`; None also where that is not one of all dimensions.
    pub fn view_in(&self, order: &[i64], size: &[i64], stride: &[i64], offset: i64) -> Option<Array> {
        let all = 0..self.shape.len() as i64;
        if order.iter().copied().eq(all.clone()) {
            return self.view(size, stride, offset);
        }
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(all) {
            return None;
        }
        let pick = |from: &[i64]| order.iter().map(|&d| from[d as usize]).collect::<Vec<_>>();
        self.view(&pick(&self.shape), &pick(&self.strides), 0)?.view(size, stride, offset)
    }

    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    pub fn bytes(&self) -> &[u8] {
        let bytes = self.tensor().bytes();
        // SAFETY: every constructor wrote that many bytes.
        unsafe { std::slice::from_raw_parts(self.memory.ptr, bytes) }
    }

    /// The array as an argument. Who writes through it has it for themselves.
    pub fn tensor(&self) -> TensorRef<'_> {
        let (ptr, shape, strides) = (self.memory.ptr, &self.shape[..], &self.strides[..]);
        TensorRef { ptr, dtype: self.dtype, shape, strides, version: 0 }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout and not freed before.
        unsafe { dealloc(self.ptr, self.layout) };
    }
}
