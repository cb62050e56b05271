"""What the golden files of Thera name differently."""

import torch

from clit_basicsr import published


def cell_of(t, size):
    """The HR pixel whose diffusion time that is: (B, 2)."""
    return 2 * torch.as_tensor(t).reshape(-1, 1).sqrt() / torch.tensor(size)


def published_grads(net):
    """Gradients of the decoder under the published names."""
    layout = published.LAYOUTS['thera']
    grads = {key: p.grad for key, p in net.named_parameters() if not key.startswith(('encoder.', 'tail.'))}
    return published.thera.to_flax(published.layouts.rename_back(grads, layout))
