"""A stream gives what the map-style dataset gives: each row once an epoch, over any processes and workers, bit for bit."""

import copy
import itertools
import json
import multiprocessing
import pickle  # noqa: TID251 - how copies reach a process
import re
import shutil
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CLASSES, as_cell, colour_image
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback_hub import Fault, LoopbackHub
from samples import rewritten

import hf_dr.hub.retry
from hf_dr.errors import ConfigError, DataError, FormatError, HubError, ReplayError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.epoch import SharedEpoch
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.names import DIFFICULTIES
from hf_dr.replay.sampling import ReinforcedSampler
from hf_dr.replay.streamed_base import StreamedBase
from hf_dr.replay.streamed_shards import StreamedShards
from hf_dr.replay.streaming import StreamedReinforcedDataset
from hf_dr.replay.view_requests import fresh_view
from hf_dr.store.configs import find_config
from hf_dr.store.provenance import Provenance
from hf_dr.training.loader import ReinforcedLoader
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.device.augment import DeviceAugmentation
from hf_dr.views.device.packing import UndoneBatch
from hf_dr.views.ops.geometry import RandomHorizontalFlip, RandomResizedCrop
from hf_dr.views.ops.mixing import MixUp

ROWS, VIEWS, SHARD = 23, 3, 5
BAD = (1, 7, 20, 21, 22)  # the last shard has nothing else
PLAIN = Augmentation([RandomResizedCrop(8), RandomHorizontalFlip()])
MIXING = Augmentation([RandomResizedCrop(8), MixUp(p=1.0)])

Index = tuple[int, int]


@pytest.fixture(scope="module")
def base() -> datasets.Dataset:
    """23 images, some of them broken."""
    rng = np.random.default_rng(3)
    labels = [n % len(CLASSES) for n in range(ROWS)]
    cells = [as_cell(colour_image(rng, label, (12, 10))) for label in labels]
    cells = [{"bytes": b"broken", "path": None} if n in BAD else cell for n, cell in enumerate(cells)]
    columns = {"image": cells, "label": labels, "name": [f"image {n}" for n in range(ROWS)]}
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(CLASSES)),
        "name": datasets.Value("string"),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features), split="train")


@pytest.fixture(scope="module")
def make(tmp_path_factory, tiny_teacher, base) -> Callable[..., Path]:
    """Returns `make(augmentation, **settings)`: the configuration's folder, made once."""
    made: dict[str, Path] = {}

    def make(augmentation: Augmentation, base: datasets.Dataset = base, **settings) -> Path:
        key = f"{augmentation.to_list()} {settings} {base._fingerprint}"
        if key not in made:
            folder = tmp_path_factory.mktemp("plus")
            config = {
                "num_views": VIEWS,
                "top_k": 3,
                "shard_size": SHARD,
                "on_bad_image": "skip",
                "mixing_scope": "shard",
            }
            reinforce(base, tiny_teacher, augmentation, ReinforceConfig(str(folder), **{**config, **settings}))
            made[key] = find_config(folder)
        return made[key]

    return make


@pytest.fixture(scope="module", params=["plain", "mixing"])
def config(request, make) -> Path:
    return make(PLAIN if request.param == "plain" else MIXING)


def stream_of(config: Path, **settings) -> StreamedReinforcedDataset:
    provenance = Provenance.read(config)
    shuffled = settings.pop("shuffled_shards", 1)
    shards = StreamedShards([str(config / name) for name in provenance.shard_names], provenance, **settings)
    return StreamedReinforcedDataset([shards], shuffled_shards=shuffled)


def mapped(config: Path, **settings) -> ReinforcedDataset:
    """The same dataset, map-style."""
    provenance = Provenance.read(config)
    tables = [pq.read_table(config / name) for name in provenance.shard_names]
    return ReinforcedDataset(datasets.Dataset(pa.concat_tables(tables)), provenance, **settings)


def known(dataset: ReinforcedDataset) -> dict[bytes, Index]:
    """Pixels -> (row, view) of all that is stored."""
    views = itertools.product(range(len(dataset)), range(dataset.num_views))
    found = {dataset[index]["pixel_values"].numpy().tobytes(): index for index in views}
    assert len(found) == len(dataset) * dataset.num_views, "views must differ for these tests"
    return found


def seen(items, views: dict[bytes, Index]) -> list[Index]:
    """The row and view of each item."""
    return [views[item["pixel_values"].numpy().tobytes()] for item in items]


def expected(dataset: ReinforcedDataset, epoch: int) -> list[Index]:
    """The row and view of each row in an epoch, by the map-style dataset."""
    return list(enumerate(dataset.scheduled_views(np.arange(len(dataset)), epoch).tolist()))


