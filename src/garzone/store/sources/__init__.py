"""Where models come from: one module per kind of place. Each puts blobs into the store and says what they are."""
