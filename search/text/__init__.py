"""From a text file to masked batches."""
