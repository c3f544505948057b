"""From variational inference to variational autoencoders: the package that the chapters share.

One quantity runs through it, the log weight log p(x, z) − log q(z | x). Start with
:mod:`vi_tutorial.elbo`.
"""

__version__ = "0.1.0"
