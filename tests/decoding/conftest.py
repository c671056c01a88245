"""Settings for the decoding tests."""

from one_thread import one_thread as one_thread
