import pytest
from pager import page_count, page_items, page_label


def test_full_pages_only():
    assert page_count(20, 10) == 2


def test_a_partly_filled_page_counts_too():
    assert page_count(25, 10) == 3


def test_no_items_fill_no_page():
    assert page_count(0, 10) == 0


def test_pages_must_have_room():
    with pytest.raises(ValueError):
        page_count(5, 0)


def test_items_of_the_last_page():
    assert page_items(list(range(25)), 3, 10) == [20, 21, 22, 23, 24]


def test_the_footer():
    assert page_label(1, 41, 10) == "page 1 of 5"
