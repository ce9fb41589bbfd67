"""Text to token ids and back: tokenisers, chat templates, and what a model's text means."""
