"""Preprocessed cases, computed once and stored for training as memory-mapped arrays.

Layout of the cache directory::

    v1-<hash>/                   one folder per preprocessing settings; variants, kernels and folds share it
        plan.json                the hashed preprocessing settings
        <case id>/
            image.npy            float32 (C, X, Y, Z), normalized
            label.npy            int8 or int16 (1, X, Y, Z); -1: background outside the nonzero region; if labeled
            foreground.npz       voxel coordinates (n, 3) per class, key = class; if labeled
            case.json            the marker, written last: geometry, voxels per class, state of the source files

A case is written to a temporary folder that is renamed once it contains the marker, so a folder with the name of a case
is always complete, even if the process is killed. A stored case is valid as long as its source files have the recorded
content: size and times are compared first, and a hash of the content only if these differ. Its folder determines the
preprocessing settings and the version of the format. Two runs on one cache directory wait for each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import multiprocessing
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..files import write_atomically
from ..preprocessing.case import check_settings, preprocess_case
from ..preprocessing.foreground import foreground_locations
from ..preprocessing.geometry import reorient, spacing_of
from ..preprocessing.resampling import resampled_shape
from .io import check_grid, image_paths, read_grid, read_image, read_label

try:
    import fcntl
except ImportError:  # Windows: no locking, so do not start two runs on one cache directory at the same time
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "FORMAT_VERSION",
    "preprocess_dataset",
    "preprocessed_cases",
    "settings_folder",
    "stored_content",
]

FORMAT_VERSION = 1  # increase it if results or format change: all cases are then preprocessed again
MARKER = "case.json"
TEMPORARY = ".tmp-"
TIMES = ("size", "modified", "changed")  # compared first
CONTENT = ("size", "hash")  # compared if these differ
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

logger = logging.getLogger(__name__)


def preprocess_dataset(
    cases: Sequence[Mapping],
    settings: Mapping,
    cache_dir: str | Path,
    num_workers: int | None = None,
    progress: bool = True,
) -> list[dict]:
    """
    Preprocess every case that is not stored yet, in parallel processes, and return their paths.

    Worker processes are spawned, so a script that calls this at its top level needs ``if __name__ == "__main__":``.
    Each process needs memory for a few copies of a case.

    Args:
        cases: dictionaries with ``id`` (a string that is valid as a folder name), ``image`` (a file, or a list of one
            file per channel) and ``label`` (a file or ``None``).
        settings: see :py:func:`~mednext_monai.preprocessing.case.check_settings`.
        cache_dir: folder for the stored cases; created if needed.
        num_workers: number of processes; 0 uses the current one. Defaults to ``None``: one per CPU core, at most 8.
        progress: whether to show a progress bar and the required disk space. Defaults to ``True``.

    Returns:
        for each case, in the given order, a dictionary of strings: ``id``, and the paths ``image``, ``label``,
        ``foreground`` and ``info`` (see the layout; ``label`` and ``foreground`` are ``None`` for an unlabeled case).

    Raises:
        ValueError: if cases are invalid. The message lists all of them; the other cases are still stored.
        OSError: if there is not enough disk space.
    """
    _check_cases(cases)
    settings = check_settings(settings)
    folder = Path(cache_dir) / settings_folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, progress):
        _write_json(folder / "plan.json", {"format_version": FORMAT_VERSION, **settings})
        for leftover in folder.glob(f"{TEMPORARY}*"):  # left by killed runs; the lock excludes others
            shutil.rmtree(leftover, ignore_errors=True)
        pending = [case for case in cases if _current_marker(case, folder, _signatures(case), TIMES) is None]
        _announce_space(pending, settings, folder, progress)
        workers = min(os.cpu_count() or 1, 8) if num_workers is None else num_workers
        failures = _run(pending, settings, folder, min(workers, len(pending)), progress)
    if failures:
        listed = "\n".join(f"  {case_id}: {message}" for case_id, message in sorted(failures.items()))
        raise ValueError(f"{len(failures)} of {len(cases)} cases cannot be preprocessed:\n{listed}")
    return [_stored(case, folder) for case in cases]


def preprocessed_cases(
    training: Sequence[Mapping],
    validation: Sequence[Mapping],
    settings: Mapping,
    cache_dir: str,
    num_workers: int = 0,
    progress: bool = False,
    is_main_process: bool = True,
) -> dict[str, list[dict]]:
    """
    Preprocess the training and validation cases of a fold that are not stored yet, and return the paths of all.

    In a distributed run, call this in all processes: the main process does the work, and the others wait for it
    without a timeout.

    Args:
        training: cases as :py:func:`~mednext_monai.data.training_cases` returns them.
        validation: the same; a case may be in both lists.
        settings: see :py:func:`~mednext_monai.preprocessing.case.check_settings`.
        cache_dir: folder for the stored cases; created if needed.
        num_workers: number of processes; 0 uses the current one. Defaults to 0.
        progress: whether to show a progress bar. Defaults to ``False``.
        is_main_process: whether this process does the work. Defaults to ``True``.

    Returns:
        ``{"training": [...], "validation": [...]}``, each case as :py:func:`preprocess_dataset` returns it.

    Raises:
        ValueError: if the settings or cases are invalid. The message lists all invalid cases.
        OSError: if there is not enough disk space.
    """
    cases = list({case["id"]: case for case in (*training, *validation)}.values())
    if not is_main_process:
        _wait_for_all()
    started = time.monotonic()
    stored = {case["id"]: case for case in preprocess_dataset(cases, settings, cache_dir, num_workers, progress)}
    if is_main_process:
        seconds = time.monotonic() - started
        logger.info(f"{len(cases)} cases are preprocessed in {cache_dir}/{settings_folder(settings)} ({seconds:.1f} s)")
        _wait_for_all()
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
        if size or times of its source files have changed.
    """
    folder = Path(cache_dir) / settings_folder(settings)
    try:
        marker = _current_marker(case, folder, _signatures(case), TIMES)
        if marker is None:
            return None
        channels = len(np.load(folder / case["id"] / "image.npy", mmap_mode="r"))
    except (OSError, ValueError):
        return None
    labels = {max(int(value), 0) for value in marker["voxels_per_label"]}
    return channels, sorted(labels | {0})


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
        problems += [f"{name}: {path} is not a file." for path in _sources(case) if not Path(path).is_file()]
        if not case.get("image"):
            problems.append(f"{name}: has no image.")
    if problems:
        raise ValueError("the list of cases is invalid:\n" + "\n".join(f"  {problem}" for problem in problems))


