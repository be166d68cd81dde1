"""What all tests share: how hypothesis looks for inputs, and that asserts say what they saw."""

import pytest
from hypothesis import HealthCheck, settings

# In a clean clone hypothesis makes its tables of characters first, and a busy machine is slow:
# neither says anything of the code. Timings are never asserted.
settings.register_profile("penstock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("penstock")

pytest.register_assert_rewrite("tests.support.calling")
