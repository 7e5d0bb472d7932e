//! Buffers: arrays on a device, and their memory where the host can reach it.

use crate::client::{ClientInner, invalid};
use crate::event::Event;
use crate::gate::{array, call, destroy, object};
use crate::types::ElementType;
use crate::{ErrorCode, PjrtError, Result, ffi};
use smallvec::{SmallVec, smallvec};
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// An array on a device. Its contents may still be under way; a call that needs them waits.
pub struct Buffer {
    client: Arc<ClientInner>,
    raw: NonNull<ffi::PJRT_Buffer>,
}

// SAFETY: PJRT buffers are thread-safe handles; donating one deletes it for all threads under the plugin's own lock.
unsafe impl Send for Buffer {}
// SAFETY: as for Send.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// # Safety
    /// `raw` is a buffer of `client`, and this is its only owner.
    pub(crate) unsafe fn new(client: Arc<ClientInner>, raw: NonNull<ffi::PJRT_Buffer>) -> Self {
        Self { client, raw }
    }

    pub(crate) fn raw(&self) -> *mut ffi::PJRT_Buffer {
        self.raw.as_ptr()
    }

    pub(crate) fn is_of(&self, client: &Arc<ClientInner>) -> bool {
        Arc::ptr_eq(&self.client, client)
    }

    pub fn dims(&self) -> Result<&[i64]> {
        // SAFETY: the buffer is alive, and the dimensions live as long as it does.
        unsafe {
            let args = call!(self.client.api, PJRT_Buffer_Dimensions { buffer: self.raw() })?;
            Ok(array(args.dims, args.num_dims))
        }
    }

    pub fn element_type(&self) -> Result<ElementType> {
        // SAFETY: the buffer is alive.
        let args = unsafe { call!(self.client.api, PJRT_Buffer_ElementType { buffer: self.raw() }) }?;
        ElementType::from_raw(args.type_, "PJRT_Buffer_ElementType")
    }

    /// The bytes that the buffer takes on its device, padding and tiling included.
    pub fn on_device_size(&self) -> Result<usize> {
        // SAFETY: the buffer is alive.
        let args = unsafe { call!(self.client.api, PJRT_Buffer_OnDeviceSizeInBytes { buffer: self.raw() }) }?;
        Ok(args.on_device_size_in_bytes)
    }

    /// The bytes of a dense row-major copy in host memory.
    pub fn host_size(&self) -> Result<usize> {
        // Saturating, since in an empty array the dimensions before a zero may be of any size.
        let bytes = self.element_type()?.host_bytes();
        Ok(self
            .dims()?
            .iter()
            .fold(bytes, |size, &dim| size.saturating_mul(usize::try_from(dim).unwrap_or(0))))
    }

    /// The index of the device that holds the buffer.
    pub fn device(&self) -> Result<usize> {
        // SAFETY: the buffer is alive.
        let args = unsafe { call!(self.client.api, PJRT_Buffer_Device { buffer: self.raw() }) }?;
        self.client.device_index(args.device, "PJRT_Buffer_Device")
    }

    /// Whether the memory is host memory, so that [`into_output_memory`](Self::into_output_memory) is of use.
    pub fn is_on_cpu(&self) -> Result<bool> {
        // SAFETY: the buffer is alive.
        Ok(unsafe { call!(self.client.api, PJRT_Buffer_IsOnCpu { buffer: self.raw() }) }?.is_on_cpu)
    }

    /// The address of the memory. What is there is defined once [`ready_event`](Self::ready_event) is ready, and only
    /// while the buffer is neither dropped, deleted nor donated; [`OutputMemory`] sees to that.
    pub fn unsafe_pointer(&self) -> Result<*mut u8> {
        // SAFETY: the buffer is alive.
        let args = unsafe { call!(self.client.api, PJRT_Buffer_UnsafePointer { buffer: self.raw() }) }?;
        // The plugin hands out the address as an integer.
        Ok(ptr::with_exposed_provenance_mut(args.buffer_pointer))
    }

    /// Pins the memory for a user outside PJRT: until the matching decrease, neither deletion nor donation frees it.
    /// Prefer [`into_output_memory`](Self::into_output_memory), which cannot forget the decrease.
    pub fn increase_external_reference(&self) -> Result<()> {
        let buffer = self.raw();
        // SAFETY: the buffer is alive.
        unsafe { call!(self.client.api, PJRT_Buffer_IncreaseExternalReferenceCount { buffer: buffer }) }
            .map(drop)
    }

    pub fn decrease_external_reference(&self) -> Result<()> {
        let buffer = self.raw();
        // SAFETY: the buffer is alive; the plugin refuses a decrease without an increase.
        unsafe { call!(self.client.api, PJRT_Buffer_DecreaseExternalReferenceCount { buffer: buffer }) }
            .map(drop)
    }

    /// Ready when the contents are.
    pub fn ready_event(&self) -> Result<Event> {
        // SAFETY: the buffer is alive, and the event is new and of the same client.
        unsafe {
            let args = call!(self.client.api, PJRT_Buffer_ReadyEvent { buffer: self.raw() })?;
            Ok(Event::new(self.client.clone(), object(args.event, "PJRT_Buffer_ReadyEvent")?))
        }
    }

    /// Whether the contents are gone, by [`delete`](Self::delete) or by donation.
    pub fn is_deleted(&self) -> Result<bool> {
        // SAFETY: the buffer is alive: a deleted one keeps its handle.
        Ok(unsafe { call!(self.client.api, PJRT_Buffer_IsDeleted { buffer: self.raw() }) }?.is_deleted)
    }

    /// Gives the memory back early. Later uses of the contents are errors.
    pub fn delete(&self) -> Result<()> {
        // SAFETY: the buffer is alive.
        unsafe { call!(self.client.api, PJRT_Buffer_Delete { buffer: self.raw() }) }.map(drop)
    }

    /// The order of the dimensions in memory, from the fastest-varying one: `[.., 1, 0]` where it is row-major, as all
    /// buffers are that the program did not give another layout. Tiles, which some devices add, are left out.
    pub fn minor_to_major(&self) -> Result<Vec<i64>> {
        const CALL: &str = "PJRT_Buffer_GetMemoryLayout";
        // SAFETY: the buffer is alive, and so is its layout; the tag says which field of the union is set.
        unsafe {
            let layout = call!(self.client.api, PJRT_Buffer_GetMemoryLayout { buffer: self.raw() })?.layout;
            if layout.type_ != ffi::PJRT_Buffer_MemoryLayout_Type_Tiled {
                return Err(PjrtError::new(ErrorCode::Unimplemented, CALL, "the layout is given by strides"));
            }
            let tiled = layout.__bindgen_anon_1.tiled;
            Ok(array(tiled.minor_to_major, tiled.minor_to_major_size).to_vec())
        }
    }

    /// Waits for the contents and copies them, dense and row-major, into `host`, which must have just their size.
    pub fn copy_to_host(&self, host: &mut [u8]) -> Result<()> {
        let size = self.host_size()?;
        if host.len() != size {
            let message = format!("{} bytes of host memory for a buffer of {size}", host.len());
            return Err(invalid("PJRT_Buffer_ToHostBuffer", message));
        }
        let dims = self.dims()?;
        let row_major = (0..dims.len() as i64).rev();
        // The copy is asked for in the buffer's own order, and put into row-major order here: some plugins copy without
        // regard to the order that they are asked for.
        match self.minor_to_major() {
            Ok(order) if !row_major.clone().eq(order.iter().copied()) => {
                let mut copy = vec![0; size];
                self.copy_ordered(&order, &mut copy)?;
                transpose(&copy, dims, &order, self.element_type()?.host_bytes(), host);
                Ok(())
            }
            _ => self.copy_ordered(&row_major.collect::<SmallVec<[i64; 8]>>(), host),
        }
    }

    /// Copies the contents, dense, with the dimensions in the given order (minor to major).
    fn copy_ordered(&self, order: &[i64], host: &mut [u8]) -> Result<()> {
        let mut layout = ffi::PJRT_Buffer_MemoryLayout {
            struct_size: size_of::<ffi::PJRT_Buffer_MemoryLayout>(),
            extension_start: ptr::null_mut(),
            __bindgen_anon_1: ffi::PJRT_Buffer_MemoryLayout__bindgen_ty_1 {
                tiled: ffi::PJRT_Buffer_MemoryLayout_Tiled {
                    struct_size: size_of::<ffi::PJRT_Buffer_MemoryLayout_Tiled>(),
                    extension_start: ptr::null_mut(),
                    minor_to_major: order.as_ptr(),
                    minor_to_major_size: order.len(),
                    tile_dims: ptr::null(),
                    tile_dim_sizes: ptr::null(),
                    num_tiles: 0,
                },
            },
            type_: ffi::PJRT_Buffer_MemoryLayout_Type_Tiled,
        };
        // SAFETY: the layout outlives the call, and `host` the copy, which is awaited here.
        let event = unsafe {
            let args = call!(
                self.client.api,
                PJRT_Buffer_ToHostBuffer {
                    src: self.raw(),
                    host_layout: &mut layout,
                    dst: host.as_mut_ptr().cast(),
                    dst_size: host.len(),
                }
            )?;
            Event::new(self.client.clone(), object(args.event, "PJRT_Buffer_ToHostBuffer")?)
        };
        event.await_ready()
    }

    /// A copy on another device of the same client.
    pub fn copy_to_device(&self, device: usize) -> Result<Self> {
        const CALL: &str = "PJRT_Buffer_CopyToDevice";
        let device = self.client.device(device, CALL)?;
        // SAFETY: the buffer and the device are alive; the copy is new and of the same client.
        unsafe {
            let args = call!(
                self.client.api,
                PJRT_Buffer_CopyToDevice { buffer: self.raw(), dst_device: device.as_ptr() }
            )?;
            Ok(Self::new(self.client.clone(), object(args.dst_buffer, CALL)?))
        }
    }

    /// Turns the buffer into memory that a user outside PJRT can hold. Waits for the contents.
    pub fn into_output_memory(self) -> Result<OutputMemory> {
        self.ready_event()?.await_ready()?;
        self.into_ready_memory()
    }

    /// As [`into_output_memory`](Self::into_output_memory), where the execution that makes the contents is known to be
    /// over.
    pub fn into_ready_memory(self) -> Result<OutputMemory> {
        OutputMemory::new(self)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: this is the only owner.
        unsafe { destroy!(self.client.api, PJRT_Buffer_Destroy { buffer: self.raw() }) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("type", &self.element_type()).field("dims", &self.dims()).finish()
    }
}

