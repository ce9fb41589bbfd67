"""Block formats and device code. Only this room and `engine` touch tinygrad."""
