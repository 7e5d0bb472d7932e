//! The gate: the one way to call a plugin, and what comes back when it refuses.
//!
//! A plugin may be older than the header (its table ends early) or newer (its argument structs may have grown), so a
//! call checks that the table reaches the function and that the entry is not null, and passes our own struct size. A
//! plugin rejects a struct that is smaller than the one it knows and accepts a larger one.

use crate::ffi;
use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, slice};

pub type Result<T> = std::result::Result<T, PjrtError>;

/// What a plugin said when it refused a call, or why the call could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PjrtError {
    pub code: ErrorCode,
    /// The plugin's own text.
    pub message: String,
    /// The C API function, or the step of loading, that failed.
    pub call: &'static str,
}

impl PjrtError {
    pub(crate) fn new(code: ErrorCode, call: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), call }
    }
}

impl fmt::Display for PjrtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed ({:?}): {}", self.call, self.code, self.message)
    }
}

impl std::error::Error for PjrtError {}

/// The canonical status codes, as PJRT numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

impl ErrorCode {
    fn from_raw(code: ffi::PJRT_Error_Code) -> Self {
        match code {
            ffi::PJRT_Error_Code_CANCELLED => Self::Cancelled,
            ffi::PJRT_Error_Code_INVALID_ARGUMENT => Self::InvalidArgument,
            ffi::PJRT_Error_Code_DEADLINE_EXCEEDED => Self::DeadlineExceeded,
            ffi::PJRT_Error_Code_NOT_FOUND => Self::NotFound,
            ffi::PJRT_Error_Code_ALREADY_EXISTS => Self::AlreadyExists,
            ffi::PJRT_Error_Code_PERMISSION_DENIED => Self::PermissionDenied,
            ffi::PJRT_Error_Code_RESOURCE_EXHAUSTED => Self::ResourceExhausted,
            ffi::PJRT_Error_Code_FAILED_PRECONDITION => Self::FailedPrecondition,
            ffi::PJRT_Error_Code_ABORTED => Self::Aborted,
            ffi::PJRT_Error_Code_OUT_OF_RANGE => Self::OutOfRange,
            ffi::PJRT_Error_Code_UNIMPLEMENTED => Self::Unimplemented,
            ffi::PJRT_Error_Code_INTERNAL => Self::Internal,
            ffi::PJRT_Error_Code_UNAVAILABLE => Self::Unavailable,
            ffi::PJRT_Error_Code_DATA_LOSS => Self::DataLoss,
            ffi::PJRT_Error_Code_UNAUTHENTICATED => Self::Unauthenticated,
            _ => Self::Unknown,
        }
    }
}

/// The function table of a loaded plugin.
#[derive(Clone, Copy)]
pub(crate) struct Api(NonNull<ffi::PJRT_Api>);

// SAFETY: the table is a constant inside a plugin that is never unloaded, and PJRT functions may be called from any
// thread.
unsafe impl Send for Api {}
// SAFETY: as for Send; nothing writes to the table.
unsafe impl Sync for Api {}

impl Api {
    /// # Safety
    /// `table` is what a plugin's `GetPjrtApi` returned, and the plugin stays loaded.
    pub(crate) unsafe fn new(table: NonNull<ffi::PJRT_Api>) -> Self {
        Self(table)
    }

    pub(crate) fn raw(self) -> *const ffi::PJRT_Api {
        self.0.as_ptr()
    }

    /// Whether the plugin's table is long enough to hold `size` bytes at `offset`.
    pub(crate) fn covers(self, offset: usize, size: usize) -> bool {
        // SAFETY: `struct_size` is the first field of every version of the table.
        offset + size <= unsafe { (*self.raw()).struct_size }
    }

    /// Takes the plugin's error, if there is one, leaving nothing to free.
    ///
    /// # Safety
    /// `error` is null or an error of this plugin which nobody else frees.
    pub(crate) unsafe fn check(self, error: *mut ffi::PJRT_Error, call: &'static str) -> Result<()> {
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: the caller's word.
        Err(unsafe { self.take(error, call) })
    }

