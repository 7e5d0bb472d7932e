"""Suites that PyTorch wrote, run against a torch.compile backend: OpInfo, module_db, hop_db.

`python -m tests.conformance --help` is the command; `worker` runs one entry at a time in a child process, so that
an abort or a hang costs one entry; `compare` says what counts as equal.
"""
