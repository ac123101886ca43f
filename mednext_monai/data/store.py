"""Preprocessed cases, computed once and stored for training as memory-mapped arrays.

Layout of the cache directory::

    v2-<hash>/                   one folder per preprocessing settings; variants, kernels and folds share it
        plan.json                the hashed preprocessing settings
        <case id>/
            <content>/           one folder per content of the source files
                image.npy        float32 (C, X, Y, Z), normalized
                label.npy        int8 or int16 (1, X, Y, Z); -1: background outside the nonzero region; if labeled
                foreground.npz   voxel coordinates (n, 3) per class, key = class; if labeled. With an ignore label
                                 also those of annotated voxels, key = annotated
                case.json        the marker, written last: geometry, voxels per class, source files
            <state>.ref          the <content> of source files in a known state: paths, sizes and times

``<content>`` is a hash of all bytes of the image and label files, so data sets with equal case ids can share a cache
directory, and a data set that was moved, copied or mounted elsewhere is recognized. Reading terabytes at each start
would take too long: the content is read once for each ``<state>``, a hash of the real path, size, modification time and
status change time of each file. The last of these cannot be set by a program, so a file that was replaced by one of the
same size and modification time is read again.

A stored case is never modified. It is written to a temporary folder, which is renamed once it contains the marker, so a
folder ``<content>`` is always complete, even if the process is killed. New content gets a new folder, and a run that
uses the old one keeps it. Nothing is removed automatically: delete the cache directory, or a part of it, when no run
uses it.

Any number of runs, on one or several computers that share a file system, may preprocess into one folder at once. What
is stored does not depend on a lock: a run finds out what exists by looking for complete folders, and of two that store
the same case the first to rename its folder wins, since a folder cannot be renamed to one that has files. Advisory
locks (``flock``, which Linux passes on to the server of an NFS) only save work. A run holds the lock of each case while
it stores it, ``.locks/<content>``; others take the next cases and return to this one at the end. All runs share the
lock ``.lock`` of the folder; one that finds itself alone removes what killed runs left on its computer, and anyone what
has not changed for a day. The system releases the locks of a process that ends, even if it is killed. Where a file
system has no locks, a case may be computed twice.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import math
import os
import re
import shutil
import socket
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..arrays import value_counts
from ..files import hash_file, naming_a_full_disk, write_atomically
from ..parallel import map_cases
from ..preprocessing.case import PreprocessedCase, check_settings, preprocess_case
from ..preprocessing.foreground import foreground_locations
from ..preprocessing.geometry import Geometry, reorient, spacing_of
from ..preprocessing.resampling import resampled_shape
from .io import ImageSource, check_grid, image_paths, read_grid, read_image, read_label

try:
    import fcntl
except ImportError:  # Windows: no locks
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "FORMAT_VERSION",
    "CasesError",
    "image_content",
    "preprocess_dataset",
    "preprocessed_cases",
    "settings_folder",
    "stored_content",
]

FORMAT_VERSION = 2  # increase it if results or format change: all cases are then preprocessed again
MARKER = "case.json"
TEMPORARY = ".tmp-"
LOCKS = ".locks"
CONTENT = re.compile("[0-9a-f]{32}")
# What a damaged file of a stored case raises: it is then made again.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, EOFError, zipfile.BadZipFile)
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # a file system without locks
LEFT_BEHIND = 24 * 3600  # seconds without a change, after which a temporary folder belongs to no run
META_IMAGE = re.compile(rb"^\s*ElementDataFile\s*=\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE)
NRRD = re.compile(rb"^data ?file:\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE)
DATA_FILES = {".mhd": META_IMAGE, ".mha": META_IMAGE, ".nrrd": NRRD}  # the entry that names the file of the voxels
NUMBERED = re.compile(r"(.*)%(\d*)d(.*?)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)(?:\s+\d+)?")  # slice%03d.raw 1 20 1
HEADER_SIZE = 2**16  # bytes in which this entry is searched

logger = logging.getLogger(__name__)


class CasesError(ValueError):
    """
    Error for cases that cannot be preprocessed; the message lists all of them.

    Args:
        failures: a message for each of these cases, by case id.
        total: number of all cases.
    """

    def __init__(self, failures: Mapping[str, str], total: int) -> None:
        self.failures, self.total = dict(failures), total
        listed = "\n".join(f"  {case_id}: {message}" for case_id, message in sorted(self.failures.items()))
        rest = f"; the other {total - len(self.failures)} are stored" if len(self.failures) < total else ""
        super().__init__(f"{len(self.failures)} of {total} cases cannot be preprocessed{rest}:\n{listed}")

    def __reduce__(self) -> tuple:
        return type(self), (self.failures, self.total)


Read = Callable[[Mapping], tuple[np.ndarray, np.ndarray | None, np.ndarray]]


def preprocess_dataset(
    cases: Sequence[Mapping],
    settings: Mapping,
    cache_dir: str | Path,
    num_workers: int | None = None,
    progress: bool = True,
    read: Read | None = None,
    begin: float = 0.0,
) -> list[dict]:
    """
    Preprocess every case that is not stored yet, in parallel processes, and return their paths.

    Worker processes are spawned, so a script that calls this at its top level needs ``if __name__ == "__main__":``.
    Each process needs memory for a few copies of a case. If one is killed, its case is repeated, see
    :py:func:`~mednext_monai.parallel.map_cases`.

    Args:
        cases: dictionaries with ``id`` (a string that is valid as a folder name), ``image`` (a file, or a list of one
            file per channel) and ``label`` (a file or ``None``).
        settings: see :py:func:`~mednext_monai.preprocessing.case.check_settings`.
        cache_dir: folder for the stored cases; created if needed.
        num_workers: number of processes; 0 uses the current one. Defaults to ``None``: one per CPU core, at most 8.
        progress: whether to show a progress bar and the required disk space. Defaults to ``True``.
        read: a function that returns image ``(C, X, Y, Z)``, label ``(X, Y, Z)`` or ``None``, and affine of a case, or
            raises a ``ValueError``. Defaults to ``None``: the files are read, and checked only as far as needed.
        begin: where in the list to begin, from 0 to 1, so that several runs that share the work do not meet at once.
            Defaults to 0.0.

    Returns:
        for each case, in the given order, a dictionary of strings: ``id``, and the paths ``image``, ``label``,
        ``foreground`` and ``info`` (see the layout; ``label`` and ``foreground`` are ``None`` for an unlabeled case).

    Raises:
        ValueError: if the list or the settings are invalid.
        CasesError: if cases are invalid. The other cases are still stored.
        OSError: if there is not enough disk space.
    """
    _check_cases(cases)
    settings = check_settings(settings)
    folder = Path(cache_dir) / settings_folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    workers = min(os.cpu_count() or 1, 8) if num_workers is None else num_workers
    with _shared(folder):
        if not (folder / "plan.json").exists():
            _write_json(folder / "plan.json", {"format_version": FORMAT_VERSION, **settings})
        stored = _find(cases, folder, workers, progress)
        pending = [case for case in cases if case["id"] not in stored]
        _announce_space(pending, settings, folder, progress)
        first = round(begin * len(pending))
        prepare = functools.partial(_prepare, settings=settings, folder=folder, read=read or _read)
        found, failures = _run(prepare, [*pending[first:], *pending[:first]], workers, progress)
        stored.update(found)
        if pending:
            _announce_unused(stored, folder, progress)
    if failures:
        raise CasesError(failures, len(cases))
    return [_stored(case, stored[case["id"]]) for case in cases]


def preprocessed_cases(
    training: Sequence[Mapping],
    validation: Sequence[Mapping],
    settings: Mapping,
    cache_dir: str,
    num_workers: int = 0,
    progress: bool = False,
    rank: int = 0,
    local_rank: int = 0,
    world_size: int = 1,
) -> dict[str, list[dict]]:
    """
    Preprocess the training and validation cases of a fold that are not stored yet, and return the paths of all.

    In a distributed run, call this in all processes: when all have called it, the first process of each computer does
    the work, and the others wait without a timeout. On a shared file system the computers share the work; a cache
    directory of its own on each computer is filled there.

    Args:
        training: cases as :py:func:`~mednext_monai.data.training_cases` returns them.
        validation: the same; a case may be in both lists.
        settings: see :py:func:`~mednext_monai.preprocessing.case.check_settings`.
        cache_dir: folder for the stored cases; created if needed.
        num_workers: number of processes; 0 uses the current one. Defaults to 0.
        progress: whether to show a progress bar, in the process of rank 0. Defaults to ``False``.
        rank: number of this process among all processes of the run. Defaults to 0.
        local_rank: number of this process among those of this computer. Defaults to 0.
        world_size: number of all processes of the run. Defaults to 1.

    Returns:
        ``{"training": [...], "validation": [...]}``, each case as :py:func:`preprocess_dataset` returns it.

    Raises:
        ValueError: if the settings or cases are invalid. The message lists all invalid cases.
        OSError: if there is not enough disk space.
    """
    from ..distributed import wait_for_all  # imports torch, which worker processes do not need

    cases = list({case["id"]: case for case in (*training, *validation)}.values())
    wait_for_all()  # the main process may still be checking the files
    started = time.monotonic()
    if local_rank == 0:
        paths = preprocess_dataset(
            cases, settings, cache_dir, num_workers, progress and rank == 0, begin=rank / world_size
        )
    wait_for_all()
    if local_rank != 0:
        paths = preprocess_dataset(cases, settings, cache_dir, 0, False)
    stored = {case["id"]: case for case in paths}
    if rank == 0:
        seconds = time.monotonic() - started
        logger.info(f"{len(cases)} cases are preprocessed in {cache_dir}/{settings_folder(settings)} ({seconds:.1f} s)")
    sides = {"training": training, "validation": validation}
    return {side: [stored[case["id"]] for case in members] for side, members in sides.items()}


def stored_content(case: Mapping, settings: Mapping, cache_dir: str | Path) -> tuple[int, list[int]] | None:
    """
    Return the channels and labels of a stored case without reading its voxels.

    Args:
        case: as for ``preprocess_dataset``.
        settings: see :py:func:`~mednext_monai.preprocessing.case.check_settings`.
        cache_dir: the folder given to ``preprocess_dataset``.

    Returns:
        the number of channels and the label values, background 0 included; or ``None`` if the case is not stored, or
        if its source files have not been read in their present state.
    """
    folder = Path(cache_dir) / settings_folder(settings)
    try:
        place = _known(case, folder)
        if place is None:
            return None
        marker = json.loads((place / MARKER).read_text())
        labels = {max(int(value), 0) for value in marker["voxels_per_label"]}
        return len(np.load(place / "image.npy", mmap_mode="r")), sorted(labels | {0})
    except UNREADABLE:
        return None


def image_content(image: str | PathLike | Sequence[str | PathLike]) -> str:
    """
    Return a hash of all bytes of the files of an image, those that a header names included.

    Args:
        image: a file, one file per channel, or an :py:class:`~mednext_monai.data.io.ImageSource`.

    Raises:
        OSError: if a file cannot be read.
    """
    files = [file for one in image_paths(image) for file in (one.files if isinstance(one, ImageSource) else [one])]
    return _content({"image": files})[0]


def settings_folder(settings: Mapping) -> str:
    """Return the name of the folder of these settings: the version of the format and a hash of the settings."""
    text = json.dumps(check_settings(settings), sort_keys=True)
    return f"v{FORMAT_VERSION}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def _required_bytes(case: Mapping, settings: Mapping) -> int:
    """Return the maximum size of a case's arrays in bytes (nothing is cropped), from the header of its image."""
    (channels, *shape), affine = read_grid(case["image"])
    if settings["orientation"] is not None:
        probe, affine = reorient(np.broadcast_to(np.int8(0), (1, *shape)), affine, settings["orientation"])
        shape = list(probe.shape[1:])
    voxels = math.prod(resampled_shape(shape, spacing_of(affine), settings["spacing"]))
    return voxels * (4 * channels + (case.get("label") is not None))


