"""A stand-in for the host's models."""


class Loading:
    """As much of a model as the host's `load_network` needs."""

    def __init__(self, opt=None):
        self.opt = {} if opt is None else opt

    def get_bare_model(self, net):
        return net

    def _print_different_keys_loading(self, *_):
        pass
