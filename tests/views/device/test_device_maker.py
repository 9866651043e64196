"""Views for a teacher that are made on a device: the columns of `ViewMaker`, to the byte."""

import threading
from io import BytesIO

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from hf_dr.processes import ahead
from hf_dr.views.augmentation import NO_PARTNER, PARTNER, Augmentation
from hf_dr.views.device.graphs import Graphed
from hf_dr.views.device.maker import DeviceViewMaker, partners_of
from hf_dr.views.device.overlap import Background, LaterOnHost
from hf_dr.views.maker import Span, ViewMaker
from hf_dr.views.rng import Matching

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ROWS, BROKEN = 13, (4, 9)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    rows = []
    for n in range(ROWS):
        file = BytesIO()
        height, width = rng.integers(5, 60, 2)
        PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
        rows.append({"image": {"bytes": b"broken" if n in BROKEN else file.getvalue(), "path": None}})
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_list(rows, features=features)


def spans(num_views, batch):
    return [Span(0, start, min(start + batch, ROWS * num_views)) for start in range(0, ROWS * num_views, batch)]


def compare(maker, batch, device, *, cache_bytes=1 << 30, num_workers=0):
    chosen = spans(maker.num_views, batch)
    host = DeviceViewMaker(maker, torch.device(device), cache_bytes=cache_bytes)
    made = list(host.batches(chosen, num_workers))
    assert len(made) == len(chosen)
    for span, views in zip(chosen, made, strict=True):
        expected, found = maker[span], views.finish()
        assert found.span == span
        assert (expected.error is None) == (found.error is None)
        assert str(expected.error)[:30] == str(found.error)[:30]
        for name in ("image_hashes", "view_hashes", "valid"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert list(found.params) == list(expected.params)
        for name, values in expected.params.items():
            assert found.params[name].dtype == values.dtype
            np.testing.assert_array_equal(found.params[name], values, err_msg=name)
        assert torch.equal(found.pixels.cpu(), expected.pixels)
    return host


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("num_views", "batch"), [(4, 10), (9, 4)])
@pytest.mark.parametrize("name", ["rrc", "mixing", "randaug", "randaug_mixing"])
def test_the_views_are_those_of_pillow(images, name, num_views, batch, device):
    """Images that span several batches, several images in a batch, images that cannot be decoded, partners that cannot."""
    compare(ViewMaker(images, Augmentation.named(name, 16), num_views, 7, None), batch, device)


@pytest.mark.parametrize("device", DEVICES)
def test_views_before_the_first_that_is_asked_for_are_hashed_only(images, device):
    compare(ViewMaker(images, Augmentation.named("randaug", 16), 5, 7, None, first_new=2), 10, device)


@pytest.mark.parametrize("matching_size", [None, 5])
@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_partners_travel_along_or_stay_on_the_device(images, cache_bytes, matching_size):
    maker = ViewMaker(images, Augmentation.named("randaug_mixing", 16), 4, 7, matching_size)
    host = compare(maker, 10, "cpu", cache_bytes=cache_bytes)
    assert host.keeps_images() == (cache_bytes > 0)


def test_workers_learn_the_sizes_from_each_other(images):
    compare(ViewMaker(images, Augmentation.named("mixing", 8), 6, 7, None), 6, "cpu", num_workers=2)