def _sources(case: Mapping) -> list[str | Path]:
    """Return the files of a case: images in order, then the label if there is one."""
    return image_paths(case.get("image")) + ([case["label"]] if case.get("label") else [])


@contextlib.contextmanager
def _locked(folder: Path, progress: bool) -> Iterator[None]:
    """Hold the lock of a folder; the system releases it when the process ends, even if it is killed."""
    with open(folder / ".lock", "w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _say(f"another process is preprocessing into {folder}: waiting for it.", progress)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _announce_space(pending: Sequence[Mapping], settings: Mapping, folder: Path, progress: bool) -> None:
    """Report the disk space for the cases that have no folder yet; the others are replaced one by one."""
    if not pending:
        return
    new = 0
    for case in pending:
        if not (folder / case["id"]).exists():
            with contextlib.suppress(ValueError, OSError):  # unreadable files are reported later, all together
                new += _required_bytes(case, settings)
    free = shutil.disk_usage(folder).free
    message = f"{len(pending)} cases to preprocess into {folder}: up to about {_size(new)} of {_size(free)} free."
    if new > free:
        raise OSError(f"{message} Free some space or choose another cache directory.")
    _say(message, progress)


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _say(message: str, progress: bool) -> None:
    logger.info(message)
    if progress and not logger.isEnabledFor(logging.INFO):  # otherwise the log shows it
        tqdm.write(message)


def _run(pending: Sequence[Mapping], settings: Mapping, folder: Path, workers: int, progress: bool) -> dict[str, str]:
    """Preprocess the cases and return an error message for each that failed."""
    failures = {}
    with tqdm(total=len(pending), desc="preprocess", unit="case", disable=not (progress and pending)) as bar:
        if workers <= 1:
            for case in pending:
                message = _prepare(case, settings, folder)
                if message:
                    failures[case["id"]] = message
                bar.update()
            return failures
        with (
            _single_threaded_children(),
            ProcessPoolExecutor(
                workers, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
            ) as pool,
        ):
            futures = {pool.submit(_prepare, dict(case), settings, folder): case["id"] for case in pending}
            try:
                for future in as_completed(futures):
                    message = future.result()
                    if message:
                        failures[futures[future]] = message
                    bar.update()
            except BrokenProcessPool as error:
                raise RuntimeError(
                    "a preprocessing process was killed, probably because memory ran out; use a smaller num_workers. "
                    "Stored cases are kept, and the next run continues from there."
                ) from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return failures


@contextlib.contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Limit NumPy to one thread in processes that are started in this context: the processes use all cores."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    """End this worker when its parent process ends; otherwise the workers of a pool would wait forever."""
    parent = multiprocessing.parent_process()
    if parent is None:  # not in a worker
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _prepare(case: Mapping, settings: Mapping, folder: Path) -> str | None:
    """Preprocess and store a case unless the stored one is current; return the error message, if any."""
    try:
        sources = _signatures(case, use_hash=True)  # before the files are read, so that a later change is detected
        marker = _current_marker(case, folder, sources, CONTENT)
        if marker is None:
            _store(case, settings, folder, sources)
        else:
            _write_json(folder / case["id"] / MARKER, {**marker, "sources": sources})
    except (ValueError, OSError, MemoryError) as error:
        return str(error) or type(error).__name__
    return None


def _store(case: Mapping, settings: Mapping, folder: Path, sources: Sequence[Mapping]) -> None:
    image, affine = read_image(case["image"])
    label = None
    if case.get("label"):
        label, label_affine = read_label(case["label"])
        check_grid(case["label"], label.shape, label_affine, image_paths(case.get("image"))[0], image.shape[1:], affine)
    try:
        result = preprocess_case(image, label, affine, settings)
    except ValueError as error:
        raise ValueError(f"{image_paths(case.get('image'))[0]}: {error}") from error
    del image
    temporary = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        np.save(temporary / "image.npy", result.image)
        classes = {}
        if label is not None:
            np.save(temporary / "label.npy", result.label[None])
            locations = foreground_locations(result.label)
            arrays = {str(key): value for key, value in locations.items()}
            np.savez(temporary / "foreground.npz", **arrays)  # type: ignore[arg-type]  # taken for allow_pickle
            values, counts = np.unique(result.label, return_counts=True)
            classes = {str(value): int(count) for value, count in zip(values.tolist(), counts)}
        files = {}
        for path in temporary.iterdir():
            _flush(path)
            files[path.name] = path.stat().st_size
        marker = {
            "id": case["id"],
            "labelled": label is not None,
            "voxels_per_label": classes,
            "geometry": result.geometry.to_dict(),
            "files": files,
            "sources": sources,
        }
        _write_json(temporary / MARKER, marker)
        _replace_folder(temporary, folder / case["id"])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(source: Path, target: Path) -> None:
    """Rename a folder, replacing an existing one. Processes that have mapped the old files keep them."""
    if target.exists():
        aside = target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        target.rename(aside)
        source.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        source.rename(target)


def _current_marker(case: Mapping, folder: Path, signatures: Sequence[Mapping], keys: Sequence[str]) -> dict | None:
    """Return the marker of a complete stored case whose files match ``signatures`` in ``keys``, else ``None``."""
    place = folder / case["id"]
    marker = _read_marker(place)
    if marker is None or marker["labelled"] != bool(case.get("label")) or len(marker["sources"]) != len(signatures):
        return None
    for name, size in marker["files"].items():
        if not (place / name).is_file() or (place / name).stat().st_size != size:
            return None
    same = all(now[key] == then[key] for now, then in zip(signatures, marker["sources"]) for key in keys)
    return marker if same else None


def _signatures(case: Mapping, use_hash: bool = False) -> list[dict]:
    """Return size, times of modification and status change (ns) and optionally a content hash of a case's files."""
    signatures = []
    for path in _sources(case):
        state = os.stat(path)
        signature: dict[str, int | str] = {
            "size": state.st_size,
            "modified": state.st_mtime_ns,
            "changed": state.st_ctime_ns,
        }
        if use_hash:
            digest = hashlib.blake2b(digest_size=16)
            with open(path, "rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
            signature["hash"] = digest.hexdigest()
        signatures.append(signature)
    return signatures


def _read_marker(place: Path) -> dict | None:
    try:
        return json.loads((place / MARKER).read_text())
    except (OSError, ValueError):
        return None


def _write_json(path: Path, content: Mapping) -> None:
    write_atomically(path, json.dumps(content, indent=1).encode())


def _flush(path: Path) -> None:
    """Write the file to disk now, so that a power failure cannot leave a marker without its data."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _stored(case: Mapping, folder: Path) -> dict:
    place, labeled = folder / case["id"], bool(case.get("label"))
    return {
        "id": case["id"],
        "image": str(place / "image.npy"),
        "label": str(place / "label.npy") if labeled else None,
        "foreground": str(place / "foreground.npz") if labeled else None,
        "info": str(place / MARKER),
    }


def _wait_for_all() -> None:
    """
    Wait for all processes of a distributed run; return at once if there is only one.

    Unlike ``torch.distributed.barrier``, this does not fail after the timeout of the process group (minutes), which
    preprocessing of a large data set exceeds.
    """
    import torch.distributed as dist  # slow to import, not needed by worker processes

    if dist.is_initialized():
        dist.barrier(dist.new_group(backend="gloo", timeout=timedelta(days=30)))
