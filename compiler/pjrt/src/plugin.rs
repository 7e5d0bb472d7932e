//! Loading plugins. A plugin is loaded and initialized once per file and stays until the process ends: unloading one
//! crashes, since its threads and statics outlive its clients.

use crate::gate::{Api, array, call, watch_exit};
use crate::types::Attribute;
use crate::{ErrorCode, PjrtError, Result, ffi};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};
use std::fmt;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

/// The oldest minor version of the C API (major 0) that is accepted. The API appends to its structs and its table, so
/// what a plugin lacks is found when it is called; older plugins than this are not worth that care.
pub const MIN_API_MINOR: i32 = 54;

static LOADED: Mutex<Vec<&'static Plugin>> = Mutex::new(Vec::new());

/// A plugin, loaded for the rest of the process.
pub struct Plugin {
    path: PathBuf,
    pub(crate) api: Api,
    version: (i32, i32),
}

impl Plugin {
    /// Loads and initializes the plugin in `path`. The same file always gives the same plugin.
    pub fn load(path: impl AsRef<Path>) -> Result<&'static Self> {
        let path = path.as_ref();
        // The canonical path identifies the file, and keeps dlopen from searching for a bare name.
        let path = path.canonicalize().map_err(|error| {
            PjrtError::new(
                ErrorCode::NotFound,
                "dlopen",
                format!("cannot find the plugin {}: {error}", path.display()),
            )
        })?;
        // Held while loading, so that two threads cannot initialize one plugin twice.
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plugin) = loaded.iter().find(|plugin| plugin.path == path) {
            return Ok(plugin);
        }
        let plugin: &'static Self = Box::leak(Box::new(Self::open(path)?));
        loaded.push(plugin);
        Ok(plugin)
    }

    fn open(path: PathBuf) -> Result<Self> {
        let table = entry_point(&path)?;
        // SAFETY: the table comes from the plugin's entry point, and the plugin stays loaded.
        let api = unsafe { Api::new(table) };
        let version = version(api, &path)?;
        // SAFETY: no arguments.
        unsafe { call!(api, PJRT_Plugin_Initialize {}) }?;
        watch_exit();
        Ok(Self { path, api, version })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of the C API that the plugin was built with: (major, minor).
    pub fn api_version(&self) -> (i32, i32) {
        self.version
    }

    /// What the plugin says about itself, such as `xla_version` and `stablehlo_current_version`.
    pub fn attributes(&self) -> Result<Vec<(String, Attribute)>> {
        // SAFETY: no arguments; the list belongs to the plugin.
        unsafe {
            let args = call!(self.api, PJRT_Plugin_Attributes {})?;
            Ok(Attribute::read_all(array(args.attributes, args.num_attributes)))
        }
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin").field("path", &self.path).field("api_version", &self.version).finish()
    }
}

fn entry_point(path: &Path) -> Result<NonNull<ffi::PJRT_Api>> {
    let shown = path.display();
    // SAFETY: running the initializers of a library that the user names as a plugin is what was asked for.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
        PjrtError::new(
            ErrorCode::InvalidArgument,
            "dlopen",
            format!("{shown} is not a loadable library: {error}"),
        )
    })?;
    // SAFETY: the type is that of the C API's entry point.
    let get: std::result::Result<Symbol<unsafe extern "C" fn() -> *mut ffi::PJRT_Api>, _> =
        unsafe { library.get(b"GetPjrtApi\0") };
    let table = get.map(|get| {
        // SAFETY: the entry point takes nothing and returns a constant table.
        unsafe { get() }
    });
    std::mem::forget(library);
    match table.map(NonNull::new) {
        Ok(Some(table)) => Ok(table),
        Ok(None) => {
            Err(PjrtError::new(ErrorCode::Internal, "GetPjrtApi", format!("{shown} returned a null table")))
        }
        Err(_) => Err(PjrtError::new(
            ErrorCode::InvalidArgument,
            "GetPjrtApi",
            format!("{shown} is not a PJRT plugin: it has no symbol GetPjrtApi"),
        )),
    }
}

fn version(api: Api, path: &Path) -> Result<(i32, i32)> {
    let refuse = |found: String| {
        let path = path.display();
        let message = format!("{path} has {found}; versions 0.{MIN_API_MINOR} and later 0.x are supported");
        Err(PjrtError::new(ErrorCode::FailedPrecondition, "GetPjrtApi", message))
    };
    let at = offset_of!(ffi::PJRT_Api, pjrt_api_version);
    if !api.covers(at, size_of::<ffi::PJRT_Api_Version>()) {
        return refuse("a PJRT table too short to hold a version".to_owned());
    }
    // SAFETY: the table covers the field.
    let version = unsafe { (*api.raw()).pjrt_api_version };
    match (version.major_version, version.minor_version) {
        (0, minor) if minor >= MIN_API_MINOR => Ok((0, minor)),
        (major, minor) => refuse(format!("PJRT C API {major}.{minor}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::MaybeUninit;

    fn check(struct_size: usize, major: i32, minor: i32) -> Result<(i32, i32)> {
        // SAFETY: an all-zero table is valid: sizes, null pointers and absent functions.
        let mut table: ffi::PJRT_Api = unsafe { MaybeUninit::zeroed().assume_init() };
        table.struct_size = struct_size;
        table.pjrt_api_version.major_version = major;
        table.pjrt_api_version.minor_version = minor;
        // SAFETY: the table outlives the check.
        version(unsafe { Api::new(NonNull::from(&mut table)) }, Path::new("p.so"))
    }

    #[test]
    fn versions() {
        let whole = size_of::<ffi::PJRT_Api>();
        assert_eq!(check(whole, 0, MIN_API_MINOR), Ok((0, MIN_API_MINOR)));
        assert_eq!(check(whole + 800, 0, 999), Ok((0, 999)));
        let text = |result: Result<_>| result.map_err(|error| error.message);
        let end = "; versions 0.54 and later 0.x are supported";
        assert_eq!(text(check(whole, 0, 53)), Err(format!("p.so has PJRT C API 0.53{end}")));
        assert_eq!(text(check(whole, 1, 0)), Err(format!("p.so has PJRT C API 1.0{end}")));
        assert_eq!(
            text(check(8, 0, 81)),
            Err(format!("p.so has a PJRT table too short to hold a version{end}"))
        );
    }
}
