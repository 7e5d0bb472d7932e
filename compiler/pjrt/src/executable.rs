//! Executables: compiled programs, and running them.

use crate::buffer::Buffer;
use crate::client::{ClientInner, invalid};
use crate::event::Event;
use crate::gate::{Api, array, call, destroy, object, text};
use crate::options::CompileOptions;
use crate::topology::TopologyInner;
use crate::types::{Attribute, ElementType};
use crate::{Result, ffi};
use smallvec::{SmallVec, smallvec};
use std::fmt;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::Arc;

const FORMAT: &str = "mlir";

/// Runs `compile` with a program and options in PJRT's form.
pub(crate) fn compile_args<T>(
    program: &[u8],
    options: &CompileOptions,
    compile: impl FnOnce(&ffi::PJRT_Program, &[u8]) -> Result<T>,
) -> Result<T> {
    let program = ffi::PJRT_Program {
        struct_size: size_of::<ffi::PJRT_Program>(),
        extension_start: ptr::null_mut(),
        // In a compilation the code is only read.
        code: program.as_ptr().cast_mut().cast(),
        code_size: program.len(),
        format: FORMAT.as_ptr().cast(),
        format_size: FORMAT.len(),
    };
    compile(&program, &options.encode()?)
}

/// What a compiled program depends on.
pub(crate) enum Owner {
    Client(Arc<ClientInner>),
    Topology(Arc<TopologyInner>),
}

/// A compiled program: what can be known of it without a device.
pub struct Compiled {
    /// Held so that it outlives the program.
    _owner: Owner,
    api: Api,
    raw: NonNull<ffi::PJRT_Executable>,
    num_outputs: usize,
}

// SAFETY: a compiled program is immutable, and PJRT lets any thread read it.
unsafe impl Send for Compiled {}
// SAFETY: as for Send; results that the plugin computes once and keeps are made under its own lock.
unsafe impl Sync for Compiled {}

/// The memory that one execution takes on a device, in bytes. Arguments and outputs that share memory are also counted
/// in `alias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompiledMemoryStats {
    pub generated_code: i64,
    pub arguments: i64,
    pub outputs: i64,
    pub alias: i64,
    pub temporaries: i64,
    /// Zero where the plugin does not compute it.
    pub peak: i64,
}

impl Compiled {
    /// # Safety
    /// `raw` is a program of `owner`, and this is its only owner.
    pub(crate) unsafe fn new(owner: Owner, raw: NonNull<ffi::PJRT_Executable>) -> Result<Self> {
        let api = match &owner {
            Owner::Client(client) => client.api,
            Owner::Topology(topology) => topology.api,
        };
        // Owned from here on, so that a failure below destroys the program.
        let mut compiled = Self { _owner: owner, api, raw, num_outputs: 0 };
        // SAFETY: the program is alive.
        compiled.num_outputs =
            unsafe { call!(api, PJRT_Executable_NumOutputs { executable: raw.as_ptr() }) }?.num_outputs;
        Ok(compiled)
    }

    /// The outputs of one device.
    pub fn num_outputs(&self) -> usize {
        self.num_outputs
    }

    pub fn name(&self) -> Result<String> {
        // SAFETY: the program is alive, and so is its string.
        unsafe {
            let args = call!(self.api, PJRT_Executable_Name { executable: self.raw.as_ptr() })?;
            Ok(text(args.executable_name, args.executable_name_size))
        }
    }