    /// # Safety
    /// `error` is an error of this plugin which nobody else frees.
    #[cold]
    unsafe fn take(self, error: *mut ffi::PJRT_Error, call: &'static str) -> PjrtError {
        let mut message = ffi::PJRT_Error_Message_Args {
            struct_size: size_of::<ffi::PJRT_Error_Message_Args>(),
            extension_start: std::ptr::null_mut(),
            error,
            message: std::ptr::null(),
            message_size: 0,
        };
        let mut code = ffi::PJRT_Error_GetCode_Args {
            struct_size: size_of::<ffi::PJRT_Error_GetCode_Args>(),
            extension_start: std::ptr::null_mut(),
            error,
            code: ffi::PJRT_Error_Code_UNKNOWN,
        };
        let mut destroy = ffi::PJRT_Error_Destroy_Args {
            struct_size: size_of::<ffi::PJRT_Error_Destroy_Args>(),
            extension_start: std::ptr::null_mut(),
            error,
        };
        // SAFETY: the caller hands over a live error; the text is copied before the error is destroyed, and each
        // function is fetched through the check of the table's length. Without the functions the error stays unread.
        unsafe {
            if let Some(read) = function!(self, PJRT_Error_Message) {
                read(&mut message);
            }
            if let Some(read) = function!(self, PJRT_Error_GetCode) {
                // A plugin that cannot tell the code of an error leaves Unknown, the answer we start with.
                let nested = read(&mut code);
                if let (false, Some(free)) = (nested.is_null(), function!(self, PJRT_Error_Destroy)) {
                    let mut args = ffi::PJRT_Error_Destroy_Args { error: nested, ..destroy };
                    free(&mut args);
                }
            }
            let text = text(message.message, message.message_size);
            if let Some(free) = function!(self, PJRT_Error_Destroy) {
                free(&mut destroy);
            }
            PjrtError::new(ErrorCode::from_raw(code.code), call, text)
        }
    }
}

/// The table's entry for a function, or `None` where the plugin is too old to have one. Needs an unsafe block: the
/// `Api` must be that of a loaded plugin.
macro_rules! function {
    ($api:expr, $name:ident) => {
        if $crate::gate::Api::covers(
            $api,
            std::mem::offset_of!($crate::ffi::PJRT_Api, $name),
            size_of::<usize>(),
        ) {
            (*$crate::gate::Api::raw($api)).$name
        } else {
            None
        }
    };
}
pub(crate) use function;

/// Calls a function of the C API and returns its filled-in arguments: `call!(api, PJRT_Event_IsReady { event: raw })`.
/// Arguments that are not named are zero. Needs an unsafe block: the pointers must be what the function expects.
macro_rules! call {
    ($api:expr, $name:ident { $($field:ident: $value:expr),* $(,)? }) => {{
        let api: $crate::gate::Api = $api;
        $crate::gate::invoke(api, stringify!($name), $crate::gate::function!(api, $name), |args| {
            args.struct_size = size_of_val(args);
            $(args.$field = $value;)*
        })
    }};
}
pub(crate) use call;

/// Destroys an object in a `Drop`. An error has nowhere to go, and once the process is exiting the plugin's own statics
/// may be gone: then the memory is left to the system.
macro_rules! destroy {
    ($api:expr, $name:ident { $field:ident: $value:expr }) => {
        if !$crate::gate::exiting() {
            let _ = $crate::gate::call!($api, $name { $field: $value });
        }
    };
}
pub(crate) use destroy;

type Function<A> = unsafe extern "C" fn(*mut A) -> *mut ffi::PJRT_Error;

/// Arguments with slack behind them, so that a plugin which writes the fields of a newer version hits zeroes of ours.
#[repr(C)]
struct Frame<A> {
    args: A,
    slack: [u64; 8],
}

