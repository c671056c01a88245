"""Settings for the tests of decoding."""

from one_thread import one_thread as one_thread