    /// A form that [`Client::deserialize`](crate::Client::deserialize) loads, with the same plugin at the same version.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        // SAFETY: the program is alive; the bytes are copied before what backs them is freed, once.
        unsafe {
            let args = call!(self.api, PJRT_Executable_Serialize { executable: self.raw.as_ptr() })?;
            let bytes = array(args.serialized_bytes.cast::<u8>(), args.serialized_bytes_size).to_vec();
            if let Some(free) = args.serialized_executable_deleter {
                free(args.serialized_executable);
            }
            Ok(bytes)
        }
    }

    /// The same for equal programs of one plugin at one version.
    pub fn fingerprint(&self) -> Result<String> {
        // SAFETY: the program is alive, and so is its string.
        unsafe {
            let args = call!(self.api, PJRT_Executable_Fingerprint { executable: self.raw.as_ptr() })?;
            Ok(text(args.executable_fingerprint, args.executable_fingerprint_size))
        }
    }

    pub fn output_element_types(&self) -> Result<Vec<ElementType>> {
        const CALL: &str = "PJRT_Executable_OutputElementTypes";
        // SAFETY: the program is alive, and so is its array.
        let types = unsafe {
            let args = call!(self.api, PJRT_Executable_OutputElementTypes { executable: self.raw.as_ptr() })?;
            array(args.output_types, args.num_output_types)
        };
        types.iter().map(|&raw| ElementType::from_raw(raw, CALL)).collect()
    }

    pub fn output_dims(&self) -> Result<Vec<Vec<i64>>> {
        // SAFETY: the program is alive, and so are its arrays: the ranks, and all dimensions on end.
        unsafe {
            let args = call!(self.api, PJRT_Executable_OutputDimensions { executable: self.raw.as_ptr() })?;
            let ranks = array(args.dim_sizes, args.num_outputs);
            let mut dims = array(args.dims, ranks.iter().sum()).iter().copied();
            Ok(ranks.iter().map(|&rank| dims.by_ref().take(rank).collect()).collect())
        }
    }

    /// What the plugin estimates that a run costs, such as `flops` and `bytes accessed`. An error where it does not.
    pub fn cost_analysis(&self) -> Result<Vec<(String, Attribute)>> {
        // SAFETY: the program is alive, and so are its properties.
        unsafe {
            let args = call!(self.api, PJRT_Executable_GetCostAnalysis { executable: self.raw.as_ptr() })?;
            Ok(Attribute::read_all(array(args.properties, args.num_properties)))
        }
    }

    /// An error where the plugin does not know.
    pub fn memory_stats(&self) -> Result<CompiledMemoryStats> {
        // SAFETY: the program is alive.
        let args = unsafe {
            call!(self.api, PJRT_Executable_GetCompiledMemoryStats { executable: self.raw.as_ptr() })
        }?;
        Ok(CompiledMemoryStats {
            generated_code: args.generated_code_size_in_bytes,
            arguments: args.argument_size_in_bytes,
            outputs: args.output_size_in_bytes,
            alias: args.alias_size_in_bytes,
            temporaries: args.temp_size_in_bytes,
            peak: args.peak_memory_in_bytes,
        })
    }

    /// The program after the plugin's optimizations: its format, such as `hlo_with_config`, and the bytes.
    pub fn optimized_program(&self) -> Result<(String, Vec<u8>)> {
        let mut program = ffi::PJRT_Program {
            struct_size: size_of::<ffi::PJRT_Program>(),
            extension_start: ptr::null_mut(),
            code: ptr::null_mut(),
            code_size: 0,
            format: ptr::null(),
            format_size: 0,
        };
        let executable = self.raw.as_ptr();
        let out = &raw mut program;
        // SAFETY: the program is alive. The first call tells the size; the second fills our memory of that size.
        unsafe {
            call!(self.api, PJRT_Executable_OptimizedProgram { executable: executable, program: out })?;
            let mut code = vec![0u8; (*out).code_size];
            (*out).code = code.as_mut_ptr().cast();
            call!(self.api, PJRT_Executable_OptimizedProgram { executable: executable, program: out })?;
            code.truncate((*out).code_size);
            Ok((text((*out).format, (*out).format_size), code))
        }
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        // SAFETY: this is the only owner.
        unsafe { destroy!(self.api, PJRT_Executable_Destroy { executable: self.raw.as_ptr() }) }
    }
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiled")
            .field("name", &self.name())
            .field("num_outputs", &self.num_outputs)
            .finish()
    }
}

/// Options of one execution.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExecuteOptions<'a> {
    /// Arguments that stay intact though the program marks them as donated.
    pub non_donatable_input_indices: &'a [i64],
    /// Where not zero, the same on all hosts for one launch, so that the plugin can detect a mismatch.
    pub launch_id: i32,
}

impl ExecuteOptions<'_> {
    fn to_raw(self) -> ffi::PJRT_ExecuteOptions {
        ffi::PJRT_ExecuteOptions {
            struct_size: size_of::<ffi::PJRT_ExecuteOptions>(),
            extension_start: ptr::null_mut(),
            send_callbacks: ptr::null_mut(),
            recv_callbacks: ptr::null_mut(),
            num_send_ops: 0,
            num_recv_ops: 0,
            launch_id: self.launch_id,
            non_donatable_input_indices: self.non_donatable_input_indices.as_ptr(),
            num_non_donatable_input_indices: self.non_donatable_input_indices.len(),
            context: ptr::null_mut(),
            call_location: ptr::null(),
            num_tasks: 0,
            task_ids: ptr::null_mut(),
            incarnation_ids: ptr::null_mut(),
        }
    }
}