class _Workers:
    """Workers of a loader, one after the other in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, stream: StreamedReinforcedDataset, count: int) -> list[list[dict]]:
        items = []
        for worker in range(count):
            info = SimpleNamespace(id=worker, num_workers=count)
            self._monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda info=info: info)
            items.append(list(stream))
        return items


# ---------------------------------------------------------------------------------------------------------- the items


def test_an_epoch_is_that_of_the_map_style_dataset(config):
    dataset, stream = mapped(config), stream_of(config)
    views, orders = known(dataset), []
    assert len(stream) == len(dataset) == ROWS - len(BAD)
    for epoch in range(2 * VIEWS):
        stream.set_epoch(epoch)
        items = list(stream)
        indices = seen(items, views)
        assert sorted(indices) == expected(dataset, epoch)
        for item, index in zip(items, indices, strict=True):
            same = dataset[index]
            assert item.keys() == same.keys()
            assert item["labels"] == same["labels"]
            assert all(torch.equal(item[name], same[name]) for name in ("teacher_ids", "teacher_logprobs"))
        orders.append([row for row, _ in indices])
    assert len(set(map(tuple, orders))) == len(orders), "each epoch has its own order"
    assert seen(stream, views) == indices, "and the same one again"


def test_a_shard_is_finished_before_the_next(make):
    config = make(PLAIN)
    dataset = mapped(config)
    views = known(dataset)
    shards = [dataset.source_rows[row] // SHARD for row, _ in seen(stream_of(config), views)]
    assert len(list(itertools.groupby(shards))) == len(set(shards)) == 4, "the fifth has no row that is reinforced"
    together = [dataset.source_rows[row] // SHARD for row, _ in seen(stream_of(config, shuffled_shards=9), views)]
    assert sorted(together) == sorted(shards)
    assert len(list(itertools.groupby(together))) > 8


def test_settings_are_those_of_the_map_style_dataset(make):
    config = make(PLAIN)
    chosen = {"num_views": 2, "seed": 7, "columns": ("name",)}
    dataset, stream = mapped(config, **chosen), stream_of(config, **chosen)
    assert (stream.num_views, stream.class_names, stream.has_labels) == (2, list(CLASSES), True)
    assert stream.fingerprint == dataset.fingerprint
    views = known(dataset)
    for epoch in range(3):
        stream.set_epoch(epoch)
        items = list(stream)
        indices = seen(items, views)
        assert sorted(indices) == expected(dataset, epoch)
        assert [item["name"] for item in items] == [f"image {dataset.source_rows[row]}" for row, _ in indices]


def test_an_overlay_finds_its_images_in_a_base_in_any_order(make, base):
    whole, overlay = make(MIXING), make(MIXING, overlay=True)
    shuffled = base.shuffle(seed=1)
    items = list(stream_of(overlay, base=shuffled))
    assert sorted(seen(items, known(mapped(whole)))) == expected(mapped(whole), 0)


def test_fresh_views_are_those_of_the_map_style_dataset(config):
    dataset, stream = mapped(config), stream_of(config)
    stream = stream.ordered(seed=4, reinforced_probability=0.5)
    stored, fresh = known(dataset), 0
    for epoch in range(4):
        drawn = {dataset[row, fresh_view(epoch)]["pixel_values"].numpy().tobytes(): row for row in range(len(dataset))}
        stream.set_epoch(epoch)
        rows = []
        for item in stream:
            pixels = item["pixel_values"].numpy().tobytes()
            rows.append(stored[pixels][0] if item["reinforced"] else drawn[pixels])
            fresh += not item["reinforced"]
        assert sorted(rows) == list(range(len(dataset)))
    assert 18 < fresh < 54  # of 72; four standard errors


def test_random_views(config):
    dataset = mapped(config)
    views, stream = known(dataset), stream_of(config).ordered(view_order="random")
    counts: Counter[Index] = Counter()
    for epoch in range(VIEWS):
        stream.set_epoch(epoch)
        indices = seen(stream, views)
        assert sorted(row for row, _ in indices) == list(range(len(dataset)))
        counts.update(indices)
    assert max(counts.values()) > 1, "views may repeat"


@pytest.mark.parametrize("by", DIFFICULTIES)
def test_views_by_difficulty_are_those_of_the_map_style_dataset(make, by):
    config = make(PLAIN)
    dataset = mapped(config, seed=2)
    views = known(dataset)
    settings = {"view_order": "easy_first", "view_difficulty": by, "num_epochs": 2}
    stream, sampler = stream_of(config, seed=2).ordered(**settings), ReinforcedSampler(dataset, **settings)
    for epoch in range(2):
        stream.set_epoch(epoch)
        sampler.set_epoch(epoch)
        assert sorted(seen(stream, views)) == sorted((row, dataset.resolved(row, view)) for row, view in sampler)


def test_mixed_views_are_not_streamed_by_difficulty(make):
    with pytest.raises(
        ConfigError, match="`view_order` must be all or random for a dataset that mixes, got easy_first"
    ):
        stream_of(make(MIXING)).ordered(view_order="easy_first", num_epochs=3)


def test_the_order_has_its_own_seed(config):
    views = known(mapped(config))
    orders = [seen(stream_of(config).ordered(seed=seed), views) for seed in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


# ---------------------------------------------------------------------------------------------- processes and workers


@pytest.mark.parametrize("even", [False, True])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8)
@given(
    world_size=st.integers(1, 20), workers=st.integers(0, 6), batch_size=st.integers(1, 6), shuffled=st.integers(1, 3),
    epoch=st.integers(0, 9),
)  # fmt: skip
def test_nothing_is_lost_or_seen_twice(make, monkeypatch, even, world_size, workers, batch_size, shuffled, epoch):
    config = make(MIXING)
    dataset = mapped(config)
    views = known(dataset)
    with monkeypatch.context() as patch:
        run = _Workers(patch)
        indices, sizes = [], []
        for rank in range(world_size):
            share = stream_of(config, shuffled_shards=shuffled)
            share = share.split_by_node(rank, world_size, batch_size=batch_size, even=even)
            share.set_epoch(epoch)
            parts = run(share, workers) if workers else [list(share)]
            sizes.append(sum(map(len, parts)))
            assert len(share) == sizes[-1]
            assert sum(-(-len(part) // batch_size) for part in parts) == -(-len(share) // batch_size), "whole batches"
            indices += [index for part in parts for index in seen(part, views)]
    assert sorted(set(indices)) == expected(dataset, epoch)
    if even:
        assert len(set(sizes)) == 1
        assert len(indices) - len(dataset) == -len(dataset) % world_size
    else:
        assert len(indices) == len(dataset)
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize(("workers", "method"), [(2, "fork"), (7, "fork"), (1, "forkserver")])
def test_workers_of_a_loader(make, workers, method):
    """Two epochs of persistent workers: `set_epoch` reaches them."""
    config = make(MIXING)
    dataset = mapped(config)
    views = known(dataset)
    seen(stream_of(config), views)  # threads and files of the parent must not trouble a child
    share = stream_of(config).split_by_node(0, 1, batch_size=4)
    context = multiprocessing.get_context(method)
    loader = torch.utils.data.DataLoader(
        share, batch_size=4, num_workers=workers, persistent_workers=True, multiprocessing_context=context
    )
    alone = torch.utils.data.DataLoader(share, batch_size=4)
    for epoch in (5, 0):
        share.set_epoch(epoch)
        batches = [tuple(seen([{"pixel_values": p} for p in batch["pixel_values"]], views)) for batch in loader]
        assert len(loader) == len(batches) == 5
        assert sorted(itertools.chain(*batches)) == expected(dataset, epoch)
        same = [tuple(seen([{"pixel_values": p} for p in batch["pixel_values"]], views)) for batch in alone]
        assert sorted(batches) == sorted(same), "batches do not depend on the workers"


def test_a_copy_has_an_epoch_of_its_own(make):
    stream = stream_of(make(PLAIN))
    share = stream.split_by_node(0, 2)
    share.set_epoch(3)
    assert (stream.epoch, share.epoch) == (0, 3)
    copied = copy.deepcopy(share)
    read = pickle.loads(pickle.dumps(share._epoch))  # as it comes out of a file
    share.set_epoch(4)
    assert (int(copied._epoch), int(read)) == (3, 3)


def test_forked_and_spawned_processes_see_the_epoch_change_together():
    # In one test, because a spawned process imports everything again.
    epochs = [SharedEpoch(2), pickle.loads(pickle.dumps(SharedEpoch(2))), copy.copy(SharedEpoch(2))]
    pipes, processes = [], []
    for method in ("fork", "spawn", "fork"):
        context = multiprocessing.get_context(method)
        here, there = context.Pipe()
        processes.append(context.Process(target=_tell_epochs, args=(epochs, there), daemon=True))
        processes[-1].start()
        pipes.append(here)
    for values in ([2, 2, 2], [3, 4, 5], [1, 0, 7]):
        for epoch, value in zip(epochs, values, strict=True):
            epoch.set(value)
        for pipe in pipes:
            pipe.send(None)
        assert [pipe.recv() for pipe in pipes] == [values] * 3
    for process in processes:
        process.join()


def _tell_epochs(epochs, pipe):
    for _ in range(3):
        pipe.recv()
        pipe.send([int(epoch) for epoch in epochs])


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files cannot be counted here")
def test_epochs_hold_no_files():
    """A dataset for each of a thousand classes would reach the limit."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    epochs = [SharedEpoch(n) for n in range(100)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert [int(epoch) for epoch in epochs] == list(range(100))


