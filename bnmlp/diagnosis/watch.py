"""The rows of a measurement, appended to a file while a network trains."""

import csv
import io
import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from bnmlp.checks import check_module, check_name, whole_number
from bnmlp.diagnosis.anatomy import Anatomy
from bnmlp.diagnosis.functions import Functions
from bnmlp.diagnosis.kept import measuring
from bnmlp.diagnosis.probe import Pass
from bnmlp.diagnosis.recorder import LEVELS, Recorder
from bnmlp.diagnosis.table import COLUMNS, Table, table_of
from bnmlp.diagnosis.weights import Weights, dense, euclidean, numbers
from bnmlp.diagnosis.wrappers import dissected

HEAD = ("step", "name", "kind", "shape", "dtype")
LEFT_OUT = ("update", "participation_ratio", "isometry_gap", "output_faults", "gradient_faults",
            "weight_faults")  # fmt: skip
KEPT = tuple(name for name in COLUMNS if name not in LEFT_OUT)


def watch(
    model: nn.Module,
    every: int = 100,
    *,
    file: str | os.PathLike[str],
    level: str = "modules",
    start: int | None = None,
    scaler: Any = None,
) -> "Watch":
    """Append the rows of :func:`bnmlp.measure` to a file along a training run.

    A step is a call of the model in training mode with gradients on. At every so many, hooks record
    that step's own forward and backward pass; in between only steps are counted. Where the model is
    called several times before one backward pass, rows are those of the recorded call, and
    gradients of weights those of all. Close the watch after training, or use it in a ``with``
    statement, which also closes it after an error.

    Args:
        model: The module that is trained, or what wraps it for data parallelism.
        every: Steps from one record to the next; the first step is recorded.
        file: Where rows go: JSON lines if its name ends in ``.jsonl``, ``.ndjson`` or ``.json``,
            or else CSV. Rows are added to those of a file that is there.
        level: See :func:`bnmlp.measure`.
        start: Number of the first step; by default one record after the last in the file, or zero.
        scaler: A ``GradScaler`` that multiplies the loss; rows are unscaled.

    Returns:
        The watch, running.

    Raises:
        TypeError: If the model is no module.
        ValueError: If an option is unknown, the file holds something else or its folder does not
            exist, or the model is compiled.
    """  # noqa: DOC502
    return Watch(model, every, file, level, start, scaler)


