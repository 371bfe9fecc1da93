"""Tables: the tidy rows of measurements, what columns are called, how tables are read, checked and shown.

The public names stand in ``__init__.pyi``; they load `pyarrow` when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
