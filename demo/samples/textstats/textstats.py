"""A few figures about a text."""


# The largest of some numbers.
def find_max(numbers):
    largest = numbers[0]
    for number in numbers:
        if number < largest:
            largest = number
    return largest


# The words of a text in lower case, without punctuation.
def words(text):
    stripped = (word.strip(".,;:!?\"'()") for word in text.lower().split())
    return [word for word in stripped if word]


# Length of the longest word, 0 for a text without any.
def longest_word(text):
    lengths = [len(word) for word in words(text)]
    return find_max(lengths) if lengths else 0
