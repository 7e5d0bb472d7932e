"""`torchtpu compile`: a model to an artifact."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from .._torchtpu import TorchTPUError
from ..ahead.artifact import check_writable
from ..ahead.keys import key_of


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        help="a .pt2 file of torch.export, or package.module:factory, a function that returns (module, args) or "
        "(module, args, kwargs)",
    )
    parser.add_argument(
        "-t",
        "--topology",
        action="append",
        default=[],
        metavar="NAME",
        help="what to compile for: v5e:2x2 and the like (see `torchtpu topologies`), or cpu; may be given many times",
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT.ttpu")
    parser.add_argument("--train", action="store_true", help="a forward and its backward")
    parser.add_argument(
        "--regions", action="store_true", help="compile equal layers of a ModuleList or Sequential once"
    )
    parser.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        help="one program for N ranks: the factory is called as each of them, under a process group of which only the "
        "numbers are real",
    )
    parser.add_argument(
        "--sample-ranks",
        action="store_true",
        help="of the ranks trace 0, 1 and the last alone; their programs must be equal",
    )
    parser.add_argument("--no-weights", action="store_true", help="leave the weights out")
    parser.add_argument(
        "--key", metavar="FILE", help="sign the artifact with this key (32 bytes, or hexadecimal)"
    )
    parser.add_argument("--jobs", type=int, default=None, help="compilations at a time (default: one a core)")
    parser.add_argument(
        "--time-limit", type=float, default=3600.0, metavar="SECONDS", help="of each compilation"
    )
    parser.add_argument(
        "--tune",
        type=float,
        default=0,
        metavar="SECONDS",
        help="search so long for faster forms of the programs, judged by libtpu's schedule",
    )
    parser.add_argument(
        "--tuned",
        metavar="FILE",
        help="forms that a search found, which are used; --tune adds to it (default: OUT.ttpu.forms.json)",
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="K=V", help="an option of the backend, V as JSON"
    )
    parser.add_argument(
        "--xla-option",
        action="append",
        default=[],
        metavar="K=V",
        help="an option of the topologies' compiler",
    )


def run(args: argparse.Namespace) -> int:
    """Compiles a model for devices that need not be there, into one file."""
    options = dict(_pair(text) for text in args.option)
    if args.xla_option:
        options["xla_options"] = dict(_pair(text) for text in args.xla_option)
    if args.tune:
        options["tune"] = args.tune
    if args.tuned:
        options["tuned"] = args.tuned
    start = time.perf_counter()

    def tell(what: str, seconds: float) -> None:
        print(f"{what:<28} {seconds:8.2f} s", file=sys.stderr)

    check_writable(args.output)  # before torch is imported
    import torch

    from ..ahead.build import aot_compile, aot_compile_spmd

    tell("import torch", time.perf_counter() - start)
    settings: dict[str, Any] = {
        "topology": args.topology,
        "train": args.train,
        "options": options,
        "regions": args.regions,
        "output": args.output,
        "weights": not args.no_weights,
        "key": key_of(args.key),
        "jobs": args.jobs,
        "time_limit": args.time_limit,
        "tell": tell,
    }
    is_factory = ":" in args.model and not os.path.exists(args.model)
    if args.ranks is not None:
        if not is_factory:
            raise TorchTPUError(
                f"--ranks needs a factory, package.module:function, and {args.model} is a file"
            )
        aot_compile_spmd(lambda: _of_rank(args.model), args.ranks, sample=args.sample_ranks, **settings)
    elif is_factory:
        with torch.no_grad():
            fn, inputs, keywords = _made(args.model)
        aot_compile(fn, inputs, keywords, **settings)
    else:
        aot_compile(args.model, **settings)
    size = os.path.getsize(args.output)
    print(f"{args.output}: {size / 1e6:.1f} MB, {time.perf_counter() - start:.1f} s in all", file=sys.stderr)
    return 0


def _of_rank(name: str) -> tuple[Any, ...]:
    import torch

    with torch.no_grad():
        fn, inputs, keywords = _made(name)
    if keywords:
        raise TorchTPUError(f"{name} returned keywords: with --ranks it returns (module, args)")
    return fn, *inputs


def _made(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """What a factory returns."""
    module_name, _, attribute = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        factory = importlib.import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except (ImportError, AttributeError) as e:
        raise TorchTPUError(
            f"{name}: {e}\nhelp: package.module:factory names a function that can be imported"
        ) from None
    if not callable(factory):
        raise TorchTPUError(
            f"{name} is of the type {type(factory).__name__}, which cannot be called\n"
            "help: package.module:factory names a function that returns (module, args)"
        )
    made: Any = factory()
    parts = made if isinstance(made, (tuple, list)) else ()
    if (
        len(parts) not in (2, 3)
        or not callable(parts[0])
        or not isinstance(parts[1], (tuple, list))
        or not all(isinstance(keywords, Mapping) for keywords in parts[2:])
    ):
        found = f"({', '.join(type(part).__name__ for part in parts)})" if parts else type(made).__name__
        raise TorchTPUError(
            f"{name} returned {found}, and should return (module, args) or (module, args, kwargs), where args is a tuple"
        )
    return made[0], tuple(made[1]), dict(made[2]) if len(made) == 3 else {}


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise TorchTPUError(f"an option is NAME=VALUE, not {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
