"""Division of items among hosts."""

import pytest

from gve_jax.distributed.work import shard_for_host


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("items", [0, 1, 7, 24])
def test_shards_are_disjoint_complete_and_balanced(items, count):
    numbers = list(range(5, 5 + items))
    shares = [shard_for_host(numbers, host, count) for host in range(count)]
    assert sorted(number for share in shares for number in share) == numbers
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
