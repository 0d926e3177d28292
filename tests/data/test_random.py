import torch
from torch import Tensor

from resnet_builder.data.random import StatelessGenerator, hash_seed, permutation

PER_SAMPLE = [0.3861949138341191, 0.7962904267672725]
ONCE = [0.9563288973526606, 0.7140015213611156]
PER_BATCH = [0.814474048994444, 0.7605684599233662]
PERMUTATION = [0, 4, 1, 2, 6, 5, 7, 3]


def draws(
    seed: int = 0, epoch: int = 0, step: int = 0, operation: str = "op", count: int = 64
) -> StatelessGenerator:
    return StatelessGenerator(seed, epoch, step, torch.arange(count), operation)


def test_hash_seed_is_splitmix64() -> None:
    """The first output of splitmix64 seeded with 0 (Vigna's reference code)."""
    assert hash_seed(0) == 0xE220A8397B1DCDAF


def test_numbers_are_fixed_for_ever() -> None:
    """Every seed of every published run depends on them."""
    made = draws(seed=3, epoch=2, step=7, count=2)
    assert made.per_sample(1)[:, 0].tolist() == PER_SAMPLE
    assert made.once_per_sample(1)[:, 0].tolist() == ONCE
    assert made.per_batch(2).tolist() == PER_BATCH
    assert permutation(3, 2, 8).tolist() == PERMUTATION


def test_numbers_are_even_and_independent() -> None:
    numbers = draws(count=100_000).per_sample(2)
    assert numbers.shape == (100_000, 2)
    assert 0 <= numbers.min() < numbers.max() < 1
    counts = torch.histc(numbers.float().flatten(), 64, 0, 1)
    expected = numbers.numel() / 64
    assert ((counts - expected).square() / expected).sum() < 120  # chi-square of 63, p = 1e-5
    assert abs(torch.corrcoef(numbers.T)[0, 1]) < 0.02


def test_each_of_seed_epoch_and_operation_changes_every_number() -> None:
    base = draws().per_sample(3)
    for other in (draws(seed=1), draws(epoch=1), draws(operation="other")):
        assert not (other.per_sample(3) == base).any()


def test_numbers_of_a_sample_do_not_depend_on_its_batch() -> None:
    part = StatelessGenerator(0, 0, 99, torch.tensor([40, 7]), "op")
    assert torch.equal(part.per_sample(3), draws().per_sample(3)[[40, 7]])
    assert torch.equal(part.once_per_sample(3), draws(epoch=5).once_per_sample(3)[[40, 7]])


def test_numbers_of_a_batch_depend_on_the_step_alone() -> None:
    assert torch.equal(draws(step=5).per_batch(2), draws(step=5, count=3).per_batch(2))
    assert not torch.equal(draws(step=5).per_batch(2), draws(step=6).per_batch(2))
    assert draws(step=5).beta(0.2) == draws(step=5, count=3).beta(0.2) != draws(step=6).beta(0.2)


def test_map_seeded_draws_by_the_sample_and_leaves_the_global_generator() -> None:
    def drawn(image: Tensor) -> Tensor:
        return image + torch.rand(3)

    before = torch.get_rng_state()
    whole = draws().map_seeded(drawn, torch.zeros(64, 3))
    part = StatelessGenerator(0, 0, 99, torch.tensor([40, 7]), "op")
    assert torch.equal(part.map_seeded(drawn, torch.zeros(2, 3)), whole[[40, 7]])
    assert len(whole.unique(dim=0)) == 64
    assert not torch.equal(draws(epoch=1).map_seeded(drawn, torch.zeros(64, 3)), whole)
    assert torch.equal(torch.get_rng_state(), before)


def test_permutations_hold_every_image_once_and_seeds_do_not_add_to_epochs() -> None:
    orders = [permutation(seed, epoch, 1000) for seed, epoch in ((0, 0), (0, 1), (1, 0), (2, 0))]
    for number, order in enumerate(orders):
        assert torch.equal(order.sort().values, torch.arange(1000))
        assert all(not torch.equal(order, other) for other in orders[:number])
