# the data sets and scales of the paper's Tables 1 and 2; missing data sets are skipped
# up to x4: the published LR images; above: LR images made by PIL, as in the papers
benchmark, div2k = 'datasets/benchmark', 'datasets/DIV2K'
test_sets = [  # name, protocol, HR images, LR images, scales
    ('Set5', 'benchmark', f'{benchmark}/Set5/HR', f'{benchmark}/Set5/LR_bicubic', [2, 3, 4, 6, 8]),
    ('Set14', 'benchmark', f'{benchmark}/Set14/HR', f'{benchmark}/Set14/LR_bicubic', [2, 3, 4, 6, 8]),
    ('B100', 'benchmark', f'{benchmark}/B100/HR', f'{benchmark}/B100/LR_bicubic', [2, 3, 4, 6, 8]),
    ('Urban100', 'benchmark', f'{benchmark}/Urban100/HR', f'{benchmark}/Urban100/LR_bicubic', [2, 3, 4, 6, 8]),
    ('DIV2K', 'div2k', f'{div2k}/DIV2K_valid_HR', f'{div2k}/DIV2K_valid_LR_bicubic', [2, 3, 4, 6, 12, 18, 24, 30]),
]

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
