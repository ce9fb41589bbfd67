import pytest
from pager import count_pages, footer, page_lines


def test_counting_pages():
    assert count_pages(["a"] * 25, 10) == 3


def test_no_lines_fill_no_page():
    assert count_pages([], 10) == 0


def test_lines_of_the_last_page():
    assert page_lines(["a", "b", "c", "d", "e"], 3, 2) == ["e"]


def test_there_is_no_page_0():
    with pytest.raises(ValueError):
        page_lines(["a"], 0, 10)


def test_the_footer_of_a_single_page():
    assert footer(["a", "b"], 1, 10) == "page 1 of 1"
