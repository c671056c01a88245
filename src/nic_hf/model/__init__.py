"""The captioner as this package offers it: the core's model, faster, with safe checkpoints and all of training.

The core (`*_nic.py`), which is saved with every checkpoint, gives the same captions without this package.
"""
