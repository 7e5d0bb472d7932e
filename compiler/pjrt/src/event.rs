//! Events: the completion of a transfer or an execution.

use crate::client::ClientInner;
use crate::gate::{Api, call, destroy};
use crate::{Result, ffi};
use std::ffi::c_void;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::Arc;

/// Something that is or will be done. Dropping one forgets about it; the work goes on.
pub struct Event {
    client: Arc<ClientInner>,
    raw: NonNull<ffi::PJRT_Event>,
}

// SAFETY: a PJRT event is a handle on a future, which any thread may query, await or destroy.
unsafe impl Send for Event {}
// SAFETY: as for Send; querying and awaiting do not change the handle.
unsafe impl Sync for Event {}

impl Event {
    /// # Safety
    /// `raw` is an event of `client`, and this is its only owner.
    pub(crate) unsafe fn new(client: Arc<ClientInner>, raw: NonNull<ffi::PJRT_Event>) -> Self {
        Self { client, raw }
    }

    /// Blocks until the work is done and returns its error, if it failed.
    pub fn await_ready(&self) -> Result<()> {
        // SAFETY: the event is alive.
        unsafe { call!(self.client.api, PJRT_Event_Await { event: self.raw.as_ptr() }) }.map(drop)
    }

    /// Whether the work is done, be it in failure.
    pub fn is_ready(&self) -> Result<bool> {
        // SAFETY: the event is alive.
        Ok(unsafe { call!(self.client.api, PJRT_Event_IsReady { event: self.raw.as_ptr() }) }?.is_ready)
    }

    /// Runs `then` with the outcome once the work is done: here and now if it is, else on a thread of the plugin, which
    /// it must not block. It is the way to keep host memory alive until the device is through with it.
    pub fn on_ready(self, then: impl FnOnce(Result<()>) + Send + 'static) -> Result<()> {
        let state = Box::into_raw(Box::new(Callback { api: self.client.api, then: Box::new(then) }));
        // SAFETY: the event is alive; the state is handed to `ready`, which the plugin calls exactly once. It also
        // outlives the event's handle, which the plugin allows to go before.
        let registered = unsafe {
            call!(
                self.client.api,
                PJRT_Event_OnReady {
                    event: self.raw.as_ptr(),
                    callback: Some(ready),
                    user_arg: state.cast()
                }
            )
        };
        if registered.is_err() {
            // SAFETY: an event that refuses the callback does not call it, so the state is still ours.
            drop(unsafe { Box::from_raw(state) });
        }
        registered.map(drop)
    }
}

struct Callback {
    api: Api,
    then: Box<dyn FnOnce(Result<()>) + Send>,
}

unsafe extern "C" fn ready(error: *mut ffi::PJRT_Error, state: *mut c_void) {
    // SAFETY: `state` is the box made by `on_ready`, and the error is handed over with the call.
    let (outcome, then) = unsafe {
        let state = Box::from_raw(state.cast::<Callback>());
        (state.api.check(error, "PJRT_Event_OnReady"), state.then)
    };
    // A panic may not cross into the plugin; the panic hook has reported it.
    let _ = catch_unwind(AssertUnwindSafe(|| then(outcome)));
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: this is the only owner.
        unsafe { destroy!(self.client.api, PJRT_Event_Destroy { event: self.raw.as_ptr() }) }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("is_ready", &self.is_ready()).finish()
    }
}
