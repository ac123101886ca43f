"""Class probabilities of a case on the grid of its file, which may be larger than the memory: held and written on disk.

Imports neither torch nor MONAI.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from math import prod
from os import PathLike

import numpy as np

from ..files import atomic_path, extend, nameless_file
from ..preprocessing.resampling import class_type, most_probable

__all__ = ["DiskProbabilities", "ProbabilityStore", "is_our_probabilities", "write_probabilities"]

KEY = "probabilities"  # in the file
COMMENT = b"probabilities by mednext-monai"  # of the ZIP archive, by which it is recognized; NumPy ignores it
LEVEL = 1  # of the compression: the digits of probabilities are almost random, so that more takes longer for nothing
BLOCK_VOXELS = 2**22  # read at once, of one class


class DiskProbabilities:
    """
    Class probabilities, or weighted sums of several, in a nameless file that vanishes with the object or the process.

    The file is mapped into memory class by class and only while a part of it is written or read, so that it does not
    count as memory of the process. The disk space of a class is reserved before it is written.

    Args:
        folder: where the file is; created if needed.
        shape: voxels of the image, ``(X, Y, Z)``.
        dtype: of the stored numbers. Defaults to float16.
        total: sum of the weights; stored numbers are divided by it when they are read. Defaults to 1.

    Source of the form: nnU-Net, whose ``.npz`` files have the background everywhere outside the crop, too.
    """

    def __init__(
        self, folder: str | PathLike, shape: Sequence[int], dtype: type[np.floating] = np.float16, total: float = 1
    ) -> None:
        self.folder = folder
        self.shape = tuple(int(count) for count in shape)
        self.dtype = np.dtype(dtype)
        self.total = total
        self.classes = 0
        self._size = prod(self.shape) * self.dtype.itemsize  # bytes of a class
        self._file = nameless_file(folder)

    def volume(self, index: int) -> np.ndarray:
        """
        Return the stored numbers of a class, ``(X, Y, Z)``; what is written to them is stored.

        Before anything is written, the background has a probability of 1 in each voxel.

        Args:
            index: the class. One that follows the last one is new.

        Raises:
            OSError: if the disk is full, naming the folder.
        """
        if index > self.classes:
            raise ValueError(f"class {index} cannot follow class {self.classes - 1}.")
        if index == self.classes:
            extend(self._file, self._size, self.folder)
            self.classes += 1
            if index == 0:
                for planes in self._planes():
                    self._map(0, planes)[...] = self.total
        return self._map(index, slice(0, self.shape[0]))

    def read(self, index: int, planes: slice) -> np.ndarray:
        """Return the probabilities of a class in some planes along the first axis, float32, as a copy."""
        return self._map(index, planes).astype(np.float32) / np.float32(self.total)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all probabilities in their order, ``(K, X, Y, Z)``, as consecutive planes of one class, float32."""
        for index in range(self.classes):
            for planes in self._planes():
                yield self.read(index, planes)

    def array(self) -> np.ndarray:
        """Return all probabilities in memory, float32 ``(K, X, Y, Z)``."""
        result = np.empty((self.classes, *self.shape), dtype=np.float32)
        for index in range(self.classes):
            for planes in self._planes():
                result[index, planes] = self.read(index, planes)
        return result

    def class_map(self) -> np.ndarray:
        """Return the most probable classes ``(X, Y, Z)``, uint8, or int16 for more than 256; ties give the lower."""
        labels = np.empty(self.shape, dtype=class_type(self.classes))
        for planes in self._planes():
            labels[planes] = most_probable(self.read(index, planes) for index in range(self.classes))
        return labels

    def _planes(self) -> Iterator[slice]:
        count = max(BLOCK_VOXELS * self.shape[0] // prod(self.shape), 1)
        for start in range(0, self.shape[0], count):
            yield slice(start, min(start + count, self.shape[0]))

    def _map(self, index: int, planes: slice) -> np.ndarray:
        offset = index * self._size + planes.start * (self._size // self.shape[0])
        shape = (planes.stop - planes.start, *self.shape[1:])
        return np.memmap(self._file, self.dtype, "r+", offset, shape)  # type: ignore[call-overload]  # of a file


class ProbabilityStore:
    """
    The probabilities of cases that are predicted and not yet written.

    Args:
        folder: where they are held.
        is_kept: whether they are written later. Defaults to ``True``.
        dtype: of the numbers that are held. Defaults to float16, as they are written.
    """

    def __init__(self, folder: str | PathLike, is_kept: bool = True, dtype: type[np.floating] = np.float16) -> None:
        self.folder = folder
        self.is_kept = is_kept
        self.dtype = dtype
        self._held: dict[str, DiskProbabilities] = {}

    def put(self, name: str, probabilities: DiskProbabilities) -> None:
        """Hold the probabilities of a case."""
        self._held[name] = probabilities

    def take(self, name: str) -> DiskProbabilities:
        """
        Return the probabilities of a case, and forget them and those that were put before and have not been taken.

        Cases are written in the order in which they were predicted; one that was left out could not be written.

        Raises:
            ValueError: if there are none.
        """
        if name not in self._held:
            raise ValueError(
                f"{name}: its probabilities were not kept; the inferer needs the store they are taken from."
            )
        while True:
            first = next(iter(self._held))
            probabilities = self._held.pop(first)
            if first == name:
                return probabilities


def write_probabilities(path: str | PathLike, probabilities: DiskProbabilities) -> None:
    """
    Write ``probabilities``, float16 ``(K, X, Y, Z)``, to an ``.npz`` file that ``numpy.load`` reads, atomically.

    ``numpy.savez_compressed`` would need them as one array. Here they are read and compressed in parts.

    Args:
        path: the file.
        probabilities: those of all classes. If they sum to 1, the rounded ones do within ``2**-11``, the relative
            precision of float16, plus ``2**-25`` per class.

    Raises:
        OSError: if the disk is full.
    """
    header = {"descr": "<f2", "fortran_order": False, "shape": (probabilities.classes, *probabilities.shape)}
    with atomic_path(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as archive:
            archive.comment = COMMENT
            with archive.open(f"{KEY}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for block in probabilities.blocks():
                    member.write(block.astype("<f2").tobytes())


def is_our_probabilities(path: str | PathLike) -> bool:
    """Return whether a file was written by :py:func:`write_probabilities`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment == COMMENT
    except (zipfile.BadZipFile, OSError):
        return False