/// A program loaded on the devices of a client. Derefs to what is known of it without running.
///
/// Any number of threads may execute it at once. A donated argument is deleted when the execution starts; host memory
/// behind it must stay alive until the execution is done.
pub struct Executable {
    // Before the client, which must go last.
    compiled: Compiled,
    loaded: NonNull<ffi::PJRT_LoadedExecutable>,
    devices: Vec<usize>,
    client: Arc<ClientInner>,
}

// SAFETY: PJRT executables are thread-safe: an execution does not change them.
unsafe impl Send for Executable {}
// SAFETY: as for Send.
unsafe impl Sync for Executable {}

impl Deref for Executable {
    type Target = Compiled;

    fn deref(&self) -> &Compiled {
        &self.compiled
    }
}

const EXECUTE: &str = "PJRT_LoadedExecutable_Execute";

type Arguments = SmallVec<[*mut ffi::PJRT_Buffer; 64]>;
type Outputs = SmallVec<[*mut ffi::PJRT_Buffer; 32]>;

impl Executable {
    /// # Safety
    /// `loaded` is an executable of `client`, and this is its only owner.
    pub(crate) unsafe fn new(
        client: Arc<ClientInner>,
        loaded: NonNull<ffi::PJRT_LoadedExecutable>,
    ) -> Result<Self> {
        let api = client.api;
        let executable = loaded.as_ptr();
        let describe = || {
            // SAFETY: the executable is alive, and the list of its devices lives as long.
            unsafe {
                let args = call!(api, PJRT_LoadedExecutable_GetExecutable { loaded_executable: executable })?;
                let raw = object(args.executable, "PJRT_LoadedExecutable_GetExecutable")?;
                let compiled = Compiled::new(Owner::Client(client.clone()), raw)?;
                let args = call!(api, PJRT_LoadedExecutable_AddressableDevices { executable: executable })?;
                let devices = array(args.addressable_devices, args.num_addressable_devices)
                    .iter()
                    .map(|&device| client.device_index(device, "PJRT_LoadedExecutable_AddressableDevices"))
                    .collect::<Result<_>>()?;
                Ok((compiled, devices))
            }
        };
        match describe() {
            Ok((compiled, devices)) => Ok(Self { compiled, loaded, devices, client }),
            Err(error) => {
                // SAFETY: there is no owner yet.
                unsafe { destroy!(api, PJRT_LoadedExecutable_Destroy { executable: executable }) };
                Err(error)
            }
        }
    }

    /// The indices of the client's devices that take part, in the order of `execute_sharded`.
    pub fn devices(&self) -> &[usize] {
        &self.devices
    }

    /// Starts an execution on the executable's one device. The outputs and the event are ready when it is done.
    pub fn execute(&self, args: &[&Buffer], options: ExecuteOptions<'_>) -> Result<(Vec<Buffer>, Event)> {
        self.expect_devices(1)?;
        let list = self.gather(args)?;
        let mut outputs: Outputs = smallvec![ptr::null_mut(); self.num_outputs];
        let mut event = ptr::null_mut();
        let (list, lists) = (list.as_ptr(), outputs.as_mut_ptr());
        // SAFETY: one list of arguments, and one of outputs and an event to fill.
        unsafe { self.launch(&list, &lists, &mut event, 1, args.len(), options)? };
        // SAFETY: the execution started, so what it filled in is new and ours.
        unsafe { Ok((self.adopt(&outputs)?, self.event(event)?)) }
    }

