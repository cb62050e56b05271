# the data sets and scales of the paper's Tables 1 and 2; missing data sets are skipped
# up to x4: the published LR images; above: LR images made by PIL, as in the papers
test_sets = [
    ('Set5', 'benchmark', 'datasets/benchmark/Set5/HR', 'datasets/benchmark/Set5/LR_bicubic', [2, 3, 4, 6, 8]),
    ('Set14', 'benchmark', 'datasets/benchmark/Set14/HR', 'datasets/benchmark/Set14/LR_bicubic', [2, 3, 4, 6, 8]),
    ('B100', 'benchmark', 'datasets/benchmark/B100/HR', 'datasets/benchmark/B100/LR_bicubic', [2, 3, 4, 6, 8]),
    ('Urban100', 'benchmark', 'datasets/benchmark/Urban100/HR', 'datasets/benchmark/Urban100/LR_bicubic', [2, 3, 4, 6, 8]),
    ('DIV2K', 'div2k', 'datasets/DIV2K/DIV2K_valid_HR', 'datasets/DIV2K/DIV2K_valid_LR_bicubic', [2, 3, 4, 6, 12, 18, 24, 30]),
]  # fmt: skip

test_dataloader = [
    dict(
        num_workers=4,
        batch_size=1,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='ScaledPairDataset',
            name=f'{name}x{scale}',
            dataroot_gt=hr,
            dataroot_lq=f'{lr}/X{scale}' if scale <= 4 else None,
            filename_tmpl=f'{{}}x{scale}',
            scale=scale,
            protocol=protocol,
        ),
    )
    for name, protocol, hr, lr, scales in test_sets
    for scale in scales
]
test_evaluator = [
    dict(
        type='Evaluator',
        metrics=[dict(type='PSNRFloat', prefix=f'{name}x{scale}'), dict(type='SSIMFloat', prefix=f'{name}x{scale}')],
    )
    for name, _, _, _, scales in test_sets
    for scale in scales
]
test_cfg = dict(type='MultiTestLoop')
