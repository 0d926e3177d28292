import torch

from resnet_builder.data.hashing import HashedDraws, mix, permutation


def draws(
    seed: int = 0, epoch: int = 0, step: int = 0, operation: str = "op", count: int = 64
) -> HashedDraws:
    return HashedDraws(seed, epoch, step, torch.arange(count), operation)


def test_splitmix64_gives_its_published_numbers() -> None:
    """The first output of splitmix64 seeded with 0 (Vigna's reference code)."""
    assert mix(0) == 0xE220A8397B1DCDAF


def test_the_vectorised_mixing_is_the_scalar_one() -> None:
    from resnet_builder.data.hashing import _scramble, _scramble_each, _signed

    numbers = [0, 1, 2**40 + 7, 2**63 - 1]
    wanted = [_signed(_scramble(number)) for number in numbers]
    assert _scramble_each(torch.tensor(numbers)).tolist() == wanted


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


def test_a_sample_s_numbers_do_not_depend_on_its_batch() -> None:
    whole = draws().per_sample(3)
    part = HashedDraws(0, 0, 99, torch.tensor([40, 7]), "op").per_sample(3)
    assert torch.equal(part, whole[[40, 7]])


def test_a_batch_s_numbers_are_the_step_s() -> None:
    assert torch.equal(draws(step=5).per_batch(2), draws(step=5, count=3).per_batch(2))
    assert not torch.equal(draws(step=5).per_batch(2), draws(step=6).per_batch(2))


def test_permutation_holds_every_image_once() -> None:
    assert torch.equal(permutation(3, 5, 1000).sort().values, torch.arange(1000))


def test_permutations_differ_and_seeds_do_not_add_to_epochs() -> None:
    orders = [permutation(seed, epoch, 1000) for seed, epoch in ((0, 0), (0, 1), (1, 0), (2, 0))]
    for number, order in enumerate(orders):
        assert all(not torch.equal(order, other) for other in orders[:number])
    assert torch.equal(permutation(0, 1, 1000), orders[1])
