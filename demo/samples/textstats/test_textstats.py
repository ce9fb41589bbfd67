from textstats import average_length, longest_word, word_counts, words

TEXT = "The quick brown fox jumped; the dog did not."


def test_words_lose_punctuation_and_case():
    assert words("Hello, (big) World!") == ["hello", "big", "world"]


def test_the_longest_word():
    assert longest_word(TEXT) == "jumped"


def test_the_first_of_equally_long_words():
    assert longest_word("one two six") == "one"


def test_no_words():
    assert longest_word("...") == ""
    assert average_length("") == 0.0


def test_counting_words():
    assert word_counts(TEXT)["the"] == 2


def test_average_length():
    assert average_length("a bbb") == 2.0
