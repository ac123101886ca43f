"""Prediction of many cases: one is written while the network works on the next; one that fails does not stop others."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.engines.utils import engine_apply_transform
from monai.inferers import Inferer, SimpleInferer
from monai.utils import CommonKeys, MetaKeys
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..background import Background
from ..distributed import gather, wait_for_all
from ..errors import ERROR_FILE, TRACEBACK
from ..handlers.case_names import case_names
from .case_dataset import ERROR, CaseDataset
from .failures import WORKER, CasesFailed, concerns_all, is_of_a_worker, reason

__all__ = ["CaseEvaluator"]

logger = logging.getLogger(__name__)


class _Predicted(NamedTuple):
    """A case between the network and the postprocessing, on the CPU."""

    id: str
    batch: Any
    output: Any
    seconds: float  # of the network


class CaseEvaluator(SupervisedEvaluator):
    """
    MONAI's ``SupervisedEvaluator`` for a prediction of many cases.

    - The postprocessing, which writes the result, runs in one thread beside the network, in the order of the cases.
      At most one case waits for it. ``engine.state.output`` is what the network made, without the postprocessing.
    - An error in reading, the network or the postprocessing of one case is recorded, and the run goes on. At the end,
      after all results are written, the cases that failed are one error. What would meet all cases, such as a full
      disk, ends the run at once; cases that are written stay.
    - The log has a line for each case. A progress bar shows the case and the time left.
    - If several processes share the cases, all wait at the end, the process of rank 0 reports the failures of all, and
      all end with the same exit status.

    The data loader must have batches of one case. Those that its :py:class:`CaseDataset` has left out as invalid count
    as failures.

    Args:
        progress: whether to show a progress bar. Defaults to ``False``.
        kwargs: arguments of ``SupervisedEvaluator``.

    Raises:
        ValueError: if a batch has several cases.
    """

    def __init__(
        self,
        device: torch.device,
        val_data_loader: DataLoader,
        network: torch.nn.Module,
        inferer: Inferer | None = None,
        progress: bool = False,
        **kwargs: Any,
    ) -> None:
        if val_data_loader.batch_size != 1:
            raise ValueError(f"batch_size of the data loader must be 1, got {val_data_loader.batch_size}.")
        self._transform: Callable | None = None
        self._writer: Background[_Predicted, None] | None = None
        self._bar: tqdm | None = None
        self.progress = progress
        self.written = 0  # cases
        self.failures: dict[str, str] = {}  # the reason by case id
        stoppable = _Stoppable(inferer or SimpleInferer(), self._check_writer)
        kwargs.setdefault("epoch_length", 1)  # `run` sets it: the cases are not listed yet
        super().__init__(device, val_data_loader, network, inferer=stoppable, **kwargs)

    def run(self, global_epoch: int = 1) -> None:
        """
        Predict all cases.

        Args:
            global_epoch: as for ``SupervisedEvaluator``. Defaults to 1.

        Raises:
            CasesFailed: if cases failed, after all others are written.
            OSError: if the disk is full.
            RuntimeError: if a process that reads images was killed.
        """
        dataset = self.data_loader.dataset
        is_ours = isinstance(dataset, CaseDataset)
        self.written, self.failures = 0, dict(dataset.failures) if is_ours else {}
        self.state.epoch_length = len(self.data_loader)  # the checks may have left out cases since __init__
        if self.state.epoch_length:
            try:
                with self._shown(), Background(self._postprocess_all) as self._writer:
                    self._run_explained(global_epoch)
            except RuntimeError as error:  # torch raises the error of a process anywhere, also when another is handled
                if str(error).startswith(WORKER):
                    raise self._killed(error) from error
                raise
        _report(self.failures, dataset.total if is_ours else len(dataset))

    def _run_explained(self, global_epoch: int) -> None:
        try:
            super().run(global_epoch)
        except Exception as error:
            # What was on its way from the process ends in an error of the connection instead.
            is_on_its_way = self.state.batch is None and isinstance(error, (OSError, EOFError))
            if not (is_of_a_worker(error) or (is_on_its_way and self.data_loader.num_workers)):
                raise
            raise self._killed(error) from error

    def _killed(self, error: Exception) -> RuntimeError:
        text = str(error).strip().split("\n")[0].split(". ")[0].rstrip(".") or type(error).__name__
        return RuntimeError(
            f"a process that reads images was killed, probably because memory ran out ({text}). num_workers is "
            f"{self.data_loader.num_workers}, and each of these processes holds a few images: choose fewer, or "
            "--num_workers 0 to read them in the main process. Finished cases are kept, and skipped by the same "
            "command."
        )

    def _register_postprocessing(self, posttrans: Callable) -> None:
        self._transform = posttrans  # not after the network, as in MONAI, but in the thread

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> Any:
        case_id = case_names(batchdata)[0]
        if self._bar is not None:
            self._bar.set_description(case_id)
        if ERROR in batchdata:
            self._fail(case_id, batchdata[ERROR][0])
            return None
        started = time.monotonic()
        try:
            super()._iteration(engine, batchdata)
            predicted = _off_the_device(engine.state.batch, engine.state.output)
        except Exception as error:
            self._fail_or_raise(case_id, error)
            return None
        assert self._writer is not None
        self._writer.put(_Predicted(case_id, *predicted, time.monotonic() - started))
        return engine.state.output

    def _postprocess_all(self, cases: Iterator[_Predicted]) -> None:
        for case in cases:
            started = time.monotonic()
            try:
                output = case.output
                if self._transform is not None:
                    with torch.no_grad():
                        _, output = engine_apply_transform(case.batch, case.output, self._transform)
            except Exception as error:
                self._fail_or_raise(case.id, error)
            else:
                self.written += 1
                files = [item.meta.get(MetaKeys.SAVED_TO) for item in output.values() if isinstance(item, MetaTensor)]
                seconds = case.seconds + time.monotonic() - started
                wrote = "".join(f", wrote {file}" for file in files if file)
                self._advance(f"{case.id}: {seconds:.1f} s{wrote}")
            case = output = None  # type: ignore[assignment]  # not held while waiting for the next one

    def _fail_or_raise(self, case_id: str, error: Exception) -> None:
        """Record the error of a case; raise it if it concerns all."""
        if concerns_all(error):
            raise error
        text = reason(error)
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        is_shown = ERROR_FILE not in os.environ or os.environ.get(TRACEBACK) == "1"  # as at the end of a run
        self._fail(case_id, text, error if is_shown else None)

    def _fail(self, case_id: str, text: str, error: Exception | None = None) -> None:
        self.failures[case_id] = text
        self._advance(f"{case_id} could not be segmented: {text}", logging.ERROR, error)

    def _advance(self, message: str, level: int = logging.INFO, error: Exception | None = None) -> None:
        logger.log(level, message, exc_info=error)
        if self._bar is not None:
            self._bar.update()

    def _check_writer(self) -> None:
        if self._writer is not None:
            self._writer.check()

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Show a progress bar, above which the log is written, if it is wanted."""
        if not self.progress:
            yield
            return
        with logging_redirect_tqdm(), tqdm(total=self.state.epoch_length, unit="case") as self._bar:
            yield
        self._bar = None


