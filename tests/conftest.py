"""Settings that must stand before jax is imported: eight CPU devices, no accelerator, quiet TensorFlow."""

import os

DEVICES = "--xla_force_host_platform_device_count=8"

if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX_PLATFORMS=cuda pytest runs the same tests on a GPU
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_terminal_summary(terminalreporter):
    """Says in plain sight that a green run without PyTorch has not compared anything with it."""
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    if any("torch" in reason or "transformers" in reason for reason in skipped):
        terminalreporter.section("PARITY TESTS SKIPPED", sep="!", yellow=True, bold=True)
        terminalreporter.line("Nothing was compared with PyTorch. To compare: pip install -e '.[parity]'")
