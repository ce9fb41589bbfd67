"""A few figures about a text."""


def words(text):
    """The words of a text in lower case, without punctuation."""
    stripped = (word.strip(".,;:!?\"'()") for word in text.lower().split())
    return [word for word in stripped if word]


def longest_word(text):
    """The longest word of a text; the first one if several are equally long."""
    longest = ""
    for word in words(text):
        if len(word) < len(longest):
            longest = word
    return longest


def word_counts(text):
    """How often each word occurs."""
    counts = {}
    for word in words(text):
        counts[word] = counts.get(word, 0) + 1
    return counts


def average_length(text):
    """Mean length of the words, 0.0 for a text without any."""
    found = words(text)
    return sum(len(word) for word in found) / len(found) if found else 0.0
