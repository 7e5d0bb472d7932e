"""Which PJRT plugin runs the programs, and the one client a process keeps for each.

Nothing is loaded or probed before the first compilation. No network is used: a TPU is recognised by its
device files. Nothing about graphs may go in here."""

from __future__ import annotations

import functools
import glob
import importlib.util
import logging
import os
import sys
import threading
from typing import Any

from ._torchtpu import Client, TorchTPUError
from ._torchtpu import live_buffers as live_buffers  # how many device buffers this process holds

log = logging.getLogger("torchtpu_dynamo")

TPU = "tpu"
"""The platform whose devices speak to those of other processes."""

_lock = threading.RLock()
_clients: dict[tuple[str, bool, int | None], Client] = {}


class ForkState:
    """`child` turns true in a process forked after a client was started: its threads are gone, it can't
    be called."""

    child = False


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    if _clients:
        ForkState.child = True


os.register_at_fork(after_in_child=_after_fork_in_child)


def check_process() -> None:
    """Raises TorchTPUError in a process that was forked after the plugin had been started."""
    if ForkState.child:
        raise TorchTPUError(
            "this process was forked after the PJRT plugin had been started, which does not survive a fork\n"
            "help: start workers by `spawn` or `forkserver`, or fork before the first compiled call"
        )


_found: dict[tuple[str, ...], str] = {}
"""What is installed; what is not may be by the next call."""


def _in_package(package: str, *patterns: str) -> str | None:
    """The first file under an installed package that matches; the package is found, not imported."""
    if (package, *patterns) in _found:
        return _found[package, *patterns]
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for pattern in patterns:
            for path in sorted(glob.glob(os.path.join(folder, pattern))):
                _found[package, *patterns] = path
                return path
    return None


@functools.cache
def _has_tpu() -> bool:
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


def _find_cpu() -> str:
    path = _in_package("xla_plugins", "xla_cpu_pjrt/*.so")
    if path is None:
        raise TorchTPUError("the CPU plugin is not installed\nhelp: pip install 'torchtpu-dynamo[cpu]'")
    return path


def libtpu_path() -> str | None:
    """Where libtpu is installed, whether or not there is a TPU."""
    return _in_package("libtpu", "libtpu.so")


def _find_tpu() -> str:
    path = libtpu_path()
    if path is None:
        raise TorchTPUError("libtpu is not installed\nhelp: pip install 'torchtpu-dynamo[tpu]'")
    if not _has_tpu():
        # Started anyway, libtpu would ask the network for a TPU and hang.
        raise TorchTPUError(
            "this machine has no TPU (no /dev/accel* and no /dev/vfio/*)\n"
            "help: TORCHTPU_PLUGIN=cpu runs without one"
        )
    return path


def _find_cuda() -> str:
    path = _in_package("jax_plugins", "xla_cuda*/xla_cuda_plugin.so")
    if path is None:
        raise TorchTPUError("the CUDA plugin is not installed\nhelp: pip install 'torchtpu-dynamo[cuda]'")
    return path


_FIND = {"cpu": _find_cpu, "tpu": _find_tpu, "cuda": _find_cuda}


def plugin_path(choice: str | None = None) -> str:
    """The plugin's path. `choice` (default: TORCHTPU_PLUGIN) is cpu, tpu, cuda or a path; without one,
    the TPU if libtpu is installed and the machine has one, else the CPU. Raises TorchTPUError when it is
    not installed."""
    choice = choice or os.environ.get("TORCHTPU_PLUGIN")
    if not choice:
        choice = "tpu" if _has_tpu() and libtpu_path() is not None else "cpu"
    if choice in _FIND:
        return _FIND[choice]()
    if os.sep not in choice and not os.path.exists(choice):
        raise TorchTPUError(
            f"no plugin {choice!r}\n"
            f"help: TORCHTPU_PLUGIN and the option `plugin` take {', '.join(_FIND)} or a PJRT plugin's path"
        )
    return os.path.abspath(choice)


def shares_memory(choice: bool | None = None) -> bool:
    """Whether CPU tensors are shared with plugins that can: `choice`, else TORCHTPU_ZERO_COPY, else true."""
    return os.environ.get("TORCHTPU_ZERO_COPY", "1") != "0" if choice is None else choice


def client(
    plugin: str | None = None, zero_copy: bool | None = None, cpu_devices: int | None = None
) -> Client:
    """The process's client of a plugin, started on first use: the CPU's with this many devices, where they are counted.
    Raises TorchTPUError."""
    check_process()
    path, zero_copy = plugin_path(plugin), shares_memory(zero_copy)
    with _lock:
        found = _clients.get((path, zero_copy, cpu_devices))
        if found is None:
            # A process that has not loaded torch is not one of several.
            if path == libtpu_path() and "torch.distributed" in sys.modules:
                from .distributed import multiprocess

                multiprocess.configure()
            options = {} if cpu_devices is None else {"cpu_device_count": cpu_devices}
            found = _clients[path, zero_copy, cpu_devices] = Client(path, options, zero_copy)
            version = ".".join(map(str, found.api_version))
            log.info("running on %s (%s, PJRT %s)", found.platform, path, version)
        return found


def devices(plugin: str | None = None) -> list[dict[str, Any]]:
    """The devices of the plugin in use, one dict each. Starts the plugin. Raises TorchTPUError."""
    return client(plugin).devices()


def refresh() -> None:
    """Sends every parameter and buffer to the device again at its next use.

    Only needed after writes that PyTorch does not count, such as through `tensor.data`, and only on a
    plugin that does not share memory with the CPU."""
    from .graph import live_graphs

    for graph in list(live_graphs):
        graph.refresh()
