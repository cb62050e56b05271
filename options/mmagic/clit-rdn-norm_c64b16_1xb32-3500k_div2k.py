# CLIT, the cascade of three branches, with RDN on DIV2K, the paper's recipe
# basicsr mmtrain options/mmagic/clit-rdn-norm_c64b16_1xb32-3500k_div2k.py
_base_ = [
    './_base_/models/rdn.py',
    './_base_/datasets/div2k.py',
    './_base_/datasets/benchmark_test_config.py',
    './_base_/schedules/cumulative_3500k.py',
    './_base_/default_runtime.py',
]

experiment_name = 'clit-rdn-norm_c64b16_1xb32-3500k_div2k'
work_dir = f'./work_dirs/{experiment_name}'

model = dict(generator=dict(type='CLITNet', num_branches=3, dim=256, num_heads=8, grid_size=7))
