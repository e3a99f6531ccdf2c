"""Built-in tasks: problems made by a program, of which a model is asked for some tokens only."""
