"""The worker: takes one bounded coding task, lets a model write candidates, proves one of them by running something."""
