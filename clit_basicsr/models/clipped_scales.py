"""Whether the training images are large enough for the scales that are drawn."""

import math

BATCHES = 100


class ClippedScales:
    """Counts over a number of batches how often the data set had to reduce the drawn scales to fit its images.

    Args:
        batches: to look at.
    """

    def __init__(self, batches: int = BATCHES) -> None:
        self.batches = batches
        self.restart()

    def restart(self) -> None:
        """Counts from here on, as other scales are drawn now."""
        self.seen = self.clipped = 0
        self.drawn = self.used = 0.0

    def add(self, drawn: list[float], used: list[float]) -> str:
        """Takes a batch's factors as they were drawn and as they are used, one per branch.

        Returns:
            str: once, after the last batch to look at, and if at least half of them were reduced: what to say.
        """
        if self.seen == self.batches:
            return ''
        asked, given = math.prod(drawn), math.prod(used)
        self.seen += 1
        self.clipped += given < asked
        self.drawn += asked
        self.used += given
        if self.seen < self.batches or 2 * self.clipped < self.batches:
            return ''
        return (
            f'In {self.clipped} of {self.seen} batches the scales were reduced, because the images are too small for '
            f'them: x{self.used / self.seen:.2f} on average instead of x{self.drawn / self.seen:.2f}. Use larger '
            'images, a smaller datasets:train:lq_size, or smaller scales.'
        )
