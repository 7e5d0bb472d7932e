//! Clients: a plugin's devices, ready to compile for and to hold buffers.

use crate::buffer::Buffer;
use crate::event::Event;
use crate::executable::{Executable, compile_args};
use crate::gate::{Api, array, call, destroy, object, text};
use crate::options::CompileOptions;
use crate::types::{Element, ElementType, HostBufferSemantics, OptionValue};
use crate::{ErrorCode, PjrtError, Plugin, Result, ffi};
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// A client of a plugin. Clones are handles on the same one, and so are its buffers, executables and events: it is
/// destroyed after the last of them.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<ClientInner>,
}

pub(crate) struct ClientInner {
    pub(crate) plugin: &'static Plugin,
    pub(crate) api: Api,
    pub(crate) raw: NonNull<ffi::PJRT_Client>,
    /// The addressable devices; they live as long as the client.
    devices: Vec<NonNull<ffi::PJRT_Device>>,
    described: Vec<DeviceInfo>,
    platform_name: String,
    platform_version: String,
}

// SAFETY: PJRT clients are thread-safe, and the device handles are constants of the client.
unsafe impl Send for ClientInner {}
// SAFETY: as for Send.
unsafe impl Sync for ClientInner {}

/// A device that a client can address. Its position in [`Client::devices`] is the index that other calls take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The id that device assignments and replica groups name; unique over all processes.
    pub id: i32,
    /// The vendor's name of the model, such as `TPU v5e`.
    pub kind: String,
    pub local_hardware_id: i32,
    pub process_index: i32,
    pub debug_string: String,
    /// Memory in use when the description was asked for, where the plugin counts it.
    pub memory: Option<MemoryStats>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryStats {
    pub bytes_in_use: i64,
    pub peak_bytes_in_use: Option<i64>,
    pub bytes_limit: Option<i64>,
    pub largest_alloc_size: Option<i64>,
}

impl Client {
    /// Creates a client. Which `options` exist is the plugin's affair; some plugins ignore those that they don't know.
    pub fn create(plugin: &'static Plugin, options: &[(String, OptionValue)]) -> Result<Self> {
        let api = plugin.api;
        let options = OptionValue::to_raw(options);
        // SAFETY: the options outlive the call.
        let args = unsafe {
            call!(api, PJRT_Client_Create { create_options: options.as_ptr(), num_options: options.len() })
        }?;
        let raw = object(args.client, "PJRT_Client_Create")?;
        // Owned from here on, so that a failure below destroys the client.
        let mut inner = ClientInner {
            plugin,
            api,
            raw,
            devices: Vec::new(),
            described: Vec::new(),
            platform_name: String::new(),
            platform_version: String::new(),
        };
        inner.describe()?;
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn plugin(&self) -> &'static Plugin {
        self.inner.plugin
    }

    pub fn platform_name(&self) -> &str {
        &self.inner.platform_name
    }

    pub fn platform_version(&self) -> &str {
        &self.inner.platform_version
    }

    /// The devices of this process, with their memory as it is now.
    pub fn devices(&self) -> Vec<DeviceInfo> {
        let with_memory = |(index, info): (usize, &DeviceInfo)| DeviceInfo {
            memory: self.memory_stats(index).ok(),
            ..info.clone()
        };
        self.inner.described.iter().enumerate().map(with_memory).collect()
    }

    pub fn num_devices(&self) -> usize {
        self.inner.devices.len()
    }

    /// The ids of the devices of all processes, this one's among them: those that a device assignment may name.
    pub fn global_ids(&self) -> Result<Vec<i32>> {
        let api = self.inner.api;
        // SAFETY: the client is alive, and its devices and their descriptions live as long as it does.
        unsafe {
            let list = call!(api, PJRT_Client_Devices { client: self.inner.raw.as_ptr() })?;
            array(list.devices, list.num_devices).iter().map(|&raw| id(api, raw)).collect()
        }
    }

    /// Which of the processes this is, by the plugin's count.
    pub fn process_index(&self) -> Result<i32> {
        // SAFETY: the client is alive.
        let args =
            unsafe { call!(self.inner.api, PJRT_Client_ProcessIndex { client: self.inner.raw.as_ptr() }) }?;
        Ok(args.process_index)
    }

    /// The index of the device that is used when nobody names one: the first. A client without devices is not created.
    pub fn default_device(&self) -> usize {
        0
    }

