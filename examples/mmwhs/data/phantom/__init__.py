"""Synthetic cardiac CT with the seven labelled structures of MM-WHS, for trying the pipeline without data.

`shapes` measures distances, `patient` draws what differs between patients, `vessels` and `heart` hold the anatomy,
`chest` what surrounds it, `imaging` makes Hounsfield units and labels of it, `write` makes files.
"""

from .write import make_volume, write_phantom

__all__ = ["make_volume", "write_phantom"]
