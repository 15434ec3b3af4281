"""Tied models over several processes: what torch's own calls can't know by themselves.

DistributedDataParallel, `fully_shard`, `parallelize_module` and torch.distributed.checkpoint need
nothing of this: see docs/distributed.md. Ties across the stages of a pipeline do; and so does who
wants a checkpoint of another plan to be refused.
"""

from fxtie.distributed.checkpoints import TiedLoadPlanner, TiedSavePlanner
from fxtie.distributed.stages import SharedSources, share_across_stages

__all__ = ["SharedSources", "TiedLoadPlanner", "TiedSavePlanner", "share_across_stages"]
