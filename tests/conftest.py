"""Settings that every test shares."""

from hypothesis import settings

# Tests state no timing: a busy machine must not turn a true property into a failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
