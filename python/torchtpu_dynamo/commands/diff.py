"""`torchtpu diff`: what changed between two artifacts, or two programs."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a")
    parser.add_argument("b")


def run(args: argparse.Namespace) -> int:
    """Compares."""
    return 0
