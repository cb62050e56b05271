# LIT, one branch, with EDSR-baseline on DIV2K, the paper's recipe
# basicsr mmtrain options/mmagic/lit-edsr-norm_c64b16_1xb32-1000k_div2k.py
_base_ = [
    './_base_/models/edsr.py',
    './_base_/datasets/div2k.py',
    './_base_/datasets/benchmark_test_config.py',
    './_base_/schedules/one_stage_1000k.py',
    './_base_/default_runtime.py',
]

experiment_name = 'lit-edsr-norm_c64b16_1xb32-1000k_div2k'
work_dir = f'./work_dirs/{experiment_name}'

model = dict(generator=dict(type='LITNet', dim=256, num_heads=8, grid_size=7))