    /// The memory of one device; an error where the plugin does not count it.
    pub fn memory_stats(&self, device: usize) -> Result<MemoryStats> {
        let device = self.inner.device(device, "PJRT_Device_MemoryStats")?;
        // SAFETY: the device belongs to the client.
        let args = unsafe { call!(self.inner.api, PJRT_Device_MemoryStats { device: device.as_ptr() }) }?;
        Ok(MemoryStats {
            bytes_in_use: args.bytes_in_use,
            peak_bytes_in_use: args.peak_bytes_in_use_is_set.then_some(args.peak_bytes_in_use),
            bytes_limit: args.bytes_limit_is_set.then_some(args.bytes_limit),
            largest_alloc_size: args.largest_alloc_size_is_set.then_some(args.largest_alloc_size),
        })
    }

    /// Compiles an MLIR program, text or bytecode, and loads it on its devices.
    pub fn compile(&self, program: &[u8], options: &CompileOptions) -> Result<Executable> {
        compile_args(program, options, |program, options| {
            // SAFETY: the program and the options outlive the call.
            let args = unsafe {
                call!(
                    self.inner.api,
                    PJRT_Client_Compile {
                        client: self.inner.raw.as_ptr(),
                        program: program,
                        compile_options: options.as_ptr().cast(),
                        compile_options_size: options.len(),
                    }
                )
            }?;
            // SAFETY: the executable is new and of this client.
            unsafe { Executable::new(self.inner.clone(), object(args.executable, "PJRT_Client_Compile")?) }
        })
    }

    /// Loads what [`serialize`](crate::Compiled::serialize) made with the same plugin at the same version.
    pub fn deserialize(&self, bytes: &[u8]) -> Result<Executable> {
        // SAFETY: the bytes outlive the call.
        let args = unsafe {
            call!(
                self.inner.api,
                PJRT_Executable_DeserializeAndLoad {
                    client: self.inner.raw.as_ptr(),
                    serialized_executable: bytes.as_ptr().cast(),
                    serialized_executable_size: bytes.len(),
                }
            )
        }?;
        let loaded = object(args.loaded_executable, "PJRT_Executable_DeserializeAndLoad")?;
        // SAFETY: the executable is new and of this client.
        unsafe { Executable::new(self.inner.clone(), loaded) }
    }

    /// Makes a buffer on `device` of the host memory at `data`; dense and row-major unless `byte_strides` are given. The
    /// event, where there is one, is ready when the plugin no longer uses that memory.
    ///
    /// The CPU plugin takes memory without copying only where it is aligned to 64 bytes; else it copies silently.
    ///
    /// # Safety
    /// `data` points at all the values that `dtype`, `dims` and `byte_strides` describe, initialized. They stay alive
    /// and unwritten during the call; with `ImmutableUntilTransferCompletes` until the event is ready; with the zero-copy
    /// kinds until the buffer is dropped and the event is ready. With `MutableZeroCopy` they are writable, nobody else
    /// reads them meanwhile, and when the buffer is donated they stay alive until the execution is done and the output
    /// that took them over is dropped.
    pub unsafe fn buffer_from_host(
        &self,
        data: *const u8,
        dtype: ElementType,
        dims: &[i64],
        byte_strides: Option<&[i64]>,
        semantics: HostBufferSemantics,
        device: usize,
    ) -> Result<(Buffer, Option<Event>)> {
        const CALL: &str = "PJRT_Client_BufferFromHostBuffer";
        let device = self.inner.device(device, CALL)?;
        if let Some(strides) = byte_strides.filter(|strides| strides.len() != dims.len()) {
            return Err(invalid(
                CALL,
                format!("{} byte strides for {} dimensions", strides.len(), dims.len()),
            ));
        }
        if dims.iter().any(|&dim| dim < 0) {
            return Err(invalid(CALL, format!("negative dimension in {dims:?}")));
        }
        // SAFETY: the caller vouches for the data, and the arrays outlive the call.
        let args = unsafe {
            call!(
                self.inner.api,
                PJRT_Client_BufferFromHostBuffer {
                    client: self.inner.raw.as_ptr(),
                    data: data.cast(),
                    type_: dtype.to_raw(),
                    dims: dims.as_ptr(),
                    num_dims: dims.len(),
                    byte_strides: byte_strides.map_or(ptr::null(), <[i64]>::as_ptr),
                    num_byte_strides: byte_strides.map_or(0, <[i64]>::len),
                    host_buffer_semantics: semantics.to_raw(),
                    device: device.as_ptr(),
                }
            )
        }?;
        // SAFETY: both are new and of this client.
        unsafe {
            let event =
                NonNull::new(args.done_with_host_buffer).map(|raw| Event::new(self.inner.clone(), raw));
            Ok((Buffer::new(self.inner.clone(), object(args.buffer, CALL)?), event))
        }
    }