def test_an_epoch_that_goes_on_keeps_its_order(make):
    stream = stream_of(make(PLAIN)).ordered(seed=3)
    share = stream.split_by_node(0, 1)
    items = iter(share)
    next(items)
    goes_on = stream.resumed(share.progress(1))
    with pytest.raises(
        ConfigError,
        match=r"`ordered` must come before `resumed`: .* as it was begun, with {'seed': 3}, got {'seed': 0}",
    ):
        goes_on.ordered()
    assert goes_on.ordered(seed=3).split_by_node(0, 1).progress(0) == goes_on.split_by_node(0, 1).progress(0)


# ----------------------------------------------------------------------------------------------------------- going on


def batches_in_turn(parts: list[list], size: int) -> list[list]:
    """The batches of a loader: those of its workers in turn, as long as they have some."""
    queues = [[part[at : at + size] for at in range(0, len(part), size)] for part in parts]
    given = []
    while any(queues):
        given += [queue.pop(0) for queue in queues if queue]
    return given


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(
    shard_size=st.sampled_from([2, 5, ROWS]), shuffled=st.integers(1, 3), epoch=st.integers(0, 9), stop=st.integers(0, 6),
    world_size=st.integers(1, 4), workers=st.integers(1, 3), batch_size=st.integers(1, 4),
    others=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4)),
)  # fmt: skip
def test_an_epoch_goes_on_with_what_was_not_seen(
    make, monkeypatch, decoded, shard_size, shuffled, epoch, stop, world_size, workers, batch_size, others
):
    config = make(PLAIN, shard_size=shard_size)
    dataset = mapped(config)
    views = known(dataset)
    whole = stream_of(config, shuffled_shards=shuffled).ordered(seed=2, reinforced_probability=1.0)
    whole.set_epoch(epoch)
    with monkeypatch.context() as patch:
        run = _Workers(patch)

        def all_batches(stream: StreamedReinforcedDataset, ranks: int, workers: int, size: int) -> list[list]:
            shares = [stream.split_by_node(rank, ranks, batch_size=size) for rank in range(ranks)]
            return [batches_in_turn(run(share, workers), size) for share in shares]

        given_before = all_batches(whole, world_size, workers, batch_size)
        share = whole.split_by_node(0, world_size, batch_size=batch_size)
        progress = json.loads(json.dumps(share.progress(stop, num_workers=workers)))
        stream = stream_of(config, shuffled_shards=shuffled).ordered(seed=2, reinforced_probability=1.0)
        stream = stream.resumed(progress)
        stream.set_epoch(epoch)
        # The same ones have the same batches.
        left = all_batches(stream, world_size, workers, batch_size)
        for before, after in zip(given_before, left, strict=True):
            assert [seen(batch, views) for batch in before[stop:]] == [seen(batch, views) for batch in after]
        # Others have the rest, and read nothing else.
        decoded.clear()
        read: list[int] = []
        read_shard = StreamedShards._read_shard
        patch.setattr(StreamedShards, "_read_shard", lambda self, n: (read.append(n), read_shard(self, n))[1])
        items = [item for batches in all_batches(stream, *others) for batch in batches for item in batch]
        assert len(decoded) == len(items)
        shares = [stream.split_by_node(rank, others[0], batch_size=others[2]) for rank in range(others[0])]
        assert sum(map(len, shares)) == len(items), "the length is that of what is left"
    before = [index for batches in given_before for batch in batches[:stop] for index in seen(batch, views)]
    after = seen(items, views)
    assert sorted(before + after) == expected(dataset, epoch)
    wanted = {int(dataset.source_rows[row]) // shard_size for row, _ in after}
    if shuffled == 1:
        assert set(read) == wanted
    stream.set_epoch(epoch + 1)
    assert sorted(seen(stream, views)) == expected(dataset, epoch + 1), "other epochs are whole"


def test_pairs_that_go_on_are_decoded_once(make, decoded):
    stream = stream_of(make(MIXING)).split_by_node(0, 1, batch_size=4)
    before = list(itertools.islice(stream, 8))
    decoded.clear()
    after = list(stream_of(make(MIXING)).resumed(stream.progress(2)).split_by_node(0, 1, batch_size=4))
    assert sorted(seen(before + after, known(mapped(make(MIXING))))) == expected(mapped(make(MIXING)), 0)


def test_a_stream_that_is_resumed_is_in_the_epoch_that_was_left(make):
    data = make(PLAIN)
    left = stream_of(data).split_by_node(0, 1, batch_size=4)
    left.set_epoch(2)
    before = list(itertools.islice(left, 8))
    resumed = stream_of(data).resumed(left.progress(2))
    assert resumed.epoch == 2
    loader = ReinforcedLoader(resumed, 4)
    assert loader.epoch == 2
    assert ReinforcedLoader(stream_of(data), 4).epoch == 0
    after = list(resumed.split_by_node(0, 1, batch_size=4))
    assert sorted(seen(before + after, known(mapped(data)))) == expected(mapped(data), 2)
    assert sum(len(batch["labels"]) for batch in loader) == len(after)
    assert loader.epoch == 3


def test_progress_of_numbers_of_numpy_is_json(make):
    def progress(number):
        stream = stream_of(make(PLAIN), shuffled_shards=number(2)).ordered(seed=number(3))
        share = stream.split_by_node(number(1), number(2), batch_size=number(2), even=np.bool_(True))
        share.set_epoch(number(4))
        return share.progress(number(1), num_workers=number(2))

    assert json.loads(json.dumps(progress(np.int64))) == progress(int)


def test_progress_of_an_impossible_number_of_workers(make):
    for workers in (-1, "2", 1.0):
        with pytest.raises(ConfigError, match="`num_workers` must be a whole number of at least 0, got"):
            stream_of(make(PLAIN)).progress(1, num_workers=workers)
    with pytest.raises(
        ConfigError, match=r"which knows how many rows a batch has, got the whole stream\. Ask what `split_"
    ):
        stream_of(make(PLAIN)).progress(1)


def test_progress_of_another_stream(make):
    stream = stream_of(make(PLAIN))
    progress = stream.split_by_node(0, 1).progress(3)
    for other, name in (
        (stream_of(make(MIXING)), "fingerprint"),
        (stream_of(make(PLAIN), shuffled_shards=2), "shuffled_shards"),
        (stream.ordered(seed=1), "seed"),
    ):
        with pytest.raises(
            ConfigError, match=f"must go on in its own order, but the progress is one of another {name}"
        ):
            other.resumed(progress)
    own = stream.ordered(seed=1, view_order="all")
    with pytest.raises(ConfigError, match=r"another seed, view_order: .* such as its `seed`, by `ordered`, before"):
        stream.resumed(own.split_by_node(0, 1).progress(3))
    with pytest.raises(ConfigError, match=r"its rows are known already\. Call `resumed` before `split_by_node`"):
        stream.split_by_node(0, 2).resumed(progress)
    with pytest.raises(FormatError, match=r"`epoch` in the progress of a stream must be .*, found '0'"):
        stream.resumed({**progress, "epoch": "0"})


# ----------------------------------------------------------------------------------------------- several, and their bases


@pytest.fixture(scope="module")
def base_file(base, tmp_path_factory) -> Path:
    """The base as Parquet files of several row groups, which are not cut where shards are."""
    folder = tmp_path_factory.mktemp("base")
    for number, (start, stop) in enumerate([(0, 9), (9, 10), (10, ROWS)]):
        base.select(range(start, stop)).to_parquet(folder / f"train-{number:05}-of-00003.parquet", batch_size=4)
    return folder


def together(folders: list[Path], **settings) -> StreamedReinforcedDataset:
    return load_reinforced([folder.parent for folder in folders], streaming=True, **settings)


@pytest.mark.parametrize("parts", [("plain", "mixing"), ("plain", "plain of another seed", "fewer of a shard")])
def test_several_take_turns(make, parts):
    """Over as many epochs as there are views each row shows each view of each part once, and an epoch reads one part."""
    made = {
        "plain": lambda: make(PLAIN),
        "mixing": lambda: make(MIXING, seed=5),
        "plain of another seed": lambda: make(PLAIN, seed=9, num_views=2),
        "fewer of a shard": lambda: make(PLAIN, seed=8, num_views=1, top_k=2, shard_size=3),
    }
    folders = [made[part]() for part in parts]
    stream = together(folders, seed=3)
    mapped_parts = [mapped(folder) for folder in folders]
    views = {
        pixels: (part, *index) for part, dataset in enumerate(mapped_parts) for pixels, index in known(dataset).items()
    }
    assert stream.num_views == sum(dataset.num_views for dataset in mapped_parts)
    counts: Counter = Counter()
    for epoch in range(2 * stream.num_views):
        stream.set_epoch(epoch)
        items = list(stream)
        assert {len(item["teacher_ids"]) for item in items} == {min(dataset.top_k for dataset in mapped_parts)}
        shown = seen(items, views)
        assert len({part for part, _, _ in shown}) == 1, "the others are not read"
        assert sorted(row for _, row, _ in shown) == list(range(len(mapped_parts[0])))
        counts.update(shown)
    assert counts == dict.fromkeys(views.values(), 2)


def test_new_views_of_several_are_those_of_the_epoch(make):
    """Not of the part's own epoch: two parts with one augmentation would draw them twice."""
    folders = [make(PLAIN), make(PLAIN, seed=9, num_views=2)]
    stream = together(folders).ordered(reinforced_probability=0.0)
    drawn = Counter()
    for epoch in range(5):
        stream.set_epoch(epoch)
        drawn.update(item["pixel_values"].numpy().tobytes() for item in stream)
    assert max(drawn.values()) == 1


def test_only_one_of_several_is_read_in_an_epoch(make, monkeypatch):
    read, files = StreamedShards._with_shard, []
    monkeypatch.setattr(
        StreamedShards,
        "_with_shard",
        lambda self, shard, take: (files.append(self._files[shard]), read(self, shard, take))[1],
    )
    stream = together([make(PLAIN), make(PLAIN, seed=9, num_views=2)])
    for epoch in range(5):
        stream.set_epoch(epoch)
        files.clear()
        assert len(list(stream)) == ROWS - len(BAD)
        assert len({Path(file).parent for file in files}) == 1
        assert len(files) == 4


def test_an_epoch_of_several_goes_on(make):
    folders = [make(PLAIN), make(PLAIN, seed=9, num_views=2)]
    stream = together(folders)
    stream.set_epoch(3)
    share = stream.split_by_node(0, 1, batch_size=4)
    assert share.epoch == 3
    before = list(itertools.islice(share, 8))
    again = together(folders).resumed(share.progress(2))
    again.set_epoch(3)
    pixels = [item["pixel_values"].numpy().tobytes() for item in [*before, *again]]
    assert sorted(pixels) == sorted(item["pixel_values"].numpy().tobytes() for item in stream)


def test_several_that_do_not_fit(make, base):
    with pytest.raises(
        ConfigError, match=r"all parts must have the same size of the views, but it is .8, 8. in part 0"
    ):
        together([make(PLAIN), make(Augmentation([RandomResizedCrop(6)]))])
    other = base.select([*range(2), 3, 2, *range(4, ROWS)])
    with pytest.raises(DataError, match="of the same rows of one base, with the same hash of the images, but it is"):
        together([make(PLAIN), make(PLAIN, base=other)])
    with pytest.raises(
        ConfigError, match="must be all or random for several datasets that are streamed, got hard_first"
    ):
        together([make(PLAIN), make(PLAIN, seed=9)]).ordered(view_order="hard_first", num_epochs=2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=6)
@given(shard_size=st.sampled_from([2, 5, ROWS]), shuffled=st.integers(1, 2), epoch=st.integers(0, 5))
def test_a_base_is_streamed_along(make, base_file, shard_size, shuffled, epoch):
    """From a base that is not loaded come the same items as from one that is."""
    config = make(PLAIN, overlay=True, shard_size=shard_size)
    stream = load_reinforced(
        config.parent, base=base_file, streaming=True, shuffled_shards=shuffled, columns=["name"]
    )  # fmt: skip
    assert stream.fingerprint == Provenance.read(config).fingerprint
    dataset = mapped(make(PLAIN))
    stream.set_epoch(epoch)
    items = list(stream)
    assert sorted(seen(items, known(dataset))) == expected(dataset, epoch)


def test_only_the_images_of_wanted_rows_are_read(make, base_file, monkeypatch):
    stream = load_reinforced(make(PLAIN, overlay=True).parent, base=base_file, streaming=True)
    read = []
    of_file = StreamedBase._read
    monkeypatch.setattr(
        StreamedBase,
        "_read",
        lambda self, file, groups: (read.append((Path(file).name[6:11], list(groups))), of_file(self, file, groups))[1],
    )
    (shards,) = stream._parts
    assert shards.read([1]).plus.column_names.count("image") == 1
    assert read == [("00000", [1, 2]), ("00001", [0])], "rows 5 to 8, and 9"


def test_workers_read_a_base_each_for_itself(make, base_file):
    dataset = mapped(make(PLAIN))
    stream = load_reinforced(make(PLAIN, overlay=True).parent, base=base_file, streaming=True)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="forkserver")
    assert sorted(seen(loader, known(dataset))) == expected(dataset, 0)