    /// Starts an execution on all of the executable's devices, with one list of arguments for each.
    pub fn execute_sharded(
        &self,
        args: &[&[&Buffer]],
        options: ExecuteOptions<'_>,
    ) -> Result<(Vec<Vec<Buffer>>, Vec<Event>)> {
        self.expect_devices(args.len())?;
        let num_args = args.first().map_or(0, |list| list.len());
        if let Some(odd) = args.iter().find(|list| list.len() != num_args) {
            return Err(invalid(
                EXECUTE,
                format!("{num_args} arguments for one device, {} for another", odd.len()),
            ));
        }
        let arguments = args.iter().map(|list| self.gather(list)).collect::<Result<Vec<_>>>()?;
        let lists: Vec<_> = arguments.iter().map(|list| list.as_ptr()).collect();
        let mut outputs: Vec<Outputs> = vec![smallvec![ptr::null_mut(); self.num_outputs]; args.len()];
        let output_lists: Vec<_> = outputs.iter_mut().map(|list| list.as_mut_ptr()).collect();
        let mut events = vec![ptr::null_mut(); args.len()];
        // SAFETY: per device a list of arguments, and one of outputs and an event to fill.
        unsafe {
            self.launch(
                lists.as_ptr(),
                output_lists.as_ptr(),
                events.as_mut_ptr(),
                args.len(),
                num_args,
                options,
            )?;
        }
        // SAFETY: the execution started, so what it filled in is new and ours.
        unsafe {
            let outputs = outputs.iter().map(|list| self.adopt(list)).collect::<Result<_>>()?;
            let events = events.iter().map(|&event| self.event(event)).collect::<Result<_>>()?;
            Ok((outputs, events))
        }
    }

    /// Frees the program on its devices early. Later executions are errors.
    pub fn delete(&self) -> Result<()> {
        // SAFETY: the executable is alive.
        unsafe { call!(self.client.api, PJRT_LoadedExecutable_Delete { executable: self.loaded.as_ptr() }) }
            .map(drop)
    }

    fn expect_devices(&self, given: usize) -> Result<()> {
        let expected = self.devices.len();
        if given == expected {
            return Ok(());
        }
        Err(invalid(EXECUTE, format!("arguments for {given} devices; the executable runs on {expected}")))
    }

    fn gather(&self, args: &[&Buffer]) -> Result<Arguments> {
        // A foreign handle would be taken for one of the client's own.
        if let Some(index) = args.iter().position(|buffer| !buffer.is_of(&self.client)) {
            return Err(invalid(EXECUTE, format!("argument {index} is a buffer of another client")));
        }
        Ok(args.iter().map(|buffer| buffer.raw()).collect())
    }

    /// # Safety
    /// `lists` has `devices` lists of `num_args` live buffers; `outputs` as many lists of `num_outputs` places, and
    /// `events` as many places.
    unsafe fn launch(
        &self,
        lists: *const *const *mut ffi::PJRT_Buffer,
        outputs: *const *mut *mut ffi::PJRT_Buffer,
        events: *mut *mut ffi::PJRT_Event,
        devices: usize,
        num_args: usize,
        options: ExecuteOptions<'_>,
    ) -> Result<()> {
        let mut options = options.to_raw();
        // SAFETY: the options outlive the call; the rest is the caller's word.
        unsafe {
            call!(
                self.client.api,
                PJRT_LoadedExecutable_Execute {
                    executable: self.loaded.as_ptr(),
                    options: &raw mut options,
                    argument_lists: lists,
                    num_devices: devices,
                    num_args: num_args,
                    output_lists: outputs,
                    device_complete_events: events,
                }
            )
        }
        .map(drop)
    }

    /// # Safety
    /// `raw` are outputs of a started execution that nobody owns.
    unsafe fn adopt(&self, raw: &[*mut ffi::PJRT_Buffer]) -> Result<Vec<Buffer>> {
        // SAFETY: the caller's word; each becomes the property of one buffer.
        let adopt = |&raw| Ok(unsafe { Buffer::new(self.client.clone(), object(raw, EXECUTE)?) });
        raw.iter().map(adopt).collect()
    }

    /// # Safety
    /// `raw` is the event of a started execution that nobody owns.
    unsafe fn event(&self, raw: *mut ffi::PJRT_Event) -> Result<Event> {
        // SAFETY: the caller's word.
        Ok(unsafe { Event::new(self.client.clone(), object(raw, EXECUTE)?) })
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: this is the only owner; executions that run hold the plugin's own reference.
        unsafe {
            destroy!(self.client.api, PJRT_LoadedExecutable_Destroy { executable: self.loaded.as_ptr() })
        }
    }
}

impl fmt::Debug for Executable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executable")
            .field("compiled", &self.compiled)
            .field("devices", &self.devices)
            .finish()
    }
}
