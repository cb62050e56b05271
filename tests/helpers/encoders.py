"""Small networks of the hosts whose trunks serve as encoders, and checks of loading them."""

import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srresnet_arch import MSRResNet
from basicsr.archs.swinir_arch import SwinIR

from clit_basicsr.archs import RDN
from clit_basicsr.archs.encoders import build_encoder, load_pretrained

NORMALIZATION = {'EDSR': 255, 'RCAN': 255, 'SwinIR': 1, 'RDN': 1, 'RRDBNet': 1, 'MSRResNet': 1}
MEAN = [0.4488, 0.4371, 0.4040]
SWINIR = {'img_size': 16, 'embed_dim': 12, 'depths': [2, 2], 'num_heads': [2, 2], 'window_size': 4, 'mlp_ratio': 2}
# (host class, its options, the module whose input holds the trunk's features)
HOSTS = {
    'EDSR': (EDSR, {'num_feat': 8, 'num_block': 2, 'res_scale': 0.5}, 'upsample'),
    'RCAN': (RCAN, {'num_feat': 16, 'num_group': 2, 'num_block': 2, 'squeeze_factor': 4}, 'upsample'),
    'RRDBNet': (RRDBNet, {'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4}, None),
    'MSRResNet': (MSRResNet, {'num_feat': 8, 'num_block': 2}, 'upconv1'),
    'SwinIR': (SwinIR, {**SWINIR, 'upsampler': 'pixelshuffle', 'upscale': 2}, 'conv_before_upsample'),
    'RDN': (RDN, {'num_feat': 8, 'num_block': 2, 'num_layer': 3, 'num_grow_ch': 4}, 'upsample'),
}


def host_network(kind):
    """A network of the host with random weights, and a function that returns an image's features inside it."""
    host, opt, layer = HOSTS[kind]
    torch.manual_seed(7)
    channels = {} if kind == 'SwinIR' else {'num_in_ch': 3, 'num_out_ch': 3}
    net = host(**channels, **opt).eval()
    seen = []

    def features(x):
        seen.clear()
        if layer is None:  # RRDBNet: the input of conv_up1 is the features, enlarged twofold by nearest interpolation
            hook = net.conv_up1.register_forward_pre_hook(lambda _, args: seen.append(args[0][..., ::2, ::2]))
        else:
            hook = getattr(net, layer).register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        with torch.no_grad():
            net(x)
        hook.remove()
        return seen[0]

    return net, features


def options(kind, **more):
    return {'type': kind, **HOSTS[kind][1], **more}


def check(kind, path, x, expected, **more):
    opt = options(kind, img_range=2, rgb_mean=[0.5, 0.5, 0.5], **more)
    encoder = build_encoder(opt).eval()
    result = load_pretrained(encoder, opt, str(path))
    with torch.no_grad():
        assert torch.equal(encoder(x), expected)
    again = build_encoder(result.options)
    assert torch.equal(again.input_mean, encoder.input_mean)
    assert torch.equal(again.input_range, encoder.input_range)
    assert again.feat_scale.item() == pytest.approx(encoder.feat_scale.item())
    return encoder, result
