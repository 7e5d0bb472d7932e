"""The command `torchtpu`: one name of `COMMANDS` a module of `commands`.

Starts in milliseconds: nothing here may import torch."""

from __future__ import annotations

import argparse
import importlib
import sys

from ._torchtpu import TorchTPUError

COMMANDS = ("compile", "run", "inspect", "diff", "opt", "topologies", "cache")


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="torchtpu", description="Tools of torchtpu-dynamo.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f".commands.{name}", __package__)
        summary = (module.run.__doc__ or "").partition("\n")[0]
        subparser = subparsers.add_parser(name, help=summary, description=module.run.__doc__)
        module.configure(subparser)
        subparser.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except (TorchTPUError, OSError) as e:
        if isinstance(e, BrokenPipeError):
            sys.stderr.close()  # whoever read the output has had enough
            return 1
        print(f"torchtpu {args.command}: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"torchtpu {args.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
