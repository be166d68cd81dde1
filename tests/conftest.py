"""Settings of all tests: hypothesis's profile, and readable asserts in `tests/support`."""

import pytest
from hypothesis import HealthCheck, settings

# In a clean clone hypothesis first builds its tables of characters, and a busy machine is slow.
# Neither is a fault of the code.
settings.register_profile("penstock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("penstock")

pytest.register_assert_rewrite("tests.support")
