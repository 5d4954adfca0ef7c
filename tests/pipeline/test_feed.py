"""The training part as batches: what comes depends on (seed, epoch, sample) and on nothing else."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from trueport.pipeline import feed as feed_module
from trueport.pipeline.data import prepared
from trueport.pipeline.data.dataset import Dataset
from trueport.pipeline.feed import Batch, Feed
from trueport.pipeline.recipe import AugmentSection
from trueport.runtime.errors import UsageError
from trueport.runtime.manifest import Preprocessing

RGB = Preprocessing(height=12, width=10)
GREY = Preprocessing(height=9, width=9, mode="L")
ALL = AugmentSection(
    shift_px=1,
    horizontal_flip=0.5,
    vertical_flip=0.5,
    crop_scale=(0.2, 1.0),
    randaugment=1,
    erase=0.5,
    mixup=0.4,
    cutmix=1.0,
)


class Drawn(Dataset):
    """Noise of several sizes; the class is the index modulo five."""

    grey = False

    def __init__(self, count: int, size: tuple[int, int] | None = None, several: bool = False) -> None:
        ids = [f"{index:03d}.png" for index in range(count)]
        labels: Any = [index % 5 for index in range(count)]
        if several:
            labels = np.arange(count * 5).reshape(count, 5) % 3 == 0
        super().__init__("drawn", list("abcde"), ids, labels)
        self.broken: tuple[int, ...] = ()
        self._size = size

    def encoded(self, index: int) -> bytes:
        if index in self.broken:
            return b"no picture"
        chance = np.random.default_rng(index)
        height, width = self._size or chance.integers(12, 30, 2)
        file = io.BytesIO()
        Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
        return file.getvalue()


class Epoch(NamedTuple):
    images: torch.Tensor
    targets: torch.Tensor
    sizes: list[int]


def feed_of(dataset: Dataset, augment: AugmentSection, preprocessing: Preprocessing = RGB, **choices: Any) -> Feed:
    options = {"batch_size": 4, "seed": 0, "workers": 0} | choices
    return Feed(dataset, np.arange(len(dataset)), preprocessing, augment, classes=5, **options)


def together(batches: list[Batch]) -> Epoch:
    images = torch.cat([batch.images for batch in batches])
    return Epoch(images, torch.cat([batch.targets for batch in batches]), [len(batch.targets) for batch in batches])


def epoch_of(epoch: int, dataset: Dataset, augment: AugmentSection, **choices: Any) -> Epoch:
    with closing(feed_of(dataset, augment, **choices)) as feed:
        return together(list(feed.epoch(epoch)))


def same(first: Epoch, second: Epoch) -> bool:
    return torch.equal(first.images, second.images) and torch.equal(first.targets, second.targets)


def by_class(epoch: Epoch) -> torch.Tensor:
    return epoch.images[epoch.targets.argsort()]


def test_batches_hold_every_sample_once_and_the_last_is_smaller() -> None:
    dataset = Drawn(10)
    dataset.labels = np.arange(10)
    with closing(feed_of(dataset, AugmentSection())) as feed:
        assert (len(feed), feed.batches, feed.workers) == (10, 3, 0)
        batches = list(feed.epoch(1))
    found = together(batches)
    assert found.sizes == [4, 4, 2] == [batch.total for batch in batches]
    assert [batch.weight for batch in batches] == [1.0, 1.0, 1.0]
    assert sorted(found.targets.tolist()) == list(range(10))
    assert found.targets.tolist() != list(range(10))
    assert found.targets.dtype == torch.int64
    assert np.array_equal(found.images, prepared(dataset, found.targets.numpy(), RGB))


@pytest.mark.parametrize("augment", [AugmentSection(shift_px=2), AugmentSection(crop_scale=(0.2, 0.9), randaugment=1)])
def test_order_and_augmentation_follow_seed_and_epoch_alone(augment: AugmentSection) -> None:
    dataset = Drawn(5)
    first = epoch_of(1, dataset, augment)
    assert same(first, epoch_of(1, dataset, augment))
    for other in (epoch_of(2, dataset, augment), epoch_of(1, dataset, augment, seed=1)):
        assert other.targets.tolist() != first.targets.tolist()
        assert not torch.equal(by_class(other), by_class(first))
    assert torch.equal(by_class(epoch_of(1, dataset, augment, batch_size=2)), by_class(first))


@pytest.mark.parametrize("preprocessing", [RGB, GREY])
def test_the_number_of_workers_changes_nothing(preprocessing: Preprocessing) -> None:
    dataset = Drawn(11)
    choices = {"preprocessing": preprocessing}
    alone = [epoch_of(epoch, dataset, ALL, **choices) for epoch in (1, 2)]
    assert alone[0].images.shape == (11, *preprocessing.shape)
    for workers in (1, 2):
        with closing(feed_of(dataset, ALL, workers=workers, **choices)) as feed:
            assert feed.workers == workers
            torch.manual_seed(5)
            before = torch.get_rng_state()
            assert [same(together(list(feed.epoch(epoch))), alone[epoch - 1]) for epoch in (2, 1)] == [True, True]
            assert torch.equal(torch.get_rng_state(), before), "what dropout draws would depend on the workers"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_was_left_changes_nothing(workers: int) -> None:
    dataset = Drawn(24)
    with closing(feed_of(dataset, ALL, workers=workers)) as feed:
        for _ in zip(range(2), feed.epoch(1), strict=False):
            pass
        assert same(together(list(feed.epoch(2))), epoch_of(2, dataset, ALL))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("world", "batch_size", "count"), [(2, 2, 24), (2, 3, 15), (3, 1, 10), (2, 2, 9)], ids=str)
def test_ranks_share_the_batch_of_one_process(world: int, batch_size: int, count: int, several: bool) -> None:
    dataset = Drawn(count, several=several)
    with closing(feed_of(dataset, ALL, batch_size=batch_size * world)) as feed:
        whole = list(feed.epoch(1))
    feeds = [feed_of(dataset, ALL, batch_size=batch_size, rank=rank, world=world) for rank in range(world)]
    for expected, *parts in zip(whole, *(feed.epoch(1) for feed in feeds), strict=True):
        assert expected.total == len(expected.targets)
        for rank, part in enumerate(parts):
            assert part.total == expected.total
            own = expected.targets[rank::world]
            assert part.weight == float(len(own) > 0)
            if part.weight:
                assert torch.equal(part.targets, own)
                assert torch.equal(part.images, expected.images[rank::world])
            else:
                assert part.images.shape == (1, *RGB.shape)


def test_a_process_prepares_its_own_rows_and_no_others_where_batches_are_even(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    fetched = feed_module._Maker._pictures

    def counted(maker: Any, plan: Any) -> Any:
        asked.append(len(plan.rows))
        return fetched(maker, plan)

    monkeypatch.setattr(feed_module._Maker, "_pictures", counted)
    list(feed_of(Drawn(24), ALL, batch_size=4, rank=1, world=2).epoch(1))
    assert asked == [4, 4, 4]


@pytest.mark.parametrize("mixing", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_targets_of_mixed_pictures_are_shares(mixing: dict[str, float]) -> None:
    dataset = Drawn(10, size=(12, 10))
    found = epoch_of(1, dataset, AugmentSection(**mixing))  # type: ignore[arg-type]
    assert found.images.dtype == (torch.float32 if "mixup" in mixing else torch.uint8)
    assert found.targets.shape == (10, 5)
    assert torch.allclose(found.targets.sum(1), torch.ones(10))
    plain = epoch_of(1, dataset, AugmentSection())
    for place in range(8):  # each is mixed with the one half a batch further
        start, mate = place // 4 * 4, (place + 2) % 4
        low = torch.minimum(plain.images[place], plain.images[start + mate])
        high = torch.maximum(plain.images[place], plain.images[start + mate])
        assert bool(((found.images[place] >= low - 1e-3) & (found.images[place] <= high + 1e-3)).all())
        assert found.targets[place, [plain.targets[place], plain.targets[start + mate]]].min() >= 0
    assert not torch.equal(found.images, plain.images.to(found.images.dtype))


def test_several_labels_come_as_numbers() -> None:
    dataset = Drawn(7, several=True)
    found = epoch_of(1, dataset, AugmentSection())
    assert found.targets.dtype == torch.float32
    assert sorted(map(tuple, found.targets.tolist())) == sorted(map(tuple, dataset.labels.astype(float).tolist()))


def test_pictures_that_find_no_room_are_decoded_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Drawn(6)
    with_room = epoch_of(1, dataset, ALL)
    monkeypatch.setattr(feed_module, "IN_MEMORY_BYTES", 2000)
    seen: list[int] = []
    feed = feed_of(dataset, ALL, progress=seen.append)
    assert sum(seen) == 6
    assert same(together(list(feed.epoch(1))), with_room)


SENTENCE = r"2 of 8 pictures of drawn can't be used: .*00[36]\.png \(the picture is not a picture.*: repair them"


@pytest.mark.parametrize("augment", [AugmentSection(), ALL])
def test_broken_pictures_are_named_before_the_first_epoch(augment: AugmentSection) -> None:
    dataset = Drawn(8)
    dataset.broken = (3, 6)
    with pytest.raises(UsageError, match=SENTENCE):
        feed_of(dataset, augment)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_pictures_of_large_data_are_named_in_the_epoch(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "IN_MEMORY_BYTES", 0)
    dataset = Drawn(8)
    dataset.broken = (3, 6)
    with (
        closing(feed_of(dataset, ALL, batch_size=8, workers=workers)) as feed,
        pytest.raises(UsageError, match=SENTENCE) as raised,
    ):
        list(feed.epoch(1))
    assert "\n" not in str(raised.value)
    assert not multiprocessing.active_children()


def test_close_ends_the_workers_and_another_epoch_starts_them_again() -> None:
    dataset = Drawn(8)
    feed = feed_of(dataset, ALL, workers=2)
    assert not multiprocessing.active_children()
    first = together(list(feed.epoch(1)))
    assert len(multiprocessing.active_children()) == 2
    feed.close()
    assert not multiprocessing.active_children()
    assert same(together(list(feed.epoch(1))), first)
    unfinished = feed.epoch(2)
    next(unfinished)
    feed.close()
    feed.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    "error",
    [RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), ConnectionResetError(), EOFError()],
)
def test_a_worker_ended_from_outside_is_said(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = feed_of(Drawn(8), ALL, workers=2)
    monkeypatch.setattr(feed, "_made_ahead", lambda: raising(error))
    with pytest.raises(UsageError, match="one of 2 processes that prepare pictures was ended from outside"):
        list(feed.epoch(1))


def test_a_defect_in_a_worker_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = feed_of(Drawn(8), ALL, workers=2)
    monkeypatch.setattr(feed, "_made_ahead", lambda: raising(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        list(feed.epoch(1))


def raising(error: Exception) -> Iterator[Any]:
    raise error
    yield


@pytest.mark.parametrize(
    ("augment", "choices", "workers"),
    [
        (AugmentSection(shift_px=2, erase=0.5, mixup=0.2), {"workers": 3}, 0),
        (AugmentSection(randaugment=1), {"workers": 3}, 3),
        (AugmentSection(randaugment=1), {"workers": None}, 2),
        (AugmentSection(randaugment=1), {"workers": None, "batch_size": 24}, 1),
        (AugmentSection(randaugment=1), {"workers": None, "world": 4, "batch_size": 2}, 2),
        (AugmentSection(crop_scale=(0.5, 1.0)), {"workers": 0}, 0),
    ],
)
def test_workers_are_used_where_they_help(
    augment: AugmentSection, choices: dict[str, Any], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "available_cores", lambda: 8 if "world" in choices else 2)
    assert feed_of(Drawn(24), augment, **choices).workers == workers


def test_workers_are_fewer_where_processes_share_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    batch = 4 * 12 * 10 * 3 * 3  # bytes, of a batch at work and two ahead
    for free, expected in ((batch * 9, 6), (batch * 2, 2), (batch - 1, 0)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: Usage(free))
        assert feed_of(Drawn(24), AugmentSection(randaugment=1), workers=6).workers == expected


def test_a_rank_outside_the_world_is_refused() -> None:
    with pytest.raises(UsageError, match="expected a rank from 0 to 1 of 2 processes, found 2"):
        feed_of(Drawn(4), AugmentSection(), rank=2, world=2)


INTERRUPTED = """
    import os, signal, sys, time
    import numpy as np
    sys.path.insert(0, sys.argv[1])
    from test_feed import ALL, Drawn, feed_of
    feed = feed_of(Drawn(400), ALL, batch_size=1, workers=2)
    try:
        for number, batch in enumerate(feed.epoch(1)):
            if number == 5:
                print(*[child.pid for child in __import__("multiprocessing").active_children()], flush=True)
            time.sleep(0.01)
    except KeyboardInterrupt:
        feed.close()
        print("interrupted", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX")
def test_an_interrupt_ends_the_workers_in_silence() -> None:
    command = [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(Path(__file__).parent)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdout is not None
        workers = [int(pid) for pid in child.stdout.readline().split()]
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
        output, errors = child.communicate(timeout=60)
    assert output == "interrupted\n"
    assert errors == ""
    assert child.returncode == 0
    assert len(workers) == 2
    time.sleep(0.1)
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
