"""Image folders: ``train/CLASS/...``, ``test/CLASS/...`` and maybe ``val/CLASS/...``."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from resnet_builder.data.class_folders import ClassFolders, find_classes, find_split
from resnet_builder.data.image_files import (
    LabelledSplits,
    describe,
    files_by_class,
    load_images,
    load_split_images,
)
from resnet_builder.data.interfaces import (
    DATASETS,
    DatasetInfo,
    LoadContext,
    LoadedDataset,
    LoadedSplit,
    Stop,
)
from resnet_builder.errors import DataError


@DATASETS.register("image_folder")
class ImageFolder:
    """Your own images, one folder for each class.

    Folders of classes without ``train`` around them are training images, all of them.

    Images are decoded and preprocessed once, cached in the data folder and held in memory, unless
    that takes more than 4 GiB, or training crops full images that are larger than the
    preprocessed ones: then worker processes decode them each time. The fingerprint is of the
    decoded images; of images that stay in their files, it is of the files.

    Args:
        path: Folder that holds ``train``, ``test`` and ``val``, or the classes; relative to the
            file that names it.
        channels: 3 for RGB, 1 for grey, 4 for RGB and alpha.
    """

    def __init__(
        self, *, path: Annotated[str, Field(min_length=1)], channels: Literal[1, 3, 4] = 3
    ) -> None:
        self._path = path
        self._channels = channels
        self.info = DatasetInfo(channels=channels, validation=None)

    def inspect(self, data_dir: Path, stop: Stop) -> DatasetInfo:
        """List the folder, without decoding an image.

        Raises:
            DataError: A folder is missing or empty, or a split has classes of its own.
            Stopped: ``stop`` became true.
        """
        return describe(self._list(data_dir, stop), self._channels)

    def load(self, context: LoadContext) -> LoadedDataset:
        """List the folder, scan every image, and hold the images in memory if they fit.

        Raises:
            DataError: A folder is missing or empty, a split has classes of its own, or images
                are broken or of several sizes.
            Stopped: ``context.stop`` became true.
        """
        return load_images(self._list(context.data_dir, context.stop), self._channels, context)

    def load_split(self, context: LoadContext, split: str, *, undivided: bool) -> LoadedSplit:
        """Load one split as :meth:`load` does, without looking at the others.

        Raises:
            DataError: The folder is missing or empty, or images are broken or of several sizes.
            Stopped: ``context.stop`` became true.
            UsageError: There are other splits, but not this one.
        """
        root = context.data_dir / self._path
        found = find_split(root, split, context.stop, undivided=undivided)
        classes = tuple(found.splits[split])
        return load_split_images(_labelled(root, found, classes), self._channels, context)

    def _list(self, data_dir: Path, stop: Stop) -> LabelledSplits:
        root = data_dir / self._path
        if root.is_file():
            raise DataError(
                f"{root} is a file, and a folder with a folder of images for each class is needed; "
                "`predict` takes single images"
            )
        found = find_classes(root, stop)
        return _labelled(root, found, tuple(found.splits["train"]))


def _labelled(root: Path, found: ClassFolders, classes: tuple[str, ...]) -> LabelledSplits:
    splits = {split: files_by_class(images, classes) for split, images in found.splits.items()}
    return LabelledSplits(root, classes, splits, found.notices)
