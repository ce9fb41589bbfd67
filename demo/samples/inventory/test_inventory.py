import pytest
from inventory import OutOfStock, receive, running_low, take


def test_a_delivery_adds_to_the_shelf():
    stock = {"nails": 10}
    assert receive(stock, "nails", 5) == 15
    assert receive(stock, "screws", 3) == 3


def test_taking_leaves_the_rest():
    stock = {"nails": 10}
    assert take(stock, "nails", 4) == 6
    assert stock == {"nails": 6}


def test_taking_everything_leaves_nothing():
    assert take({"nails": 10}, "nails", 10) == 0


def test_taking_more_than_there_is():
    stock = {"nails": 2}
    with pytest.raises(OutOfStock):
        take(stock, "nails", 3)
    assert stock == {"nails": 2}


def test_what_runs_low():
    assert running_low({"nails": 2, "glue": 1, "screws": 30}, 5) == ["glue", "nails"]
