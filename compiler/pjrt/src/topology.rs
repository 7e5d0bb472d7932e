//! Topologies: devices that are described but not there, to compile for ahead of time.

use crate::executable::{Compiled, Owner, compile_args};
use crate::gate::{Api, call, destroy, object, text};
use crate::options::CompileOptions;
use crate::types::OptionValue;
use crate::{Plugin, Result, ffi};
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

/// A described set of devices, such as `v5e:2x2`. Which names exist is the plugin's affair.
#[derive(Clone)]
pub struct Topology {
    inner: Arc<TopologyInner>,
}

pub(crate) struct TopologyInner {
    pub(crate) api: Api,
    raw: NonNull<ffi::PJRT_TopologyDescription>,
    name: String,
}

// SAFETY: a topology is an immutable description, which PJRT lets any thread read.
unsafe impl Send for TopologyInner {}
// SAFETY: as for Send.
unsafe impl Sync for TopologyInner {}

impl Topology {
    pub fn create(plugin: &'static Plugin, name: &str, options: &[(String, OptionValue)]) -> Result<Self> {
        let api = plugin.api;
        let options = OptionValue::to_raw(options);
        // SAFETY: the name and the options outlive the call.
        let args = unsafe {
            call!(
                api,
                PJRT_TopologyDescription_Create {
                    topology_name: name.as_ptr().cast(),
                    topology_name_size: name.len(),
                    create_options: options.as_ptr(),
                    num_options: options.len(),
                }
            )
        }?;
        let raw = object(args.topology, "PJRT_TopologyDescription_Create")?;
        Ok(Self { inner: Arc::new(TopologyInner { api, raw, name: name.to_owned() }) })
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    pub fn platform_name(&self) -> Result<String> {
        // SAFETY: the topology is alive, and so is its string.
        unsafe {
            let args = call!(
                self.inner.api,
                PJRT_TopologyDescription_PlatformName { topology: self.inner.raw.as_ptr() }
            )?;
            Ok(text(args.platform_name, args.platform_name_size))
        }
    }

    pub fn num_devices(&self) -> Result<usize> {
        let topology = self.inner.raw.as_ptr();
        // SAFETY: the topology is alive.
        let args = unsafe {
            call!(self.inner.api, PJRT_TopologyDescription_GetDeviceDescriptions { topology: topology })
        }?;
        Ok(args.num_descriptions)
    }

    /// Compiles an MLIR program without a device. The result can be inspected and serialized, and a client on such
    /// devices can [load](crate::Client::deserialize) it.
    pub fn compile(&self, program: &[u8], options: &CompileOptions) -> Result<Compiled> {
        compile_args(program, options, |program, options| {
            // SAFETY: the program and the options outlive the call; the executable is new.
            unsafe {
                let args = call!(
                    self.inner.api,
                    PJRT_Compile {
                        topology: self.inner.raw.as_ptr(),
                        program: program,
                        compile_options: options.as_ptr().cast(),
                        compile_options_size: options.len(),
                    }
                )?;
                Compiled::new(Owner::Topology(self.inner.clone()), object(args.executable, "PJRT_Compile")?)
            }
        })
    }
}

impl fmt::Debug for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topology").field("name", &self.inner.name).finish()
    }
}

impl Drop for TopologyInner {
    fn drop(&mut self) {
        // SAFETY: this is the only owner.
        unsafe { destroy!(self.api, PJRT_TopologyDescription_Destroy { topology: self.raw.as_ptr() }) }
    }
}