def test_overlays_of_one_base_are_streamed_together(make, base_file):
    folders = [make(PLAIN, overlay=True), make(MIXING, overlay=True)]
    stream = together(folders, base=base_file)
    assert len(list(stream)) == ROWS - len(BAD)
    with pytest.raises(DataError, match="is an overlay without images"):
        together(folders)


def test_a_wrong_join_is_refused(make, base, base_file, tmp_path):
    overlay = make(PLAIN, overlay=True).parent
    moved = tmp_path / "moved.parquet"
    base.select([*range(12), 13, 12, *range(14, ROWS)]).to_parquet(moved)
    with pytest.raises(
        ReplayError,
        match=r"row 1[23] must hold the image .*, found another .*\. Give split `train` of .*, unchanged; .* have its order",
    ):
        list(load_reinforced(overlay, base=moved, streaming=True))
    short = tmp_path / "short.parquet"
    base.select(range(ROWS - 1)).to_parquet(short)
    with pytest.raises(
        DataError, match=r"`base` must have the 23 rows that were reinforced, found 22 in 1 files\. Give split"
    ):
        load_reinforced(overlay, base=short, streaming=True)
    with pytest.raises(ConfigError, match="`check_images` must be True where the base is streamed"):
        load_reinforced(overlay, base=base_file, streaming=True, check_images=False)
    renamed = tmp_path / "renamed.parquet"
    base.rename_column("image", "photo").to_parquet(renamed)
    with pytest.raises(DataError, match=r"must have the image column `image`, found \['photo', 'label', 'name'\] in"):
        load_reinforced(overlay, base=renamed, streaming=True)
    for setting in ("revision", "config"):
        with pytest.raises(
            ConfigError, match=f"the {setting} of a dataset must be left out for what has none, got 'main'"
        ):
            load_reinforced(overlay, base=str(moved), streaming=True, **{f"base_{setting}": "main"})
    with pytest.raises(ConfigError, match="`base` is for an overlay"):
        load_reinforced(make(PLAIN).parent, base=base_file, streaming=True)
    numbers = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"image": list(range(ROWS))}), numbers)
    with pytest.raises(
        DataError, match=r"column `image` of .*numbers.parquet must hold images, found int64\. Load the base"
    ):
        list(load_reinforced(overlay, base=numbers, streaming=True))


