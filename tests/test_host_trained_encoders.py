"""Networks that the host itself trained and saved, reused as encoders."""

import pytest
import torch
from basicsr.models.sr_model import SRModel
from helpers.encoders import HOSTS, NORMALIZATION, check, host_network

ITERATIONS = 3
SIZE = (16, 12)


def train(kind, folder, ema_decay):
    """Trains with the host's model class and saves with it.

    Returns:
        tuple: The model, the parameters that it began with, and the file with the network.
    """
    _, opt, _ = HOSTS[kind]
    channels = {} if kind == 'SwinIR' else {'num_in_ch': 3, 'num_out_ch': 3}
    torch.manual_seed(11)
    model = SRModel(
        {
            'num_gpu': 0,
            'dist': False,
            'rank': 0,
            'is_train': True,
            'path': {'models': str(folder), 'training_states': str(folder)},
            'network_g': {'type': kind, **channels, **opt},
            'train': {
                'ema_decay': ema_decay,
                'optim_g': {'type': 'Adam', 'lr': 1e-3},
                'scheduler': {'type': 'MultiStepLR', 'milestones': [2], 'gamma': 0.5},
                'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'},
            },
        }
    )
    before = {name: value.clone() for name, value in model.net_g.named_parameters()}
    lq = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        gt = torch.rand_like(model.net_g(lq))
    for iteration in range(1, ITERATIONS + 1):
        model.update_learning_rate(iteration)
        model.feed_data({'lq': lq, 'gt': gt})
        model.optimize_parameters(iteration)
    model.save(epoch=0, current_iter=ITERATIONS)
    return model, before, folder / f'net_g_{ITERATIONS}.pth'


@pytest.mark.parametrize('ema_decay', [0, 0.5])
@pytest.mark.parametrize('kind', sorted(HOSTS))
def test_features_are_those_inside_the_trained_network(kind, ema_decay, tmp_path):
    model, before, file = train(kind, tmp_path, ema_decay)
    net, features = host_network(kind)
    x = torch.rand(2, 3, *SIZE)
    net.load_state_dict({**net.state_dict(), **before})
    untrained = features(x)
    # Where there is an average, it is what the host itself tests with.
    key = 'params_ema' if ema_decay else 'params'
    model.load_network(net, str(file), strict=True, param_key=key)
    encoder, result = check(kind, file, x, features(x))

    assert encoder.input_range.item() == NORMALIZATION[kind]
    weights = dict(encoder.named_parameters())
    assert weights.keys() < before.keys()
    for name, value in weights.items():
        assert not torch.equal(value, before[name]), name
    assert not torch.equal(features(x), untrained)
    left_out = {name for name in net.state_dict() if name not in encoder.state_dict()}
    assert set(result.dropped) == left_out
    if ema_decay:
        plain = torch.load(file, weights_only=True)['params']
        assert not any(torch.equal(value, plain[name]) for name, value in weights.items())
