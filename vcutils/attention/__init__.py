"""What did the model look at: measures, checks, figures, the explorer."""