class _Stoppable(Inferer):
    """An inferer that calls a function, which may raise, before each use of the network."""

    def __init__(self, inferer: Inferer, check: Callable[[], None]) -> None:
        super().__init__()
        self.inferer, self.check = inferer, check

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def checked(*network_args: Any, **network_kwargs: Any) -> Any:
            self.check()
            return network(*network_args, **network_kwargs)

        return self.inferer(inputs, checked, *args, **kwargs)


def _off_the_device(batch: Any, output: Any) -> tuple[dict, dict]:
    """Return copies of the dictionaries of the one sample of a decollated batch, without tensors on the device."""
    batch, output = (dict(item[0] if isinstance(item, list) else item) for item in (batch, output))
    output[CommonKeys.IMAGE] = batch[CommonKeys.IMAGE]  # equal, and on the CPU already
    return batch, {name: item.cpu() if isinstance(item, torch.Tensor) else item for name, item in output.items()}


def _report(failures: Mapping[str, str], total: int) -> None:
    """Raise an error if a case of this process or of the others failed; in all of them, the first of which says why."""
    parts = gather((dict(failures), total))
    merged = {case_id: text for part, _ in parts for case_id, text in part.items()}
    if not merged:
        return
    if len(parts) > 1 and dist.get_rank() > 0:
        try:
            wait_for_all()  # the launcher ends all processes with the first one: rank 0 reports first
        except RuntimeError:
            pass
        raise SystemExit(1)
    raise CasesFailed(merged, sum(count for _, count in parts))
