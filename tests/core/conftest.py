"""Settings for the tests of the core."""

from one_thread import one_thread as one_thread