/// Writes to `to`, row-major, the dense array in `from` whose dimensions lie in `order` (minor to major).
fn transpose(from: &[u8], dims: &[i64], order: &[i64], bytes: usize, to: &mut [u8]) {
    let dims: SmallVec<[usize; 8]> = dims.iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).collect();
    let mut strides: SmallVec<[usize; 8]> = smallvec![0; dims.len()];
    let mut stride = bytes;
    for axis in order.iter().filter_map(|&axis| usize::try_from(axis).ok()) {
        if let (Some(slot), Some(dim)) = (strides.get_mut(axis), dims.get(axis)) {
            *slot = stride;
            stride *= dim;
        }
    }
    let mut index: SmallVec<[usize; 8]> = smallvec![0; dims.len()];
    for value in to.chunks_exact_mut(bytes) {
        let at: usize = index.iter().zip(&strides).map(|(index, stride)| index * stride).sum();
        if let Some(source) = from.get(at..at + bytes) {
            value.copy_from_slice(source);
        }
        // Counts up, the last dimension fastest.
        for (digit, dim) in index.iter_mut().zip(&dims).rev() {
            *digit += 1;
            if *digit < *dim {
                break;
            }
            *digit = 0;
        }
    }
}

/// The memory of a buffer, pinned and with its contents ready until this is dropped: what a consumer of tensors without copies holds.
#[derive(Debug)]
pub struct OutputMemory {
    buffer: Buffer,
    ptr: NonNull<u8>,
}

