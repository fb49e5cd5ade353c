"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# Examples are small; on a busy machine the time that one takes says nothing.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
