"""The subcommands of `torchtpu`, a module each: `configure(parser)` says what it takes, `run(args)` does it, and the first
line of its docstring is its help. None of them may import torch but `compile`, and that when it runs."""
