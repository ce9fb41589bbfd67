"""One operating-system process per loaded model: the pool in the server, the loop in the process, and what they say."""
