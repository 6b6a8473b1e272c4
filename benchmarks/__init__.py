"""Scripts that produce every speed figure that the README quotes: ``python -m servable.benchmarks.NAME``."""
