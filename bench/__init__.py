"""Measurements: ``python -m bench.NAME [--quick] [--json FILE]``."""
