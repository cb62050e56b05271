"""Which row of the paper's tables an option file describes, from its network alone."""

from __future__ import annotations

from typing import Any

from clit_basicsr.archs.network_options import FREE_IN_ENCODER, as_list, defaults_of, encoder_defaults

# Options that change nothing about which system it is.
ANY_ENCODER = (*FREE_IN_ENCODER, 'type')
ANY_DECODER = ('type', 'encoder', 'upscale', 'upsampling_padding')
# Tables 3 and 4: LIT with one option changed.
ABLATIONS: dict[tuple[str, Any], str] = {
    ('local_attention', False): ' (-a)',
    ('cell', False): ' (-c)',
    ('local_ensemble', True): ' (+e)',
}
ABLATIONS |= {('grid_size', grid): f' grid {grid}' for grid in (1, 3, 5, 9, 15, 25)}


def paper_row(network_g: dict) -> tuple[str, str]:
    """The row that a ``network_g`` block, checked, is the system of.

    Returns:
        The row and '', or '' and the reason why none fits.
    """
    from clit_basicsr.report.paper_tables import paper_psnr

    kind = str(network_g.get('type'))
    if kind == 'Bicubic':
        return 'Bicubic', ''
    if not network_g.get('encoder'):
        return '', f'{kind} is not a system of the tables'
    encoder, reason = encoder_name(network_g['encoder'])
    if not encoder:
        return '', reason
    changed = changed_options(network_g)
    ending = next((name for option, name in ABLATIONS.items() if kind == 'LIT' and changed == [option]), '')
    if changed and not ending:
        listed = ', '.join(f'{key}: {value}' for key, value in changed)
        return '', f'the paper has no {kind} with {listed}'
    name = {'MetaSR': 'Meta-SR', 'Thera': f'Thera {str(network_g.get("variant", "air")).title()}'}.get(kind, kind)
    row = f'{encoder}-{name}{ending}'
    return (row, '') if row in paper_psnr() else ('', f'the tables have no {row}')


def encoder_name(block: dict) -> tuple[str, str]:
    """'EDSR-baseline', 'RDN' or 'SwinIR' and '', or '' and the reason why it is not one of them."""
    from clit_basicsr.archs.encoders import ENCODERS

    own = ENCODERS[block['type']]
    if own.paper is None:
        return '', f'the tables have no encoder {block["type"]}'
    defaults = encoder_defaults(block['type'])
    for key in [*own.paper.options, *(key for key in block if key not in ANY_ENCODER)]:
        wanted = own.paper.options.get(key, defaults.get(key))
        value = block.get(key, defaults.get(key))
        if as_list(value) != as_list(wanted):
            return '', f"the paper's {own.paper.name} has {key}: {wanted}, not {value}"
    return own.paper.name, ''


def changed_options(network_g: dict) -> list[tuple[str, Any]]:
    """Options of the decoder away from their defaults, which are the paper's."""
    from basicsr.utils.registry import ARCH_REGISTRY

    defaults = defaults_of(ARCH_REGISTRY.get(network_g['type']))
    if network_g.get('position_encoding') == 'published':  # of the authors' code, as the paper's figures are
        defaults['position_encoding'] = 'published'
    return [
        (key, value)
        for key, value in network_g.items()
        if key not in (*ANY_DECODER, 'variant') and as_list(value) != as_list(defaults.get(key))
    ]
