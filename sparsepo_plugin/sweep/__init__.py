"""`sparsepo sweep`: a grid of runs of any host, each in a folder of its own."""
