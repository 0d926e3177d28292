"""From a network and data to a finished run: recipe, optimizer step, evaluation, resume."""
