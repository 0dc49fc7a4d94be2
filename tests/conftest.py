"""Settings that hold for every test."""

from hypothesis import settings

# The same examples in every run: a failure can be repeated, and time does not vary.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
