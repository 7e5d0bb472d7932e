"""Programs that show what the product does. Each runs by itself: `python -m examples.NAME`."""
