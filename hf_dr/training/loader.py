"""`ReinforcedLoader`: batches of stored views for a training loop of your own."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Unpack

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import extract_model_from_parallel
from torch import distributed, nn
from torch.utils.data import DataLoader

from hf_dr.errors import ConfigError, did_you_mean
from hf_dr.processes import end_workers, find_device, in_process_group, quiet_worker, shield_workers
from hf_dr.replay.messages import InOneMessage, collate_rows
from hf_dr.replay.proof import check_replay
from hf_dr.replay.reinforced_data import ReinforcedData, check_loaded
from hf_dr.replay.sampling import OrderSettings, ReinforcedSampler
from hf_dr.replay.streaming import StreamedReinforcedDataset
from hf_dr.settings import Switch, check_count, check_kind
from hf_dr.teacher.preprocessing import Preprocessing
from hf_dr.training.device_views import device_augmentation, undone, with_made_views
from hf_dr.training.student_inputs import Normalization, check_processor, is_timm, normalize, student_preprocessing


class ReinforcedLoader:
    """Batches of stored views, for a training loop of your own.

    Each iteration over it is an epoch: the rows in another order, another stored view of each, and images that are mixed with
    each other in one batch. In a `torch.distributed` process group each process gets its part, and all get equally many
    batches.

    A batch is a dictionary of tensors on the device: `pixel_values` (B, 3, H, W), float32 and normalised for the student, or
    uint8 without one; and what `reinforced_loss` takes: `labels`, `teacher_ids`, `teacher_logprobs`, `reinforced`.

    Examples:
        ```python
        from hf_dr import ReinforcedLoader, ReinforcedLoss, build_student, load_reinforced

        train = load_reinforced("cifar100-plus")
        student = build_student("timm:resnet18", train.class_names, train.num_classes, size=train.size)
        loader = ReinforcedLoader(train, batch_size=64, student=student)
        student, criterion = student.to(loader.device), ReinforcedLoss(train)
        for batch in loader:
            loss = criterion(student(batch["pixel_values"]).logits, batch)
        ```

    Args:
        dataset: What `load_reinforced` returns.
        batch_size: Rows in a batch of one process.
        student: A model of timm, or what `build_student` returns, which says how its input is normalised; it may be wrapped, by
            DDP for one.
        processor: The image processor of a student of transformers, which says that.
        normalization: (mean, std) of the student's input, each three numbers on the scale 0 to 1, where neither says it.
        device: The device that batches go to. Default: the accelerator if there is one, that of `LOCAL_RANK` among several.
        num_workers: Processes that replay views; 0 replays in this one.
        drop_last: Leave out the last batch where it is not full.
        augment_on: What makes the views, with the same pixels: the `cpu`, the `device`, or, with `auto`, a GPU where it can
            make them all.
        **order: Settings of `ReinforcedSampler`, such as `seed` and `reinforced_probability`.

    Attributes:
        device: The device of the batches.
        epoch: The epoch that the next iteration shows, from 0, or that of a stream that was resumed; set it to go on with a
            training.

    Raises:
        ConfigError: A setting is impossible or does not fit the dataset, or the student does not say how it is normalised.
        ReplayError: A view has not the pixels that its teacher saw; some rows are checked.
        TeacherError: The image processor does something that is not understood.
    """

    def __init__(
        self,
        dataset: ReinforcedData,
        batch_size: int,
        *,
        student: nn.Module | None = None,
        processor: Any = None,
        normalization: Normalization | None = None,
        device: str | torch.device | None = None,
        num_workers: int = 0,
        drop_last: bool = False,
        augment_on: str = "auto",
        **order: Unpack[OrderSettings],
    ) -> None:
        check_loaded(dataset)
        check_count("batch_size", batch_size)
        check_count("num_workers", num_workers, 0)
        Switch().check("drop_last", drop_last)
        known = OrderSettings.__annotations__
        for name in order.keys() - known.keys():
            raise ConfigError(f"`ReinforcedLoader` has no setting `{name}`.{did_you_mean(name, known)}")
        if student is not None:
            check_kind("student", student, nn.Module, "a model", "`build_student` makes one of a name.")
        check_processor("processor", processor)
        self.epoch = dataset.epoch if isinstance(dataset, StreamedReinforcedDataset) else 0
        self._seen: Preprocessing | None = None
        if student is not None or processor is not None or normalization is not None:
            model: Any = None if student is None else extract_model_from_parallel(student, keep_torch_compile=False)
            told = is_timm(model) or hasattr(model, "pretrained_cfg")
            if not told and processor is None and normalization is None:
                raise ConfigError(
                    "`student` must be a model of timm, which says how its input is normalised, or come with its image "
                    f"processor, got {type(model).__name__}. Give `processor`, or `normalization=(mean, std)`."
                )
            self._seen = student_preprocessing(model, processor, normalization)
        self._batch_size = int(batch_size)
        self.device = find_device(device)
        augmenter = device_augmentation(augment_on, self.device, dataset)
        check_replay(dataset, None if augmenter is None else (augmenter, self.device))
        rank, world_size = (distributed.get_rank(), distributed.get_world_size()) if in_process_group() else (0, 1)
        on_gpu = self.device.type == "cuda"
        settings: dict[str, Any] = {
            "batch_size": self._batch_size,
            "num_workers": num_workers,
            "drop_last": drop_last,
            "pin_memory": on_gpu,
            "persistent_workers": num_workers > 0,
            # They serve the next iteration, too, after Ctrl-C in a notebook, which goes to all processes of the kernel.
            "worker_init_fn": quiet_worker,
        }
        # Elsewhere a copy must be waited for; see `hf_dr.views.device.overlap.to_device`.
        on_device: dict[str, Any] = {"device": self.device, "put_on_device": True, "non_blocking": on_gpu}
        read: Any = dataset
        collate: Any = collate_rows
        if isinstance(dataset, StreamedReinforcedDataset):
            read = dataset.ordered(**order) if order else dataset  # which may have an order already
            read = read.split_by_node(rank, world_size, batch_size=batch_size, even=True)
            on_device.update(num_processes=1, process_index=0, dispatch_batches=False)
        else:
            settings["sampler"] = ReinforcedSampler(read, **order)
            on_device.update(num_processes=world_size, process_index=rank)
        if augmenter is not None:
            read, collate = undone(read, augmenter, collate)
        loader: DataLoader = DataLoader(read, collate_fn=InOneMessage(collate), **settings)
        self._loader = prepare_data_loader(loader, **on_device)
        # Of an epoch that goes on nothing may be left, or less than a batch: the next iteration is the next epoch.
        goes_on = isinstance(dataset, StreamedReinforcedDataset) and dataset._so_far() is not None
        if len(self._loader) == 0 and not goes_on:
            raise ConfigError(
                f"an epoch must have a batch, but the {len(dataset):,} rows fill none of {self._batch_size} in each of "
                f"{world_size} processes. Lower `batch_size`, or leave `drop_last` out."
            )
        shield_workers(self._loader)
        # In a cycle of references, as Lightning's are, Python may collect the queues of workers before their iterator. They do
        # not hear then that they are to end, and torch waits 5 seconds for each.
        weakref.finalize(self._loader, end_workers, self._loader.base_dataloader).atexit = False

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self):,} batches of {self._batch_size} on {self.device}, epoch {self.epoch})"
        )

    def __len__(self) -> int:
        """Batches of an epoch, the same for all processes."""
        return len(self._loader)

    def progress(self, batches: int) -> dict[str, Any]:
        """Returns how far a stream's epoch is when each process has seen `batches` batches of the iteration, in JSON types.

        Save it with the weights. `ReinforcedLoader(dataset.resumed(progress), ...)` goes on there; with settings of the order,
        `seed` or `view_order`, give `dataset.ordered(...)` the same before.

        Raises:
            ConfigError: The dataset is no stream, or the number is impossible.
        """
        loader = self._loader.base_dataloader
        if not isinstance(loader.dataset, StreamedReinforcedDataset):
            raise ConfigError(
                "`progress` is that of a stream, got a loader of a loaded dataset. Set `epoch` to go on with an epoch, or load "
                "the dataset with `streaming=True`."
            )
        return loader.dataset.progress(batches, num_workers=loader.num_workers)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self._loader.set_epoch(self.epoch)  # sets it in the sampler or the stream, and in accelerate's own counter
        self.epoch += 1
        # Torch warns of batches beyond the length that it was last asked for, which may be that of the rest of an epoch.
        len(self)
        for loaded in self._loader:
            batch = with_made_views(loaded, channels_last=False)
            if self._seen is not None:
                batch["pixel_values"] = normalize(batch["pixel_values"], self._seen)
            yield batch
