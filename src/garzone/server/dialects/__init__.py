"""One module for each wire dialect: bytes to core types and back, pure. They never import each other."""
