"""Settings of all tests: hypothesis's profile, and readable asserts in `tests/support`."""

import pytest
from hypothesis import HealthCheck, settings

# In a clean clone hypothesis first builds its tables of characters, and a busy machine is slow.
# Neither is a fault of the code. Each run tries the same examples, so that a test fails because of
# what was changed; `--hypothesis-profile search` looks for faults that are there already.
settings.register_profile(
    "penstock", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", settings.get_profile("penstock"), derandomize=False)
settings.load_profile("penstock")

pytest.register_assert_rewrite("tests.support")
