"""From YAML text to a checked spec: form, closed sets and ranges. Imports no torch."""