def test_a_base_that_names_files_is_refused(make, base, tmp_path):
    """Whoever made it could name any file of this machine."""
    cells = [
        {"bytes": None, "path": "/etc/passwd"},
        *base.cast_column("image", datasets.Image(decode=False))["image"][1:],
    ]
    named = tmp_path / "named.parquet"
    pq.write_table(pa.table({"image": pa.array(cells, datasets.Image().pa_type)}), named)
    with pytest.raises(FormatError, match="column `image` must hold the files themselves, found one in row 0"):
        list(load_reinforced(make(PLAIN, overlay=True).parent, base=named, streaming=True))
    with pytest.raises(FormatError, match="column `image` must hold the files themselves, found one in row 0"):
        list(load_reinforced(make(PLAIN, overlay=True).parent, base=named, files_from=["/etc"], streaming=True))


def test_a_streamed_base_may_be_allowed_files_that_it_does_not_name(make, base_file, tmp_path):
    """`hf-dr train` has one flag for the base and the images to evaluate on."""
    dataset = mapped(make(PLAIN))
    stream = load_reinforced(make(PLAIN, overlay=True).parent, base=base_file, files_from=[tmp_path], streaming=True)
    assert sorted(seen(stream, known(dataset))) == expected(dataset, 0)


def test_a_base_of_other_files_is_loaded(make, base, tmp_path, caplog):
    base.select(range(ROWS)).save_to_disk(str(tmp_path / "saved"))
    with caplog.at_level("INFO"):
        stream = load_reinforced(make(PLAIN, overlay=True).parent, base=tmp_path / "saved", streaming=True)
    assert "The base is not of Parquet files; it is loaded before it is read" in caplog.text
    assert sorted(seen(stream, known(mapped(make(PLAIN))))) == expected(mapped(make(PLAIN)), 0)


