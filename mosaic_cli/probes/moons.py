"""Three moons (v1, section 5)."""