    /// Copies a dense row-major array to `device`.
    pub fn buffer_from_slice<T: Element>(&self, data: &[T], dims: &[i64], device: usize) -> Result<Buffer> {
        let len = dims.iter().try_fold(1i64, |len, &dim| len.checked_mul(dim));
        if len.and_then(|len| usize::try_from(len).ok()) != Some(data.len()) {
            let message = format!("{} values for the shape {dims:?}", data.len());
            return Err(invalid("PJRT_Client_BufferFromHostBuffer", message));
        }
        let semantics = HostBufferSemantics::ImmutableOnlyDuringCall;
        // SAFETY: the slice has a value for every element, and is copied during the call.
        let made =
            unsafe { self.buffer_from_host(data.as_ptr().cast(), T::TYPE, dims, None, semantics, device) };
        made.map(|(buffer, _)| buffer)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("platform", &self.inner.platform_name)
            .field("devices", &self.inner.devices.len())
            .finish()
    }
}

impl ClientInner {
    fn describe(&mut self) -> Result<()> {
        let client = self.raw.as_ptr();
        // SAFETY: the client is alive, and the strings and the array live as long as it does.
        unsafe {
            let name = call!(self.api, PJRT_Client_PlatformName { client: client })?;
            self.platform_name = text(name.platform_name, name.platform_name_size);
            let version = call!(self.api, PJRT_Client_PlatformVersion { client: client })?;
            self.platform_version = text(version.platform_version, version.platform_version_size);
            let list = call!(self.api, PJRT_Client_AddressableDevices { client: client })?;
            for &raw in array(list.addressable_devices, list.num_addressable_devices) {
                let device = object(raw, "PJRT_Client_AddressableDevices")?;
                self.described.push(describe_device(self.api, device)?);
                self.devices.push(device);
            }
        }
        if self.devices.is_empty() {
            let message = format!("platform {} has no device in this process", self.platform_name);
            return Err(PjrtError::new(ErrorCode::NotFound, "PJRT_Client_AddressableDevices", message));
        }
        Ok(())
    }

    pub(crate) fn device(&self, index: usize, call: &'static str) -> Result<NonNull<ffi::PJRT_Device>> {
        self.devices.get(index).copied().ok_or_else(|| {
            invalid(
                call,
                format!("there is no device {index}: the client has {} (from 0)", self.devices.len()),
            )
        })
    }

    /// The index of a device of this client.
    pub(crate) fn device_index(&self, raw: *mut ffi::PJRT_Device, call: &'static str) -> Result<usize> {
        self.devices
            .iter()
            .position(|device| device.as_ptr() == raw)
            .ok_or_else(|| PjrtError::new(ErrorCode::Internal, call, "the device is not one of the client's"))
    }
}

impl Drop for ClientInner {
    fn drop(&mut self) {
        // SAFETY: everything made from the client holds it, so nothing is left.
        unsafe { destroy!(self.api, PJRT_Client_Destroy { client: self.raw.as_ptr() }) }
    }
}

/// # Safety
/// `device` is a device of a live client of `api`'s plugin.
unsafe fn id(api: Api, device: *mut ffi::PJRT_Device) -> Result<i32> {
    // SAFETY: the caller's device is alive, and so is its description.
    unsafe {
        let description = call!(api, PJRT_Device_GetDescription { device: device })?.device_description;
        Ok(call!(api, PJRT_DeviceDescription_Id { device_description: description })?.id)
    }
}

/// # Safety
/// `device` is a device of a live client of `api`'s plugin.
unsafe fn describe_device(api: Api, device: NonNull<ffi::PJRT_Device>) -> Result<DeviceInfo> {
    let device = device.as_ptr();
    // SAFETY: the caller's device is alive, and so are its description and strings.
    unsafe {
        let description = call!(api, PJRT_Device_GetDescription { device: device })?.device_description;
        let kind = call!(api, PJRT_DeviceDescription_Kind { device_description: description })?;
        let debug = call!(api, PJRT_DeviceDescription_DebugString { device_description: description })?;
        Ok(DeviceInfo {
            id: id(api, device)?,
            kind: text(kind.device_kind, kind.device_kind_size),
            local_hardware_id: call!(api, PJRT_Device_LocalHardwareId { device: device })?.local_hardware_id,
            process_index: call!(
                api,
                PJRT_DeviceDescription_ProcessIndex { device_description: description }
            )?
            .process_index,
            debug_string: text(debug.debug_string, debug.debug_string_size),
            memory: None,
        })
    }
}

pub(crate) fn invalid(call: &'static str, message: impl Into<String>) -> PjrtError {
    PjrtError::new(ErrorCode::InvalidArgument, call, message)
}
