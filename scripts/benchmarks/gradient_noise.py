"""How many queries per patch a training should draw: noise of the gradient for the time that a step takes.

    python scripts/benchmarks/gradient_noise.py options/train_clit_light.yml --weights clit-light --queries 256 512 1024

The gradients of single batches scatter about their mean. Averaged over the steps of a second, what is left of that is
variance times seconds per step: the smaller, the better the use of time. The option file says network, data and
batches; its first stage alone is looked at. One thread; bf16 if the option file says so.
"""

import argparse
import time
from collections.abc import Sequence

import torch

from clit_basicsr import load
from clit_basicsr.archs.precision import in_precision
from clit_basicsr.cli.option_file import read_option_file
from clit_basicsr.data.random_scale_dataset import RandomScaleDataset
from clit_basicsr.models.branches import set_trained_branches

PARTS = ('encoder', 'decoder')


def gradient(net: torch.nn.Module, batch: list[dict], precision: str | None) -> list[torch.Tensor]:
    """The gradients of the encoder's and of the decoder's parameters, (N,) each, double precision."""
    net.zero_grad()
    lq, gt, coord, cell = (torch.stack([sample[key] for sample in batch]) for key in ('lq', 'gt', 'coord', 'cell'))
    with in_precision(precision, lq.device):
        out = net(lq, coord, cell, [tuple(pair) for pair in batch[0]['scales'].tolist()])
    (out.float() - gt).abs().mean().backward()
    return [
        torch.cat([p.grad.flatten().double() for p in parameters if p.grad is not None])
        for parameters in (
            list(net.encoder.parameters()),
            [p for n, p in net.named_parameters() if not n.startswith('encoder.')],
        )
    ]


def measure(net: torch.nn.Module, dataset: RandomScaleDataset, batch_size: int, steps: int, precision: str | None):
    """Seconds per step, and the variance of both gradients, summed over their parameters."""
    found, seconds = [], 0.0
    for number in range(steps + 1):
        batch = dataset.__getitems__([(number, position) for position in range(batch_size)])
        began = time.process_time()
        one = gradient(net, batch, precision)
        if number:  # the first one compiles and fills caches
            seconds += time.process_time() - began
            found.append(one)
    return seconds / steps, [torch.stack(part).var(0).sum().item() for part in zip(*found, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('options', help='option file of a training')
    parser.add_argument('--weights', required=True, help='a checkpoint of the network, or one of the package')
    parser.add_argument('--queries', type=int, nargs='+', default=[256, 512, 1024, 2048])
    parser.add_argument('--steps', type=int, default=48)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    opt = read_option_file(args.options)
    precision, train = opt['train'].get('precision'), opt['datasets']['train']
    net = load(args.weights).train()
    set_trained_branches([net], 1)
    print('| queries | CPU s / step |' + ''.join(f' variance, {part} | times seconds |' for part in PARTS))
    print('|---' * (2 + 2 * len(PARTS)) + '|')
    for queries in args.queries:
        own = {'num_queries': queries, 'phase': 'train', 'scales': opt['train']['stages'][0]['scales']}
        dataset = RandomScaleDataset({**train, **own, 'manual_seed': opt.get('manual_seed')})
        seconds, variances = measure(net, dataset, train['batch_size_per_gpu'], args.steps, precision)
        cells = [f'{one:.3g} | {one * seconds:.3g}' for one in variances]
        print(f'| {queries} | {seconds:.3f} | ' + ' | '.join(cells) + ' |', flush=True)


if __name__ == '__main__':
    main()
