"""garzone's main job, seen once: a small real model repairs three sample repositories, and each repair is proved."""
