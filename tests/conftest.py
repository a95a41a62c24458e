"""Settings shared by the whole test run."""

import os

import torch
from hypothesis import HealthCheck, settings

# Beside other test processes one thread is faster than two that wait for each other.
THREADS = "1" if "PYTEST_XDIST_WORKER" in os.environ else os.environ.get("OMP_NUM_THREADS", "2")
torch.set_num_threads(int(os.environ.get("TEST_THREADS", THREADS)))

settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("deep", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
