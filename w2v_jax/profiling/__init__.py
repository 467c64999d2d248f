"""The cost of an update: counted, compiled, measured, and compared with PyTorch."""
