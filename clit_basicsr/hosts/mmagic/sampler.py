"""The order of training under mmengine's data loader."""

from __future__ import annotations

from mmagic.registry import DATA_SAMPLERS
from mmengine.dist import get_dist_info
from torch.utils.data import Dataset

from clit_basicsr.hosts.basicsr.sampler import PlannedSampler


@DATA_SAMPLERS.register_module()
class PlannedBatches(PlannedSampler):
    """The batches of a whole training in one pass; ``CumulativeTrainLoop`` puts it into the train data loader.

    Args:
        dataset: of batch numbers, such as RandomScaleDataset.
        batch_size: samples per batch of this process.
        total_iter: last iteration of the training.
        seed: given by mmengine; the data set has its own.
    """

    def __init__(self, dataset: Dataset, batch_size: int, total_iter: int, seed: int | None = None) -> None:
        rank, world_size = get_dist_info()
        plan = {'batch_size': batch_size, 'iters_per_epoch': total_iter, 'total_iter': total_iter}
        super().__init__(dataset, world_size, rank, 1, **plan)

    def start(self, iteration: int) -> None:
        """The next pass begins after that iteration."""
        self.first, self.end = iteration, self.total_iter

    def set_epoch(self, epoch: int) -> None:
        """There is one pass, whatever DistSamplerSeedHook says."""
