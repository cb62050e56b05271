# what every config here shares: hooks, logs, pictures, seed
default_scope = 'mmagic'

randomness = dict(seed=0)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook',
        interval=5000,
        by_epoch=False,
        max_keep_ckpts=10,
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=4),
    dist_cfg=dict(backend='nccl'),  # gloo where there is no GPU
)

log_level = 'INFO'
log_processor = dict(type='LogProcessor', window_size=100, by_epoch=False)

load_from = None  # a checkpoint of MMagic or of BasicSR
resume = False

# the enlarged pictures of tests: <picture>_<data set>_<iteration>.png
vis_backends = [dict(type='VisBackend')]
visualizer = dict(
    type='ConcatImageVisualizer',
    vis_backends=vis_backends,
    fn_key='vis_name',
    img_keys=['pred_img'],
    bgr2rgb=True,
)
custom_hooks = [
    dict(type='BasicVisualizationHook', interval=1, on_val=False),
    # the moving average of the weights, as train:ema_decay of BasicSR:
    # dict(type='EMAHook', ema_type='BasicSREMA', decay=0.999),
]

# for init_model and MMagic's inferencers; the scale is model.test_cfg.scale
test_pipeline = [
    dict(type='LoadImageFromFile', key='img', color_type='color', channel_order='rgb', imdecode_backend='cv2'),
    dict(type='PackInputs'),
]
