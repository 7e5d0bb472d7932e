//! Tensors across the border through DLPack's C exchange table (`torch.Tensor.__dlpack_c_exchange_api__`): no
//! libtorch, no Python call a tensor. Layouts are those of dlpack.h 1.2, whose version the table states.
#![allow(unsafe_code)] // Reads PyTorch's table and writes DLPack structs; each block says why that is sound.

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyList};
use std::ffi::{c_int, c_void};
use torchtpu_driver::{DType, Output, TensorRef};

use crate::TorchTPUError;

#[repr(C)]
struct Version {
    major: u32,
    minor: u32,
}

#[repr(C)]
struct Header {
    version: Version,
    previous: *mut Header,
}

#[repr(C)]
struct ExchangeApi {
    header: Header,
    allocator: *const c_void,
    managed_from_object: *const c_void,
    managed_to_object: Option<unsafe extern "C" fn(*mut Managed, *mut *mut c_void) -> c_int>,
    tensor_from_object: Option<unsafe extern "C" fn(*mut c_void, *mut Tensor) -> c_int>,
    current_stream: *const c_void,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Device {
    kind: i32,
    id: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Tensor {
    data: *mut c_void,
    device: Device,
    ndim: i32,
    dtype: DataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
struct Managed {
    version: Version,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
    flags: u64,
    tensor: Tensor,
}

/// One exported result: the DLPack struct with what it points to, freed together by `delete`.
struct Export {
    managed: Managed,
    dims: Vec<i64>,
    _output: Output,
}

unsafe extern "C" fn delete(managed: *mut Managed) {
    // SAFETY: `context` is the `Export` that `new_tensor` leaked, and DLPack calls the deleter once.
    drop(unsafe { Box::from_raw((*managed).context.cast::<Export>()) });
}

const CPU: i32 = 1;

/// PyTorch's own reason, without the frames of its C++ behind the first line, as our error.
fn refused(py: Python<'_>, otherwise: &str) -> PyErr {
    let reason = PyErr::take(py).map_or_else(|| otherwise.to_string(), |e| e.value(py).to_string());
    let reason = reason.lines().next().unwrap_or(otherwise);
    TorchTPUError::new_err(format!("a tensor cannot be used by a compiled function: {reason}"))
}

fn dtype_of(t: DataType) -> Option<DType> {
    use DType::*;
    Some(match (t.code, t.bits) {
        (6, _) => Bool,
        (0, 8) => I8,
        (0, 16) => I16,
        (0, 32) => I32,
        (0, 64) => I64,
        (1, 8) => U8,
        (1, 16) => U16,
        (1, 32) => U32,
        (1, 64) => U64,
        (2, 16) => F16,
        (2, 32) => F32,
        (2, 64) => F64,
        (4, 16) => BF16,
        (5, 64) => C64,
        (5, 128) => C128,
        (10, 8) => F8E4M3FN,
        (11, 8) => F8E4M3FNUZ,
        (12, 8) => F8E5M2,
        (13, 8) => F8E5M2FNUZ,
        (14, 8) => F8E8M0FNU,
        _ => return None,
    })
}

fn data_type(d: DType) -> DataType {
    use DType::*;
    let code = match d {
        Bool => 6,
        BF16 => 4,
        C64 | C128 => 5,
        F8E4M3FN => 10,
        F8E4M3FNUZ => 11,
        F8E5M2 => 12,
        F8E5M2FNUZ => 13,
        F8E8M0FNU => 14,
        d if d.is_float() => 2,
        d if d.is_unsigned() => 1,
        _ => 0,
    };
    DataType { code, bits: (d.size() * 8) as u8, lanes: 1 }
}

/// Shape or strides as DLPack gives them.
///
/// # Safety
/// `from` is null or holds `rank` entries that live as long as `'a`.
unsafe fn list<'a>(from: *const i64, rank: i32) -> &'a [i64] {
    match usize::try_from(rank) {
        // SAFETY: the caller's promise.
        Ok(rank) if rank > 0 && !from.is_null() => unsafe { std::slice::from_raw_parts(from, rank) },
        _ => &[],
    }
}

/// PyTorch's exchange table.
#[derive(Clone, Copy)]
pub struct Exchange {
    from_object: unsafe extern "C" fn(*mut c_void, *mut Tensor) -> c_int,
    to_object: unsafe extern "C" fn(*mut Managed, *mut *mut c_void) -> c_int,
    version: (u32, u32),
}

// SAFETY: function pointers into libtorch, which is never unloaded.
unsafe impl Send for Exchange {}
// SAFETY: as above; they are called with the GIL held.
unsafe impl Sync for Exchange {}

impl Exchange {
    pub fn of_torch(py: Python<'_>) -> PyResult<Exchange> {
        let too_old = || {
            PyRuntimeError::new_err(
                "this PyTorch has no DLPack C exchange table; torch 2.11 or newer is needed",
            )
        };
        let tensor = py.import("torch")?.getattr("Tensor")?;
        let capsule = tensor.getattr("__dlpack_c_exchange_api__").map_err(|_| too_old())?;
        let capsule = capsule.cast::<PyCapsule>().map_err(|_| too_old())?;
        // SAFETY: the capsule of this name holds the table, which lives as long as the type.
        let table = unsafe {
            ffi::PyCapsule_GetPointer(capsule.as_ptr(), c"dlpack_exchange_api".as_ptr())
                .cast::<ExchangeApi>()
                .as_ref()
        };
        let table = table.ok_or_else(too_old)?;
        match (table.tensor_from_object, table.managed_to_object) {
            (Some(from_object), Some(to_object)) if table.header.version.major == 1 => {
                let version = (table.header.version.major, table.header.version.minor);
                Ok(Exchange { from_object, to_object, version })
            }
            _ => Err(too_old()),
        }
    }

    /// Reads one tensor of a list. The error is Python's where PyTorch refuses (sparse, quantised, a conjugate view).
    ///
    /// # Safety
    /// The list keeps the tensor for `'a`, and nobody changes its shape meanwhile: shape and strides are the tensor's
    /// own.
    pub unsafe fn borrow<'a>(&self, tensors: &Bound<'a, PyList>, index: usize) -> PyResult<TensorRef<'a>> {
        let mut tensor = std::mem::MaybeUninit::<Tensor>::uninit();
        // SAFETY: the reference is the list's own. That it is a tensor PyTorch checks, and the table fills the struct
        // where it answers 0.
        let tensor = unsafe {
            let object = ffi::PyList_GetItem(tensors.as_ptr(), index as ffi::Py_ssize_t);
            if object.is_null() || (self.from_object)(object.cast(), tensor.as_mut_ptr()) != 0 {
                return Err(refused(tensors.py(), "DLPack refused a tensor"));
            }
            tensor.assume_init()
        };
        if tensor.device.kind != CPU {
            return Err(TorchTPUError::new_err(
                "a tensor is not on the CPU; call .cpu() before the compiled function",
            ));
        }
        let dtype = dtype_of(tensor.dtype)
            .ok_or_else(|| TorchTPUError::new_err("a tensor has a dtype that is not supported"))?;
        Ok(TensorRef {
            ptr: tensor.data.cast::<u8>().wrapping_add(tensor.byte_offset as usize),
            dtype,
            // SAFETY: the caller's promise.
            shape: unsafe { list(tensor.shape, tensor.ndim) },
            // SAFETY: as above.
            strides: unsafe { list(tensor.strides, tensor.ndim) },
            version: 0,
        })
    }

    /// A PyTorch tensor over a result's memory; it owns the result.
    pub fn new_tensor<'py>(
        &self,
        py: Python<'py>,
        output: Output,
        dtype: DType,
        shape: &[i64],
        strides: &[i64],
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut dims = Vec::with_capacity(shape.len() * 2);
        dims.extend_from_slice(shape);
        dims.extend_from_slice(strides);
        let mut export = Box::new(Export {
            managed: Managed {
                version: Version { major: self.version.0, minor: self.version.1 },
                context: std::ptr::null_mut(),
                deleter: Some(delete),
                flags: 0,
                tensor: Tensor {
                    data: output.ptr().cast(),
                    device: Device { kind: CPU, id: 0 },
                    ndim: shape.len() as i32,
                    dtype: data_type(dtype),
                    shape: std::ptr::null_mut(),
                    strides: std::ptr::null_mut(),
                    byte_offset: 0,
                },
            },
            dims,
            _output: output,
        });
        export.managed.tensor.shape = export.dims.as_mut_ptr();
        export.managed.tensor.strides = export.dims[shape.len()..].as_mut_ptr();
        let export = Box::into_raw(export);
        let mut object = std::ptr::null_mut();
        // SAFETY: `export` is a valid DLPack struct until its deleter runs; PyTorch takes it over where it answers
        // 0 and leaves it to us otherwise; the object is a new reference.
        unsafe {
            (*export).managed.context = export.cast();
            if (self.to_object)(&raw mut (*export).managed, &mut object) != 0 {
                drop(Box::from_raw(export));
                return Err(
                    PyErr::take(py).unwrap_or_else(|| PyRuntimeError::new_err("DLPack refused a result"))
                );
            }
            Bound::from_owned_ptr_or_err(py, object.cast())
        }
    }
}
