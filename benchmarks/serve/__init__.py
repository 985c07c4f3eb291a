"""What serving costs beyond the model, on loopback: see ``python -m benchmarks.serve``."""