@pytest.mark.parametrize("num_workers", [0, 3])
@pytest.mark.parametrize(
    ("name", "matching_size", "room"),
    [("rrc", None, 0), ("mixing", None, 200), ("mixing", None, 30), ("mixing", 20, 60), ("mixing", None, 0)],
)
@pytest.mark.parametrize(("num_views", "batch"), [(4, 10), (9, 4), (2, 16)])
def test_images_are_there_while_they_are_needed(images, name, matching_size, room, num_views, batch, num_workers):
    """Each is decoded once if there is room, those that are needed first come first; no more stay than there is room for."""
    many = images.select([n % ROWS for n in range(130)])
    maker = ViewMaker(many, Augmentation.named(name, 8), num_views, 7, matching_size)
    host = DeviceViewMaker(maker, torch.device("cpu"))
    host.capacity = room
    chosen = [Span(0, n, min(n + batch, 130 * num_views)) for n in range(0, 130 * num_views, batch)]
    parts, there, decoded, made, before_the_first = [], set(), [], [], None
    most = 0
    for item, gone in host._items(chosen, num_workers):
        if not isinstance(item, Span):
            parts.append(item.tolist())
            there |= set(parts[-1])
            decoded += parts[-1]
            most = max(most, len(there))
            continue
        made.append(item)
        before_the_first = before_the_first or len(decoded)
        flat = np.arange(item.start, item.stop)
        needed = set((flat // num_views).tolist())
        needed |= set(partners_of(maker, flat).tolist()) if name == "mixing" else set()
        assert needed <= there
        for number in gone:
            there -= set(parts[number])
    assert made == chosen
    assert sorted(set(decoded)) == list(range(130))
    if name == "rrc" or host.keeps_images():
        assert len(decoded) == 130
    ahead = (num_workers + 3) * 2 * (batch + 8)  # what spans on their way need
    assert most <= {200: 130, 60: 40}.get(room, room) + ahead
    assert before_the_first <= ahead, "the first span does not wait for all images"


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_partners_of_many_examples(count):
    matching = Matching(100, 100 + count, 3, 5)
    examples = np.arange(100, 100 + count)
    assert matching.partners(examples).tolist() == [matching.partner(example) for example in examples.tolist()]


def test_a_view_without_a_usable_partner_says_so(images):
    maker = ViewMaker(images, Augmentation.named("mixing", 8), 6, 7, None)
    made = DeviceViewMaker(maker, torch.device("cpu")).batches(spans(6, ROWS * 6), 0)
    params = next(iter(made)).finish().params
    valid = np.repeat(~np.isin(np.arange(ROWS), BROKEN), 6)
    partners = params[PARTNER][valid]
    assert not np.isin(partners, BROKEN).any()
    assert (params["mixup_lam"][valid][partners == NO_PARTNER] == 1).all()


# ------------------------------------------------------------------------------------------------------------- overlap


def test_asking_runs_ahead_and_the_order_stays():
    events = []

    def ask(n):
        events.append(f"ask {n}")
        return n * n

    def finish(n, answer):
        events.append(f"finish {n}")
        return answer

    results = ahead(range(4), ask, finish, depth=2)
    assert next(results) == 0
    assert events == ["ask 0", "ask 1", "ask 2", "finish 0"]
    assert list(results) == [1, 4, 9]


def test_work_in_the_background_keeps_its_order_and_tells_its_errors():
    done, background = [], Background(depth=2)
    for n in range(5):
        background.submit(done.append, (n, threading.current_thread() is not threading.main_thread()))
    background.wait()
    assert [n for n, _ in done] == list(range(5))
    background.submit(lambda: 1 / 0)
    background.submit(done.append, "what would build upon it")
    with pytest.raises(ZeroDivisionError):
        background.wait()
    background.wait()
    assert len(done) == 5
    background.close()


def test_closing_does_what_was_submitted():
    """Ctrl-C in the main thread closes it too: a shard whose answers are there is written."""
    gate, done, background = threading.Event(), [], Background(depth=4)
    background.submit(gate.wait)
    background.submit(done.append, "waited")
    threading.Timer(0.05, gate.set).start()
    background.close()
    assert done == ["waited"]


@pytest.mark.parametrize("device", DEVICES)
def test_tensors_are_read_later(device):
    tensors = torch.arange(6, device=device), torch.ones((2, 3), device=device)
    copies = LaterOnHost(*tensors).get()
    assert all(torch.equal(copy, tensor.cpu()) for copy, tensor in zip(copies, tensors, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_a_recorded_function_gives_the_same(device):
    weight = torch.randn((8, 8), device=device)
    graphed = Graphed(lambda batch: (batch @ weight).relu().log_softmax(-1))
    for n in range(4):
        batch = torch.randn((16 if n < 3 else 5, 8), device=device)
        assert torch.equal(graphed(batch), (batch @ weight).relu().log_softmax(-1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU only")
def test_what_cannot_be_recorded_is_called():
    graphed = Graphed(lambda batch: batch * float(batch.sum()))
    for _ in range(4):
        batch = torch.randn((4, 4), device="cuda")
        assert torch.equal(graphed(batch), batch * float(batch.sum()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a GPU only")
def test_a_recording_that_fails_leaves_the_stream_as_it_was():
    def waits(batch):
        torch.cuda.synchronize()  # no recording has that
        return 2 * batch

    graphed, stream = Graphed(waits), torch.cuda.current_stream()
    for n in range(4):
        batch = torch.full((4, 4), n, device="cuda")
        assert torch.equal(graphed(batch), 2 * batch)
        assert torch.cuda.current_stream() == stream
