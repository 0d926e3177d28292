"""Reports: drawings of networks, from their summaries."""