/// # Safety
/// `A` is an argument struct of the C API (all-zero is valid), and `fill` leaves the pointers that the function needs.
#[inline]
pub(crate) unsafe fn invoke<A>(
    api: Api,
    name: &'static str,
    function: Option<Function<A>>,
    fill: impl FnOnce(&mut A),
) -> Result<A> {
    let Some(function) = function else {
        return Err(PjrtError::new(ErrorCode::Unimplemented, name, "the plugin does not have this function"));
    };
    let mut frame = MaybeUninit::<Frame<A>>::zeroed();
    let args = frame.as_mut_ptr().cast::<A>();
    // SAFETY: zeroes are a valid `A` (integers, floats, pointers, optional functions); the rest is the caller's word.
    unsafe {
        fill(&mut *args);
        api.check(function(args), name)?;
        Ok(frame.assume_init().args)
    }
}

/// The object that a successful call must have returned.
pub(crate) fn object<T>(raw: *mut T, call: &'static str) -> Result<NonNull<T>> {
    NonNull::new(raw)
        .ok_or_else(|| PjrtError::new(ErrorCode::Internal, call, "the plugin returned a null object"))
}

/// A C array, where a null pointer stands for an empty one.
///
/// # Safety
/// `data` is null or points at `len` values that outlive `'a`.
pub(crate) unsafe fn array<'a, T>(data: *const T, len: usize) -> &'a [T] {
    if data.is_null() {
        return &[];
    }
    // SAFETY: the caller's word.
    unsafe { slice::from_raw_parts(data, len) }
}

/// # Safety
/// `data` is null or points at `len` bytes.
pub(crate) unsafe fn text(data: *const c_char, len: usize) -> String {
    // SAFETY: the caller's word.
    String::from_utf8_lossy(unsafe { array(data.cast::<u8>(), len) }).into_owned()
}

static EXITING: AtomicBool = AtomicBool::new(false);

pub(crate) fn exiting() -> bool {
    EXITING.load(Ordering::Relaxed)
}

/// Has [`exiting`] turn true when the process leaves. Handlers run last in, first out, so this must come after the
/// plugin is loaded: then it precedes the destructors of the statics that loading registered.
pub(crate) fn watch_exit() {
    extern "C" fn leave() {
        EXITING.store(true, Ordering::Relaxed);
    }
    unsafe extern "C" {
        fn atexit(handler: extern "C" fn()) -> i32;
        fn pthread_atfork(
            prepare: Option<extern "C" fn()>,
            parent: Option<extern "C" fn()>,
            child: Option<extern "C" fn()>,
        ) -> i32;
    }
    // SAFETY: the handler only stores to a static. Where it cannot be registered, objects are destroyed to the end.
    // A forked child has the parent's objects but none of the plugin's threads: there, too, they must leak.
    unsafe {
        atexit(leave);
        pthread_atfork(None, None, Some(leave));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table that ends before most functions, as an old plugin's does.
    fn short_table(function: bool) -> Api {
        // SAFETY: an all-zero table is valid: sizes, null pointers and absent functions.
        let mut table: Box<ffi::PJRT_Api> = Box::new(unsafe { MaybeUninit::zeroed().assume_init() });
        let end = std::mem::offset_of!(ffi::PJRT_Api, PJRT_Client_Create);
        table.struct_size = if function { end + size_of::<usize>() } else { end };
        // SAFETY: the table is leaked.
        unsafe { Api::new(NonNull::from(Box::leak(table))) }
    }

    #[test]
    fn a_missing_function_is_an_error() {
        for api in [short_table(false), short_table(true)] {
            // SAFETY: the function is absent, so nothing is called.
            let error = unsafe { call!(api, PJRT_Client_Create {}) }.err();
            assert_eq!(
                error.map(|error| error.to_string()).as_deref(),
                Some("PJRT_Client_Create failed (Unimplemented): the plugin does not have this function")
            );
        }
    }
}