# ------------------------------------------------------------------------------------------------------------ resources


def test_pairs_are_decoded_once(make, decoded):
    stream = stream_of(make(MIXING), shuffled_shards=2)
    next(iter(stream))  # with the first shards some views are replayed as a proof
    decoded.clear()
    assert len(list(stream)) == len(decoded)


@pytest.mark.parametrize("together", [1, 2])
def test_two_groups_of_shards_are_held_at_most(make, monkeypatch, together):
    read, held = StreamedShards.read, weakref.WeakSet()
    most = 0

    def counting(self, shards):
        nonlocal most
        rows = read(self, shards)
        held.add(rows)
        most = max(most, len(held))
        return rows

    monkeypatch.setattr(StreamedShards, "read", counting)
    assert len(list(stream_of(make(PLAIN), shuffled_shards=together))) == ROWS - len(BAD)
    assert most == 2


def test_the_next_shard_is_read_meanwhile(make, monkeypatch):
    read, started = StreamedShards.read, iter(events := [threading.Event() for _ in range(4)])

    def telling(self, shards):
        next(started).set()
        return read(self, shards)

    monkeypatch.setattr(StreamedShards, "read", telling)
    items = iter(stream_of(make(PLAIN)))
    next(items)
    assert events[1].wait(10)
    assert not events[2].is_set()


def test_stopping_early_leaves_no_thread(make):
    items = iter(stream_of(make(PLAIN)))
    next(items)
    items.close()
    for thread in threading.enumerate():
        if thread.name.startswith("hf_dr_shards"):
            thread.join(10)
            assert not thread.is_alive()


def test_columns_that_are_not_asked_for_are_not_read(make):
    stream = stream_of(make(PLAIN))
    (shards,) = stream._parts
    assert "name" not in shards.read([0]).plus.column_names


# ------------------------------------------------------------------------------------------------------------- refusals


def test_partners_in_other_shards(make):
    message = (
        "must find its partner in its own shard, but .* anywhere in it. Load it without `streaming=True`, or reinforce "
    )
    with pytest.raises(ConfigError, match=message + "with `--mixing_scope shard`"):
        stream_of(make(MIXING, mixing_scope="dataset"))
    one_shard = make(MIXING, mixing_scope="dataset", shard_size=ROWS)
    assert sorted(seen(stream_of(one_shard), known(mapped(one_shard)))) == expected(mapped(one_shard), 0)