// SAFETY: the pointer is the buffer's own, and going through it is up to whoever holds this.
unsafe impl Send for OutputMemory {}
// SAFETY: as for Send; nothing here reads or writes through the pointer.
unsafe impl Sync for OutputMemory {}

impl OutputMemory {
    fn new(buffer: Buffer) -> Result<Self> {
        buffer.increase_external_reference()?;
        let pinned = match buffer.unsafe_pointer() {
            // An array without values may have no memory; its address is never followed.
            Ok(ptr) => Self { ptr: NonNull::new(ptr).unwrap_or(NonNull::dangling()), buffer },
            Err(error) => {
                // The pointer's error is the one to report.
                let _ = buffer.decrease_external_reference();
                return Err(error);
            }
        };
        Ok(pinned)
    }

    /// The first value. Valid for [`Buffer::on_device_size`] bytes while this lives; the values lie in the order that
    /// [`Buffer::minor_to_major`] tells.
    pub fn ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// The buffer, for its shape or as an argument. A program that it is donated to takes a copy while it is held here;
    /// a plugin may also refuse.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }
}

impl Drop for OutputMemory {
    fn drop(&mut self) {
        if !crate::gate::exiting() {
            // The one reason to refuse is that there was no increase, and there was.
            let _ = self.buffer.decrease_external_reference();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes() {
        // 2x3x2 with the first dimension fastest, then the last, then the middle one.
        let values: Vec<u8> = (0..12).collect();
        let mut out = [0; 12];
        transpose(&values, &[2, 3, 2], &[0, 2, 1], 1, &mut out);
        assert_eq!(out, [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]);
        let mut out = [0; 12];
        transpose(&values, &[2, 3], &[0, 1], 2, &mut out);
        assert_eq!(out, [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]);
    }
}
