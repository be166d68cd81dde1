"""Test suites of others, which run in an environment of their own."""
