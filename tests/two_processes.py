"""How the tests start two processes that train or caption together."""

import sys

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
