"""With pytest-xdist each worker takes one core, and so do the notebooks' kernels and the commands it starts:
on small machines that is sooner done than one thing after the other on all cores."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # set before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_terminal_summary(terminalreporter):
    """Show what tests measured and do not judge (`record_property`): times depend on the machine."""
    reports = [
        report for some in terminalreporter.stats.values() for report in some if getattr(report, "when", "") == "call"
    ]
    for name, value in [pair for report in reports for pair in report.user_properties]:
        terminalreporter.write_line(f"measured: {name}: {value}")
