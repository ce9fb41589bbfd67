from textstats import find_max, longest_word, words


def test_the_largest_number():
    assert find_max([3, 9, 4]) == 9


def test_a_single_number():
    assert find_max([7]) == 7


def test_the_longest_word():
    assert longest_word("a few words, no more") == 5


def test_a_text_without_words():
    assert longest_word("...") == 0


def test_words_lose_punctuation_and_case():
    assert words("Hello, (big) World!") == ["hello", "big", "world"]
