"""What a candidate is worth: super-network, training, scores, GLUE."""
