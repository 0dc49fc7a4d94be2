"""What people look at: a finished run as numbers, heatmaps, curves and a report; a module for each command."""
