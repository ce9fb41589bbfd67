import pytest
from inventory import OutOfStock, receive, remaining, sell


def test_what_remains():
    assert remaining(10, 4) == 6


def test_selling_everything_leaves_nothing():
    assert sell({"nails": 5}, "nails", 5) == 0


def test_a_delivery_adds_to_the_shelf():
    shelf = {"nails": 10}
    assert receive(shelf, "nails", 5) == 15
    assert receive(shelf, "screws", 3) == 3


def test_selling_more_than_there_is():
    with pytest.raises(OutOfStock):
        sell({"nails": 2}, "nails", 3)
