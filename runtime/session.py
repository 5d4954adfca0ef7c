"""What an application holds: a runner, the preprocessing, the labels and the batcher of one bundle.

session = trueport.runtime.load("digits.bundle")
session.run(batch)            uint8 (N, H, W, C) -> float32 (N, K)
session.classify(pictures)    paths, bytes, PIL images or arrays -> predictions
session.submit(picture)       a Future, answered in a batch with whatever else is waiting
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from . import preprocessing, tuned
from .batcher import UNKNOWN, Batcher
from .batching import BatchLimits, LatencyCurve
from .bundle import Bundle
from .errors import ClosedError, DeadlineError, InvalidRequestError, MissingError, OverloadedError, UsageError
from .machine import available_cores
from .manifest import Manifest, Variant
from .runner import Array, Runner, RunnerOptions, RunnerReport
from .runners import DEFAULT, open_runner
from .scores import finite, scores_from_logits

if TYPE_CHECKING:
    from .preprocessing import Picture
    from .server import App
    from .tuned import Choice, Prefer


SHORT_RUN_S = 0.001
"""Runs that take no longer may hold up an event loop: handing them to another thread and back would take as long."""
MOST_UNDECODED = 1024
"""Pictures that `asubmit` takes in before they are decoded; each holds its encoded bytes."""
FIRST_GUESS_S = 0.01
"""What decoding a picture is taken to cost before one has been decoded."""


class Score(msgspec.Struct, frozen=True):
    """One class and how sure the model is of it."""

    label: str
    index: int
    score: float
    """0 to 1: the softmax of the logits; for a multilabel model the sigmoid of its own logit, so they don't add up."""


class Prediction(msgspec.Struct, frozen=True):
    """What the model says about one picture."""

    top: tuple[Score, ...]
    """Best first; of a multilabel model too, whatever their scores: see `above`."""

    def above(self, threshold: float = 0.5) -> tuple[Score, ...]:
        """Those of `top` with a larger score: what a multilabel model says is in the picture."""
        return tuple(score for score in self.top if score.score > threshold)

    @property
    def label(self) -> str:
        """Of the best class."""
        return self.top[0].label

    @property
    def index(self) -> int:
        """Of the best class."""
        return self.top[0].index

    @property
    def score(self) -> float:
        """Of the best class."""
        return self.top[0].score


def load(
    path: str | Path,
    *,
    variant: str | None = None,
    runner: str | None = None,
    threads: int | None = None,
    limits: BatchLimits | None = None,
    prefer: Prefer = "throughput",
    spinning: bool = True,
) -> Session:
    """Open a bundle, verify all of it, and make it ready to answer.

    variant: by its name in the bundle; runner: by its name in `runners.RUNNERS`; threads: of one inference. What is
    given is used or refused, never replaced by another. Where none of the three is, it is what `trueport tune` found
    to be fastest on this machine; else the bundle's first variant on `onnxruntime:cpu`, one thread for each core that
    this process may use. `Session.chosen` says which, and why.
    prefer: of what was found, most images a second or the fastest answer to a single picture.
    spinning: whether what was found may let threads burn their cores between runs; a server takes them from others.
    limits: of the batcher; None: the batch that was found to be best, else those of `BatchLimits`.
    Raises UsageError, MissingError or BundleError as the tree in `trueport.runtime.errors` has them.
    """
    if prefer not in ("throughput", "latency"):
        raise UsageError(f"prefer must be 'throughput' or 'latency', found {prefer!r}")
    bundle = Bundle.open(path)
    why = _AS_ASKED
    if variant is None and runner is None and threads is None:
        choice, found, why = tuned.find_choice(bundle, prefer, spinning=spinning)
        if choice and found:
            session = _tuned_session(bundle, choice, f"tuned on {found.tuned_at[:10]} for this machine", limits)
            if isinstance(session, Session):
                return session
            why = session
    opened = open_runner(bundle, runner or DEFAULT, variant, RunnerOptions(threads=threads))
    used, report = bundle.variant(variant), opened.report()
    what = tuned.described(used.name, report.name, RunnerOptions(threads=report.threads))
    return Session(bundle, used, opened, limits, chosen=_chosen(what, why))


_AS_ASKED = "as asked"


def _tuned_session(bundle: Bundle, choice: Choice, found: str, limits: BatchLimits | None) -> Session | str:
    """The session of a tuned choice, or why this machine can't open it any more."""
    try:
        opened = open_runner(bundle, choice.runner, choice.variant, choice.options)
    except (MissingError, UsageError) as error:
        return str(error)
    rows = choice.max_batch_rows
    limits = limits or BatchLimits(
        max_batch_rows=rows,
        max_queue_rows=max(rows, BatchLimits.max_queue_rows),
        max_request_rows=max(rows, BatchLimits.max_batch_rows),  # what clients may send is not for tuning to narrow
    )
    chosen = f"{found}: {choice.described()}, batches of up to {limits.max_batch_rows}"
    return Session(bundle, bundle.variant(choice.variant), opened, limits, curve=choice.latency_curve(), chosen=chosen)