def test_impossible_settings(make, base):
    stream = stream_of(make(PLAIN))
    with pytest.raises(ConfigError, match="`num_views` must be between 1 and the 3 stored views, got 4"):
        stream_of(make(PLAIN), num_views=4)
    with pytest.raises(ConfigError, match="`shuffled_shards` must be a whole number of at least 1, got 0"):
        stream_of(make(PLAIN), shuffled_shards=0)
    with pytest.raises(ConfigError, match="`unreinforced` rows are of the base, not of a shard"):
        stream_of(make(PLAIN), unreinforced=True)
    with pytest.raises(ConfigError, match="`rank` must be from 0 to 1, got 2"):
        stream.split_by_node(2, 2)
    with pytest.raises(ConfigError, match="`batch_size` must be a whole number of at least 1, got 0"):
        stream.split_by_node(0, 1, batch_size=0)
    with pytest.raises(ConfigError, match="must be split once, but this is one process's share"):
        stream.split_by_node(0, 2).split_by_node(0, 2)
    with pytest.raises(
        ConfigError, match="`view_order` must be one of all, random, easy_first, hard_first, got 'shuffled'"
    ):
        stream.ordered(view_order="shuffled")
    with pytest.raises(DataError, match=r"is an overlay without images\. Pass `base`"):
        stream_of(make(PLAIN, overlay=True))
    with pytest.raises(
        DataError, match=r"`base` must be a datasets\.Dataset, .* got IterableDataset\. Give its name, or load it"
    ):
        stream_of(make(PLAIN, overlay=True), base=base.to_iterable_dataset())


@pytest.fixture
def spoilt(make, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(make(PLAIN), tmp_path / "rrc"))


def test_a_missing_shard_is_named(spoilt):
    first, second, *_ = Provenance.read(spoilt).shard_names
    (spoilt / second).unlink()
    stream = stream_of(spoilt)
    with pytest.raises(FormatError, match=f"{second} must be there, but it is missing. Fetch or make it again."):
        list(stream)
    (spoilt / first).unlink()
    with pytest.raises(FormatError, match=f"{first} must be there"):
        stream_of(spoilt)


def test_a_shard_of_another_run(spoilt, make):
    second = Provenance.read(spoilt).shard_names[1]
    shutil.copy(make(PLAIN, seed=1) / second, spoilt / second)
    with pytest.raises(
        FormatError, match=f"{second} must carry the fingerprint of its reinforcement.json, found another"
    ):
        list(stream_of(spoilt))


def test_a_damaged_shard(spoilt):
    first, second, *_ = (spoilt / name for name in Provenance.read(spoilt).shard_names)
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(FormatError, match=f"{second.name} must be a readable shard, but: Arrow"):
        list(stream_of(spoilt))
    first.write_bytes(b"")
    with pytest.raises(FormatError, match=f"{first.name} must be a readable shard, but: ArrowInvalid"):
        stream_of(spoilt)


def test_a_shard_without_a_marker(spoilt):
    second = spoilt / Provenance.read(spoilt).shard_names[1]
    for metadata in ({}, {b"hf_dr": b"[]"}):
        pq.write_table(pq.read_table(second).replace_schema_metadata(metadata), second)
        with pytest.raises(FormatError, match="must carry the fingerprint"):
            list(stream_of(spoilt))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.slice(1), "must have 5 rows, found 4"),
        (lambda table: table.take([1, 0, 2, 3, 4]), "must hold rows 5 to 9 in order .*, found others"),
        (
            lambda table: table.drop_columns(["aug_flip"]),
            r"column `aug_flip` of .*00001-of-.* must be .*, found none\. Fetch",
        ),
        (
            lambda t: t.set_column(t.column_names.index("image_hash"), "image_hash", pa.nulls(5, pa.uint64())),
            "must have 4 reinforced rows by its provenance, found 0",
        ),
        (
            lambda t: t.set_column(t.column_names.index("views_hash"), "views_hash", pa.nulls(5, pa.int8())),
            r"column `views_hash` of .*00001-of-.* must be uint64, as in the first shard, found int8\. Fetch",
        ),
        (
            lambda t: t.set_column(t.column_names.index("label"), t.field("label"), pa.array([0, 1, 2, 3, 77])),
            r"the labels `label` must be from 0 to 7 in every row, found 77 in row 9 \(1 such rows\)\. Fetch or make it again",
        ),
    ],
    ids=["fewer", "swapped", "column", "nulls", "type", "label"],
)
def test_other_rows_than_the_provenance_tells(spoilt, change, message):
    rewritten(spoilt / Provenance.read(spoilt).shard_names[1], change)
    with pytest.raises(FormatError, match=message):
        list(stream_of(spoilt))


def with_first_value(table: pa.Table, name: str, value: float) -> pa.Table:
    """Returns a table in whose column of lists each first number is another."""
    column = table.column(name).combine_chunks()
    cells = column.to_pylist()
    for views in cells:
        views[0][0] = value
    return table.set_column(table.column_names.index(name), table.field(name), pa.array(cells, column.type))


@pytest.mark.parametrize("undone", [False, True])
@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("teacher_logprobs", float("nan"), FormatError, r"log-probabilities of row (\d+), view 0 must be finite"),
        ("aug_crop_box", 9999, ReplayError, r"row (\d+), view 0: .*needs a box"),
    ],
)
def test_a_damaged_view_is_named_by_its_row_of_the_base(spoilt, name, value, error, message, undone):
    shard = spoilt / Provenance.read(spoilt).shard_names[1]
    rewritten(shard, lambda table: with_first_value(table, name, value))
    data = stream_of(spoilt, num_views=1, check_images=False)

    def read() -> None:
        for item in data.undone() if undone else data:
            if undone:
                UndoneBatch.pack(DeviceAugmentation(PLAIN), [item["pixel_values"]])

    with pytest.raises(error, match=message) as raised:
        read()
    assert int(re.search(message, str(raised.value))[1]) in set(range(SHARD, 2 * SHARD)) - set(BAD)


