"""Cards of ranks as tests need them."""

from lgd.preflight.card import Card

GIB = 2**30


def make_card(rank, host=None, **changes):
    """A rank of a cluster of two ranks a host, all of them well."""
    node = rank // 2
    values = {
        "rank": rank, "local_rank": rank % 2, "host": host or f"node{node}", "node": node, "device": "cpu",
        "device_name": "CPU", "driver": "", "backend": "gloo", "versions": {"torch": "2.15.0"},
        "interface": "eth0", "address": f"10.0.0.{node + 1}", "prefix": 24, "speed": None,
        "source": "host name", "interfaces": (f"eth0 10.0.0.{node + 1}/24",), "port": 1, "config_hash": "",
        "problems": (),
    }  # fmt: skip
    return Card(**{**values, **changes})


def make_cards(num_ranks, **of_one):
    """Cards by rank; `of_one` maps "r3" to changes of rank 3's."""
    return {rank: make_card(rank, **of_one.get(f"r{rank}", {})) for rank in range(num_ranks)}
