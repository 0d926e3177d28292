import torch
from torchvision.transforms.v2 import functional as F

from resnet_builder.data.preprocess import Preprocessing, preprocess_shape
from resnet_builder.spec.schema import CenterCrop, Resize, ToRgb

STEPS = (
    Resize(type="resize", size=12),
    CenterCrop(type="center_crop", size=10),
    ToRgb(type="to_rgb"),
)


def test_preprocessing_is_that_of_torchvision() -> None:
    image = torch.randint(0, 256, (1, 3, 20, 30)).byte()
    wanted = F.center_crop(F.resize(image, [12], antialias=True), [10])
    assert torch.equal(Preprocessing(STEPS)(image), wanted)


def test_to_rgb_repeats_grey_and_leaves_colours() -> None:
    grey = torch.randint(0, 256, (2, 1, 4, 4)).byte()
    rgb = Preprocessing(STEPS[2:])(grey)
    assert torch.equal(rgb, grey.expand(-1, 3, -1, -1))
    assert torch.equal(Preprocessing(STEPS[2:])(rgb), rgb)


def test_shape_is_known_before_anything_is_read() -> None:
    assert Preprocessing(STEPS)(torch.zeros(2, 1, 24, 24).byte()).shape == (2, 3, 10, 10)
    assert preprocess_shape(STEPS, 1, 24) == (3, 10)
    assert preprocess_shape(STEPS, None, None) == (3, 10)
    assert preprocess_shape(STEPS[:1], 3, None) == (3, None)