def test_fresh_views_need_labels(make):
    unlabelled = stream_of(make(PLAIN, label_column="none"))
    assert not unlabelled.has_labels
    assert "labels" not in next(iter(unlabelled))
    with pytest.raises(ConfigError, match="`reinforced_probability` must be 1 for a dataset without labels"):
        unlabelled.ordered(reinforced_probability=0.5)


def test_left_out_rows_are_told_once(make, caplog):
    list(stream_of(make(PLAIN)))
    assert caplog.text.count("5 rows have no reinforcement and are left out") == 1


# --------------------------------------------------------------------------------------------------------- from the Hub

REPO = "org/streamed-plus"


@pytest.fixture
def hub(loopback_hub: LoopbackHub, make, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The Hub with the mixing dataset in it; whoever waits between two attempts does not."""
    folder = make(MIXING)
    loopback_hub.put(REPO, {f"{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()})
    monkeypatch.setattr(hf_dr.hub.retry, "_sleep", lambda seconds: None)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return loopback_hub


def same_epoch(stream, make) -> bool:
    dataset = mapped(make(MIXING))
    return sorted(seen(stream, known(dataset))) == expected(dataset, 0)


def cached_shards() -> list[Path]:
    return list(
        Path(huggingface_hub.constants.HF_HUB_CACHE).glob("datasets--org--streamed-plus/snapshots/*/*/*.parquet")
    )


def test_the_hub_is_read_without_a_copy(hub, make):
    stream = load_reinforced(REPO, streaming=True, shuffled_shards=2)
    assert same_epoch(stream, make)
    assert not cached_shards()
    assert same_epoch(load_reinforced(make(MIXING).parent, streaming=True), make), "a folder alike"


def test_a_stream_stays_at_its_commit(hub, make):
    stream = load_reinforced(REPO, streaming=True)
    other = make(PLAIN)
    name = make(MIXING).name
    hub.put(REPO, {f"{name}/{path.name}": path.read_bytes() for path in other.iterdir()})
    assert same_epoch(stream, make)
    assert not load_reinforced(REPO, streaming=True).mixes


@pytest.mark.parametrize("kind", ["503", "429", "cut", "reset"])
@pytest.mark.parametrize(("at", "when"), [("tree", 1), ("resolve|cdn", 2), ("resolve|cdn", 4)])
def test_a_fault_of_the_hub_is_passed_over(hub, make, kind, at, when):
    fault = Fault(kind, at=at, when=when)
    hub.faults.append(fault)
    assert same_epoch(load_reinforced(REPO, streaming=True), make)
    assert fault.reached.is_set()


def test_a_fault_that_stays_is_an_error(hub):
    stream = load_reinforced(REPO, streaming=True)
    hub.faults.append(Fault("503", at="resolve|cdn", count=float("inf")))
    with pytest.raises(HubError, match=r"expected to read hf://datasets/org/streamed-plus@.*, but 6 attempts failed"):
        list(stream)


def test_shards_in_the_cache_are_not_fetched_again(hub, make, monkeypatch):
    load_reinforced(REPO)
    try:
        hub.log.clear()
        assert same_epoch(load_reinforced(REPO, streaming=True), make)
        assert not [request for request in hub.log if ".parquet" in request.path]
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert same_epoch(load_reinforced(REPO, streaming=True), make)
    finally:
        for path in cached_shards():
            path.unlink()


def test_without_a_connection(hub, monkeypatch):
    stream = load_reinforced(REPO, streaming=True)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        HubError, match=r"expected to read hf://.*, but it is not in the cache and HF_HUB_OFFLINE is set"
    ):
        list(stream)


def test_half_a_dataset_at_the_hub(hub, make):
    folder = make(MIXING)
    parts = [path for path in folder.iterdir() if "00002-of" not in path.name]
    hub.put("org/half-plus", {f"{folder.name}/{path.name}": path.read_bytes() for path in parts})
    with pytest.raises(FormatError, match=r"train-00002-of-00005\.parquet must be there, but it is missing"):
        list(load_reinforced("org/half-plus", streaming=True))


def test_workers_read_the_hub_each_for_itself(hub, make):
    """Connections that the parent has opened are not shared by its children."""
    dataset = mapped(make(MIXING))
    stream = load_reinforced(REPO, streaming=True)
    assert same_epoch(stream, make)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert sorted(seen(loader, known(dataset))) == expected(dataset, 0)


def test_a_base_is_streamed_from_the_hub(hub, make, base_file):
    """It is not fetched, and stays at the commit that it had."""
    hub.put("org/base", {f"data/{path.name}": path.read_bytes() for path in base_file.iterdir()})
    stream = load_reinforced(make(MIXING, overlay=True).parent, base="org/base", streaming=True)
    hub.put("org/base", {"data/train-00001-of-00003.parquet": b"another"})
    assert same_epoch(stream, make)
    assert not list(Path(huggingface_hub.constants.HF_HUB_CACHE).glob("datasets--org--base/snapshots/*/data/*.parquet"))
    with pytest.raises(DataError, match=r"must be on the Hub .*accessed\. There is no folder `org/none` here\. Check"):
        load_reinforced(make(MIXING, overlay=True).parent, base="org/none", streaming=True)
