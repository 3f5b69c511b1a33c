"""The questions that draws answer: forecasts, comparisons, crossovers, scores."""