def _check_cases(cases: Sequence[Mapping]) -> None:
    problems, seen = [], set()
    for number, case in enumerate(cases):
        name = case.get("id")
        if not isinstance(name, str) or name != Path(name).name or name in ("", "plan.json") or name.startswith("."):
            problems.append(f"case {number}: id must be a string that is valid as a folder name, got {name!r}.")
        elif name in seen:
            problems.append(f"case {number}: id {name!r} occurs twice.")
        seen.add(name)
        if not case.get("image"):
            problems.append(f"{name}: has no image.")
    if problems:
        raise ValueError("the list of cases is invalid:\n" + "\n".join(f"  {problem}" for problem in problems))


def _sources(case: Mapping) -> list[str | PathLike]:
    """Return the files of a case: images in order, then the label if there is one."""
    return image_paths(case.get("image")) + ([case["label"]] if case.get("label") else [])


def _with_data(path: str | PathLike) -> list[Path]:
    """Return a file and, if it is only a header, the files that contain its voxels."""
    path = Path(path)
    pattern = DATA_FILES.get(path.suffix.lower())
    if pattern is None:
        return [path]
    with open(path, "rb") as file:
        header = re.split(rb"\r?\n\r?\n", file.read(HEADER_SIZE))[0]
    found = pattern.search(header)
    if found is None or found[1].upper() == b"LOCAL":
        return [path]
    name = os.fsdecode(found[1])
    if name.upper().startswith("LIST"):
        names = [os.fsdecode(line.strip()) for line in header[found.end() :].splitlines()]
        return [path, *(path.parent / name for name in names if name)]
    if numbered := NUMBERED.fullmatch(name):
        first, last, step = (int(number) for number in numbered.groups()[3:])
        numbers = range(first, last + (1 if step > 0 else -1), step or 1)
        return [path, *(path.parent / f"{numbered[1]}{n:{numbered[2]}d}{numbered[3]}" for n in numbers)]
    return [path, path.parent / name]


