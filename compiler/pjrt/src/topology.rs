//! Topologies: devices that are described but not there, to compile for ahead of time.

use crate::client::invalid;
use crate::executable::{Compiled, Owner, compile_args};
use crate::gate::{Api, array, call, destroy, object, text};
use crate::options::CompileOptions;
use crate::types::{Attribute, OptionValue};
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

    pub fn platform_version(&self) -> Result<String> {
        // SAFETY: the topology is alive, and so is its string.
        unsafe {
            let args = call!(
                self.inner.api,
                PJRT_TopologyDescription_PlatformVersion { topology: self.inner.raw.as_ptr() }
            )?;
            Ok(text(args.platform_version, args.platform_version_size))
        }
    }

    pub fn num_devices(&self) -> Result<usize> {
        Ok(self.devices()?.len())
    }

    /// What the plugin says of each device: its kind, such as `TPU v5 lite`, and attributes such as `coords`.
    pub fn device(&self, index: usize) -> Result<(String, Vec<(String, Attribute)>)> {
        const CALL: &str = "PJRT_TopologyDescription_GetDeviceDescriptions";
        let api = self.inner.api;
        let devices = self.devices()?;
        let device = *devices.get(index).ok_or_else(|| invalid(CALL, format!("no device {index}")))?;
        // SAFETY: descriptions live as long as the topology, and so do their strings.
        unsafe {
            let kind = call!(api, PJRT_DeviceDescription_Kind { device_description: device })?;
            let known = call!(api, PJRT_DeviceDescription_Attributes { device_description: device })?;
            let attributes = Attribute::read_all(array(known.attributes, known.num_attributes));
            Ok((text(kind.device_kind, kind.device_kind_size), attributes))
        }
    }

    fn devices(&self) -> Result<&[*mut ffi::PJRT_DeviceDescription]> {
        let topology = self.inner.raw.as_ptr();
        // SAFETY: the topology is alive, and its list lives as long.
        unsafe {
            let args =
                call!(self.inner.api, PJRT_TopologyDescription_GetDeviceDescriptions { topology: topology })?;
            Ok(array(args.descriptions, args.num_descriptions))
        }
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
