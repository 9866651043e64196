"""The version, in a module of its own so that nothing needs to import the package to know it."""

__version__ = "0.1.0"

INSTALL = "pip install -U 'hf-dr @ git+URL' (URL: the address of its repository)"
"""How messages say that the package is installed: it is on no registry."""
