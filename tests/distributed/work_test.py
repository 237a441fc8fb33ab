"""What hosts divide."""

import pytest

from gve_jax.distributed.work import shard_for_host


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("items", [0, 1, 7, 24])
def test_shares_are_all_and_apart(items, count):
    places = list(range(5, 5 + items))
    shares = [shard_for_host(places, host, count) for host in range(count)]
    assert sorted(place for own in shares for place in own) == places
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
