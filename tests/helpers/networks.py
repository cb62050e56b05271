"""Small versions of every registered network, in all variants."""

import torch

from clit_basicsr import archs
from clit_basicsr.ops.geometry.coords import make_coord

EDSR = {'type': 'EDSR', 'num_feat': 6, 'num_block': 1, 'img_range': 2, 'rgb_mean': [0.5, 0.5, 0.5]}
SMALL_EDSR = {'type': 'EDSR', 'num_feat': 8, 'num_block': 1}
SMALL_CLIT = {
    'type': 'CLIT',
    'encoder': SMALL_EDSR,
    'num_branches': 2,
    'dim': 8,
    'num_heads': 2,
    'grid_size': 3,
    'hidden_dims': [8],
}
SWINIR = {'type': 'SwinIR', 'img_size': 8, 'embed_dim': 8, 'depths': [2], 'num_heads': [2], 'window_size': 4}
HEAD = {'dim': 8, 'num_heads': 2, 'grid_size': 3, 'hidden_dims': [8, 8], 'position_encoding': 'published'}
THERA_PRO = {'embed_dim': 8, 'depths': [1, 2], 'num_heads': [2, 2], 'drop_path_rate': 0}
# name: (type, options)
NETWORKS = {
    'LIT': ('LIT', HEAD),
    'LIT_frequency': ('LIT', {**HEAD, 'frequency_dims': 8}),
    'LIT_frequency_ensemble': ('LIT', {**HEAD, 'frequency_dims': 8, 'local_ensemble': True, 'first_conv': False}),
    'LIT_ensemble': ('LIT', {**HEAD, 'local_ensemble': True}),
    'LIT_ensemble_sum': ('LIT', {**HEAD, 'local_ensemble': True, 'aggregation': 'sum'}),
    'LIT_frequency_no_attention': ('LIT', {**HEAD, 'frequency_dims': 8, 'local_attention': False}),
    'LIT_no_attention': ('LIT', {**HEAD, 'local_attention': False}),
    'LIT_no_bias_no_cell': ('LIT', {**HEAD, 'position_encoding': None, 'cell': False}),
    'LIT_grid_1': ('LIT', {**HEAD, 'grid_size': 1}),
    'LIT_sum': ('LIT', {**HEAD, 'aggregation': 'sum'}),
    'CLIT': ('CLIT', {**HEAD, 'num_branches': 2}),
    'LIIF': ('LIIF', {'hidden_dims': [8, 8]}),
    'LIIF_bare': ('LIIF', {'hidden_dims': [8], 'local_ensemble': False, 'feat_unfold': False, 'cell': False}),
    'LTE': ('LTE', {'dim': 8, 'hidden_dims': [8, 8]}),
    'LTE_no_ensemble': ('LTE', {'dim': 8, 'hidden_dims': [8], 'local_ensemble': False}),
    'MetaSR': ('MetaSR', {'hidden_dims': [8]}),
    'UltraSR': ('UltraSR', {'dim': 8, 'num_hidden': 3, 'num_freqs': 4}),
    'IPE': ('IPE', {'hidden_dims': [8, 8], 'num_freqs': 4}),
    'SRNO': ('SRNO', {'dim': 8, 'num_heads': 2, 'hidden_dim': 8}),
    'HIIF': ('HIIF', {'dim': 8, 'num_heads': 2, 'hidden_dim': 8}),
    'Thera_air': ('Thera', {'num_components': 6, 'init': 'published'}),
    'Thera_plus': ('Thera', {'variant': 'plus', 'num_components': 6, 'init': 'published', 'tail': {'widths': [6, 8]}}),
    'Thera_pro': ('Thera', {'variant': 'pro', 'num_components': 6, 'init': 'published', 'tail': THERA_PRO}),
    'Bicubic': ('Bicubic', {}),
}


def build(name, encoder=EDSR):
    torch.manual_seed(0)
    kind, options = NETWORKS[name]
    return archs.build_network({'type': kind, **options, **({} if kind == 'Bicubic' else {'encoder': encoder})}).eval()


def queries(size, batch):
    return make_coord(size).expand(batch, -1, 2), torch.tensor([2 / size[0], 2 / size[1]]).expand(batch, 2)
