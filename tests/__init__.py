import os

# What is tested is compiled, not found: see tests/python/conftest.py.
os.environ.setdefault("TORCHTPU_CACHE", "0")
