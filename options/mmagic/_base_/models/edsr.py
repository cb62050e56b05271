# EDSR-baseline; the decoder is the config's
model = dict(
    type='ImplicitSR',
    generator=dict(
        # any EDSR of BasicSR, with its own options; range 2, mean 0.5: (x - 0.5) / 0.5, for training from scratch
        encoder=dict(type='EDSR', num_feat=64, num_block=16, img_range=2, rgb_mean=[0.5, 0.5, 0.5]),
    ),
    # an EDSR trained with BasicSR, MMagic or the original repository; its normalisation replaces the encoder's
    pretrained_encoder=None,
    pixel_loss=dict(type='L1Loss', loss_weight=1.0, reduction='mean'),
    # the network sees one padded tile of the LR image at a time; tile=None: the whole image
    test_cfg=dict(scale=4, tile=dict(tile_size=256, tile_pad=48), self_ensemble=False),
    data_preprocessor=dict(
        type='DataPreprocessor', mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0], output_channel_order='RGB'
    ),
)