class Watch:
    """What :func:`bnmlp.watch` returns.

    Attributes:
        file: Where rows go.
        step: Number of the next step.
        records: Steps that were written.
    """

    _idle = False

    def __init__(
        self,
        model: nn.Module,
        every: int,
        file: str | os.PathLike[str],
        level: str,
        start: int | None,
        scaler: Any,
    ) -> None:
        check_name("level", level, LEVELS)
        check_module("watch", model)
        if any(hasattr(part, "_orig_mod") or part._compiled_call_impl for part in model.modules()):
            raise ValueError(
                "watch: a compiled module calls no hooks; call bnmlp.measure at intervals instead"
            )
        self.anatomy, _, _ = dissected(model, "watch")
        self.every = whole_number("every", every)
        self.file, self.level, self.scaler = Path(file), level, scaler
        last = self._look_at_file()
        resumed = 0 if last is None else last + self.every
        self.step = resumed if start is None else whole_number("start", start, least=0)
        self._first, self.records = self.step, 0
        self._pending: _Step | None = None
        self._handle = self.anatomy.module.register_forward_pre_hook(self._enter)

    def close(self) -> None:
        """Write what is pending and take the hook away; a second call does nothing."""
        self._handle.remove()
        self._finish()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[], "Watch"], tuple[()]]:
        """A copy of the model, or a saved one, holds a watch that does nothing."""
        return _idle, ()

    def _enter(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        """Before a call of the model: write the last record, perhaps begin the next."""
        if self._idle or measuring() or not (module.training and torch.is_grad_enabled()):
            return
        step, self.step = self.step, self.step + 1
        due = (step - self._first) % self.every == 0
        if due or (self._pending is not None and not self._pending.waiting()):
            self._finish()
        if due:
            scale = float(self.scaler.get_scale()) if self.scaler is not None else 1.0
            self._pending = _Step(self.anatomy, self.level, step, scale, self._finish)

    def _finish(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        table = pending.table()
        if table is None:
            return
        try:
            self._append(table, pending.number)
            self.records += 1
        except OSError as error:
            self._handle.remove()
            warnings.warn(f"watch: stopped, cannot write {self.file}: {error}", stacklevel=2)

    def _look_at_file(self) -> int | None:
        """The last step in the file; a line that was cut off is removed, if the rest is ours."""
        if self.file.is_dir() or not self.file.parent.is_dir():
            raise ValueError(f"watch: {self.file} cannot be a file; is its folder there?")
        if not self.file.exists() or not self.file.stat().st_size:
            return None
        content = self.file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.decode("utf8", errors="replace").splitlines()
        last = self._last_step(lines) if lines else None
        if len(whole) < len(content) and (lines or content.startswith(self._start())):
            self.file.write_bytes(whole)
        elif len(whole) < len(content):
            self._refuse_file()
        return last

    def _start(self) -> bytes:
        return b'{"step"' if self._is_json() else b"step,"

    def _last_step(self, lines: list[str]) -> int | None:
        try:
            if self._is_json():
                return int(json.loads(lines[-1])["step"])
            if tuple(next(csv.reader(lines[:1]))) != (*HEAD, *KEPT):
                self._refuse_file()
            return int(next(csv.reader(lines[-1:]))[0]) if len(lines) > 1 else None
        except (ValueError, TypeError, LookupError):
            self._refuse_file()

    def _refuse_file(self) -> NoReturn:
        raise ValueError(f"watch: {self.file} holds other columns; give another file")

    def _is_json(self) -> bool:
        return self.file.suffix in (".jsonl", ".json", ".ndjson")

    def _append(self, table: Table, step: int) -> None:
        """All rows of a step in one write."""
        new = not self.file.exists() or not self.file.stat().st_size
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        if new and not self._is_json():
            writer.writerow((*HEAD, *KEPT))
        for i, name in enumerate(table.name):
            shape = "x".join(map(str, table.shape[i]))
            head = (step, name, table.kind[i], shape, table.dtype[i])
            values = [float(table[column][i]) for column in KEPT]
            if self._is_json():
                known = {k: v for k, v in zip(KEPT, values, strict=True) if math.isfinite(v)}
                text.write(json.dumps(dict(zip(HEAD, head, strict=True)) | known) + "\n")
            else:
                writer.writerow((*head, *("" if math.isnan(v) else f"{v:.9g}" for v in values)))
        with self.file.open("a", encoding="utf8", newline="") as file:
            file.write(text.getvalue())


def _idle() -> Watch:
    found = object.__new__(Watch)
    found._idle = True
    return found


class _Step:
    """Hooks for one step, from the model's call to the end of the backward pass."""

    def __init__(
        self, anatomy: Anatomy, level: str, number: int, scale: float, done: Callable[[], None]
    ) -> None:
        self.number, self.scale, self.done = number, scale, done
        self.recorder = Recorder(anatomy, level)
        self.mode = None if level in ("layers", "modules") else Functions(self.recorder)
        self.parameters = anatomy.parameters
        self.measured: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.handles: list[Any] = []
        self.returned = False
        self.recorder.attach()
        for name, p in self.parameters.items():
            if p.requires_grad:
                self.handles.append(p.register_hook(self._of(name, p)))
        self.handles.append(anatomy.module.register_forward_hook(self._leave, always_call=True))
        self.recorder.forwards = True
        if self.mode is not None:
            self.mode.__enter__()

    def waiting(self) -> bool:
        """Whether the call went well and no gradient has come yet: others may be called before."""
        return self.returned and not self.measured

    def _leave(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        """After the call, also if it failed."""
        if self.recorder.forwards:
            self.returned = output is not None
            self.recorder.forwards, self.recorder.backwards = False, True
            if self.mode is not None:
                self.mode.__exit__(None, None, None)

    def _of(self, name: str, p: nn.Parameter) -> Callable[[Tensor], None]:
        def measured(gradient: Tensor) -> None:
            if not self.measured:  # at the end of this backward pass
                torch.autograd.Variable._execution_engine.queue_callback(self.done)
            w, g = (self.recorder.wide(t.detach()) for t in (p, dense(gradient)))
            self.measured[name] = (
                euclidean(w),
                euclidean(g),
                torch.dot(w.reshape(-1), g.reshape(-1)),
            )

        return measured

    def table(self) -> Table | None:
        """What was recorded, hooks taken away; None if no gradient came."""
        rows = self.recorder.rows
        self.recorder.detach()
        for handle in self.handles:
            handle.remove()
        if not self.measured or all(row.gradient is None for row in rows):
            return None
        found = Pass(rows, {}, self.scale, torch.tensor(math.nan), "", None, careful=False)
        return table_of(found, self._weights())

    def _weights(self) -> Weights:
        names = list(self.parameters)
        values = np.full((3, len(names)), np.nan)
        index = {name: i for i, name in enumerate(names)}
        flat = [number for triple in self.measured.values() for number in triple]
        values[:, [index[name] for name in self.measured]] = numbers(flat).view(-1, 3).mT.numpy()
        return Weights(
            {id(p): index[name] for name, p in self.parameters.items()},
            names,
            np.array([p.numel() for p in self.parameters.values()]),
            values[0],
            values[1],
            values[2],
            np.zeros((2, len(names)), dtype=np.int64),
        )
