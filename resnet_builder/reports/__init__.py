"""Reports: pages, tables, charts and figures of runs, and drawings of networks."""