def _chosen(what: str, why: str) -> str:
    """Why it is not a tuned choice. why: what kept one from being used; empty where there is none."""
    if why == _AS_ASKED:
        return f"{_AS_ASKED}: {what}"
    if not why:
        return f"default: {what}; no tuned choice: `trueport tune` finds one"
    return f"default: {what}; the tuned choice is not used: {why}; `trueport tune` finds one anew"


class Session:
    """A model that answers. Made by `load`; safe to use from several threads; close it or use it in a `with`."""

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        runner: Runner,
        limits: BatchLimits | None = None,
        *,
        curve: LatencyCurve = UNKNOWN,
        chosen: str = "",
    ) -> None:
        self.bundle = bundle
        self.variant = variant
        self.runner = runner
        self.chosen = chosen
        """Which variant on which runner, and why, in a sentence."""
        self._run = runner.run
        # A processor comes to an end with what it has begun; a GPU or its driver may not, and no loop must wait for it.
        short_s = SHORT_RUN_S if runner.report().device == "cpu" else 0.0
        self.batcher = Batcher(self._outputs, limits or BatchLimits(), curve=curve, short_s=short_s)
        self._input, self._output = bundle.manifest.inputs[0].name, bundle.manifest.outputs[0].name
        self._row_shape = bundle.manifest.preprocessing.shape
        self._cores = available_cores()
        self._decoders = ThreadPoolExecutor(self._cores, thread_name_prefix="trueport-decode")
        self._undecoded = threading.Semaphore(MOST_UNDECODED)
        self._decode_s = FIRST_GUESS_S
        self._closing = threading.Lock()
        self._closed = False
        self.run(np.zeros((1, *self._row_shape), np.uint8))  # what a first run allocates, no request has to wait for

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""
        return self.bundle.manifest

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names by index."""
        return self.bundle.manifest.labels

    @property
    def closed(self) -> bool:
        """True from the moment that `close` is called: nothing more is accepted."""
        return self._closed

    @property
    def report(self) -> RunnerReport:
        """What really runs: provider, device, threads, versions."""
        return self.runner.report()

    def run(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits (N, K) of prepared pictures uint8 (N, H, W, C), at once and in the caller's thread.

        They are what the runner answers, NaN and infinity too, which are no answers for `classify` and `submit`.
        Raises InvalidRequestError for another type or shape, ClosedError after `close`.
        """
        try:
            if len(batch):
                return self._run({self._input: batch})[self._output]
        except Exception:  # the runner's own check: looking first would cost every call what only a wrong one needs
            if self._fits(batch):
                raise
        raise InvalidRequestError(self._expected(batch))

    def classify(self, pictures: Picture | Iterable[Picture], top: int = 5) -> list[Prediction]:
        """The best classes of one picture or of several: paths, encoded bytes, PIL images or uint8 arrays (H, W, C).

        Raises ImageError for the first picture that can't be decoded (`prepare` tries them one by one), OutputError
        where the model answers one with NaN or infinity, ClosedError.
        """
        sources = _listed(pictures)
        size = self.batcher.limits.max_batch_rows
        predictions: list[Prediction] = []
        for start in range(0, len(sources), size):
            decoding = [self._decoding(source) for source in sources[start : start + size]]
            logits = self.run(np.stack([row.result() for row in decoding]))
            predictions += self.predictions(finite({self._output: logits})[self._output], top)
        return predictions

    def submit(self, picture: Picture, *, deadline_ms: float | None = None, priority: int = 0) -> Future[Prediction]:
        """Classify one picture in a batch with whatever else is waiting; decoding happens in the caller's thread.

        deadline_ms: from now, decoding counts; a request that can't meet it is refused. priority: higher goes first.
        Raises ImageError, OverloadedError, DeadlineError (at once where decoding has taken all of the time, else by the
        future, which may hold OutputError too) or ClosedError.
        """
        end_s = _end_s(deadline_ms)
        rows = self.prepare(picture)[np.newaxis]
        answered = self.batcher.submit(rows, deadline_s=_remaining_s(end_s), priority=priority)
        return _mapped(answered, self._first_prediction)

    async def asubmit(self, picture: Picture, *, deadline_ms: float | None = None, priority: int = 0) -> Prediction:
        """`submit` for asyncio: decoding happens in a thread, the event loop is never held up.

        At most 1024 pictures (`MOST_UNDECODED`) of a session wait to be decoded, or are being; one more is refused with
        OverloadedError.
        """
        import asyncio

        end_s = _end_s(deadline_ms)
        rows = await asyncio.wrap_future(self._decoding_if_room(picture, end_s))
        outputs = await self.batcher.asubmit(rows[np.newaxis], deadline_s=_remaining_s(end_s), priority=priority)
        return self._first_prediction(outputs)

    def asgi_app(self, *, gate: bool = True) -> App:
        """The server as an ASGI application, to mount in another one or to give to any ASGI server.

        gate: replay the golden set first, here and now, as `serve` does; raises GateError where it does not pass.
        """
        from .server import App, require_golden

        return App([self], gate=require_golden if gate else None)

    def prepare(self, picture: Picture) -> NDArray[np.uint8]:
        """Uint8 (H, W, C) of one picture, as `run` takes it. Raises ImageError."""
        return preprocessing.prepare(picture, self.bundle.manifest.preprocessing)

    def predictions(self, logits: NDArray[Any], top: int = 5) -> list[Prediction]:
        """The best `top` classes of each row of logits (N, K)."""
        if top < 1:
            raise UsageError(f"top must be at least 1, found {top}")
        scores = scores_from_logits(logits, self.manifest.task)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
        return [
            Prediction(tuple(Score(self.labels[i], int(i), float(row[i])) for i in order))
            for row, order in zip(scores, best, strict=True)
        ]

    def close(self, timeout_s: float | None = None) -> None:
        """Answer what was accepted, then free the runner. Closing twice is fine.

        timeout_s: after which what still waits fails with ClosedError, and a run in progress is left to itself.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self.batcher.close(timeout_s=timeout_s)
        self._decoders.shutdown()
        self.runner.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decoding(self, picture: Picture, end_s: float | None = None) -> Future[NDArray[np.uint8]]:
        held = [picture]
        try:
            decoding = self._decoders.submit(self._decoded, held, end_s)
        except RuntimeError as error:  # the pool's word for being shut down
            raise ClosedError(_CLOSED) from error
        decoding.add_done_callback(lambda _: held.clear())  # the pool goes on knowing those that were cancelled
        return decoding

    def _decoding_if_room(self, picture: Picture, end_s: float | None) -> Future[NDArray[np.uint8]]:
        """`_decoding` for those who bring the next picture while this one waits. Raises OverloadedError."""
        if not self._undecoded.acquire(blocking=False):
            wait_s = self._decode_s / self._cores
            raise OverloadedError(f"too many pictures wait to be decoded: try again in {wait_s * 1e3:.4g} ms", wait_s)
        try:
            decoding = self._decoding(picture, end_s)
        except ClosedError:
            self._undecoded.release()
            raise
        decoding.add_done_callback(lambda _: self._undecoded.release())
        return decoding

    def _decoded(self, held: Sequence[Picture], end_s: float | None) -> NDArray[np.uint8]:
        """Raises ImageError; DeadlineError where the time is over before it begins."""
        _remaining_s(end_s)
        begun_s = time.monotonic()
        try:
            return self.prepare(held[0])
        finally:
            self._decode_s += 0.2 * (time.monotonic() - begun_s - self._decode_s)

    def _outputs(self, rows: Array) -> dict[str, Array]:
        return finite(self.runner.run({self._input: rows}))

    def _first_prediction(self, outputs: dict[str, Array]) -> Prediction:
        return self.predictions(outputs[self._output])[0]

    def _fits(self, batch: object) -> bool:
        return isinstance(batch, np.ndarray) and batch.dtype == np.uint8 and batch.shape[1:] == self._row_shape

    def _expected(self, batch: object) -> str:
        height, width, channels = self._row_shape
        found = f"{batch.dtype} {batch.shape}" if isinstance(batch, np.ndarray) else type(batch).__name__
        return f"expected a uint8 array (N, {height}, {width}, {channels}) with N at least 1, found {found}"


_CLOSED = "the session is closed: load the bundle again"


def _end_s(deadline_ms: float | None) -> float | None:
    """When it is over, by time.monotonic; None: never."""
    if deadline_ms is None:
        return None
    if not deadline_ms > 0:
        raise InvalidRequestError(f"deadline_ms must be milliseconds from now, above 0, found {deadline_ms}")
    return time.monotonic() + deadline_ms / 1000


def _remaining_s(end_s: float | None) -> float | None:
    """Seconds until then, above 0. Raises DeadlineError where there are none."""
    if end_s is None:
        return None
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        raise DeadlineError("the deadline passed before the picture was decoded: send less, or allow more time")
    return left_s


def _listed(pictures: Picture | Iterable[Picture]) -> list[Picture]:
    """One picture or several, as a list; an array of four axes is several."""
    if isinstance(pictures, np.ndarray):
        return list(pictures) if pictures.ndim == 4 else [pictures]
    if isinstance(pictures, str | bytes | bytearray | memoryview) or not isinstance(pictures, Iterable):
        return [pictures]
    return list(pictures)


def _mapped(source: Future[dict[str, Array]], convert: Callable[[dict[str, Array]], Prediction]) -> Future[Prediction]:
    """A future of the converted result; cancelling it cancels its source."""
    target: Future[Prediction] = Future()

    def finish(done: Future[dict[str, Array]]) -> None:
        if done.cancelled():
            target.cancel()
        if not target.set_running_or_notify_cancel():
            return
        try:
            prediction = convert(done.result())
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the one who asked
            target.set_exception(error)
        else:
            target.set_result(prediction)

    source.add_done_callback(finish)
    target.add_done_callback(lambda done: source.cancel() if done.cancelled() else None)
    return target
