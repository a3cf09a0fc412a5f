"""What a person sees of a run: report, watch, progress. From what the run wrote, and nothing else."""
