"""What files hold: a digest of each, made once and remembered by path, size and times.

Names, sizes and dates of files say little: labels may have been swapped and images exchanged under all of them. Digests
are of the bytes behind any compression.
"""

import gzip
import hashlib
import zlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from examples.mmwhs import files
from examples.mmwhs.data.description import Case
from examples.mmwhs.messages import message

PIECE = 2**20
HEADER = 352  # bytes before the voxels of a NIfTI file


class Contents:
    """Digests of files, remembered in a folder.

    Args:
        folder: Where ``contents.json`` is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "contents.json"
        try:
            known = files.read_json(self.path) if self.path.is_file() else {}
        except ValueError:
            known = {}  # it is only a memory
        self.known: dict[str, list] = known if isinstance(known, dict) else {}
        self.new = False

    def of(self, path: Path) -> str:
        """The digest of a file."""
        return self._digests(path)[0]

    def of_voxels(self, path: Path) -> str:
        """The digest of what is behind the header of a NIfTI file."""
        return self._digests(path)[1]

    def keep(self) -> None:
        """Writes what is new down."""
        if self.new:
            files.write_json(self.path, self.known)
            self.new = False

    def case(self, case: Case, *, label: bool = True) -> list[str | None]:
        """The digests of a case's image and, if asked for, of its label."""
        return [self.of(case.image), self.of(case.label) if label and case.label else None]

    def twins(self, cases: Iterable[Case]) -> list[list[Case]]:
        """Cases of different patients whose images have the same voxels."""
        alike: dict[str, list[Case]] = defaultdict(list)
        for case in cases:
            alike[self.of_voxels(case.image)].append(case)
        return [each for each in alike.values() if len({case.patient for case in each}) > 1]

    def _digests(self, path: Path) -> tuple[str, str]:
        try:
            real, stat = str(path.resolve()), path.stat()
            mark = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
            found = self.known.get(real)
            if not (isinstance(found, list) and len(found) == 6 and found[:4] == mark):
                found = self.known[real] = [*mark, *_read(path)]
                self.new = True
        except (OSError, EOFError, zlib.error) as error:
            cure = "The file is damaged or not NIfTI: get it again."
            raise ValueError(message(f"a readable NIfTI volume in {path}", repr(str(error)), cure)) from error
        return found[4], found[5]


def _read(path: Path) -> tuple[str, str]:
    whole, voxels = hashlib.sha256(), hashlib.sha256()
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
        head = stream.read(HEADER)
        whole.update(head)
        while piece := stream.read(PIECE):
            whole.update(piece)
            voxels.update(piece)
    return whole.hexdigest()[:20], voxels.hexdigest()[:20]