@contextlib.contextmanager
def _shared(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder together with other runs; if there are none, first remove what killed runs left."""
    with open(folder / ".lock", "a+") as file:
        is_alone = _lock(file.fileno(), wait=False) is True
        _remove_leftovers(folder, is_alone)
        _lock(file.fileno(), is_shared=True)  # waits at most while another run removes leftovers
        yield


def _remove_leftovers(folder: Path, is_alone: bool) -> None:
    """Remove temporary folders that belong to no run; a lock may be unknown to other computers."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):  # it may be renamed or removed meanwhile
            changed = max(path.stat().st_mtime for path in (leftover, *leftover.iterdir()))
            is_old = time.time() - changed > LEFT_BEHIND
            if is_old or (is_alone and leftover.name.startswith(_temporary_prefix())):
                shutil.rmtree(leftover, ignore_errors=True)


def _temporary_prefix() -> str:
    return f"{TEMPORARY}{hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()}-"


@contextlib.contextmanager
def _only_here(folder: Path, content: str, wait: bool) -> Iterator[bool]:
    """Hold the lock of a case; yield whether this process may store it: false only if another one is about to."""
    (folder / LOCKS).mkdir(exist_ok=True)
    with open(folder / LOCKS / content, "a+") as file:
        yield _lock(file.fileno(), wait=wait) is not False


def _lock(file: int, is_shared: bool = False, wait: bool = True) -> bool | None:
    """Lock an open file until it is closed; return whether it is locked, ``None`` if the system has no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise
    return True


def _announce_space(pending: Sequence[Mapping], settings: Mapping, folder: Path, progress: bool) -> None:
    """Report the disk space for the cases to preprocess."""
    if not pending:
        return
    new = 0
    for case in pending:
        with contextlib.suppress(ValueError, OSError):  # unreadable files are reported later, all together
            new += _required_bytes(case, settings)
    free = shutil.disk_usage(folder).free
    message = f"{len(pending)} cases to preprocess into {folder}: up to about {_size(new)} of {_size(free)} free."
    if new > free:
        raise OSError(f"{message} Free some space or choose another cache directory.")
    _say(message, progress)


def _announce_unused(stored: Mapping[str, Path], folder: Path, progress: bool) -> None:
    """Report the disk space of what is stored for other contents of the cases and by other versions of the format."""
    others = [place for used in stored.values() for place in used.parent.iterdir() if place.is_dir() and place != used]
    if others:
        _say(
            f"{folder}: {len(others)} stored cases ({_size(_disk_use(others))}) have an id of this run and another "
            "content: from another data set, or from before files were changed. Delete them when no run uses them.",
            progress,
        )
    older = [place for place in folder.parent.glob("v*-*") if not place.name.startswith(f"v{FORMAT_VERSION}-")]
    if older:
        _say(
            f"{folder.parent}: {', '.join(sorted(place.name for place in older))} ({_size(_disk_use(older))}) were "
            "written by another version of the package and are not used by this one.",
            progress,
        )


def _disk_use(folders: Sequence[Path]) -> int:
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _say(message: str, progress: bool) -> None:
    logger.info(message)
    if progress and not logger.isEnabledFor(logging.INFO):  # otherwise the log shows it
        tqdm.write(message)


def _run(
    prepare: Callable[..., Path | None], pending: Sequence[Mapping], workers: int, progress: bool
) -> tuple[dict[str, Path], dict[str, str]]:
    """Preprocess the cases; return the folder of each, or an error message if it failed."""
    results, failures = map_cases(prepare, _by_id(pending), max(1, workers), "preprocess", progress, spawn=True)
    busy = [case for case in pending if results.get(case["id"], case) is None]
    if busy:
        _say(f"other runs are preprocessing {len(busy)} of the cases: waiting for them.", progress)
        prepare = functools.partial(prepare, wait=True)
        others, failed = map_cases(prepare, _by_id(busy), max(1, workers), "waiting", progress, spawn=True)
        results, failures = {**results, **others}, {**failures, **failed}
    return {case_id: place for case_id, place in results.items() if place is not None}, failures


def _by_id(cases: Sequence[Mapping]) -> dict[str, dict]:
    return {case["id"]: dict(case) for case in cases}


def _find(cases: Sequence[Mapping], folder: Path, workers: int, progress: bool) -> dict[str, Path]:
    """Return the folder of each case that is stored; files in an unknown state are read if there may be one."""
    stored = {case["id"]: place for case in cases if (place := _known(case, folder))}
    unknown = [case for case in cases if case["id"] not in stored and (folder / case["id"]).is_dir()]
    if unknown:
        _say(f"reading the files of {len(unknown)} cases to compare them with stored cases of the same id.", progress)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for case, place in zip(unknown, pool.map(lambda case: _recognized(case, folder), unknown)):
            if place is not None:
                stored[case["id"]] = place
    return stored


def _known(case: Mapping, folder: Path) -> Path | None:
    """Return the folder of a stored case whose files are in a known state, without reading them; else ``None``."""
    try:
        content = (folder / case["id"] / f"{_state(case)}.ref").read_text()
    except (OSError, ValueError):
        return None
    place = folder / case["id"] / content
    return place if CONTENT.fullmatch(content) and _is_complete(place) else None


def _recognized(case: Mapping, folder: Path) -> Path | None:
    """Return the folder of a stored case with the content of these files, which are read; else ``None``."""
    try:
        state, (content, _) = _state(case), _content(case)
        place = folder / case["id"] / content
        if not _is_complete(place):
            return None
        _remember(case, state, place)
    except (OSError, ValueError):
        return None  # reported when the case is preprocessed
    return place


def _prepare(case: Mapping, settings: Mapping, folder: Path, read: Read, wait: bool = False) -> Path | None:
    """
    Preprocess and store a case unless it is stored, and return its folder.

    Args:
        wait: if another process is storing the case, wait for it. Defaults to ``False``: return ``None``.
    """
    for path in _sources(case):
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is not a file.")
    state = _state(case)
    content, sources = _content(case)
    place = folder / case["id"] / content
    if not _is_complete(place):
        with _only_here(folder, content, wait) as is_free:
            if not is_free:
                return None
            if not _is_complete(place):
                _store(case, settings, place, state, sources, read)
    _remember(case, state, place)
    return place


def _read(case: Mapping) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return image, label or ``None``, and affine of a case."""
    image, affine = read_image(case["image"])
    label = None
    if case.get("label"):
        label, label_affine = read_label(case["label"])
        check_grid(case["label"], label.shape, label_affine, image_paths(case.get("image"))[0], image.shape[1:], affine)
    return image, label, affine


def _store(
    case: Mapping, settings: Mapping, place: Path, state: str, sources: Sequence[Mapping], read: Read = _read
) -> None:
    image, label, affine = read(case)
    try:
        result = preprocess_case(image, label, affine, settings)
    except ValueError as error:
        raise ValueError(f"{image_paths(case.get('image'))[0]}: {error}") from error
    del image
    temporary = place.parents[1] / f"{_temporary_prefix()}{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        with naming_a_full_disk(place, temporary):
            classes = _write_arrays(result, label is not None, settings.get("ignore_label"), temporary)
            files = {}
            for path in temporary.iterdir():
                _flush(path)
                files[path.name] = path.stat().st_size
            marker = {
                "id": case["id"],
                "voxels_per_label": classes,
                "geometry": result.geometry.to_dict(),
                "files": files,
                "sources": sources,
            }
            _write_json(temporary / MARKER, marker)
            _check_unchanged(case, state)
            place.parent.mkdir(exist_ok=True)
            _rename_folder(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_arrays(result: PreprocessedCase, is_labeled: bool, ignore_label: int | None, folder: Path) -> dict[str, int]:
    """Write the arrays of a case; return the voxels per class."""
    try:
        np.save(folder / "image.npy", result.image)
        if not is_labeled:
            return {}
        np.save(folder / "label.npy", result.label[None])
        locations = foreground_locations(result.label, ignore_label)
        arrays = {str(key): value for key, value in locations.items()}
        np.savez(folder / "foreground.npz", **arrays)  # type: ignore[arg-type]  # taken for allow_pickle
    except OSError as error:  # NumPy's own errors name no file
        if error.filename is not None:
            raise
        raise OSError(error.errno or errno.EIO, f"cannot be written: {error}", str(folder)) from error
    values, counts = value_counts(result.label)
    return {str(value): int(count) for value, count in zip(values.tolist(), counts)}


def _rename_folder(source: Path, target: Path) -> None:
    """Rename a folder unless another process has stored the same meanwhile; a damaged target is replaced."""
    if target.exists() and not _is_complete(target):
        aside = target.parents[1] / f"{_temporary_prefix()}{uuid.uuid4().hex}"
        target.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    try:
        source.rename(target)
    except OSError:
        if not _is_complete(target):
            raise


def _is_complete(place: Path) -> bool:
    """Return whether a folder has a marker and the files that it lists, in their sizes and with headers that fit."""
    try:
        marker = json.loads((place / MARKER).read_text())
        files, shape = marker["files"], Geometry.from_dict(marker["geometry"]).resampled_shape
        if not all((place / name).stat().st_size == size for name, size in files.items()):
            return False
        fits = np.load(place / "image.npy", mmap_mode="r").shape[1:] == shape
        if not fits or "label.npy" not in files:
            return fits
        with np.load(place / "foreground.npz"):  # its directory
            return np.load(place / "label.npy", mmap_mode="r").shape == (1, *shape)
    except UNREADABLE:
        return False


def _state(case: Mapping) -> str:
    """Return a hash of real path, size, and times of modification and status change (ns) of a case's files."""
    states: list[list] = []
    for source in _sources(case):
        for path in _with_data(source):
            stat = os.stat(path)
            states.append([os.path.realpath(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
    return _short_hash({"labeled": bool(case.get("label")), "files": states})


def _content(case: Mapping) -> tuple[str, list[dict]]:
    """Return a hash of the bytes of a case's files, which tells images from labels; and path, size, hash of each."""
    files, parts = [], []
    for source in _sources(case):
        for number, path in enumerate(_with_data(source)):
            size, digest = hash_file(path)
            files.append({"path": os.path.realpath(path), "size": size, "hash": digest})
            parts.append([number, size, digest])
    return _short_hash({"labeled": bool(case.get("label")), "files": parts}), files


def _short_hash(value: Mapping) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def _remember(case: Mapping, state: str, place: Path) -> None:
    """Record that files in this state have the content of a stored case."""
    _check_unchanged(case, state)
    reference = place.parent / f"{state}.ref"
    if not reference.exists():
        write_atomically(reference, place.name.encode())


def _check_unchanged(case: Mapping, state: str) -> None:
    if _state(case) != state:
        raise ValueError("the files of the case were changed while they were read; run again when they are complete.")


def _write_json(path: Path, content: Mapping) -> None:
    write_atomically(path, json.dumps(content, indent=1).encode())


def _flush(path: Path) -> None:
    """Write the file to disk now, so that a power failure cannot leave a marker without its data."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _stored(case: Mapping, place: Path) -> dict:
    labeled = bool(case.get("label"))
    return {
        "id": case["id"],
        "image": str(place / "image.npy"),
        "label": str(place / "label.npy") if labeled else None,
        "foreground": str(place / "foreground.npz") if labeled else None,
        "info": str(place / MARKER),
    }
